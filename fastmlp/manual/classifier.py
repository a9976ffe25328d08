"""Train a two-layer network with layers that are called by hand."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.manual.epochs import (
    EngineEpochs,
    Score,
    Stopped,
    Watch,
    engine_reason,
    pair_of,
    run_batches,
    tensor_of,
)
from fastmlp.manual.files import NAMES, read_weights
from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy, checked_device
from fastmlp.manual.loader import BATCH_SIZE, as_loader
from fastmlp.manual.model import check_model
from fastmlp.manual.overrides import unchanged, watched
from fastmlp.nn.init import init_parameters
from fastmlp.nn.modules import MLP
from fastmlp.utils.files import atomic_path, check_writable
from fastmlp.utils.progress import ProgressBar
from fastmlp.utils.signals import stop_on_signals

FORWARD, BACKWARD = (f"{name} of a FullyConnectedLayer" for name in ("forward", "backward"))


class TrainingLogs(NamedTuple):
    """A number for each epoch: losses as :class:`Score` has them, accuracies in per cent."""

    train_loss: list[float]
    train_acc: list[float]
    valid_loss: list[float]
    valid_acc: list[float]


@watched("forward", "backward")
class Classifier:
    """A network of D inputs, H hidden units with ReLU and C classes, trained by plain SGD.

    ``params`` holds w1 (D, H), b1 (H,), w2 (H, C), b2 (C,); ``net`` the three layers and
    ``loss_func`` the loss, which may be replaced by others with the same methods. ``init`` is a
    name of :func:`fastmlp.nn.init.init_parameters`, drawn with ``seed``. ``grad_average`` is that
    of :class:`FullyConnectedLayer`: if True, the learning rate has to be about N times that of SGD.
    Raises ValueError for D, H or C < 1, an unknown ``init`` or a device that is missing.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        device: torch.device | str | None = None,
        *,
        init: str = "kaiming",
        seed: int = 0,
        grad_average: bool = True,
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = checked_device(device)
        sizes = [in_dim, hidden_dim, out_dim]
        model = MLP(sizes, init="torch", backend=backend, device=device, dtype=dtype)
        init_parameters(model, init, torch.Generator().manual_seed(seed))
        w1, b1, w2, b2 = (parameter.detach() for parameter in model.parameters())
        # contiguous as (D, F): what a student slices, views and saves
        self.params: dict[str, Tensor] = {
            "w1": w1.t().contiguous(),
            "b1": b1,
            "w2": w2.t().contiguous(),
            "b2": b2,
        }
        self.net: list[Any] = [
            FullyConnectedLayer(device, backend=backend, grad_average=grad_average),
            ReLU(device, backend=backend),
            FullyConnectedLayer(device, backend=backend, grad_average=grad_average),
        ]
        self.loss_func: Any = SoftmaxCrossEntropy(device, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output before softmax (N, C) for x (N, D)."""
        p, (first, relu, second), like = self.params, self.net, self.params["w1"]
        y = tensor_of(first.forward(x, p["w1"], p["b1"]), FORWARD, like)
        hidden = tensor_of(relu.forward(y), "forward of a ReLU", like)
        return tensor_of(second.forward(hidden, p["w2"], p["b2"]), FORWARD, like)

    def backward(self) -> dict[str, Tensor]:
        """Return the gradient of each of ``params``, after ``forward`` and ``loss_func.forward``.

        Raises ValueError or TypeError for a gradient that is none, or of another shape than its
        parameter."""
        (first, relu, second), like = self.net, self.params["w1"]
        backprop = tensor_of(self.loss_func.backward(), "the loss's backward", like)
        dw2, db2 = pair_of(second.backward(backprop), BACKWARD, "(dw, db)")
        # a layer of another make has forward and backward, and no more
        own = unchanged(second, FullyConnectedLayer)
        hidden = second.dx if own else backprop @ self.params["w2"].t()
        backprop = tensor_of(relu.backward(hidden), "backward of a ReLU", like)
        dw1, db1 = pair_of(first.backward(backprop), BACKWARD, "(dw, db)")
        grads = dict(zip(NAMES, (dw1, db1, dw2, db2), strict=True))
        return {name: _fitting(name, grad, self.params[name]) for name, grad in grads.items()}

    @property
    def unchanged(self) -> bool:
        """Whether ``forward`` and ``backward`` are those written here."""
        return unchanged(self, Classifier)

    def training(
        self,
        train_dl: Any,
        valid_dl: Any = None,
        epochs: int = 200,
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 0.95,
        verbose: int = 1,
        *,
        model_path: str | os.PathLike[str] | None = "model.pt",
    ) -> TrainingLogs:
        """Train by SGD at the rate ``learning_rate * learning_rate_decay ** e`` in epoch e = 0, 1,
        ..., and return train_loss_log, train_acc_log, valid_loss_log and valid_acc_log.

        Data is a :class:`~fastmlp.manual.loader.Dataloader`, any other loader of batches
        (images, labels), or what :func:`~fastmlp.manual.loader.as_loader` takes, for validation in
        batches as large as those of ``train_dl``, which is shuffled before every epoch if it can
        be. Every ``verbose`` epochs their results are
        printed; 0 prints nothing.

        The weights of the lowest validation loss are kept, and written to ``model_path`` when found
        (None: not at all); without ``valid_dl``, those of every epoch. Where layers, classifier and
        loader are ours, an engine runs whole epochs; otherwise the layers are called batch by
        batch, with the same results up to rounding. Ctrl-C ends it after the last whole epoch. A
        loss that is not finite ends it with a warning. Raises ValueError or TypeError for options
        out of range and data without batches, OSError where ``model_path`` cannot be written.
        """
        _check_options(epochs, verbose, learning_rate, learning_rate_decay)
        path = None if model_path is None else _file_path(model_path)
        if path is not None:
            check_writable(path)  # now, not after the first epoch
        check_model(self.net, self.loss_func, self.params)
        train = as_loader(train_dl)
        # the course's loss depends on the size of a batch: with the same, both can be compared
        size = getattr(train, "batch_size", None) or BATCH_SIZE
        valid = None if valid_dl is None else as_loader(valid_dl, size)
        logs, best_loss = TrainingLogs([], [], [], []), math.inf
        best: dict[str, Tensor] | None = None
        run_epoch, validate = self._ways(train, valid)
        with stop_on_signals() as stopped, ProgressBar(epochs, "training") as bar:
            for epoch in range(epochs):
                bar.move(epoch, f"epoch {epoch + 1}/{epochs}")
                watch = Watch(stopped, lambda share, epoch=epoch: bar.move(epoch + share))  # type: ignore[misc]
                try:
                    if stopped():
                        raise Stopped
                    _shuffle(train)
                    score = run_epoch(learning_rate * learning_rate_decay**epoch, watch)
                except Stopped:
                    bar.write(f"Stopped in epoch {epoch + 1}.")
                    break
                valid_score = validate() if validate is not None else None
                _log(logs, score, valid_score)
                loss = (valid_score or score).loss
                if saved := math.isfinite(loss) and (valid is None or loss < best_loss):
                    best_loss, best = loss, {n: t.detach().clone() for n, t in self.params.items()}
                    if path is not None:
                        self.save_model(path)
                if verbose and (epoch + 1) % verbose == 0:
                    bar.write(_report(epoch + 1, score, valid_score, saved and path is not None))
                if not (math.isfinite(score.loss) and math.isfinite(loss)):
                    _warn(epoch + 1, learning_rate, best is not None)
                    break
        self._set(best or {})
        return logs

    @torch.no_grad()
    def _set(self, params: Mapping[str, Tensor]) -> None:
        for name, tensor in params.items():
            self.params[name].copy_(tensor)

    def _ways(
        self, train: Any, valid: Any
    ) -> tuple[Callable[[float, Watch], Score], Callable[[], Score] | None]:
        """Return how to train for an epoch and how to validate after it, if at all."""
        by_layers = None if valid is None else lambda: run_batches(self, valid)
        if engine_reason(self, train) is not None:
            return lambda lr, watch: run_batches(self, train, lr, watch), by_layers
        engine = EngineEpochs(self, train)
        if valid is not None and engine.can_evaluate(valid):
            return engine.train, engine.evaluator(valid)
        return engine.train, by_layers

    def score(self, data: Any) -> Score:
        """Return hits and loss over ``data``, which is what :meth:`training` takes."""
        check_model(self.net, self.loss_func, self.params, ("forward",))
        return run_batches(self, as_loader(data))

    def test(self, dl: Any) -> float:
        """Print and return the accuracy, in per cent, over the batches of ``dl``."""
        score = self.score(dl)
        print(
            f"Got {score.correct} correct prediction in {score.images} test data, "
            f"accuracy: {score.accuracy:.2f}%"
        )
        return score.accuracy

    def save_model(self, path: str | os.PathLike[str] = "model.pt") -> None:
        """Write ``params`` to ``path`` atomically, by ``torch.save`` of a plain dict.

        A ``~`` is the home folder. Raises OSError if the file is not writable.
        """
        # through memory, so that a full disk is an OSError and not torch.save's RuntimeError
        buffer = io.BytesIO()
        torch.save({name: tensor.detach().cpu() for name, tensor in self.params.items()}, buffer)
        with atomic_path(_file_path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_model(self, path: str | os.PathLike[str] = "model.pt") -> None:
        """Read a file that :func:`~fastmlp.manual.files.read_weights` knows into ``params``,
        keeping their device and dtype.

        Raises OSError for a missing file, and ValueError for one that is damaged or of a model of
        another shape; ``params`` then stay unchanged.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.params.items()}
        self._set(read_weights(_expanded(path), shapes))


