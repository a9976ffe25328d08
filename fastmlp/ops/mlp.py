"""Several linear layers in a row: one call into C++ and one node of autograd for all of them.

A node written in Python costs some 20 us in both passes together, as much as a small layer, and a
call into C++ 3 us; a whole network costs them once here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from fastmlp.ops._register import Operator, is_asked_for, is_transformed
from fastmlp.ops.activations import ACTIVATIONS, row_of_kernel
from fastmlp.ops.checks import is_foreign
from fastmlp.ops.linear import (
    check_linear,
    check_linear_backward,
    linear,
    linear_backward_ref,
    linear_ref,
)
from fastmlp.ops.matmul_precision import FLOAT32, check_matmul_precision, matmul_precision_of


class Layer(NamedTuple):
    """``act(x @ weight.T + bias)``, weight (O, I), bias (O,) or None, with an activation's name."""

    weight: Tensor
    bias: Tensor | None
    activation: str


def takes_one_call(layers: list[Layer]) -> bool:
    """Return whether :func:`mlp` computes layers: not where a transform has to see each operator,
    or where autograd keeps less because some parameters need no gradient."""
    has_bias, recording = layers[0].bias is not None, torch.is_grad_enabled()
    for weight, bias, name in layers:
        if is_foreign(weight, bias) or ACTIVATIONS[name].kernel is None:
            return False
        if (bias is not None) is not has_bias:
            return False
        if recording and not (weight.requires_grad and (bias is None or bias.requires_grad)):
            return False
    return not is_transformed()


def mlp(x: Tensor, layers: list[Layer]) -> Tensor:
    """Return what layers that :func:`takes_one_call` accepts make of x (..., I), one after the
    other, as :func:`fastmlp.ops.linear.linear` does.

    Raises RuntimeError where a layer does not fit the one before it.
    """
    kernels = [ACTIVATIONS[name].kernel for _, _, name in layers]
    has_bias = layers[0].bias is not None
    parameters = [tensor for layer in layers for tensor in layer[: 1 + has_bias]]
    if torch.is_grad_enabled():
        result: Tensor = _Mlp.apply(x, kernels, *parameters)  # type: ignore[attr-defined]
        return result
    (result,) = _mlp_op.kernel(x, parameters, kernels, has_bias, False, matmul_precision_of(x))
    return result


