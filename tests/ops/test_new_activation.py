"""A row that is added when the program runs, as docs/adding-an-activation.md begins: it has no
kernels, and passes everything that the others pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.activation_suite import ActivationTests, reference_machine
from support.cases import ActivationCase, randn
from support.marks import needs_native
from torch import nn

from fastmlp import functional
from fastmlp.nn.modules import MLP
from fastmlp.ops.activations import ACTIVATIONS, Activation
from fastmlp.ops.linear import linear_backward

SOFTPLUS = Activation(
    name="softplus",
    module=nn.Softplus,
    gain=1.0,
    saves="output",
    forward=F.softplus,
    backward=lambda dy, y: -dy * torch.expm1(-y),
)


@pytest.fixture(autouse=True)
def activation(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "softplus", SOFTPLUS)
    return ActivationCase("softplus", False)


@pytest.fixture
def machine():
    return reference_machine()


class TestNewActivation(ActivationTests):
    pass


BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layers_take_it_whether_there_are_kernels_or_not(backend):
    args = [t.double().requires_grad_() for t in (randn(4, 5), randn(3, 5), randn(3))]
    layer = lambda *a: functional.linear(*a, "softplus", backend=backend)  # noqa: E731
    torch.testing.assert_close(layer(*args), F.softplus(F.linear(*args)))
    torch.autograd.gradcheck(layer, args)
    torch.autograd.gradgradcheck(layer, args)
    y = functional.activation(args[0], "softplus", backend=backend)
    assert torch.equal(y, F.softplus(args[0]))
    model = MLP([5, 4, 3], backend=backend, activation="softplus")
    x = randn(2, 5)
    torch.testing.assert_close(model(x), model.to_torch()(x))
    torch.testing.assert_close(MLP.from_torch(model.to_torch(), backend)(x), model(x))
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(*args)
    torch.testing.assert_close(y, layer(*args))


@needs_native
def test_its_gradient_by_the_products_kernels():
    dy, x, w = randn(4, 3), randn(4, 5).requires_grad_(), randn(3, 5).requires_grad_()
    b = randn(3).requires_grad_()
    y = F.softplus(F.linear(x, w, b))
    wanted = torch.autograd.grad(y, (x, w, b), dy)
    ours = linear_backward(dy, x, w, y.detach(), activation="softplus")
    for got, want in zip(ours, wanted, strict=True):
        torch.testing.assert_close(got, want)
