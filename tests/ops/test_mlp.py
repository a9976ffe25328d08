"""Layers as one node of autograd give what one node each gives, to every derivative."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.marks import needs_native
from torch import Tensor, nn

from fastmlp.nn.mlp import apply_layers
from fastmlp.ops import linear as linear_ops
from fastmlp.ops import mlp as mlp_ops
from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.linear import linear
from fastmlp.ops.mlp import Layer

pytestmark = needs_native
SIZES = (5, 7, 6, 3)


def layers_of(activation: str, bias: bool = True) -> list[Layer]:
    made = []
    for i, (fan_in, fan_out) in enumerate(pairwise(SIZES)):
        weight = torch.randn(fan_out, fan_in, dtype=torch.float64).requires_grad_()
        b = torch.randn(fan_out, dtype=torch.float64).requires_grad_() if bias else None
        made.append(Layer(weight, b, activation if i + 2 < len(SIZES) else "none"))
    return made


def leaves_of(x: Tensor, layers: list[Layer]) -> list[Tensor]:
    return [t for t in (x, *(t for layer in layers for t in layer[:2])) if t is not None]


def by_pytorch(x: Tensor, layers: list[Layer]) -> Tensor:
    for weight, bias, name in layers:
        x = ACTIVATIONS[name].forward(nn.functional.linear(x, weight, bias))
    return x


def is_one_node(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_MlpBackward"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_values_gradients_and_second_derivatives(activation, bias):
    layers = layers_of(activation, bias)
    x = torch.randn(4, 2, SIZES[0], dtype=torch.float64, requires_grad=True)
    leaves = leaves_of(x, layers)
    results = []
    for function in (apply_layers, by_pytorch):
        y = function(x, layers)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        plain = torch.autograd.grad(function(x, layers).sin().sum(), leaves)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves, allow_unused=True)
        results.append([y, *plain, *first, *second])
    assert is_one_node(apply_layers(x, layers))
    for ours, theirs in zip(*results, strict=True):
        if theirs is None:
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("function", "backward", "position"),
    [
        (apply_layers, mlp_ops._mlp_backward_op, 6),
        (lambda x, layers: linear(x, *layers[0]), linear_ops._linear_backward_op, 5),
    ],
    ids=["layers", "a layer"],
)
def test_no_gradient_of_inputs_that_nobody_asked_for(function, backward, position, monkeypatch):
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64).requires_grad_()
    needed, kernel = [], backward.kernel

    def spy(*args: object) -> object:
        needed.append(args[position])
        return kernel(*args)

    monkeypatch.setattr(backward, "kernel", spy)
    y = function(x * 1, layers)
    weight = layers[0].weight
    alone = torch.autograd.grad(y.sum(), weight, retain_graph=True)[0]
    assert not needed[-1]
    both = torch.autograd.grad(y.sum(), (x, weight))
    assert needed[-1]
    assert torch.equal(alone, both[1])


def test_inputs_without_a_gradient_are_a_first_layers():
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64)
    y = apply_layers(x, layers)
    assert is_one_node(y)
    wanted = torch.autograd.grad(by_pytorch(x, layers).sum(), leaves_of(x, layers)[1:])
    found = torch.autograd.grad(y.sum(), leaves_of(x, layers)[1:])
    torch.testing.assert_close(found, wanted)


def test_a_frozen_layer_goes_the_long_way_and_keeps_no_input():
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64)
    layers[0].weight.requires_grad_(False)
    y = apply_layers(x, layers)
    assert not is_one_node(y)
    x.zero_()  # nobody needs it any more
    y.sum().backward()
    assert layers[0].weight.grad is None
    assert layers[0].bias.grad is not None


def test_a_parameter_changed_before_backward_is_an_error():
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64)
    y = apply_layers(x, layers)
    with torch.no_grad():
        layers[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_is_recorded_without_need(monkeypatch):
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64)
    monkeypatch.setattr(mlp_ops, "_Mlp", None)
    with torch.no_grad():
        assert apply_layers(x, layers).grad_fn is None


def test_transforms_go_layer_by_layer():
    layers, x = layers_of("tanh"), torch.randn(4, SIZES[0], dtype=torch.float64)

    def loss(x: Tensor, function: object) -> Tensor:
        return function(x, layers).sin().sum()

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        ours = transform(lambda x: loss(x, apply_layers))(x)
        torch.testing.assert_close(ours, transform(lambda x: loss(x, by_pytorch))(x))
    batched = torch.func.vmap(lambda row: apply_layers(row, layers))(x)
    torch.testing.assert_close(batched, by_pytorch(x, layers))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, :-1], "x must have shape"),
        (lambda t: t[0], "weight must have shape"),
        (lambda t: t.float(), "weight must have the dtype of x"),
    ],
)
def test_layers_that_do_not_fit_are_told_in_linears_words(change, message):
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64)
    layers[1] = layers[1]._replace(weight=change(layers[1].weight))
    with pytest.raises((ValueError, TypeError), match=message):
        apply_layers(x, layers)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_the_operators(activation, bias):
    """Fake kernels and the rest that PyTorch asks for; what is kept; gradients of direct calls."""
    layers, x = layers_of(activation, bias), torch.randn(4, SIZES[0], dtype=torch.float64)
    parameters = leaves_of(x, layers)[1:]
    kernels = [ACTIVATIONS[layer.activation].kernel for layer in layers]
    mlp, backward = torch.ops.fastmlp.mlp, torch.ops.fastmlp.mlp_backward
    for keep in (False, True):
        torch.library.opcheck(mlp.default, (x, parameters, kernels, bias, keep))
    with torch.no_grad():
        kept = mlp(x, parameters, kernels, bias, True)
        (alone,) = mlp(x, parameters, kernels, bias, False)
    torch.testing.assert_close(alone, kept[-1], rtol=1e-14, atol=1e-14)
    assert len(kept) == (5 if ACTIVATIONS[activation].saves == "input" else 3)
    dy, kept = torch.randn_like(alone), kept[:-1]  # the last layer has no activation
    args = (dy, x, kept, [p.detach() for p in parameters], kernels, bias, True)
    torch.library.opcheck(backward.default, args)
    wanted = torch.autograd.grad(by_pytorch(x.requires_grad_(), layers), (x, *parameters), dy)
    torch.testing.assert_close(tuple(backward(*args)), wanted)
    direct = torch.autograd.grad(mlp(x, parameters, kernels, bias, False)[0], (x, *parameters), dy)
    torch.testing.assert_close(direct, wanted)


def test_the_operators_refuse_lists_of_other_lengths():
    layers, x = layers_of("relu"), torch.randn(4, SIZES[0], dtype=torch.float64)
    parameters = [p.detach() for p in leaves_of(x, layers)[1:]]
    mlp, backward = torch.ops.fastmlp.mlp, torch.ops.fastmlp.mlp_backward
    with pytest.raises(RuntimeError, match="2 for each of one or more activations, got 5 for 3"):
        mlp(x, parameters[:-1], [1, 1, 0], True, True)
    kept = mlp(x, parameters, [1, 1, 0], True, True)
    for wrong in (kept, kept[:1]):
        with pytest.raises(RuntimeError, match="kept must be what mlp kept of these layers"):
            backward(kept[-1], x, wrong, parameters, [1, 1, 0], True, True)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["kernel", "composition"])
def test_lists_that_do_not_belong_together(needs_grad: bool) -> None:
    x, w = torch.randn(3, 5), torch.randn(4, 5, requires_grad=needs_grad)
    operators = torch.ops.fastmlp
    with pytest.raises(RuntimeError, match="parameters must be 2 for each of one or more act"):
        operators.mlp(x, [w], [0], True, False, 0)
    with pytest.raises(RuntimeError, match="parameters must be 1 for each of one or more act"):
        operators.mlp(x, [], [], False, False, 0)
    wrong = ValueError if needs_grad else RuntimeError
    with pytest.raises(wrong, match="matmul_precision must be between 0 and 4, got 99"):
        operators.mlp(x, [w], [0], False, False, 99)
    for kept in ([], [x, x, x]):
        with pytest.raises(RuntimeError, match="kept must be what mlp kept of these layers, got"):
            operators.mlp_backward(torch.randn(3, 4), x, kept, [w], [1], False, True, 0)
