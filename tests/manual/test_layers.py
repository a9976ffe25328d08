"""The hand-called layers against autograd."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_within_2x
from support.draws import linear_backward_draws, linear_draws
from torch import Tensor

import fastmlp.ops._load
from fastmlp.manual import layers
from fastmlp.manual.classifier import Classifier
from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy
from fastmlp.ops import activations
from fastmlp.ops import linear as linear_ops

BACKENDS = ["reference"] + (["native"] if fastmlp.ops._load.native_available() else [])
SHAPES = [(6, 5, 4), (1, 1, 1), (16, 33, 7), (8, 3, 1)]  # N, D, F


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_case(n: int, d: int, f: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, w, b and a random gradient of the output."""
    shapes = [(n, d), (d, f), (f,), (n, f)]
    return [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def by_autograd(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> list[Tensor]:
    """y, dx, dw, db of y = x @ w + b."""
    x, w, b = (tensor.clone().requires_grad_() for tensor in (x, w, b))
    y = x @ w + b
    return [y.detach(), *torch.autograd.grad(y, (x, w, b), g)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fully_connected_is_the_chain_rule_and_averages_dw_and_db(shape, backend, dtype):
    x, w, b, g = linear_case(*shape, dtype)
    layer, averaging = (
        FullyConnectedLayer(backend=backend, grad_average=False),
        FullyConnectedLayer(backend=backend),
    )
    y, same = layer.forward(x, w, b), averaging.forward(x, w, b)
    dw, db = layer.backward(g)
    truths = by_autograd(*(t.double() for t in (x, w, b, g)))
    dxs, dws, dbs = linear_backward_draws(g, x, w.t())
    peers = [linear_draws(x, w.t(), b), dxs, [each.t() for each in dws], dbs]
    for triple in zip((y, layer.dx, dw, db), peers, truths, strict=True):
        assert_within_2x(*triple)
    for averaged, summed in zip(averaging.backward(g), (dw, db), strict=True):
        assert torch.equal(averaged, summed / shape[0])
    assert torch.equal(same, y)
    assert torch.equal(averaging.dx, layer.dx)


def test_fully_connected_is_exact_on_small_integers(backend):
    layer = FullyConnectedLayer(backend=backend)
    x, w = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0, -1], [2, 1, 0]])
    g = torch.tensor([[2.0, 0, 4], [6, 2, 0]])
    y = layer.forward(x, w, torch.tensor([10.0, 20, 30]))
    assert y.tolist() == [[15, 22, 29], [21, 24, 27]]
    dw, db = layer.backward(g)
    assert dw.tolist() == [[10, 3, 2], [14, 4, 4]]  # x.T @ g / 2
    assert db.tolist() == [4, 1, 2]
    assert layer.dx.tolist() == [[-2, 4], [6, 14]]  # g @ w.T


def test_relu_is_autograd(backend, dtype):
    x, g = randn(5, 3, 2, dtype=dtype), randn(5, 3, 2, seed=1, dtype=dtype)
    x[0, 0] = torch.tensor([0.0, math.nan])
    x = x.requires_grad_()
    wanted = F.relu(x)
    layer = ReLU(backend=backend)
    torch.testing.assert_close(layer.forward(x), wanted.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(layer.backward(g), *torch.autograd.grad(wanted, x, g))


@pytest.mark.parametrize("labels", [torch.int64, torch.uint8, "one-hot"], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (1, 1), (16, 10)], ids=str)
def test_softmax_cross_entropy_is_autograd(shape, labels, backend, dtype):
    net_out = 3 * randn(*shape, dtype=dtype)
    y = torch.arange(shape[0]) * 7 % shape[1]
    given = F.one_hot(y, shape[1]).to(dtype) if labels == "one-hot" else y.to(labels)

    def truth(net_out: Tensor) -> list[Tensor]:
        net_out = net_out.clone().requires_grad_()
        loss = F.cross_entropy(net_out, y)
        return [net_out.detach().softmax(1), loss.detach(), *torch.autograd.grad(loss, net_out)]

    layer = SoftmaxCrossEntropy(backend=backend)
    pred_y, loss = layer.forward(given, net_out)
    assert torch.equal(pred_y, net_out.argmax(1))
    actual = (layer.probabilities, loss, layer.backward())
    for triple in zip(actual, truth(net_out), truth(net_out.double()), strict=True):
        assert_within_2x(*triple)


