"""Constructors and functions take what their counterparts in ``torch.nn`` take, in that order."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from support.marks import needs_native
from torch import nn

import fastmlp
from fastmlp import functional

X = torch.tensor([[-1.0, 0.0, 2.0], [3.0, -0.5, 1.0]])
Y = torch.tensor([2, 0])


@pytest.mark.parametrize("name", ["Linear", "ReLU", "CrossEntropyLoss"])
def test_constructors(name):
    ours, theirs = (
        list(inspect.signature(getattr(owner, name)).parameters.values()) for owner in (fastmlp, nn)
    )
    assert [(p.name, p.default) for p in ours[:-1]] == [(p.name, p.default) for p in theirs]
    assert (ours[-1].name, ours[-1].kind) == ("backend", inspect.Parameter.KEYWORD_ONLY)


@pytest.mark.parametrize("name", ["relu", "cross_entropy"])
def test_functions(name):
    """All but the name of the first tensor; F.linear is a builtin and tells nothing."""
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(getattr(owner, name)).parameters.values()]
        for owner in (functional, F)
    )
    assert ours[1:-1] == theirs[1:]
    assert ours[-1] == ("backend", None)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "reference"])
@pytest.mark.parametrize("by_module", [False, True])
def test_relu_in_place(backend, by_module):
    def relu(x):
        if by_module:
            return fastmlp.ReLU(True, backend=backend)(x)
        return functional.relu(x, inplace=True, backend=backend)

    x = X.clone()
    assert relu(x) is x
    assert torch.equal(x, X.relu())
    leaf = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        relu(leaf)
    y = leaf * 2  # keeps nothing that the next line overwrites
    z = relu(y)
    (dx,) = torch.autograd.grad(z, leaf, X)
    assert torch.equal(dx, 2 * X * (X > 0))
    kept = leaf.exp()
    version = kept._version
    relu(kept)
    assert kept._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()
    assert "inplace=True" in repr(fastmlp.ReLU(inplace=True))


def test_an_mlp_with_relus_in_place_leaves_its_input_alone():
    net = fastmlp.MLP.from_torch(nn.Sequential(nn.Linear(3, 3), nn.ReLU(True), nn.Linear(3, 2)))
    x = X.clone()
    net(x).sum().backward()
    assert torch.equal(x, X)
    del net[0]
    assert torch.equal(net(x), nn.Sequential(*net)(X.clone()))
    assert torch.equal(x, X.relu())


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_deprecated_reductions(average, reduce):
    want = F.cross_entropy(X, Y, None, average, -100, reduce)
    torch.testing.assert_close(functional.cross_entropy(X, Y, None, average, -100, reduce), want)
    loss = fastmlp.CrossEntropyLoss(size_average=average, reduce=reduce)
    torch.testing.assert_close(loss(X, Y), want)
    assert loss.reduction == nn.CrossEntropyLoss(None, average, -100, reduce).reduction


def test_the_deprecated_reductions_warn_as_in_torch():
    with pytest.warns(UserWarning, match="please use reduction='sum'"):
        functional.cross_entropy(X, Y, size_average=False)
