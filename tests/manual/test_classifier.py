"""The classifier made of hand-called layers against a plain loop, and what it says and saves."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.course import BACKENDS, blobs
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastmlp.manual import Classifier, Dataloader, Dataset

OFF = {"verbose": 0, "model_path": None}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("grad_average", [True, False])
def test_training_is_the_hand_written_loop(grad_average, backend):
    images, labels = blobs(40, dtype=torch.float64)
    options = {"backend": backend, "grad_average": grad_average, "dtype": torch.float64}
    model = Classifier(12, 8, 3, **options)
    w1, b1, w2, b2 = weights = [tensor.clone().requires_grad_() for tensor in model.params.values()]
    batches = [(images[i : i + 16], labels[i : i + 16]) for i in (0, 16, 32)]  # the last has 8
    losses, accuracies, *none = model.training(
        batches, None, epochs=3, learning_rate=0.2, learning_rate_decay=0.5, **OFF
    )
    assert none == [[], []]
    for epoch in range(3):
        loss_sum = right = 0.0
        for x, y in batches:
            net_out = F.relu(x.flatten(1) @ w1 + b1) @ w2 + b2
            loss = F.cross_entropy(net_out, y)
            loss_sum += loss.item()
            right += (net_out.argmax(1) == y).sum().item()
            grads = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, grad in zip(weights, grads, strict=True):
                    weight -= 0.2 * 0.5**epoch * grad / (len(x) if grad_average else 1)
        assert losses[epoch] == pytest.approx(loss_sum / 40, rel=1e-12)
        assert accuracies[epoch] == 100 * right / 40
    for actual, wanted in zip(model.params.values(), weights, strict=True):
        torch.testing.assert_close(actual, wanted.detach(), rtol=1e-12, atol=1e-14)


def test_training_learns_a_separable_problem(backend):
    model = Classifier(12, 16, 3, backend=backend)
    assert model.score(blobs(90, seed=2)).accuracy < 70
    train = Dataloader(Dataset(*blobs(300, seed=1)), batch_size=20)
    model.training(train, epochs=5, learning_rate=2, learning_rate_decay=1, **OFF)
    assert model.score(blobs(90, seed=2)).accuracy > 90


@pytest.mark.cuda
def test_a_gpu_gets_the_weights_of_the_cpu_and_learns(backend):
    model = Classifier(12, 16, 3, backend=backend, device="cuda")
    assert torch.equal(model.params["w1"].cpu(), Classifier(12, 16, 3).params["w1"])
    train = Dataloader(Dataset(*blobs(300, seed=1)), batch_size=20)
    model.training(train, epochs=5, learning_rate=2, learning_rate_decay=1, **OFF)
    assert model.score(blobs(90, seed=2)).accuracy > 90


class _OwnLoader:
    """As a student writes it: no __iter__, and slices never raise IndexError."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.numpy(), labels.numpy().astype(np.int32)

    def __len__(self) -> int:
        return -(-len(self.labels) // 7)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.images[7 * i : 7 * i + 7], self.labels[7 * i : 7 * i + 7]


def test_arrays_loaders_and_data_sets_are_the_same_data():
    images, labels = blobs(30)
    model = Classifier(12, 4, 3, backend="reference")
    net_out = model.forward(images.flatten(1))
    mean = F.cross_entropy(net_out, labels).item()
    right = (net_out.argmax(1) == labels).sum().item()
    loader = DataLoader(TensorDataset(images, labels), batch_size=10)
    half = [(images[:15], labels[:15]), (images[15:], labels[15:])]  # two batches, not a pair
    single = torch.utils.data.Subset(TensorDataset(images, labels), range(30))
    for data, batch in (
        ((images, labels), 30),
        ([images.numpy(), labels.numpy()], 30),
        ((images, F.one_hot(labels, 3)), 30),
        (TensorDataset(images, labels), 30),
        (single, 30),
        (Dataset(images, labels), 30),
        (loader, 10),
        (half, 15),
    ):
        score = model.score(data)
        assert (score.correct, score.images) == (right, 30)
        assert score.loss == pytest.approx(mean / batch, rel=1e-6)
    score = model.score(_OwnLoader(images, labels))  # ends by itself
    assert (score.correct, score.images) == (right, 30)


def test_data_to_validate_on_gets_batches_as_large_as_those_of_training():
    """The loss as the course logs it shrinks with the batch, so that only then both compare."""
    images, labels = blobs(30)
    tensors = TensorDataset(images, labels)
    in_sixes = Dataloader(Dataset(images, labels), 6)
    for train in (in_sixes, DataLoader(tensors, batch_size=6)):
        losses = [
            Classifier(12, 4, 3)
            .training(train, valid, epochs=1, learning_rate=1e-9, verbose=0, model_path=None)
            .valid_loss[0]
            for valid in ((images, labels), tensors, in_sixes)
        ]
        assert losses == pytest.approx([losses[-1]] * 3, rel=1e-4)
    by_itself = DataLoader(tensors, batch_sampler=[list(range(30))])
    model = Classifier(12, 4, 3)
    logs = model.training(by_itself, (images, labels), epochs=1, verbose=0, model_path=None)
    assert logs.valid_loss[0] == pytest.approx(model.score((images, labels)).loss)


def test_the_seeds_alone_decide_weights_and_order():
    def trained(init_seed: int, seed: int) -> Tensor:
        torch.randn(3)  # moves the global generators, which must not matter
        np.random.rand()  # noqa: NPY002
        model = Classifier(12, 4, 3, seed=init_seed)
        loader = Dataloader(Dataset(*blobs(40)), 8, seed=seed)
        model.training(loader, epochs=2, learning_rate=1, **OFF)
        return model.params["w1"]

    assert torch.equal(trained(0, 0), trained(0, 0))
    assert not torch.equal(trained(0, 0), trained(0, 1))
    assert not torch.equal(trained(0, 0), trained(1, 0))


@pytest.mark.filterwarnings("ignore:the loss became infinite")
def test_the_lowest_validation_loss_is_kept_saved_and_announced(tmp_path, capsys):
    """The second epoch's rate is absurd: it breaks the net, and its weights must not stay."""
    path = tmp_path / "new" / "model.pt"
    model = Classifier(12, 8, 3, backend="reference")
    train, valid = (Dataloader(Dataset(*blobs(60, seed=s)), 10) for s in (0, 1))
    logs = model.training(
        train, valid, epochs=3, learning_rate=1, learning_rate_decay=1e3, model_path=path
    )
    train_loss, train_acc, valid_loss, valid_acc = logs
    assert min(valid_loss) == valid_loss[0] < valid_loss[1]
    score = model.score(valid)
    assert (score.accuracy, score.loss) == (valid_acc[0], pytest.approx(valid_loss[0], rel=1e-6))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "Epoch 1:",
        f"Training accuracy: {train_acc[0]:.2f}%, loss: {train_loss[0]:.4f}",
        f"Validation accuracy: {valid_acc[0]:.2f}%, loss: {valid_loss[0]:.4f} [MODEL SAVED]",
        "Epoch 2:",
    ]
    assert sum("[MODEL SAVED]" in line for line in lines) == 1
    other = Classifier(12, 8, 3, seed=9, backend="reference", dtype=torch.float64)
    other.load_model(path)
    assert all(
        torch.equal(other.params[name], model.params[name].double()) for name in other.params
    )