def test_nothing_is_recorded_changed_or_refused_for_requiring_grad(backend):
    x, w, b, g = leaves = [tensor.requires_grad_() for tensor in linear_case(6, 5, 4)]
    before = [tensor.detach().clone() for tensor in leaves]
    fc, relu, loss = (
        FullyConnectedLayer(backend=backend),
        ReLU(backend=backend),
        SoftmaxCrossEntropy(backend=backend),
    )
    y, hidden, (pred_y, value) = fc.forward(x, w, b), relu.forward(x), loss.forward(w.argmax(1), w)
    for tensor in (y, hidden, pred_y, value, *fc.backward(g), fc.dx, relu.backward(x)):
        assert not tensor.requires_grad
    assert not loss.backward().requires_grad
    assert not loss.probabilities.requires_grad
    for tensor, old in zip(leaves, before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_backward_can_be_called_again_with_another_gradient(mode, backend):
    with mode():
        x, w, b, g = linear_case(6, 5, 4)
        layer = FullyConnectedLayer(backend=backend)
        layer.forward(x, w, b)
        first = layer.backward(g)
        layer.backward(3 * g)
        assert_within_2x(layer.dx, 3 * g @ w.T, 3 * g.double() @ w.T.double())
        assert all(torch.equal(a, c) for a, c in zip(first, layer.backward(g), strict=True))


def test_a_call_before_its_time_says_what_to_call_first():
    x, w, b, g = linear_case(6, 5, 4)
    fc, relu, loss = (
        FullyConnectedLayer(backend="reference"),
        ReLU(backend="reference"),
        SoftmaxCrossEntropy(),
    )
    with pytest.raises(RuntimeError, match="FullyConnectedLayer: call forward first"):
        fc.backward(g)
    with pytest.raises(RuntimeError, match="ReLU: call forward first"):
        relu.backward(g)
    with pytest.raises(RuntimeError, match="SoftmaxCrossEntropy: call forward first"):
        loss.backward()
    fc.forward(x, w, b)
    fc.backward(g)
    fc.forward(x, w, b)  # forgets the backward of the step before
    with pytest.raises(RuntimeError, match="FullyConnectedLayer: call backward first"):
        _ = fc.dx


@pytest.mark.parametrize("changed", ["x", "w", "backprop"])
def test_an_update_before_all_gradients_are_taken_is_an_error(changed):
    x, w, b, backprop = linear_case(6, 5, 4)
    layer = FullyConnectedLayer(backend="reference")
    layer.forward(x, w, b)
    layer.backward(backprop)
    {"x": x, "w": w, "backprop": backprop}[changed].mul_(2)
    with pytest.raises(RuntimeError, match=f"{changed} changed since .*; take all gradients"):
        _ = layer.backward(backprop) if changed == "x" else layer.dx


@pytest.mark.parametrize(
    ("x", "w", "b", "backprop", "message"),
    [
        ((2, 3), (4, 5), (5,), None, "x: expected shape (N, 4), got (2, 3)"),
        ((3,), (3, 5), (5,), None, "x: expected shape (N, 3), got (3,)"),
        ((2, 3), (3,), (5,), None, "w: expected shape (D, F), got (3,)"),
        ((2, 3), (3, 5), (4,), None, "b: expected shape (5,), got (4,)"),
        ((2, 3), (3, 5), (5,), (2, 4), "backprop: expected shape (2, 5), got (2, 4)"),
    ],
)
def test_fully_connected_tells_expected_and_got(x, w, b, backprop, message):
    layer = FullyConnectedLayer(backend="reference")
    with pytest.raises(AssertionError) as error:  # noqa: PT012
        layer.forward(randn(*x), randn(*w), randn(*b))
        layer.backward(randn(*backprop))
    assert str(error.value) == message
    relu = ReLU(backend="reference")
    relu.forward(randn(2, 3))
    with pytest.raises(AssertionError, match=r"backprop: expected shape \(2, 3\), got \(3, 2\)"):
        relu.backward(randn(3, 2))


@pytest.mark.parametrize(
    ("y", "net_out", "message"),
    [
        (torch.zeros(3).long(), randn(2, 4), r"y: expected shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 3), randn(2, 4), r"y: expected shape \(2, 4\), got \(2, 3\)"),
        (torch.zeros(2, 4), randn(2, 4), "y: expected a single 1 among zeros in every row"),
        (torch.full((2, 4), 0.25), randn(2, 4), "y: expected a single 1 among zeros in every row"),
        ([0, 1], randn(2, 4), r"y: expected a tensor \(2,\), got list"),
        (torch.zeros(4).long(), randn(4), r"net_out: expected shape \(N, C\), got \(4,\)"),
    ],
)
def test_softmax_cross_entropy_tells_expected_and_got(y, net_out, message):
    with pytest.raises(AssertionError, match=message):
        SoftmaxCrossEntropy(backend="reference").forward(y, net_out)


@pytest.mark.parametrize("label", [-100, -1, 4])
def test_a_label_out_of_range_is_an_error_not_an_ignored_row(label, backend):
    with pytest.raises(IndexError):
        SoftmaxCrossEntropy(backend=backend).forward(torch.tensor([0, label]), randn(2, 4))


def test_the_messages_survive_python_without_asserts():
    """As ``python -O`` compiles the module; a process of its own would compile all of PyTorch."""
    source = Path(layers.__file__).read_text(encoding="utf-8")
    names = {"__name__": layers.__name__}
    exec(compile(source, layers.__file__, "exec", optimize=1), names)
    layer = names["FullyConnectedLayer"](backend="reference")
    with pytest.raises(AssertionError, match=r"x: expected shape \(N, 4\), got \(2, 3\)"):
        layer.forward(torch.ones(2, 3), torch.ones(4, 5), torch.ones(5))


def test_every_layer_follows_its_backend(monkeypatch, backend):
    spies = {}
    for module, name in (
        (linear_ops, "linear_ref"),
        (layers, "linear_backward"),
        (activations, "activation_ref"),
        (layers, "activation_backward_ref"),
        (layers, "cross_entropy_ref"),
        (layers, "cross_entropy_backward_ref"),
    ):
        spies[name] = mock.Mock(wraps=getattr(module, name))
        monkeypatch.setattr(module, name, spies[name])
    model = Classifier(3, 4, 2, backend=backend)
    model.loss_func.forward(torch.tensor([0, 1]), model.forward(randn(2, 3)))
    model.backward()
    for name, spy in spies.items():
        assert spy.called == ((backend == "reference") == name.endswith("_ref")), name
