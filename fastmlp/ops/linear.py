"""The operator ``linear``, ``act(x @ weight.T + bias)``, and its derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._register import Operator, is_asked_for
from fastmlp.ops.activations import (
    ACTIVATIONS,
    activation_backward_ref,
    check_saved,
    needs_gradient,
    row_of,
    row_of_kernel,
)
from fastmlp.ops.activations import activation as activate
from fastmlp.ops.checks import check_floating, check_same_dtype, check_shape
from fastmlp.ops.matmul_precision import FLOAT32, check_matmul_precision, matmul_precision_of


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """Raise TypeError or ValueError, in one sentence, unless the arguments fit :func:`linear`."""
    check_floating("x", x)
    check_same_dtype("weight", weight, "x", x)
    if activation not in ACTIVATIONS:
        row_of(activation)  # raises
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

    Float32 on CUDA is multiplied in TF32 only where PyTorch allows it, as ``F.linear`` does. An
    activation whose derivative needs its input is an operator of its own while autograd records,
    so that the input is kept; otherwise the product's kernel applies it.
    """
    row = ACTIVATIONS[activation]
    if row.kernel is None or (row.saves == "input" and needs_gradient(x, weight, bias)):
        return activate(linear(x, weight, bias), activation)
    result: Tensor = _linear_op(x, weight, bias, row.kernel, matmul_precision_of(x))
    return result


def _check_linear_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: int = 0,
    matmul_precision: int = FLOAT32,
) -> None:
    check_linear(x, weight, bias, row_of_kernel(activation).name)
    check_matmul_precision(matmul_precision)


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: int = 0,
    matmul_precision: int = FLOAT32,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _linear_composition(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: int = 0,
    matmul_precision: int = FLOAT32,
) -> Tensor:
    return linear_ref(x, weight, bias, row_of_kernel(activation).name)


def _linear_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the input for the weight's gradient, the weight for the input's, and what the
    activation saves for either."""
    x, weight, bias, kernel, _ = inputs
    ctx.row = row_of_kernel(kernel)
    ctx.in_features = weight.shape[1]
    need_dx, need_dw = ctx.needs_input_grad[:2]
    saves = ctx.row.saves
    ctx.save_for_backward(
        x if need_dw or saves == "input" else None,
        weight if need_dx or saves == "input" else None,
        {"output": output, "input": bias, "nothing": None}[saves],
    )


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, saved = ctx.saved_tensors
    if ctx.row.saves == "input":
        saved = linear(x, weight, bias=saved)
    output_mask = (is_asked_for(ctx, 0), is_asked_for(ctx, 1), is_asked_for(ctx, 2))
    shape, row = dy.shape[:-1], dy.new_empty(ctx.in_features)
    if x is None:  # a row stands in for what only gives a shape
        dy = dy.reshape(shape.numel(), dy.shape[-1])
        saved = saved if saved is None else saved.reshape(dy.shape)
        x = row.expand(shape.numel(), -1)
    if weight is None:
        weight = row.expand(dy.shape[-1], -1)
    dx, dw, db = linear_backward(dy, x, weight, saved, output_mask, ctx.row.name)
    return dx if dx is None else dx.reshape(*shape, ctx.in_features), dw, db, None, None


def _linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x[:-1].numel() * weight.numel()


_linear_op = Operator(
    "linear",
    _check_linear_op,
    _linear_fake,
    _linear_composition,
    _linear_setup_context,
    _linear_backward,
    autocast="region",
    flops=_linear_flops,
)


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
    activation: str = "relu",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return (dx, dw, db) of :func:`linear`, None where ``output_mask`` says it is not needed.

    dy (..., O), x (..., I), weight (O, I); ``saved`` (..., O) is what ``activation`` saves, its
    output or its input, and None where the layer has no activation. TF32 is as in :func:`linear`,
    as allowed at this call; up to 256 rows of a weight that lies by rows are multiplied in float32.
    """
    row = ACTIVATIONS[activation if saved is not None else "none"]
    if row.kernel is None:
        assert saved is not None
        dy, saved, row = row.backward(dy, saved), None, ACTIVATIONS["none"]
    precision = matmul_precision_of(dy)
    dx, dw, db = _linear_backward_op(dy, x, weight, saved, row.kernel, *output_mask, precision)
    return (
        dx if output_mask[0] else None,
        dw if output_mask[1] else None,
        db if output_mask[2] else None,
    )


def check_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: int,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    matmul_precision: int = FLOAT32,
) -> None:
    """Raise TypeError or ValueError unless the arguments fit the operator ``linear_backward``."""
    check_floating("dy", dy)
    check_linear(x, weight, None, "none")
    check_same_dtype("weight", weight, "dy", dy)
    check_shape("dy", dy, (*x.shape[:-1], weight.shape[0]), "x and weight")
    check_matmul_precision(matmul_precision)
    if (saved is None) != (row_of_kernel(activation).name == "none"):
        raise ValueError("saved must be given where there is an activation, and only there")
    if saved is not None:
        check_saved(dy, saved, activation)


def _linear_backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: int,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    matmul_precision: int = FLOAT32,
) -> tuple[Tensor, ...]:
    shapes, needs = (x.shape, weight.shape, weight.shape[:1]), (need_dx, need_dw, need_db)
    return tuple(dy.new_empty(s if need else (0,)) for s, need in zip(shapes, needs, strict=True))


def _linear_backward_composition(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: int,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    matmul_precision: int = FLOAT32,
) -> tuple[Tensor, ...]:
    mask, name = (need_dx, need_dw, need_db), row_of_kernel(activation).name
    gradients = linear_backward_ref(dy, x, weight, saved, mask, name)
    return tuple(dy.new_empty(0) if g is None else g for g in gradients)


def _linear_backward_flops(
    dy: torch.Size, x: torch.Size, weight: torch.Size, *args: Any, **_: Any
) -> int:
    products: int = sum(args[2:4])  # need_dx, need_dw
    return 2 * dy[:-1].numel() * weight.numel() * products


_linear_backward_op = Operator(
    "linear_backward",
    check_linear_backward,
    _linear_backward_fake,
    _linear_backward_composition,
    flops=_linear_backward_flops,
)


def linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``y = act(x @ weight.T + bias)``; x (..., I), weight (O, I), bias (O,) -> y (..., O).

    As ``torch.nn.functional.linear``, followed by the activation's ``torch.nn`` counterpart.
    """
    y = F.linear(x, weight, bias)
    return y if activation == "none" else row_of(activation).forward(y)


def linear_backward_ref(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
    activation: str = "relu",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dw, db) of :func:`linear_ref`; those not asked for are None.

    dy (..., O), x (..., I), weight (O, I). ``saved`` (..., O) is what ``activation`` saves, and
    None where the layer has no activation.

        g = dy * act',   dx = g @ weight,   dw = g.T @ x,   db = sum over rows of g
    """
    g = dy if saved is None else activation_backward_ref(dy, saved, activation)
    dx = g @ weight if output_mask[0] else None
    rows, inputs = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (g, x))
    dw = rows.t() @ inputs if output_mask[1] else None
    db = rows.sum(0) if output_mask[2] else None
    return dx, dw, db
