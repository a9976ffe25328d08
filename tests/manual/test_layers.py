"""The hand-called layers against autograd, and the classifier made of them against a plain loop."""

from __future__ import annotations

import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_within_2x
from support.draws import linear_backward_draws, linear_draws
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastmlp.ops._load
from fastmlp.manual import layers
from fastmlp.manual.classifier import Classifier
from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy
from fastmlp.nn.init import init_parameters
from fastmlp.nn.modules import MLP
from fastmlp.ops import activations, cross_entropy
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
        FullyConnectedLayer(backend, grad_average=False),
        FullyConnectedLayer(backend),
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
    layer = FullyConnectedLayer(backend)
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
    layer = ReLU(backend)
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

    layer = SoftmaxCrossEntropy(backend)
    pred_y, loss = layer.forward(given, net_out)
    actual = (pred_y, loss, layer.backward())
    for triple in zip(actual, truth(net_out), truth(net_out.double()), strict=True):
        assert_within_2x(*triple)


def test_nothing_is_recorded_changed_or_refused_for_requiring_grad(backend):
    x, w, b, g = leaves = [tensor.requires_grad_() for tensor in linear_case(6, 5, 4)]
    before = [tensor.detach().clone() for tensor in leaves]
    fc, relu, loss = FullyConnectedLayer(backend), ReLU(backend), SoftmaxCrossEntropy(backend)
    y, hidden, (pred_y, value) = fc.forward(x, w, b), relu.forward(x), loss.forward(w.argmax(1), w)
    for tensor in (y, hidden, pred_y, value, *fc.backward(g), fc.dx, relu.backward(x)):
        assert not tensor.requires_grad
    assert not loss.backward().requires_grad
    for tensor, old in zip(leaves, before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_backward_can_be_called_again_with_another_gradient(mode, backend):
    with mode():
        x, w, b, g = linear_case(6, 5, 4)
        layer = FullyConnectedLayer(backend)
        layer.forward(x, w, b)
        first = layer.backward(g)
        layer.backward(3 * g)
        assert_within_2x(layer.dx, 3 * g @ w.T, 3 * g.double() @ w.T.double())
        assert all(torch.equal(a, c) for a, c in zip(first, layer.backward(g), strict=True))


def test_a_call_before_its_time_says_what_to_call_first():
    x, w, b, g = linear_case(6, 5, 4)
    fc, relu, loss = FullyConnectedLayer("reference"), ReLU("reference"), SoftmaxCrossEntropy()
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
    layer = FullyConnectedLayer("reference")
    layer.forward(x, w, b)
    layer.backward(backprop)
    {"x": x, "w": w, "backprop": backprop}[changed].mul_(2)
    with pytest.raises(RuntimeError, match=f"{changed} changed since .*; take all gradients"):
        _ = layer.dx


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
    layer = FullyConnectedLayer("reference")
    with pytest.raises(AssertionError) as error:  # noqa: PT012
        layer.forward(randn(*x), randn(*w), randn(*b))
        layer.backward(randn(*backprop))
    assert str(error.value) == message
    relu = ReLU("reference")
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
        SoftmaxCrossEntropy("reference").forward(y, net_out)


@pytest.mark.parametrize("label", [-100, -1, 4])
def test_a_label_out_of_range_is_an_error_not_an_ignored_row(label, backend):
    with pytest.raises(IndexError):
        SoftmaxCrossEntropy(backend).forward(torch.tensor([0, label]), randn(2, 4))


def test_the_messages_survive_python_without_asserts():
    code = (
        "import torch; from fastmlp.manual.layers import FullyConnectedLayer as L\n"
        "try: L('reference').forward(torch.ones(2, 3), torch.ones(4, 5), torch.ones(5))\n"
        "except AssertionError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "x: expected shape (N, 4), got (2, 3)", done.stderr


def test_every_layer_follows_its_backend(monkeypatch, backend):
    spies = {}
    for module, name in (
        (linear_ops, "linear"),
        (layers, "linear_backward"),
        (activations, "activation"),
        (layers, "activation_backward"),
        (cross_entropy, "cross_entropy"),
    ):
        spies[name] = mock.Mock(wraps=getattr(module, f"{name}_ref"))
        monkeypatch.setattr(module, f"{name}_ref", spies[name])
    model = Classifier(3, 4, 2, backend=backend)
    model.loss.forward(torch.tensor([0, 1]), model.forward(randn(2, 3)))
    model.backward()
    for name, spy in spies.items():
        assert spy.called == (backend == "reference"), name


def blobs(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 2, 2) of three classes, each around a corner of its own."""
    labels = torch.arange(n) % 3
    centres = 2.5 * randn(3, 12, seed=77, dtype=dtype)
    return (centres[labels] + randn(n, 12, seed=seed, dtype=dtype)).view(n, 3, 2, 2), labels


@pytest.mark.parametrize("grad_average", [True, False])
def test_training_is_the_hand_written_loop(grad_average, backend):
    images, labels = blobs(40, dtype=torch.float64)
    options = {"backend": backend, "grad_average": grad_average, "dtype": torch.float64}
    model = Classifier(12, 8, 3, **options)
    w1, b1, w2, b2 = weights = [tensor.clone().requires_grad_() for tensor in model.params.values()]
    batches = [(images[i : i + 16], labels[i : i + 16]) for i in (0, 16, 32)]  # the last has 8
    records = model.training(batches, epochs=3, lr=0.2, lr_decay=0.5, on_epoch=None)
    for epoch in range(3):
        loss_sum = right = 0.0
        for x, y in batches:
            net_out = F.relu(x.flatten(1) @ w1 + b1) @ w2 + b2
            loss = F.cross_entropy(net_out, y)
            loss_sum += loss.item() * len(x)
            right += (net_out.argmax(1) == y).sum().item()
            grads = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, grad in zip(weights, grads, strict=True):
                    weight -= 0.2 * 0.5**epoch * grad / (len(x) if grad_average else 1)
        assert records[epoch] == {
            "epoch": epoch + 1,
            "lr": 0.2 * 0.5**epoch,
            "saved": False,
            "train_loss": pytest.approx(loss_sum / 40, rel=1e-12),
            "train_accuracy": right / 40,
        }
    for actual, wanted in zip(model.params.values(), weights, strict=True):
        torch.testing.assert_close(actual, wanted.detach(), rtol=1e-12, atol=1e-14)


def test_training_learns_a_separable_problem(backend):
    model = Classifier(12, 16, 3, backend=backend)
    assert model.test(blobs(90, seed=2)).accuracy < 0.7
    model.training(blobs(300, seed=1), epochs=5, batch_size=20, lr=2, on_epoch=None)
    assert model.test(blobs(90, seed=2)).accuracy > 0.9


@pytest.mark.cuda
def test_a_gpu_gets_the_weights_of_the_cpu_and_learns(backend):
    model = Classifier(12, 16, 3, backend=backend, device="cuda")
    assert torch.equal(model.params["w1"].cpu(), Classifier(12, 16, 3).params["w1"])
    model.training(blobs(300, seed=1), epochs=5, batch_size=20, lr=2, on_epoch=None)
    assert model.test(blobs(90, seed=2)).accuracy > 0.9


def test_tensors_and_loaders_are_the_same_data():
    images, labels = blobs(30)
    model = Classifier(12, 4, 3, backend="reference")
    wanted = model.test((images, labels))
    loader = DataLoader(TensorDataset(images, labels), batch_size=7)
    half = [(images[:15], labels[:15]), (images[15:], labels[15:])]  # two batches, not a pair
    for data in ([images, labels], loader, half, (images, F.one_hot(labels, 3))):
        score = model.test(data)
        assert score.accuracy == wanted.accuracy
        assert score.loss == pytest.approx(wanted.loss, rel=1e-6)
    net_out = model.forward(images.flatten(1))
    assert wanted.loss == pytest.approx(F.cross_entropy(net_out, labels).item(), rel=1e-6)
    assert wanted.accuracy == pytest.approx((net_out.argmax(1) == labels).double().mean().item())


def test_the_seed_alone_decides_weights_and_order():
    def trained(init_seed: int, seed: int) -> Tensor:
        torch.randn(3)  # moves the global generator, which must not matter
        model = Classifier(12, 4, 3, seed=init_seed, backend="reference")
        model.training(blobs(30), epochs=2, batch_size=4, lr=1, seed=seed, on_epoch=None)
        return model.params["w1"]

    assert torch.equal(trained(0, 0), trained(0, 0))
    assert not torch.equal(trained(0, 0), trained(0, 1))
    assert not torch.equal(trained(0, 0), trained(1, 0))


def test_weights_are_those_of_the_mlp():
    model, mlp = Classifier(5, 4, 3, init="torch", seed=3), MLP([5, 4, 3])
    init_parameters(mlp, "torch", torch.Generator().manual_seed(3))
    for name, parameter in zip(("w1", "b1", "w2", "b2"), mlp.parameters(), strict=True):
        assert torch.equal(model.params[name], parameter.detach().t() if "w" in name else parameter)
        assert model.params[name].is_contiguous()
        assert not model.params[name].requires_grad


def test_the_best_validation_weights_are_kept_saved_and_announced(tmp_path, capsys):
    """The second epoch's rate is absurd: it breaks the net, and its weights must not stay."""
    path = tmp_path / "new" / "model.pt"
    model = Classifier(12, 8, 3, backend="reference")
    records = model.training(
        blobs(60), blobs(30, seed=1), epochs=3, batch_size=10, lr=1, lr_decay=1e6, save_path=path
    )
    assert [record["saved"] for record in records] == [True, False, False]
    assert records[0]["val_accuracy"] > records[1]["val_accuracy"]
    score = model.test(blobs(30, seed=1), 10)
    assert score == (records[0]["val_accuracy"], records[0]["val_loss"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("[MODEL SAVED]") for line in lines] == [True, False, False]
    assert lines[0].startswith("epoch 1  lr 1  train_loss")
    other = Classifier(12, 8, 3, seed=9, backend="reference", dtype=torch.float64)
    other.load_model(path)
    assert all(
        torch.equal(other.params[name], model.params[name].double()) for name in other.params
    )


def test_without_validation_the_last_weights_are_kept_and_saved(tmp_path):
    model, seen = Classifier(12, 8, 3, backend="reference"), []
    path = tmp_path / "model.pt"
    options = {"epochs": 2, "lr": 1, "save_path": path, "on_epoch": seen.append}
    assert model.training(blobs(60), **options) == seen
    assert [record["saved"] for record in seen] == [True, True]
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["w1", "b1", "w2", "b2"]
    assert all(torch.equal(saved[name], model.params[name]) for name in saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"lr": math.nan}, "lr must be a finite number > 0, got nan"),
        ({"lr_decay": math.inf}, "lr_decay must be a finite number > 0, got inf"),
        ({"train": []}, "data must give batches in every epoch"),
        ({"train": iter([blobs(6)])}, "data must give batches in every epoch"),
        ({"train": (blobs(6)[0], blobs(5)[1])}, "images and labels must be as many, got 6 and 5"),
        ({"train": (blobs(6)[1][:, None], blobs(6)[1])}, "images must be floating point, .*int64"),
        ({"train": (randn(6, 9), blobs(6)[1])}, r"x: expected shape \(N, 12\), got \(6, 9\)"),
    ],
)
def test_training_refuses_what_cannot_be_meant(change, message):
    options = {"train": blobs(6), "epochs": 2, "lr": 1.0, "on_epoch": None} | change
    with pytest.raises((ValueError, TypeError, AssertionError), match=message):
        Classifier(12, 4, 3, backend="reference").training(**options)


