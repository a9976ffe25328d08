"""Draw initial parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastmlp.nn.layers import LinearActivation
from fastmlp.ops.activations import row_of
from fastmlp.utils.randomness import seeded_generator

INITS = "kaiming, torch, xavier or normal:STD"
"""The names that :func:`init_parameters` knows, as its messages and --help texts list them."""


def parse_init(name: str) -> tuple[str, float]:
    """Return (kind, std) of an initialisation name; std is 0 for the kinds that take none.

    "normal:0.01" -> ("normal", 0.01), "kaiming" -> ("kaiming", 0.0). Raises ValueError otherwise.
    """
    if name in ("kaiming", "torch", "xavier"):
        return name, 0.0
    kind, _, text = str(name).partition(":")
    try:
        std = float(text)
    except ValueError:
        std = math.nan
    if kind != "normal" or not 0 <= std < math.inf:
        raise ValueError(f"init must be {INITS} with a finite STD >= 0, got {name!r}")
    return kind, std


@torch.no_grad()
def init_parameters(
    model: nn.Module,
    name: str = "kaiming",
    generator: torch.Generator | None = None,
    activation: str = "relu",
) -> None:
    """Draw new parameters for every linear layer in ``model``, in the order of its modules.

    kaiming     weight ~ N(0, gain^2 / I), gain that of ``activation`` (ReLU: sqrt(2)) and, for the
                last layer, 1; bias 0 (He 2015)
    torch       ``nn.Linear``'s own: weight and bias ~ U(-1/sqrt(I), 1/sqrt(I))
    xavier      weight ~ U(-a, a), a = sqrt(6 / (I + O)); bias 0 (Glorot 2010)
    normal:STD  weight ~ STD * N(0, 1); bias 0

    The numbers are drawn in float32 on the generator's device (None: PyTorch's global CPU
    generator), then cast and moved: one seed gives the same weights on every device, in every dtype
    and on every backend. Raises ValueError for an unknown name or a model without linear layers.
    """
    kind, std = parse_init(name)
    hidden_gain = row_of(activation).gain
    linears = list(linears_of(model))
    if not linears:
        raise ValueError(f"model must contain a Linear layer, got {type(model).__name__} without")
    generator = torch.default_generator if generator is None else generator
    for layer in linears:
        fan_in, fan_out = layer.in_features, layer.out_features
        weight = torch.empty(fan_out, fan_in, dtype=torch.float32, device=generator.device)
        bias = torch.zeros(fan_out, dtype=torch.float32, device=generator.device)
        if kind == "kaiming":
            gain = 1.0 if layer is linears[-1] else hidden_gain
            nn.init.normal_(weight, std=gain / math.sqrt(fan_in), generator=generator)
        elif kind == "xavier":
            nn.init.xavier_uniform_(weight, generator=generator)
        elif kind == "normal":
            nn.init.normal_(weight, std=std, generator=generator)
        else:
            bound = 1 / math.sqrt(fan_in)
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:  # no draw for a missing bias, as nn.Linear
                nn.init.uniform_(bias, -bound, bound, generator=generator)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


def linears_of(model: nn.Module) -> Iterator[nn.Linear | LinearActivation]:
    """Return the linear layers of ``model``, in the order of its modules."""
    kinds = (nn.Linear, LinearActivation)
    return (module for module in model.modules() if isinstance(module, kinds))


def initial_parameters(
    sizes: list[int], init: str, seed: int, activation: str = "relu"
) -> dict[str, Tensor]:
    """Return the float32 ``state_dict`` that a run with these layer sizes begins with, a function
    of its arguments alone; ``activation`` is that of the hidden layers. Raises ValueError for an
    unknown ``init``."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, device="meta"), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).to_empty(device="cpu")
    init_parameters(model, init, seeded_generator(seed, 0), activation)
    return model.state_dict()
