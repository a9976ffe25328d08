"""Pass over data once, in either of two ways: layer by layer, or whole epochs in an engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.base import Epoch
from fastmlp.engines.metrics import EpochMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.registry import choose_engine
from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy, class_indices
from fastmlp.manual.loader import (
    batches_of,
    checked_arrays,
    checked_batch,
    length_of,
    plain_dataset,
    plain_loader,
)
from fastmlp.manual.model import LossForward
from fastmlp.manual.overrides import unchanged
from fastmlp.ops._load import resolve_backend

if TYPE_CHECKING:
    from fastmlp.manual.classifier import Classifier

KEYS = {"0.weight": "w1", "0.bias": "b1", "2.weight": "w2", "2.bias": "b2"}
"""The parameters of an engine's state and ours; its weights are the transposes of ours."""


class Score(NamedTuple):
    """How many of the images were predicted right, and the loss as the course logs it: the sum of
    the batches' mean losses over the number of images."""

    correct: int
    images: int
    loss: float

    @property
    def accuracy(self) -> float:
        """The share predicted right, in per cent."""
        return 100 * self.correct / self.images


class Stopped(Exception):
    """The epoch was stopped before its end."""


class Watch(NamedTuple):
    """What an epoch asks and tells while it runs: whether to stop after the present step, and what
    share of it is done."""

    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[float], None] = lambda share: None


def run_batches(
    model: Classifier, loader: Any, lr: float | None = None, watch: Watch | None = None
) -> Score:
    """Pass over a loader once by the layers of the model, with an SGD step for each batch if ``lr``
    is given. Raises :class:`Stopped`."""
    watch = watch or Watch()
    like, batches = model.params["w1"], length_of(loader)
    images, sums = 0, torch.zeros(2, dtype=torch.float64, device=like.device)
    loss_of = LossForward(model.loss_func)
    for number, batch in enumerate(batches_of(loader)):
        x, y = checked_batch(batch, number, like)
        returned = loss_of(y, model.forward(x), isinstance(batch[1], Tensor))
        pred_y, loss = pair_of(returned, "the loss's forward", "(pred_y, loss)")
        # summed on the device: reading a number at every step would stall a GPU
        sums += torch.stack([_right(pred_y, y, like), _mean_loss(loss, sums)])
        if lr is not None:
            grads = model.backward()
            with torch.no_grad():  # a student's parameters may require grad
                for name, grad in grads.items():
                    model.params[name].sub_(grad, alpha=lr)
        images += len(x)
        if batches:
            watch.progress((number + 1) / batches)
        if watch.should_stop():
            raise Stopped
    if images == 0:
        raise ValueError("data must give batches in every epoch (a generator does once), got none")
    correct, loss_sum = sums.tolist()
    return Score(round(correct), images, loss_sum / images)


def pair_of(returned: Any, method: str, wanted: str) -> Any:
    """Return what a method of a student's returned if it is a pair; raise ValueError otherwise."""
    if isinstance(returned, (tuple, list)) and len(returned) == 2:
        return returned
    got = f"{len(returned)} values" if isinstance(returned, (tuple, list)) else type(returned)
    got = got if isinstance(got, str) else got.__name__
    raise ValueError(f"{method} must return {wanted}, got {got}")


def tensor_of(returned: Any, method: str, like: Tensor) -> Tensor:
    """Return what a method of a student's returned, a tensor, an array or numbers, as a tensor of
    the dtype and on the device of ``like``; raise TypeError for anything else."""
    try:
        found: Tensor = torch.as_tensor(returned, dtype=like.dtype, device=like.device)
        return found
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{method} must return a tensor, got {type(returned).__name__}") from error


def _mean_loss(loss: Any, like: Tensor) -> Tensor:
    """Return a loss as a tensor without dimensions; raise ValueError unless it is one number."""
    mean = tensor_of(loss, "the loss's forward, in place of its loss,", like).detach()
    if mean.numel() != 1:
        raise ValueError(
            "the loss's forward must return (pred_y, loss) with one number, the mean over the "
            f"batch, as loss, got shape {tuple(mean.shape)}"
        )
    return mean.reshape(())


def _right(pred_y: Any, y: Tensor, like: Tensor) -> Tensor:
    """Return how many predictions are right; raise ValueError unless there is one for each label:
    comparing (N, C) with (N,) broadcasts where N is 1 or C, and says nothing."""
    pred_y = torch.as_tensor(pred_y, device=like.device)
    if tuple(pred_y.shape) != (len(y),):
        raise ValueError(
            f"the loss's forward must return (pred_y, loss) with the predicted class of each row, "
            f"pred_y ({len(y)},), got {tuple(pred_y.shape)}; take the argmax over the classes"
        )
    labels = class_indices(y, (len(y), y.shape[1])) if y.dim() == 2 else y
    return torch.eq(pred_y, labels).sum().double()


def engine_reason(model: Classifier, loader: Any) -> str | None:
    """Return why an engine cannot run the epochs of this model on this loader; None where it can,
    with the results that the layers have one by one."""
    own = (FullyConnectedLayer, ReLU, FullyConnectedLayer, SoftmaxCrossEntropy)
    layers = [*model.net, model.loss_func]
    if len(layers) != len(own) or not all(map(unchanged, layers, own)):
        return "a layer is of another make"
    if not model.unchanged:
        return "forward or backward of the classifier is overridden"
    if not plain_loader(loader):
        return "the loader is of another make"
    device = model.params["w1"].device.type
    if any(resolve_backend(layer.backend, device) != "native" for layer in layers):
        return "a layer runs the reference backend"
    if len({layer.grad_average for layer in model.net[::2]}) > 1:
        return "the layers average differently"
    tensors = list(model.params.values())
    if len({(t.device, t.dtype) for t in tensors}) > 1 or tensors[0].dtype not in (
        torch.float32,
        torch.float64,
    ):
        return "the parameters are not all float32 or all float64 on one device"
    return None