def _fitting(name: str, grad: Any, parameter: Tensor) -> Tensor:
    """Return a gradient in the shape of its parameter; (1, F) is taken for (F,)."""
    found = tensor_of(grad, f"{BACKWARD}, in place of d{name},", parameter)
    if tuple(found.shape) == (1, *parameter.shape):
        found = found[0]
    if found.shape != parameter.shape:
        raise ValueError(
            f"d{name}: expected shape {tuple(parameter.shape)}, that of {name}, got "
            f"{tuple(found.shape)} from backward of a FullyConnectedLayer"
        )
    return found


def _check_options(epochs: Any, verbose: Any, lr: Any, decay: Any) -> None:
    for name, value, least in (("epochs", epochs, 1), ("verbose", verbose, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    for name, rate in {"learning_rate": lr, "learning_rate_decay": decay}.items():
        try:
            fits = not isinstance(rate, str) and 0 < float(rate) < math.inf
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"{name} must be a finite number > 0, got {rate!r}")


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # of a user that does not exist
        raise FileNotFoundError(f"{path}: there is no such home folder") from error


def _file_path(path: str | os.PathLike[str]) -> Path:
    found = _expanded(path)
    if found.is_dir():
        raise IsADirectoryError(f"{found} is a folder; pass a file in it, such as model.pt")
    return found


def _shuffle(loader: Any) -> None:
    shuffle = getattr(loader, "shuffle", None)
    if callable(shuffle):
        shuffle()


def _log(logs: TrainingLogs, score: Score, valid: Score | None) -> None:
    logs.train_loss.append(score.loss)
    logs.train_acc.append(score.accuracy)
    if valid is not None:
        logs.valid_loss.append(valid.loss)
        logs.valid_acc.append(valid.accuracy)


def _report(epoch: int, score: Score, valid: Score | None, saved: bool) -> str:
    """Return the lines that are printed after an epoch, counted from 1."""
    lines = [f"Epoch {epoch}:", f"Training accuracy: {score.accuracy:.2f}%, loss: {score.loss:.4f}"]
    if valid is not None:
        lines.append(f"Validation accuracy: {valid.accuracy:.2f}%, loss: {valid.loss:.4f}")
    return "\n".join(lines) + " [MODEL SAVED]" * saved


def _warn(epoch: int, learning_rate: float, kept: bool) -> None:
    left = "the best parameters so far are kept" if kept else "the parameters are of no use"
    warnings.warn(
        f"the loss became infinite or nan in epoch {epoch}, so training ended, and {left}; try a "
        f"learning_rate below {learning_rate:g}, unless nan or infinity is in the images",
        RuntimeWarning,
        stacklevel=3,
    )
