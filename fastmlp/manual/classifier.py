"""Train a two-layer network with layers that are called by hand."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy, class_indices
from fastmlp.nn.init import init_parameters
from fastmlp.nn.modules import MLP
from fastmlp.utils.files import atomic_path

Batches: TypeAlias = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
"""Two tensors (images, labels), or batches (x, y) in a list, a DataLoader or anything else that can
be iterated once per epoch."""


class Score(NamedTuple):
    """Share of right answers (0 to 1) and mean cross entropy."""

    accuracy: float
    loss: float


def print_epoch(record: dict[str, Any]) -> None:
    """Print a record of :meth:`Classifier.training` on one line."""
    text = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "saved")
    print(text + ("  [MODEL SAVED]" if record["saved"] else ""))


class Classifier:
    """A network of D inputs, H hidden units with ReLU and C classes, trained by plain SGD.

    ``params`` holds w1 (D, H), b1 (H,), w2 (H, C), b2 (C,). ``init`` is a name of
    :func:`fastmlp.nn.init.init_parameters`, drawn with ``seed``. ``grad_average`` is that of
    :class:`FullyConnectedLayer`: if True, ``lr`` has to be about N times that of SGD. Raises
    ValueError for D, H or C < 1 or an unknown ``init``.
    """

    def __init__(
        self,
        D: int,
        H: int,
        C: int,
        *,
        init: str = "kaiming",
        seed: int = 0,
        grad_average: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        model = MLP([D, H, C], init="torch", backend=backend, device=device, dtype=dtype)
        init_parameters(model, init, torch.Generator().manual_seed(seed))
        w1, b1, w2, b2 = (parameter.detach() for parameter in model.parameters())
        # contiguous as (D, F): what a student slices, views and saves
        self.params = {"w1": w1.t().contiguous(), "b1": b1, "w2": w2.t().contiguous(), "b2": b2}
        self.fc1 = FullyConnectedLayer(backend, grad_average)
        self.relu = ReLU(backend)
        self.fc2 = FullyConnectedLayer(backend, grad_average)
        self.loss = SoftmaxCrossEntropy(backend)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output before softmax (N, C) for x (N, D)."""
        p = self.params
        hidden = self.relu.forward(self.fc1.forward(x, p["w1"], p["b1"]))
        return self.fc2.forward(hidden, p["w2"], p["b2"])

    def backward(self) -> dict[str, Tensor]:
        """Return the gradient of each of ``params``, after ``forward`` and ``loss.forward``."""
        dw2, db2 = self.fc2.backward(self.loss.backward())
        dw1, db1 = self.fc1.backward(self.relu.backward(self.fc2.dx))
        return {"w1": dw1, "b1": db1, "w2": dw2, "b2": db2}

    def training(
        self,
        train: Batches,
        val: Batches | None = None,
        *,
        epochs: int = 10,
        batch_size: int = 128,
        lr: float,
        lr_decay: float = 1.0,
        seed: int = 0,
        save_path: str | os.PathLike[str] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = print_epoch,
    ) -> list[dict[str, Any]]:
        """Train by SGD at the rate ``lr * lr_decay ** e`` in epoch e = 0, 1, ...

        Tensors (images, labels) are cut into batches of ``batch_size``, in an order drawn from
        ``seed`` anew for every epoch; other data has its own batches and order. Images are
        flattened. Returns a record for each epoch, which is also passed to ``on_epoch`` as soon as
        the epoch ends: epoch (from 1), lr, train_loss and train_accuracy (while training), saved
        and, with ``val``, val_loss and val_accuracy.

        With ``val`` the weights of the best validation accuracy (the first of equals) are kept, and
        written to ``save_path`` when found; without it, those of every epoch. Raises ValueError for
        options out of range or data without batches, TypeError for integer images.
        """
        for name, count in {"epochs": epochs, "batch_size": batch_size}.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
        for name, rate in {"lr": lr, "lr_decay": lr_decay}.items():
            if not 0 < rate < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {rate!r}")
        generator = torch.Generator().manual_seed(seed)
        records: list[dict[str, Any]] = []
        best_accuracy, best = -1.0, self.params
        for epoch in range(epochs):
            rate = lr * lr_decay**epoch
            score = self._run(train, batch_size, generator, rate)
            record = {"epoch": epoch + 1, "lr": rate, "saved": False}
            record |= {"train_loss": score.loss, "train_accuracy": score.accuracy}
            if val is not None:
                score = self.test(val, batch_size)
                record |= {"val_loss": score.loss, "val_accuracy": score.accuracy}
            if val is None or score.accuracy > best_accuracy:
                best_accuracy = score.accuracy
                best = {name: tensor.clone() for name, tensor in self.params.items()}
                if save_path is not None:
                    self.save_model(save_path)
                    record["saved"] = True
            records.append(record)
            if on_epoch is not None:
                on_epoch(record)
        self.params = best
        return records

    def test(self, data: Batches, batch_size: int = 1024) -> Score:
        """Return accuracy and loss over ``data``."""
        return self._run(data, batch_size)

    def _run(
        self,
        data: Batches,
        batch_size: int,
        generator: torch.Generator | None = None,
        lr: float | None = None,
    ) -> Score:
        """Pass over ``data`` once, with an SGD step for each batch if ``lr`` is given."""
        like = self.params["w1"]
        rows, sums = 0, torch.zeros(2, dtype=torch.float64, device=like.device)
        for images, labels in _batches(data, batch_size, generator):
            if not images.is_floating_point():
                raise TypeError(f"images must be floating point, scaled, got {images.dtype}")
            x = images.flatten(1).to(like.device, like.dtype)
            y = class_indices(labels.to(like.device), (len(x), len(self.params["b2"])))
            pred_y, loss = self.loss.forward(y, self.forward(x))
            if lr is not None:
                for name, grad in self.backward().items():
                    self.params[name].sub_(grad, alpha=lr)
            # summed on the device: reading a number at every step would stall a GPU
            sums += torch.stack([(pred_y.argmax(1) == y).sum(), loss * len(x)])
            rows += len(x)
        if rows == 0:
            raise ValueError(
                "data must give batches in every epoch (a generator does once), got none"
            )
        return Score(*(sums / rows).tolist())

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write ``params`` to ``path`` atomically, by ``torch.save`` of a plain dict.

        Raises OSError if the file is not writable.
        """
        # through memory, so that a full disk is an OSError and not torch.save's RuntimeError
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in self.params.items()}, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Read a file of :meth:`save_model` into ``params``, keeping their device and dtype.

        Raises OSError for a missing file, and ValueError for one that is damaged or of a model of
        another shape; ``params`` then stay unchanged.
        """
        buffer = io.BytesIO(Path(path).read_bytes())
        try:
            loaded = torch.load(buffer, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make unpickling raise anything
            raise ValueError(f"{path} is damaged or no file of Classifier.save_model") from error
        wanted = {name: tuple(tensor.shape) for name, tensor in self.params.items()}
        found = loaded if isinstance(loaded, dict) else {}
        got = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in found.items()}
        if got != wanted:
            raise ValueError(f"{path} does not fit: expected {wanted}, got {got}")
        for name, tensor in self.params.items():
            tensor.copy_(loaded[name])


def _batches(
    data: Any, batch_size: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (x, y); a pair of tensors is cut up, in random order with a generator."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor)):
        yield from data
        return
    images, labels = data
    if len(images) != len(labels):
        raise ValueError(f"images and labels must be as many, got {len(images)} and {len(labels)}")
    order = None if generator is None else torch.randperm(len(images), generator=generator)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        chosen = rows if order is None else order[rows].to(images.device)
        yield images[chosen], labels[chosen]
