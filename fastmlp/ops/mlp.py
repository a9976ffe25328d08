"""Several linear layers in a row as one node of autograd.

A node written in Python costs some 20 us in both passes together, as much as a small layer; a whole
network costs it once here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from fastmlp.ops import linear as linear_ops
from fastmlp.ops._register import is_asked_for, is_transformed
from fastmlp.ops.activations import ACTIVATIONS, _activation_op
from fastmlp.ops.matmul_precision import matmul_precision_of


class Layer(NamedTuple):
    """``act(x @ weight.T + bias)``, weight (O, I), bias (O,) or None, with an activation's name."""

    weight: Tensor
    bias: Tensor | None
    activation: str


def mlp(x: Tensor, layers: list[Layer]) -> Tensor:
    """Return what the layers make of x (..., I), one after the other, as
    :func:`fastmlp.ops.linear.linear` does; its checks are the caller's."""
    if _takes_one_node(x, layers):
        flat = [tensor for layer in layers for tensor in layer[:2]]
        result: Tensor = _Mlp.apply(  # type: ignore[attr-defined]
            x, [layer.activation for layer in layers], *flat
        )
        return result
    return _one_by_one(x, layers)


def _takes_one_node(x: Tensor, layers: list[Layer]) -> bool:
    return (
        torch.is_grad_enabled()
        and all(
            weight.requires_grad
            and (bias is None or bias.requires_grad)
            and ACTIVATIONS[name].kernel is not None
            for weight, bias, name in layers
        )
        and not is_transformed()
    )


def _one_by_one(x: Tensor, layers: list[Layer]) -> Tensor:
    for weight, bias, activation in layers:
        x = linear_ops.linear(x, weight, bias, activation)
    return x


class _Mlp(_SingleLevelFunction):  # type: ignore[misc]
    """Keeps of each layer what :func:`fastmlp.ops.linear.linear` would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, names: list[str], *parameters: Tensor | None) -> Tensor:
        ctx.names, ctx.precision = names, matmul_precision_of(x)
        inputs, saved = [], []
        for i, name in enumerate(names):
            inputs.append(x)
            row = ACTIVATIONS[name]
            fused = 0 if row.saves == "input" else row.kernel
            x = linear_ops._linear_op.kernel(
                x, parameters[2 * i], parameters[2 * i + 1], fused, ctx.precision
            )
            saved.append(None if row.saves == "nothing" else x)
            if row.saves == "input":
                x = _activation_op.kernel(x, row.kernel)
        ctx.save_for_backward(*inputs, *saved, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.names)
        tensors = ctx.saved_tensors
        inputs, saved, parameters = (
            tensors[:count],
            tensors[count : 2 * count],
            tensors[2 * count :],
        )
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy, inputs[0], parameters)
        gradients: list[Tensor | None] = []
        need_dx = is_asked_for(ctx, 0)
        for i in reversed(range(count)):
            weight, bias = parameters[2 * i : 2 * i + 2]
            needs = i > 0 or need_dx, True, bias is not None
            kernel = ACTIVATIONS[ctx.names[i]].kernel
            dx, dw, db = linear_ops._linear_backward_op.kernel(
                dy, inputs[i], weight, saved[i], kernel, *needs, ctx.precision
            )
            gradients += [None if bias is None else db, dw]
            dy = dx
        return dy if need_dx else None, None, *reversed(gradients)


def _differentiable_backward(
    ctx: Any, dy: Tensor, x: Tensor, parameters: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients as functions of dy, x and the parameters, by going forward once more."""
    layers = [
        Layer(parameters[2 * i], parameters[2 * i + 1], name)  # type: ignore[arg-type]
        for i, name in enumerate(ctx.names)
    ]
    wanted = [t for t in (x, *parameters) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(_one_by_one(x, layers), wanted, dy, create_graph=True))
    dx, *rest = (
        next(found) if t is not None and t.requires_grad else None for t in (x, *parameters)
    )
    return dx, None, *rest