def test_a_damaged_or_foreign_file_is_told_and_changes_nothing(tmp_path):
    path, model = tmp_path / "model.pt", Classifier(5, 4, 3, backend="reference")
    before = {name: tensor.clone() for name, tensor in model.params.items()}
    model.save_model(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2], b"\x80\x02]q\x00."):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.pt (is damaged|does not fit)"):
            model.load_model(path)
    for foreign in ([1, 2], {"w1": 3}, MLP([5, 4, 3]).state_dict()):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match=r"model\.pt does not fit: expected \{'w1': \(5, 4\)"):
            model.load_model(path)
    Classifier(5, 4, 2).save_model(path)
    with pytest.raises(ValueError, match=r"'w2': \(4, 3\).* got .*'w2': \(4, 2\)"):
        model.load_model(path)
    with pytest.raises(FileNotFoundError):
        model.load_model(tmp_path / "missing.pt")
    assert all(torch.equal(model.params[name], before[name]) for name in before)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, model = tmp_path / "model.pt", Classifier(5, 4, 3)
    model.save_model(path)
    old = path.read_bytes()
    model.params["w1"].zero_()
    monkeypatch.setattr("os.replace", mock.Mock(side_effect=OSError("full")))
    with pytest.raises(OSError, match="full"):
        model.save_model(path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
