"""What the tests of the graph engine train on, with which options, and how they compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import assert_within_2x
from support.draws import joined, training_draws
from support.single import SingleNetwork, single
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization, make_normalization
from fastmlp.engines.base import Engine
from fastmlp.engines.graph import GraphEngine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.nn.init import initial_parameters

IMAGES, CLASSES = 203, 5  # 25 batches of 8: six chunks of four and one over, and a rest of 3
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "decay": {"weight_decay": 0.05},
    "averaged": {"grad_average": True},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "grad_average": True},
    "adam": {"optimizer": "adam", "weight_decay": 0.02},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.5, "grad_average": True},
}
EACH_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
ENDS = pytest.mark.parametrize(
    "options", [{}, OPTIONS["all"], OPTIONS["adamw"]], ids=["plain", "all", "adamw"]
)
BITS = pytest.mark.parametrize(
    "options",
    [
        *(OPTIONS[name] for name in ("plain", "all", "adamw")),
        {"precision": "bfloat16"},
        {"activation": "gelu", "dropout": 0.3, "clip_norm": 0.5, "seed": 5},
    ],
    ids=["plain", "all", "adamw", "bfloat16", "general"],
)
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error", "huber", "poisson")
ACTIVATIONS = ("none", "leaky_relu", "tanh", "sigmoid", "gelu", "silu")
GENERAL = [
    *({"loss": loss} for loss in LOSSES),
    *({"activation": name} for name in ACTIVATIONS),
    {"label_smoothing": 0.2},
    {"dropout": 0.4, "seed": 2**40 + 3},
    {"clip_norm": 0.05, "optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    {"optimizer": "adamw", "weight_decay": 0.1, "grad_average": True, "clip_norm": 0.01},
]
KINDS = (GraphEngine, ReferenceEngine)
DEPTHS = pytest.mark.parametrize("hidden", [(), (19,), (12, 7), (31, 8, 17)], ids=str)


def problem(inputs: int = 37) -> tuple[Subset, Normalization]:
    random = torch.Generator().manual_seed(8)
    images = torch.randint(0, 256, (IMAGES, inputs), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=random)
    scale = 0.02 * torch.rand(inputs, generator=random) + 0.01
    shift = -torch.rand(inputs, generator=random)
    return Subset(images, labels), Normalization("standard", scale, shift)


def rows_of_numbers(loss: str, weighted: bool) -> tuple[Subset, Normalization]:
    """Rows with targets for the loss, some of them of weight 0, a whole batch among them."""
    random = torch.Generator().manual_seed(5)
    x = torch.randn(IMAGES, 7, generator=random)
    targets = torch.randint(0, CLASSES, (IMAGES,), generator=random)
    if loss != "cross_entropy":
        targets = torch.randint(0, 2, (IMAGES, CLASSES), generator=random).float()
    weights = torch.randint(0, 4, (IMAGES,), generator=random).float()
    weights[order_of()[16:24]] = 0
    return Subset(x, targets, weights=weights if weighted else None), make_normalization("none", x)


def make(
    kind: type[Engine],
    device: torch.device,
    options: dict[str, Any],
    hidden: tuple[int, ...] = (19,),
    dtype: torch.dtype = torch.float32,
    data: tuple[Subset, Normalization] | None = None,
) -> SingleNetwork:
    part, norm = data or problem()
    sizes = [part.images.shape[1], *hidden, CLASSES]
    parameters = initial_parameters(sizes, "kaiming", seed=3)
    parameters = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    config = OptimizerConfig(**{"batch_size": 8, **options})
    return single(kind, parameters, part, norm, config, device)


def flat(engine: SingleNetwork) -> dict[str, Tensor]:
    state = engine.state_dict()
    return {f"{kind}.{k}": t for kind, part in state.items() for k, t in part.items()}


def assert_same_bits(one: SingleNetwork, other: SingleNetwork) -> None:
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name


def assert_close(one: SingleNetwork, other: SingleNetwork) -> None:
    """In float64: equal up to rounding."""
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-10, atol=1e-12)


def assert_as_close_as_pytorch(
    device: torch.device, options: dict[str, Any], hidden: tuple[int, ...], order: Tensor
) -> None:
    """Assert that an epoch in float32 ends no further from the truth than twice plain PyTorch."""

    def plain(data: tuple[Subset, Normalization], dtype: torch.dtype = torch.float32) -> Any:
        return make(ReferenceEngine, device, options, hidden, dtype, data)

    ours, truth = make(GraphEngine, device, options, hidden), plain(problem(), torch.float64)
    for engine in (ours, truth):
        engine.train_epoch(order, 0.05)
    draws = joined(training_draws(plain, problem(), [(order, 0.05)], options.get("batch_size", 8)))
    assert_within_2x(*joined([flat(ours)]), draws, *joined([flat(truth)]))


def order_of(count: int = IMAGES, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, IMAGES, (count,), generator=random)
