"""ReLUs that save a bit an element for their backward pass, and not their output.

Laid out as :mod:`fastmlp.ops.linear`, whose backward operators take an output or its mask. What a mask is
stands at :func:`fastmlp.ops.reference.pack_mask_ref`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._register import Operator
from fastmlp.ops.activations import relu_backward, relu_ref
from fastmlp.ops.linear import linear_backward, linear_ref
from fastmlp.ops.matmul_precision import FLOAT32, float32_of


def _mask_of(y: Tensor) -> Tensor:
    shape = (*y.shape[:-1], (y.shape[-1] + 7) // 8) if y.dim() else (1,)
    return y.new_empty(shape, dtype=torch.uint8)


# ---- linear -------------------------------------------------------------------------------------


def linear_relu_with_mask(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``relu(x @ weight.T + bias)`` and its mask, uint8: x (..., I), weight (O, I), bias (O,) ->
    (..., O), (..., ceil(O / 8))."""
    result: tuple[Tensor, Tensor] = _linear_relu_with_mask(x, weight, bias, float32_of(x))
    return result


def _linear_relu_with_mask_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, float32: int = FLOAT32
) -> tuple[Tensor, Tensor]:
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    return y, _mask_of(y)


def _linear_relu_with_mask_setup(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    x, weight, bias, _ = inputs
    _, mask = output
    ctx.save_for_backward(x, weight, mask)
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(mask)
    ctx.set_materialize_grads(False)  # there would be zeros for the mask


def _linear_relu_with_mask_autograd(
    ctx: Any, dy: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    x, weight, mask = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = (needs[0], needs[1], ctx.has_bias and needs[2])
    return *linear_backward(dy, x, weight, mask, wanted), None


_linear_relu_with_mask = Operator(
    "linear_relu_with_mask",
    _linear_relu_with_mask_fake,
    _linear_relu_with_mask_setup,
    _linear_relu_with_mask_autograd,
    "region",
)


# ---- relu ---------------------------------------------------------------------------------------


def relu_with_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """``max(x, 0)``, contiguous, and its mask, uint8: x (..., C) -> (..., C), (..., ceil(C / 8)); a
    scalar's mask is (1,)."""
    result: tuple[Tensor, Tensor] = _relu_with_mask(x)
    return result


def _relu_with_mask_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape)
    return y, _mask_of(y)


def _relu_with_mask_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, mask = output
    ctx.save_for_backward(mask)
    ctx.mark_non_differentiable(mask)
    ctx.set_materialize_grads(False)


def _relu_with_mask_autograd(ctx: Any, dy: Tensor | None, _: Any) -> Tensor | None:
    return None if dy is None else relu_backward(dy, *ctx.saved_tensors)


_relu_with_mask = Operator(
    "relu_with_mask", _relu_with_mask_fake, _relu_with_mask_setup, _relu_with_mask_autograd
)


def linear_relu_with_mask_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`linear_ref` with a ReLU, (..., O), and its mask (..., ceil(O / 8))."""
    y = linear_ref(x, weight, bias, "relu")
    return y, pack_mask_ref(y)


def relu_with_mask_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`relu_ref`, contiguous, and its mask."""
    y = relu_ref(x).contiguous()
    return y, pack_mask_ref(y)


def pack_mask_ref(y: Tensor) -> Tensor:
    """A ReLU's mask, uint8 (..., ceil(C / 8)), from its output or input y (..., C).

    Bit ``c % 8`` (the lowest is 0) of byte ``c // 8`` is 1 where the gradient passes element c of
    the last dimension: where y is not <= 0, so at nan too. Bits past the last element are 0. A
    scalar counts as C = 1.
    """
    bits = ~(y.reshape(1) if y.dim() == 0 else y).le(0)
    bits = F.pad(bits, (0, -bits.shape[-1] % 8))
    bits = bits.reshape(*bits.shape[:-1], bits.shape[-1] // 8, 8)
    return (bits << torch.arange(8, device=y.device)).sum(-1).to(torch.uint8)


def unpack_mask_ref(mask: Tensor, shape: torch.Size) -> Tensor:
    """Where the gradient passes, bool of ``shape``, which y had in :func:`pack_mask_ref`."""
    bits = mask.unsqueeze(-1) >> torch.arange(8, device=mask.device) & 1
    return bits.flatten(-2)[..., : shape[-1] if shape else 1].reshape(shape).bool()
