"""The activations: ``relu`` and its derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._register import Operator
from fastmlp.ops.checks import check_floating


def check_relu(x: Tensor) -> None:
    """Raises TypeError unless x is a floating-point tensor."""
    check_floating("x", x)


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``, any shape and strides; nan stays nan."""
    result: Tensor = _relu(x)
    return result


def _relu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _relu_autograd(ctx: Any, dy: Tensor) -> Tensor:
    return relu_backward(dy, *ctx.saved_tensors)


_relu = Operator("relu", torch.empty_like, _relu_setup, _relu_autograd)


def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    """``0 where y <= 0, else dy``; y is relu's output or its input, of dy's shape."""
    result: Tensor = _relu_backward(dy, y)
    return result


def _relu_backward_fake(dy: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(y)


def _relu_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _relu_backward_autograd(ctx: Any, ddx: Tensor) -> tuple[Tensor, None]:
    return relu_backward_ref(ddx, *ctx.saved_tensors), None


_relu_backward = Operator(
    "relu_backward", _relu_backward_fake, _relu_backward_setup, _relu_backward_autograd
)


def relu_ref(x: Tensor) -> Tensor:
    """``max(x, 0)`` elementwise, any shape; relu(nan) is nan. As ``torch.nn.functional.relu``."""
    return F.relu(x)


def relu_backward_ref(dy: Tensor, y: Tensor) -> Tensor:
    """``dx = 0 where y <= 0, else dy``; ``y`` is relu's output or, equally, its input."""
    return torch.where(y <= 0, torch.zeros_like(dy), dy)
