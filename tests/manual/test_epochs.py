"""Whole epochs in an engine do what the layers do batch by batch."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from support.course import blobs, pictures
from torch import Tensor

from fastmlp.manual import Classifier, Dataloader, Dataset, FullyConnectedLayer, epochs
from fastmlp.manual.layers import SoftmaxCrossEntropy
from fastmlp.ops._load import native_available

pytestmark = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")


def both_ways(make: object, window: str, dtype: torch.dtype, average: bool) -> list[tuple]:
    """Logs and parameters of the engine and of the layers, on 43 images in batches of 8."""
    results = []
    for by_layers in (False, True):
        model = Classifier(12, 8, 3, dtype=dtype, grad_average=average)
        train, valid = (Dataloader(Dataset(*make(43, s)), 8, window=window) for s in (0, 1))
        if by_layers:  # a subclass that overrides nothing but says so
            model.forward = model.forward
        reason = epochs.engine_reason(model, train)
        assert (reason is None) != by_layers, reason
        options = {"learning_rate": 0.5, "learning_rate_decay": 0.7, "epochs": 3, "verbose": 0}
        logs = model.training(train, valid, model_path=None, **options)
        results.append((logs, model.params))
    return results


@pytest.mark.parametrize("average", [True, False], ids=["averaged", "once"])
@pytest.mark.parametrize("window", ["disjoint", "sliding"])
@pytest.mark.parametrize("make", [pictures, blobs], ids=["uint8", "float"])
def test_an_epoch_of_an_engine_is_that_of_the_layers(make, window, average):
    (fast, mine), (slow, theirs) = both_ways(make, window, torch.float64, average)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-11, atol=1e-13)
    assert fast.train_acc == slow.train_acc
    assert fast.valid_acc == slow.valid_acc
    # an engine keeps losses in float32
    assert fast.train_loss == pytest.approx(slow.train_loss, rel=1e-6)
    assert fast.valid_loss == pytest.approx(slow.valid_loss, rel=1e-6)


def test_in_float32_they_agree_to_rounding():
    (_, mine), (_, theirs) = both_ways(pictures, "disjoint", torch.float32, True)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_every_step_agrees():
    """An epoch of one batch is a step: after each, the parameters are the same."""
    images, labels = pictures(8)
    models = [Classifier(12, 8, 3, dtype=torch.float64) for _ in range(2)]
    loaders = [Dataloader(Dataset(images, labels), 8) for _ in range(2)]
    engine = epochs.EngineEpochs(models[0], loaders[0])
    for _ in range(20):
        for loader in loaders:
            loader.shuffle()
        fast = engine.train(0.8, epochs.Watch())
        slow = epochs.run_batches(models[1], loaders[1], 0.8)
        assert fast.correct == slow.correct
        for name, tensor in models[0].params.items():
            torch.testing.assert_close(tensor, models[1].params[name], rtol=1e-11, atol=1e-13)


class _Own:
    def forward(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        self.x = x
        return x @ w + b

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return self.x.T @ g / len(g), g.mean(0, keepdim=True)


class _Patched(FullyConnectedLayer):
    def backward(self, g: Tensor) -> tuple[Tensor, Tensor]:
        dw, db = super().backward(g)
        return dw, 0 * db


def test_layers_of_a_students_own_run_as_they_are():
    """The engine gives the same with the same layers; a wrong layer shows."""
    loader = Dataloader(Dataset(*pictures(43)), 8)
    trained = {}
    for name, layer in (("ours", None), ("own", _Own), ("wrong", _Patched)):
        model = Classifier(12, 8, 3, dtype=torch.float64)
        if layer is not None:
            model.net[0], model.net[2] = layer(), layer()
            assert "another make" in epochs.engine_reason(model, loader)
        fresh = Dataloader(Dataset(*pictures(43)), 8)
        model.training(fresh, epochs=2, learning_rate=0.5, verbose=0, model_path=None)
        trained[name] = model.params
    torch.testing.assert_close(trained["ours"]["w1"], trained["own"]["w1"], rtol=1e-11, atol=0)
    assert float(trained["wrong"]["b1"].abs().max()) == 0
    assert float(trained["ours"]["b1"].abs().max()) > 0


def _of_arrays(y):
    return torch.from_numpy(y)


def _of_tensors(y):
    return y.long()


@pytest.mark.parametrize("read", [_of_arrays, _of_tensors])
def test_a_students_loss_is_written_for_arrays_or_for_tensors(read):
    """As it is typed for the loader, whose labels are arrays, or for autograd's functions."""

    class Own:
        def __init__(self):
            self.inner = SoftmaxCrossEntropy()

        def forward(self, y, net_out):
            return self.inner.forward(read(y), net_out)

        def backward(self):
            return self.inner.backward()

    logs = []
    for loss in (None, Own()):
        model = Classifier(12, 8, 3)
        model.loss_func = loss or model.loss_func
        loader = Dataloader(Dataset(*pictures(43)), 8)
        logs.append(model.training(loader, epochs=2, learning_rate=0.5, verbose=0, model_path=None))
    assert logs[0].train_loss == pytest.approx(logs[1].train_loss, rel=1e-5)


