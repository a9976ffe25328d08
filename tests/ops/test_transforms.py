"""The operators under PyTorch's transforms: forward mode, torch.func, vmap, autocast, compile."""

from __future__ import annotations

import contextlib
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import fastmlp
from fastmlp import functional
from fastmlp.ops.activations import ACTIVATIONS

TRANSFORMS = {
    "grad": grad,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "forward over reverse": hessian,
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
}


def losses(activation: str = "tanh", dtype: torch.dtype = torch.float64):
    """Return the same loss of parameters, inputs and labels by fastmlp and by PyTorch, and a batch.

    An ignored label, class weights and smoothing are in it."""
    torch.manual_seed(0)
    ours = fastmlp.MLP([4, 5, 3], dtype=dtype, activation=activation)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=dtype)

    def of(model: nn.Module, cross_entropy):
        def loss(parameters, x, y):
            logits = functional_call(model, parameters, (x,))
            return cross_entropy(logits, y, weight, ignore_index=1, label_smoothing=0.1)

        return loss

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    batch = torch.randn(6, 4, dtype=dtype), torch.tensor([0, 1, 2, 2, 0, 2])
    torch_loss = of(ours.to_torch(), F.cross_entropy)
    return of(ours, functional.cross_entropy), torch_loss, parameters, batch


def assert_same(got, want, **tolerance) -> None:
    got, want = tree_leaves(got), tree_leaves(want)
    assert sum(float(t.abs().sum()) for t in want) > 0
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, **tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives(transform, activation):
    ours, theirs, parameters, (x, y) = losses(activation)
    assert_same(transform(ours)(parameters, x, y), transform(theirs)(parameters, x, y))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives_of_each_row(transform):
    """vmap over derivatives, where PyTorch's own loss with weights cannot, and no slow fallback."""
    ours, theirs, parameters, (x, y) = losses()
    x, y = x[y != 1][:, None], y[y != 1][:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = vmap(transform(ours), (None, 0, 0))(parameters, x, y)
    rows = [tree_leaves(transform(theirs)(parameters, *row)) for row in zip(x, y, strict=True)]
    assert_same(got, [torch.stack(leaves) for leaves in zip(*rows, strict=True)])


def test_an_ensemble_by_vmap():
    ours, theirs, parameters, (x, y) = losses()
    many = {name: torch.stack([p, 2 * p, -p]) for name, p in parameters.items()}
    got = vmap(grad(ours), (0, None, None))(many, x, y)
    assert_same(got, vmap(grad(theirs), (0, None, None))(many, x, y))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives_under_autocast(transform):
    ours, theirs, parameters, (x, y) = losses("relu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = transform(ours)(parameters, x, y)
        want = transform(theirs)(parameters, x, y)
    assert_same(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jacfwd", "forward over reverse"])
def test_derivatives_compiled(name):
    ours, theirs, parameters, (x, y) = losses()
    transform = TRANSFORMS[name]
    assert_same(
        torch.compile(transform(ours), backend="aot_eager")(parameters, x, y),
        transform(theirs)(parameters, x, y),
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_jvp_of_each_operator(compiled):
    x, v, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    wrap = partial(torch.compile, backend="aot_eager") if compiled else lambda f: f
    functions = {
        "functional": lambda x: functional.linear(x, w),
        "operator": lambda x: torch.ops.fastmlp.linear(x, w),
    }
    for f in functions.values():
        assert wrap(lambda x, v, f=f: jvp(f, (x,), (v,))[1])(x, v).tolist() == [[3.0]]
    assert wrap(lambda x, v: jvp(functional.relu, (x,), (v,))[1])(x, v).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad])
def test_dual_tensors(context):
    x, v, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    w.requires_grad_()
    with context(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        for call in (functional.linear, functional.linear_relu, torch.ops.fastmlp.linear):
            assert forward_ad.unpack_dual(call(dual, w)).tangent.tolist() == [[3.0]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_in_forward_mode(activation):
    torch.manual_seed(0)
    x, w, b = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (2, 4), (2,))
    )

    def f(x, w, b):
        return functional.linear(x, w, b, activation)

    assert torch.autograd.gradcheck(f, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        f, (x, w, b), check_fwd_over_rev=True, check_rev_over_rev=True
    )


def test_flops_are_counted():
    model = fastmlp.MLP([64, 32, 10])
    with FlopCounterMode(display=False) as counter:
        loss = functional.cross_entropy(model(torch.randn(16, 64)), torch.zeros(16).long())
        loss.backward()
    assert counter.get_total_flops() == 161_792


def test_flops_of_the_operators_themselves():
    x, w, dy = torch.randn(16, 64), torch.randn(32, 64), torch.randn(16, 32)
    with FlopCounterMode(display=False) as counter:
        torch.ops.fastmlp.linear(x, w)
        torch.ops.fastmlp.linear_backward(dy, x, w, None, 0, True, False, True)
    assert counter.get_total_flops() == 2 * 2 * 16 * 64 * 32


def test_backward_keeps_only_what_it_needs():
    """A frozen weight's input may change before the backward pass, and is not held."""
    w, frozen = torch.randn(5, 4, requires_grad=True), torch.randn(3, 5)
    x = torch.randn(7, 4)
    hidden = functional.linear(x, w)
    buffer = hidden * 1
    y = functional.linear(buffer, frozen)
    buffer.zero_()
    y.sum().backward()
    torch.testing.assert_close(w.grad, frozen.sum(0)[:, None] * x.sum(0))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        functional.linear(functional.linear(x, w), frozen)
    assert sorted(t.shape for t in kept) == [(3, 5), (7, 4)]


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (5,)])
@pytest.mark.parametrize("frozen", ["x", "weight"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_gradients_beside_what_is_frozen(activation, frozen, shape):
    tensors = {"x": torch.randn(shape, dtype=torch.float64)}
    tensors |= {"weight": torch.randn(3, 5, dtype=torch.float64)}
    tensors |= {"bias": torch.randn(3, dtype=torch.float64)}
    wanted = [t.requires_grad_() for name, t in tensors.items() if name != frozen]
    y = functional.linear(**tensors, activation=activation)
    want = functional.linear(**tensors, activation=activation, backend="reference")
    dy = torch.randn_like(y)
    assert_same(torch.autograd.grad(y, wanted, dy), torch.autograd.grad(want, wanted, dy))