class EngineEpochs:
    """Runs the epochs of a classifier over a :class:`~fastmlp.manual.loader.Dataloader` in the
    fastest engine that its device has, and keeps the model's parameters up to date."""

    def __init__(self, model: Classifier, loader: Any) -> None:
        self._model, self._loader = model, loader
        device = model.params["w1"].device
        self._data = _subset(loader.dataset)
        _check_data(self._data, model)
        average = model.net[0].grad_average
        config = OptimizerConfig(
            min(loader.batch_size, len(self._data.labels)), grad_average=average
        )
        sizes = [*model.params["w1"].shape, len(model.params["b2"])]
        kind, _ = choose_engine("auto", device, sizes, config, self._data)
        self._scale = "unit" if self._data.images.dtype == torch.uint8 else "none"
        normalization = make_normalization(self._scale, self._data.images)
        self._engine = kind(self._data, normalization, device)
        self._state = self._engine.new_state(
            {key: _turned(model.params[name].detach()).contiguous() for key, name in KEYS.items()},
            config,
        )

    def train(self, lr: float, watch: Watch) -> Score:
        """Train for an epoch in the loader's present order. Raises :class:`Stopped`."""
        rows, size = self._loader.rows(), self._state.config.batch_size
        whole = len(rows) - len(rows) % size
        correct, loss = 0, 0.0
        for part, done in ((rows[:whole], 0), (rows[whole:], whole)):
            if len(part) == 0:
                continue
            (result,) = self._engine.train_epoch(
                [self._state],
                [Epoch(EpochOrder(part), lr)],
                should_stop=watch.should_stop,
                on_progress=lambda metrics, done=done: watch.progress(  # type: ignore[misc]
                    (done + metrics[0].samples) / len(rows)
                ),
            )
            if isinstance(result, NonFiniteLossError):
                correct, loss = 0, math.nan
                break
            assert isinstance(result, EpochMetrics)
            correct += result.correct
            loss += result.loss_sum / min(size, len(part))
            if not result.finished:
                self._copy_back()
                raise Stopped
        self._copy_back()
        return Score(correct, len(rows), loss / len(rows))

    @torch.no_grad()
    def _copy_back(self) -> None:
        for key, name in KEYS.items():
            self._model.params[name].copy_(_turned(self._state.parameters[key]))

    def can_evaluate(self, loader: Any) -> bool:
        """Return whether :meth:`evaluator` takes the loader."""
        if not plain_loader(loader):
            return False
        return (_subset(loader.dataset).images.dtype == torch.uint8) == (self._scale == "unit")

    def evaluator(self, loader: Any) -> Callable[[], Score]:
        """Return a function that evaluates the model on the loader, in the order that it has when
        the function is called."""
        data, order = _subset(loader.dataset), loader.rows()
        _check_data(data, self._model)
        size = min(loader.batch_size, len(loader.dataset))
        parts = _batched(data, order, size)

        def evaluate() -> Score:
            nonlocal order, parts
            if not torch.equal(rows := loader.rows(), order):  # it is shuffled for training, too
                order, parts = rows, _batched(data, rows, size)
            correct, loss = 0, 0.0
            for part in parts:
                (found,) = self._engine.evaluate([self._state], part)
                correct += round(found.accuracy * found.count)
                loss += found.loss * found.count / min(size, found.count)
            return Score(correct, len(rows), loss / len(rows))

        return evaluate


def _batched(data: Subset, rows: Tensor, size: int) -> list[Subset]:
    """Return the images of all whole batches, and those of the smaller one at the end."""
    whole = len(rows) - len(rows) % size
    return [_chosen(data, part) for part in (rows[:whole], rows[whole:]) if len(part)]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


def _subset(dataset: Any) -> Subset:
    """Return a data set as the engines take it: images uint8 or float32, labels int64."""
    assert plain_dataset(dataset)
    # once more: its arrays may have been replaced
    found, labels = checked_arrays(dataset.images, dataset.labels)
    images = torch.from_numpy(found).flatten(1)
    images = images if images.dtype == torch.uint8 else images.float()
    return Subset(images, torch.from_numpy(labels).long())


def _check_data(data: Subset, model: Classifier) -> None:
    """Raise ValueError or IndexError where images or labels do not fit the network."""
    inputs, classes = len(model.params["w1"]), len(model.params["b2"])
    if data.images.shape[1] != inputs:
        raise ValueError(
            f"x: expected shape (N, {inputs}), as in_dim says, got (N, {data.images.shape[1]})"
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= classes:
        raise IndexError(
            f"labels must be from 0 to {classes - 1} for a network of {classes} outputs, got "
            f"{low} to {high}; check out_dim and the labels"
        )


def _chosen(data: Subset, rows: Tensor) -> Subset:
    """Return the images of ``rows``, each as often as it is there."""
    counts = torch.bincount(rows, minlength=len(data.labels))
    used = counts.nonzero()[:, 0]
    counts = counts[used]
    images = data.images if len(used) == len(data.labels) else data.images[used]
    labels = data.labels if len(used) == len(data.labels) else data.labels[used]
    return Subset(images, labels, None if int(counts.max()) == 1 else counts)
