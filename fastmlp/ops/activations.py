"""The activations as rows of a table, and the operators ``activation`` and its derivative.

``csrc/common/activation.h`` is the other half of the table: the compiled kernels, in the same
order. docs/adding-an-activation.md adds a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmlp.ops._register import Operator
from fastmlp.ops.checks import check_floating, check_same_dtype, check_shape


@dataclass(frozen=True)
class Activation:
    """One row of the table; everything else that names an activation looks it up here."""

    name: str
    module: type[nn.Module]
    """The counterpart in ``torch.nn``, called without arguments."""
    gain: float
    """How much larger than 1 / sqrt(inputs) initial weights are drawn, so that activations keep
    their size from layer to layer: ``nn.init.calculate_gain`` or, where that has none,
    E[f(z)^2]^(-1/2) for a normal z."""
    saves: str
    """What the derivative is computed from: "output", "input" or "nothing"."""
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    """``(dy, saved) -> dx``, dy times the derivative, of differentiable torch operators."""
    kernel: int | None = None
    """Its number in ``csrc/common/activation.h``; None where there are no compiled kernels, and
    ``forward`` runs in their place."""
    options: tuple[tuple[str, Any], ...] = field(init=False)
    """What a module must have been given to compute this row: its options with their defaults,
    without ``inplace``."""

    def __post_init__(self) -> None:
        twin = self.module()
        names = [n for n in getattr(twin, "__constants__", ()) if n != "inplace"]
        object.__setattr__(self, "options", tuple((n, getattr(twin, n)) for n in names))


def relu_backward_ref(dy: Tensor, y: Tensor) -> Tensor:
    """``dx = 0 where y <= 0, else dy``; ``y`` is relu's output or, equally, its input."""
    return torch.where(y <= 0, torch.zeros_like(dy), dy)


def _gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return dy * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * _normal_density(x))


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return dy * s * (1 + x * (1 - s))


_gain = nn.init.calculate_gain
_ROWS = (
    Activation("none", nn.Identity, 1.0, "nothing", torch.clone, lambda dy, _: dy.clone()),
    Activation("relu", nn.ReLU, _gain("relu"), "output", F.relu, relu_backward_ref),
    Activation(
        "leaky_relu",
        nn.LeakyReLU,
        _gain("leaky_relu", 0.01),
        "output",
        F.leaky_relu,
        lambda dy, y: torch.where(y > 0, dy, 0.01 * dy),
    ),
    Activation(
        "tanh",
        nn.Tanh,
        _gain("tanh"),
        "output",
        torch.tanh,
        lambda dy, y: dy * (1 - y * y),
    ),
    Activation(
        "sigmoid",
        nn.Sigmoid,
        _gain("sigmoid"),
        "output",
        torch.sigmoid,
        lambda dy, y: dy * (1 - y) * y,
    ),
    Activation(
        "gelu",
        nn.GELU,
        1.5335304411954,
        "input",
        F.gelu,
        _gelu_backward,
    ),
    Activation("silu", nn.SiLU, 1.6765324703310, "input", F.silu, _silu_backward),
)
_COMPILED = [replace(row, kernel=number) for number, row in enumerate(_ROWS)]
ACTIVATIONS = {row.name: row for row in _COMPILED}
"""The table, by name. A new row may be added when the program runs, without compiled kernels."""


def row_of(name: str) -> Activation:
    """Return a row of the table; raises ValueError, naming them all, for another name."""
    row = ACTIVATIONS.get(name)
    if row is None:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return row


def row_of_kernel(number: int) -> Activation:
    """Return the row whose compiled kernels have this number; raises ValueError for another."""
    if not 0 <= number < len(_COMPILED):
        raise ValueError(f"activation must be between 0 and {len(_COMPILED) - 1}, got {number}")
    return _COMPILED[number]


def needs_gradient(*tensors: Tensor | None) -> bool:
    """True where autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_activation(x: Tensor, name: str) -> None:
    """Raise TypeError unless x is a floating-point tensor, ValueError for an unknown name."""
    check_floating("x", x)
    row_of(name)


def activation(x: Tensor, name: str) -> Tensor:
    """``act(x)``, any shape and strides, with PyTorch's nan, inf and -0."""
    row = ACTIVATIONS[name]
    result: Tensor = row.forward(x) if row.kernel is None else _activation_op(x, row.kernel)
    return result


def _activation_fake(x: Tensor, kernel: int) -> Tensor:
    return torch.empty_like(x)


def _activation_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kernel = inputs
    ctx.save_for_backward(x if row_of_kernel(ctx.kernel).saves == "input" else output)


def _activation_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return _activation_backward_op(dy, *ctx.saved_tensors, ctx.kernel), None


_activation_op = Operator(
    "activation",
    lambda x, kernel: check_activation(x, row_of_kernel(kernel).name),
    _activation_fake,
    lambda x, kernel: row_of_kernel(kernel).forward(x),
    _activation_setup_context,
    _activation_backward,
)


def activation_backward(dy: Tensor, saved: Tensor, name: str) -> Tensor:
    """``dx`` of :func:`activation`; ``saved``, of dy's shape, is what its row names."""
    row = ACTIVATIONS[name]
    if row.kernel is None:
        return row.backward(dy, saved)
    result: Tensor = _activation_backward_op(dy, saved, row.kernel)
    return result


def check_saved(dy: Tensor, saved: Tensor, kernel: int) -> None:
    """Raise TypeError or ValueError unless ``saved`` can be what an activation saved, for dy."""
    row_of_kernel(kernel)
    check_floating("dy", dy)
    check_same_dtype("saved", saved, "dy", dy)
    check_shape("saved", saved, dy.shape, "dy")


def _activation_backward_fake(dy: Tensor, saved: Tensor, kernel: int) -> Tensor:
    return torch.empty_like(saved)


_activation_backward_op = Operator(
    "activation_backward",
    check_saved,
    _activation_backward_fake,
    lambda dy, saved, kernel: row_of_kernel(kernel).backward(dy, saved),
)


def activation_ref(x: Tensor, name: str) -> Tensor:
    """``act(x)`` elementwise, as the row's ``torch.nn`` counterpart."""
    return row_of(name).forward(x)


def activation_backward_ref(dy: Tensor, saved: Tensor, name: str) -> Tensor:
    """``dx`` of :func:`activation_ref` from what the row saves."""
    return row_of(name).backward(dy, saved)