def test_arrays_of_a_data_set_that_are_replaced_are_taken_as_the_layers_take_them():
    losses = []
    for by_layers in (False, True):
        model, loader = Classifier(12, 8, 3), Dataloader(Dataset(*pictures(43)), 8)
        data = loader.dataset
        data.images, data.labels = torch.from_numpy(data.images / 255), data.labels[:, None]
        loader.indices = list(range(20, 40))
        if by_layers:
            model.forward = model.forward
            loader = [(data.images[i : i + 8], data.labels[i : i + 8]) for i in (20, 28, 36)]
            loader[2] = (data.images[36:40], data.labels[36:40])
        else:
            loader.shuffle = lambda: None
        assert (epochs.engine_reason(model, loader) is None) != by_layers
        logs = model.training(loader, epochs=2, learning_rate=0.5, verbose=0, model_path=None)
        losses.append(logs.train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("window", ["disjoint", "sliding"])
def test_one_loader_for_training_and_validation_is_validated_in_its_new_order(window):
    """The images that are in no batch, or in the small one, change with every shuffle."""
    fast, slow = ([], [])
    for logs in (fast, slow):
        model = Classifier(12, 8, 3)
        if logs is slow:
            model.forward = model.forward
        loader = Dataloader(Dataset(*pictures(43)), 8, window=window)
        logs.extend(model.training(loader, loader, 3, 0.5, verbose=0, model_path=None))
    for one, other in zip(fast, slow, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_loader_that_does_not_know_its_length_is_run():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(*blobs(9), strict=True))

    loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
    assert Classifier(12, 8, 3).score(loader).images == 9


CLASSES = {
    "class": (FullyConnectedLayer, "backward"),
    "classifier's class": (Classifier, "forward"),
    "loader's class": (Dataloader, "__getitem__"),
    "data set's class": (Dataset, "__getitem__"),
}


@pytest.mark.parametrize("where", [*CLASSES, "instance", "loader", "data set", "averaging"])
def test_what_is_overridden_is_not_run_by_an_engine(where, monkeypatch):
    model, loader = Classifier(12, 8, 3), Dataloader(Dataset(*pictures(43)), 8)
    assert epochs.engine_reason(model, loader) is None
    if where in CLASSES:  # written anew in a notebook's cell
        monkeypatch.setattr(*CLASSES[where], lambda *_: None)
    elif where == "instance":
        model.loss_func.forward = mock.Mock()
    elif where == "loader":
        loader = type("Mine", (Dataloader,), {"__getitem__": mock.Mock()})(loader.dataset, 8)
    elif where == "data set":
        mine = type("Mine", (Dataset,), {"__getitem__": mock.Mock()})(*pictures(43))
        loader = Dataloader(mine, 8)
    else:
        model.net[2].grad_average = False
    assert epochs.engine_reason(model, loader) is not None


def test_a_stop_in_an_epoch_keeps_what_is_whole(monkeypatch, capsys):
    """Ctrl-C comes in the second epoch of either way."""
    for own in (False, True):
        model, calls = Classifier(12, 8, 3), iter([False] * 7 + [True] * 99)
        if own:
            model.net[0] = _Own()
        loader = Dataloader(Dataset(*pictures(43)), 8)
        stop = mock.MagicMock()
        stop.return_value.__enter__.return_value = lambda calls=calls: next(calls)
        monkeypatch.setattr("fastmlp.manual.classifier.stop_on_signals", stop)
        logs = model.training(loader, loader, epochs=5, learning_rate=0.1, model_path=None)
        assert len(logs.train_loss) == len(logs.valid_acc) < 5
        assert "Stopped in epoch" in capsys.readouterr().out
