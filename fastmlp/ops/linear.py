"""The operator ``linear``, ``act(x @ weight.T + bias)``, and its derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._register import Operator
from fastmlp.ops.activations import relu_backward_ref
from fastmlp.ops.checks import check_floating, check_same_dtype
from fastmlp.ops.matmul_precision import FLOAT32, matmul_precision_of

ACTIVATIONS = ("none", "relu")


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """Raises TypeError or ValueError, in one sentence, unless the arguments fit :func:`linear`."""
    check_floating("x", x)
    check_same_dtype("weight", weight, "x", x)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (O, I), got {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape (..., {weight.shape[1]}) to fit weight {tuple(weight.shape)}, "
            f"got {tuple(x.shape)}"
        )
    if bias is not None:
        check_same_dtype("bias", bias, "x", x)
        if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
            raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``act(x @ weight.T + bias)``: x (..., I), weight (O, I), bias (O,) -> (..., O).

    Float32 on CUDA is multiplied in TF32 only where PyTorch allows it, as ``F.linear`` does.
    """
    result: Tensor = _linear(x, weight, bias, activation == "relu", matmul_precision_of(x))
    return result


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    relu: bool = False,
    matmul_precision: int = FLOAT32,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, relu, _ = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.has_bias = bias is not None


def _linear_autograd(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    needs = ctx.needs_input_grad  # shorter where trailing arguments were left at their defaults
    mask = (needs[0], needs[1], ctx.has_bias and needs[2])
    return *linear_backward(dy, x, weight, y, mask), None, None


_linear = Operator("linear", _linear_fake, _linear_setup, _linear_autograd, "region")


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db) of :func:`linear`, None where ``output_mask`` says it is not needed.

    dy (..., O), x (..., I), weight (O, I); ``y`` (..., O) is linear's output where it ended in a
    ReLU and None where it did not. TF32 is as in :func:`linear`, as allowed at
    this call.
    """
    dx, dw, db = _linear_backward(dy, x, weight, y, *output_mask, matmul_precision_of(dy))
    return (
        dx if output_mask[0] else None,
        dw if output_mask[1] else None,
        db if output_mask[2] else None,
    )


def _linear_backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    matmul_precision: int = FLOAT32,
) -> tuple[Tensor, ...]:
    shapes, needs = (x.shape, weight.shape, weight.shape[:1]), (need_dx, need_dw, need_db)
    return tuple(dy.new_empty(s if need else (0,)) for s, need in zip(shapes, needs, strict=True))


def _linear_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.needs = inputs[4:7]
    ctx.set_materialize_grads(False)


def _linear_backward_autograd(
    ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None
) -> tuple[Tensor | None, ...]:
    """From dx = g W, dw = g^T x, db = sum g, with g = dy where the ReLU let through."""
    dy, x, weight, y = ctx.saved_tensors
    need_dx, need_dw, need_db = ctx.needs
    g = dy if y is None else relu_backward_ref(dy, y)
    count = g.shape[:-1].numel()
    d_dy, d_x, d_weight = torch.zeros_like(dy), None, None
    if need_dx and ddx is not None:
        d_dy = d_dy + ddx @ weight.t()
        d_weight = g.reshape(count, -1).t() @ ddx.reshape(count, -1)
    if need_dw and ddw is not None:
        d_dy = d_dy + x @ ddw.t()
        d_x = g @ ddw
    if need_db and ddb is not None:
        d_dy = d_dy + ddb
    if y is not None:
        d_dy = relu_backward_ref(d_dy, y)
    return d_dy, d_x, d_weight, None, None, None, None, None


_linear_backward = Operator(
    "linear_backward", _linear_backward_fake, _linear_backward_setup, _linear_backward_autograd
)


def linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``y = act(x @ weight.T + bias)``; x (..., I), weight (O, I), bias (O,) -> y (..., O).

    As ``torch.nn.functional.linear``, followed by ``relu`` where ``activation="relu"``.
    """
    y = F.linear(x, weight, bias)
    return F.relu(y) if activation == "relu" else y


def linear_backward_ref(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dw, db) of :func:`linear_ref`; those not asked for are None.

    dy (..., O), x (..., I), weight (O, I). ``y`` (..., O), the output, is given where the
    activation was ReLU: the gradient passes where y is not <= 0 (so nan passes it).

        g = dy * [y > 0],   dx = g @ weight,   dw = g.T @ x,   db = sum over rows of g
    """
    g = dy if y is None else relu_backward_ref(dy, y)
    dx = g @ weight if output_mask[0] else None
    rows, inputs = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (g, x))
    dw = rows.t() @ inputs if output_mask[1] else None
    db = rows.sum(0) if output_mask[2] else None
    return dx, dw, db