class _Mlp(_SingleLevelFunction):  # type: ignore[misc]
    """Keeps of each layer what :func:`fastmlp.ops.linear.linear` would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: list[int], *parameters: Tensor) -> Tensor:
        has_bias, precision = len(parameters) > len(kernels), matmul_precision_of(x)
        ctx.kernels, ctx.has_bias, ctx.precision = kernels, has_bias, precision
        kept = _mlp_op.kernel(x, parameters, kernels, has_bias, True, precision)
        y: Tensor = kept[-1]
        if row_of_kernel(kernels[-1]).saves != "output":
            kept.pop()
        ctx.save_for_backward(x, *parameters, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        count = len(ctx.kernels) * (1 + ctx.has_bias)
        parameters, kept = tensors[:count], tensors[count:]
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy, x, parameters)
        need_dx = is_asked_for(ctx, 0)
        dx, *gradients = _mlp_backward_op.kernel(
            dy, x, kept, parameters, ctx.kernels, ctx.has_bias, need_dx, ctx.precision
        )
        return dx if need_dx else None, None, *gradients


def _differentiable_backward(
    ctx: Any, dy: Tensor, x: Tensor, parameters: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients as functions of dy, x and the parameters, by going forward once more."""
    y = x
    for weight, bias, kernel in _by_layer(parameters, ctx.kernels, ctx.has_bias):
        y = linear(y, weight, bias, row_of_kernel(kernel).name)
    wanted = [t for t in (x, *parameters) if t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    dx, *rest = (next(found) if t.requires_grad else None for t in (x, *parameters))
    return dx, None, *rest


def _by_layer(
    parameters: list[Tensor], kernels: list[int], has_bias: bool
) -> list[tuple[Tensor, Tensor | None, int]]:
    if not has_bias:
        return [(weight, None, kernel) for weight, kernel in zip(parameters, kernels, strict=True)]
    return list(zip(parameters[::2], parameters[1::2], kernels, strict=True))


def _check_lists(
    parameters: list[Tensor], activations: list[int], bias: bool, matmul_precision: int
) -> None:
    """Raise RuntimeError, as the kernels do, where the lists do not belong together, and ValueError
    for another ``matmul_precision`` than there is."""
    each = 1 + bias
    if not activations or len(parameters) != each * len(activations):
        raise RuntimeError(
            f"parameters must be {each} for each of one or more activations, got "
            f"{len(parameters)} for {len(activations)}"
        )
    check_matmul_precision(matmul_precision)


# ---- the operators: compositions of PyTorch's, which are their fake kernels too ------------------


def _mlp_composition(
    x: Tensor,
    parameters: list[Tensor],
    activations: list[int],
    bias: bool,
    keep: bool,
    matmul_precision: int = FLOAT32,
) -> list[Tensor]:
    kept = []
    for weight, b, kernel in _by_layer(parameters, activations, bias):
        row = row_of_kernel(kernel)
        check_linear(x, weight, b, row.name)
        z = linear_ref(x, weight, b)
        x = row.forward(z)
        kept += [z, x] if keep and row.saves == "input" else [x]
    return kept if keep else kept[-1:]


def _flops(shapes: list[torch.Size], rows: int, bias: bool) -> int:
    weights = shapes[:: 1 + bias]
    return sum(2 * rows * weight.numel() for weight in weights)


_mlp_op = Operator(
    "mlp",
    lambda x, parameters, activations, bias, keep, precision=FLOAT32: _check_lists(
        parameters, activations, bias, precision
    ),
    _mlp_composition,
    _mlp_composition,
    flops=lambda x, parameters, activations, bias, *_, **__: _flops(
        parameters, x[:-1].numel(), bias
    ),
)


def _mlp_backward_composition(
    dy: Tensor,
    x: Tensor,
    kept: list[Tensor],
    parameters: list[Tensor],
    activations: list[int],
    bias: bool,
    need_dx: bool,
    matmul_precision: int = FLOAT32,
) -> list[Tensor]:
    rows = [row_of_kernel(kernel) for kernel in activations]
    wanted = sum(1 + (row.saves == "input") for row in rows) - (rows[-1].saves != "output")
    if len(kept) != wanted:
        raise RuntimeError(f"kept must be what mlp kept of these layers, got {len(kept)}")
    inputs, saved, rest = [x], [], list(kept)
    for row in rows:
        before = rest.pop(0) if row.saves == "input" else None
        output = rest.pop(0) if rest else None
        saved.append(output if row.saves == "output" else before)
        inputs.append(output)  # type: ignore[arg-type]
    gradients: list[Tensor] = []
    layers = list(zip(_by_layer(parameters, activations, bias), inputs, saved, strict=False))
    for i, ((weight, b, kernel), before, after) in reversed(list(enumerate(layers))):
        mask, name = (i > 0 or need_dx, True, b is not None), row_of_kernel(kernel).name
        check_linear_backward(dy, before, weight, after, kernel, *mask, matmul_precision)
        dx, dw, db = linear_backward_ref(dy, before, weight, after, mask, name)
        gradients = [dw, *([] if db is None else [db]), *gradients]  # type: ignore[list-item]
        dy = x.new_empty(0) if dx is None else dx
    return [dy, *gradients]


_mlp_backward_op = Operator(
    "mlp_backward",
    lambda dy, x, kept, parameters, activations, bias, need_dx, precision=FLOAT32: _check_lists(
        parameters, activations, bias, precision
    ),
    _mlp_backward_composition,
    _mlp_backward_composition,
    flops=lambda dy, x, kept, parameters, activations, bias, need_dx, *_, **__: _flops(
        [*parameters, *parameters][0 if need_dx else 1 + bias :], dy[:-1].numel(), bias
    ),
)