def test_an_epoch_no_better_than_the_best_is_not_announced(tmp_path, capsys):
    model, path = Classifier(12, 8, 3), tmp_path / "model.pt"
    model.training(blobs(60), blobs(30), epochs=3, learning_rate=1e-30, model_path=path)
    assert capsys.readouterr().out.count("[MODEL SAVED]") == 1


def test_verbose_is_every_how_many_epochs_and_the_default_file_is_here(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = Classifier(12, 8, 3)
    logs = model.training(blobs(60), blobs(30), 5, 0.1, 0.9, 2)
    assert [len(log) for log in logs] == [5, 5, 5, 5]
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "Epoch" in line] == ["Epoch 2:", "Epoch 4:"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    model.training(blobs(60), blobs(30), epochs=np.int64(1), verbose=np.int32(0))
    assert capsys.readouterr().out == ""


def test_without_validation_the_last_weights_are_kept_and_saved(tmp_path):
    model, path = Classifier(12, 8, 3, backend="reference"), tmp_path / "model.pt"
    model.training(blobs(60), epochs=2, learning_rate=1, verbose=0, model_path=path)
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["w1", "b1", "w2", "b2"]
    assert all(torch.equal(saved[name], model.params[name]) for name in saved)


def test_test_prints_and_returns_the_accuracy(capsys):
    model, (images, labels) = Classifier(12, 8, 3), blobs(40)
    right = (model.forward(images.flatten(1)).argmax(1) == labels).sum().item()
    assert model.test(Dataloader(Dataset(images, labels), 16)) == 100 * right / 40
    line = f"Got {right} correct prediction in 40 test data, accuracy: {100 * right / 40:.2f}%\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("own", [False, True], ids=["engine", "layers"])
def test_a_loss_that_is_not_finite_ends_training_with_a_warning(own, tmp_path):
    model, (images, labels) = Classifier(12, 8, 3), blobs(60)
    if own:
        model.net[1] = _OwnReLU()
    images[50:] = math.inf
    path = tmp_path / "model.pt"
    with pytest.warns(RuntimeWarning, match="infinite or nan in epoch 1, .*learning_rate below 1"):
        logs = model.training((images, labels), epochs=3, learning_rate=1, model_path=path)
    assert len(logs.train_loss) == 1
    assert math.isnan(logs.train_loss[0])
    assert not path.exists()


class _OwnReLU:
    def forward(self, t: Tensor) -> Tensor:
        self.t = t
        return t.clamp(min=0)

    def backward(self, g: Tensor) -> Tensor:
        return g * (self.t > 0)


class _ArrayFC:
    """As a student of NumPy writes it: in comes what it may, out come arrays of float64."""

    def forward(self, x: object, w: object, b: object) -> np.ndarray:
        self.x = np.asarray(x, np.float64)
        return self.x @ np.asarray(w) + np.asarray(b)

    def backward(self, g: object) -> tuple[np.ndarray, list[float]]:
        g = np.asarray(g)
        return self.x.T @ g / len(g), g.mean(0).tolist()


class _ArrayReLU:
    def forward(self, t: object) -> np.ndarray:
        self.t = np.asarray(t)
        return np.maximum(self.t, 0)

    def backward(self, g: object) -> np.ndarray:
        return np.asarray(g) * (self.t > 0)


class _ArrayLoss:
    def forward(self, y: object, net_out: object) -> tuple[np.ndarray, float]:
        powers = np.exp(np.asarray(net_out) - np.max(np.asarray(net_out), 1, keepdims=True))
        self.p, self.y = powers / powers.sum(1, keepdims=True), np.asarray(y)
        rows = np.arange(len(self.y))
        return self.p.argmax(1), -np.log(self.p[rows, self.y]).mean()

    def backward(self) -> np.ndarray:
        return (self.p - np.eye(self.p.shape[1])[self.y]) / len(self.y)


def test_layers_of_numpy_train_as_ours_do():
    images, labels = blobs(40)
    trained = []
    for net, loss in (
        (None, None),
        ([_ArrayFC(), _ArrayReLU(), _ArrayFC()], _ArrayLoss()),
        (None, _ArrayLoss()),  # arrays go into layers of ours
    ):
        model = Classifier(12, 8, 3)
        model.net, model.loss_func = net or model.net, loss or model.loss_func
        batches = [(images[:20], labels[:20].numpy().astype("u2")), (images[20:], labels[20:])]
        logs = model.training(batches, blobs(9, seed=1), epochs=2, learning_rate=2, **OFF)
        trained.append((logs.valid_loss, model.params["w1"]))
    for losses, w1 in trained[1:]:
        assert losses == pytest.approx(trained[0][0], rel=1e-5)
        torch.testing.assert_close(w1, trained[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("own", [False, True], ids=["engine", "layers"])
def test_parameters_may_require_grad(own, tmp_path):
    model, plain = Classifier(12, 8, 3), Classifier(12, 8, 3)
    model.net[1] = _OwnReLU() if own else model.net[1]
    model.params = {name: torch.nn.Parameter(t) for name, t in model.params.items()}
    for each in (model, plain):
        each.training(blobs(40), blobs(9), epochs=2, verbose=0, model_path=tmp_path / "m.pt")
    torch.testing.assert_close(model.params["w1"].detach(), plain.params["w1"])
    assert model.params["w1"].grad_fn is None
    model.load_model(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("part", "method", "returned", "message"),
    [
        ("loss", "forward", torch.zeros(()), r"must return \(pred_y, loss\), got Tensor"),
        ("loss", "forward", (torch.zeros(6), torch.zeros(6)), r"one number, .*got shape \(6,\)"),
        ("loss", "forward", (torch.zeros(6), None), "its loss, must return a tensor, got NoneType"),
        ("loss", "backward", None, "the loss's backward must return a tensor, got NoneType"),
        (0, "backward", torch.zeros(2), r"must return \(dw, db\), got Tensor"),
        (0, "backward", (1, 2, 3), r"must return \(dw, db\), got 3 values"),
        (0, "backward", (torch.zeros(12, 8), None), "in place of db1, must return a tensor, got"),
        (0, "backward", (torch.zeros(8, 12), [0]), r"dw1: expected shape \(12, 8\), .*\(8, 12\)"),
        (1, "forward", None, "forward of a ReLU must return a tensor, got NoneType"),
    ],
)
def test_what_a_students_method_must_return_is_told(part, method, returned, message):
    model = Classifier(12, 8, 3)
    setattr(model.loss_func if part == "loss" else model.net[part], method, lambda *_: returned)
    with pytest.raises((ValueError, TypeError), match=message):
        model.training(blobs(6), epochs=1, **OFF)


@pytest.mark.parametrize("n", [1, 3])  # 3 classes: (3, 3) == (3,) would broadcast
def test_predictions_of_another_shape_than_the_labels_are_refused(n):
    class Loss:
        def forward(self, y: Tensor, net_out: Tensor) -> tuple[Tensor, Tensor]:
            return net_out.softmax(1), F.cross_entropy(net_out, y)

    model = Classifier(12, 8, 3)
    model.loss_func = Loss()
    with pytest.raises(ValueError, match=rf"pred_y \({n},\), got \({n}, 3\); take the argmax"):
        model.test(Dataloader(Dataset(*blobs(n)), n))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"verbose": -1}, "verbose must be an integer >= 0, got -1"),
        ({"learning_rate": 0}, "learning_rate must be a finite number > 0, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number > 0, got nan"),
        ({"learning_rate": "0.1"}, "learning_rate must be a finite number > 0, got '0.1'"),
        ({"learning_rate_decay": None}, "learning_rate_decay must be a finite number > 0, got No"),
        ({"train_dl": [(blobs(6)[0], np.array(list("abcabc")))]}, "labels must be integers, .*U1"),
        ({"learning_rate_decay": math.inf}, "learning_rate_decay must be a finite number > 0"),
        ({"train_dl": []}, "data must give batches in every epoch"),
        ({"train_dl": iter([blobs(6)])}, "data must give batches in every epoch"),
        ({"train_dl": 3}, "data must be a loader, a pair .*got int"),
        ({"train_dl": [blobs(6), (np.zeros((0, 12)), np.zeros(0, int))]}, "batch 1 is empty"),
        ({"train_dl": [(blobs(6)[0][0], 1)]}, "batch 0 must be as many images as labels"),
        ({"train_dl": [blobs(6)[0]]}, r"a loader must give \(images, labels\), got Tensor"),
        ({"train_dl": (blobs(6)[0], blobs(5)[1])}, "images and labels must be as many, got 6 and"),
        ({"train_dl": (blobs(6)[1][:, None], blobs(6)[1])}, "images must be uint8, .*int64"),
        (
            {"train_dl": (torch.randn(6, 9), blobs(6)[1])},
            r"x: expected shape \(N, 12\), .* 9\)",
        ),
        ({"train_dl": (blobs(6)[0], blobs(6)[1] + 3)}, "labels must be from 0 to 2 .*got 3 to 5"),
        ({"valid_dl": (blobs(6)[0], blobs(6)[1] - 1)}, "labels must be from 0 to 2 .*got -1 to 1"),
    ],
)
def test_training_refuses_what_cannot_be_meant(change, message):
    options = {"train_dl": blobs(6), "epochs": 2, "learning_rate": 1.0, **OFF} | change
    with pytest.raises((ValueError, TypeError, AssertionError, IndexError), match=message):
        Classifier(12, 4, 3).training(**options)


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


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    model, other = Classifier(5, 4, 3), Classifier(5, 4, 3, seed=1)
    model.save_model("~/m.pt")
    assert list(here.iterdir()) == []
    assert (home / "m.pt").is_file()
    other.load_model(Path("~/m.pt"))
    assert torch.equal(other.params["w1"], model.params["w1"])
    with pytest.raises(IsADirectoryError, match="is a folder; pass a file in it"):
        model.training(blobs(6), epochs=1, model_path="~")
    for call in (model.save_model, model.load_model):
        with pytest.raises(FileNotFoundError, match="there is no such home folder"):
            call("~a-user-that-is-none/m.pt")


def test_a_place_that_cannot_be_written_is_told_before_the_first_epoch(tmp_path):
    model = Classifier(12, 8, 3)
    before = model.params["w1"].clone()
    (tmp_path / "file").touch()
    with pytest.raises(
        NotADirectoryError, match=r"cannot be written: .*file is a file, not a fold"
    ):
        model.training(blobs(6), epochs=1, model_path=tmp_path / "file" / "m.pt")
    assert torch.equal(model.params["w1"], before)
