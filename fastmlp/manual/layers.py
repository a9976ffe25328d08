"""Layers whose forward and backward are called by hand, and a two-layer classifier made of them.

The interface of a course in which the student, not autograd, walks the chain rule. Here a weight
``w`` has shape (D, F), so that a layer reads ``x @ w + b``. Nothing is recorded for autograd, and
tensors that require grad are taken like any other. Shapes that do not fit raise AssertionError with
what was expected and what came; a backward without its forward raises RuntimeError.

    fc = FullyConnectedLayer()
    loss = SoftmaxCrossEntropy()
    pred_y, value = loss.forward(labels, fc.forward(x, w, b))
    dw, db = fc.backward(loss.backward())
    w -= lr * dw
    b -= lr * db
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastmlp.nn import functional
from fastmlp.ops import linear as ops
from fastmlp.ops import reference
from fastmlp.ops._load import resolve_backend
from fastmlp.utils.files import atomic_path
from fastmlp.nn.modules import MLP, init_parameters

Batches: TypeAlias = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
"""Data for a :class:`Classifier`: two tensors (images, labels), or batches (x, y) in a list, a
DataLoader or anything else that can be iterated once per epoch."""

IGNORE_NOTHING = torch.iinfo(torch.int64).min
"""An ``ignore_index`` that no label has, so that -100 is an error here like any other bad label."""


def _expect(name: str, tensor: Tensor, *shape: int | str) -> None:
    """AssertionError unless ``tensor`` has ``shape``, in which a letter stands for any size."""
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if not isinstance(tensor, Tensor):
        raise AssertionError(f"{name}: expected a tensor {wanted}, got {type(tensor).__name__}")
    got = tuple(tensor.shape)
    fits = (isinstance(want, str) or want == size for want, size in zip(shape, got, strict=False))
    if len(got) != len(shape) or not all(fits):  # raised, not asserted: python -O keeps it
        raise AssertionError(f"{name}: expected shape {wanted}, got {got}")


class _Saved:
    """What one call keeps for a later one, with errors for asking too early or too late."""

    def __init__(self, owner: object, **tensors: Tensor) -> None:
        self._owner = type(owner).__name__
        self._tensors: dict[str, tuple[Tensor, int]] = {}
        self.put(**tensors)

    def put(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self._tensors[name] = (tensor, _version(tensor))

    def get(self, name: str, after: str = "forward") -> Tensor:
        """The tensor; RuntimeError where ``after`` was not called or it was written to since."""
        if name not in self._tensors:
            raise RuntimeError(f"{self._owner}: call {after} first, it keeps the {name} for this")
        tensor, version = self._tensors[name]
        if _version(tensor) != version:
            raise RuntimeError(
                f"{self._owner}: {name} changed since {after}; take all gradients before the update"
            )
        return tensor


def _version(tensor: Tensor) -> int:
    """How often ``tensor`` was written to in place; inference tensors do not count, so 0."""
    return 0 if tensor.is_inference() else tensor._version


class FullyConnectedLayer:
    """``y = x @ w + b``, differentiated by hand. Counterpart: ``F.linear`` with ``weight = w.T``.

    With g = backprop, the chain rule (``grad_average=False``) says

        dw = x.T @ g,   db = sum over rows of g,   dx = g @ w.T

    ``grad_average=True``, the course's convention, divides dw and db (never dx) by N once more, on
    top of the loss's own division by N.
    """

    def __init__(self, backend: str | None = None, grad_average: bool = True) -> None:
        self.backend = backend
        self.grad_average = grad_average
        self._saved = _Saved(self)

    @torch.no_grad()
    def forward(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """x (N, D), w (D, F), b (F,), one floating-point dtype -> (N, F)."""
        _expect("w", w, "D", "F")
        _expect("x", x, "N", w.shape[0])
        _expect("b", b, w.shape[1])
        self._saved = _Saved(self, x=x, w=w)
        return functional.linear(x, w.t(), b, backend=self.backend)

    @torch.no_grad()
    def backward(self, backprop: Tensor) -> tuple[Tensor, Tensor]:
        """The loss's gradient to the output, (N, F) -> its gradients (dw (D, F), db (F,))."""
        x, w = self._saved.get("x"), self._saved.get("w")
        _expect("backprop", backprop, len(x), w.shape[1])
        self._saved.put(backprop=backprop)
        _, dw, db = self._linear_backward(backprop, x, w.t(), None, (False, True, True))
        if self.grad_average:
            dw /= len(x)
            db /= len(x)
        return dw.t(), db

    @property
    @torch.no_grad()
    def dx(self) -> Tensor:
        """The loss's gradient to x, (N, D): what the layer below takes as its backprop.

        Computed when read, so the first layer of a net does not pay for it. Read it after backward
        and before w is updated in place: later it raises RuntimeError.
        """
        backprop = self._saved.get("backprop", after="backward")
        x, w = self._saved.get("x"), self._saved.get("w")
        dx: Tensor = self._linear_backward(backprop, x, w.t(), None, (True, False, False))[0]
        return dx

    def _linear_backward(self, *args: Any) -> Any:
        if resolve_backend(self.backend, args[0].device.type) == "reference":
            return reference.linear_backward_ref(*args)
        return ops.linear_backward(*args)


class ReLU:
    """``max(x, 0)`` of any shape, with a hand-called gradient. Counterpart: ``F.relu``."""

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self._saved = _Saved(self)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x, any shape and floating-point dtype -> the same shape."""
        y = functional.relu(x, backend=self.backend)
        self._saved = _Saved(self, output=y)
        return y

    @torch.no_grad()
    def backward(self, backprop: Tensor) -> Tensor:
        """The loss's gradient to the output -> that to x: 0 where the output is 0. Same shapes."""
        y = self._saved.get("output")
        _expect("backprop", backprop, *y.shape)
        if resolve_backend(self.backend, y.device.type) == "reference":
            return reference.relu_backward_ref(backprop, y)
        return ops.relu_backward(backprop, y)


class SoftmaxCrossEntropy:
    """Softmax, then the mean over the batch of -log p[label]. Counterpart: ``F.cross_entropy``."""

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend
        self._saved = _Saved(self)

    @torch.no_grad()
    def forward(self, y: Tensor, net_out: Tensor) -> tuple[Tensor, Tensor]:
        """Labels y, and net_out (N, C) -> (pred_y (N, C): softmax(net_out), loss: a scalar).

        y is (N,), int64 or uint8 in [0, C), or one-hot (N, C) of any dtype. Raises AssertionError
        on shapes and on rows that are not one-hot, IndexError (on the CPU) on a label out of range.
        """
        _expect("net_out", net_out, "N", "C")
        labels = _labels(y, net_out.shape)
        loss = functional.softmax_cross_entropy(
            net_out, labels, ignore_index=IGNORE_NOTHING, backend=self.backend
        )
        pred_y = torch.softmax(net_out, 1)
        self._saved = _Saved(self, pred_y=pred_y, y=labels)
        return pred_y, loss

    def backward(self) -> Tensor:
        """The gradient of the mean loss to net_out, (N, C): ``(pred_y - onehot(y)) / N``."""
        pred_y, labels = self._saved.get("pred_y"), self._saved.get("y")
        return (pred_y - _onehot(labels, pred_y.shape[1], pred_y.dtype)) / len(pred_y)


def _onehot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(N,) -> (N, classes), 1 at the label; a row of zeros for a label out of range."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def _labels(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Class indices (N,) from y, which is those or one-hot, for a net's output of ``shape``."""
    if not isinstance(y, Tensor) or y.dim() != 2:
        _expect("y", y, shape[0])
        return y
    _expect("y", y, *shape)
    y = y.to(torch.uint8) if y.dtype == torch.bool else y
    labels = y.argmax(1)
    if not torch.equal(_onehot(labels, shape[1], y.dtype), y):
        raise AssertionError("y: expected a single 1 among zeros in every row, got other values")
    return labels


class Score(NamedTuple):
    """Share of right answers (0 to 1) and mean cross entropy, from :meth:`Classifier.test`."""

    accuracy: float
    loss: float


def print_epoch(record: dict[str, Any]) -> None:
    """Prints a record of :meth:`Classifier.training` on one line."""
    text = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "saved")
    print(text + ("  [MODEL SAVED]" if record["saved"] else ""))


class Classifier:
    """D inputs -> H hidden units with ReLU -> C classes, trained by plain SGD without autograd.

    ``params`` holds the weights: w1 (D, H), b1 (H,), w2 (H, C), b2 (C,). ``init`` is a name of
    :func:`fastmlp.nn.modules.init_parameters`, drawn with ``seed``. ``grad_average`` is that of
    :class:`FullyConnectedLayer`: where it is True, ``lr`` has to be about N times that of SGD.
    Raises ValueError for D, H or C < 1 or an unknown ``init``.
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
        """x (N, D) -> the net's output before softmax, (N, C)."""
        p = self.params
        hidden = self.relu.forward(self.fc1.forward(x, p["w1"], p["b1"]))
        return self.fc2.forward(hidden, p["w2"], p["b2"])

    def backward(self) -> dict[str, Tensor]:
        """The gradient for each entry of ``params``; needs ``forward`` and ``loss.forward``."""
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
        """Trains by SGD at the rate ``lr * lr_decay ** e`` in epoch e = 0, 1, ...

        Tensors (images, labels) are cut into batches of ``batch_size``, in an order drawn from
        ``seed`` anew for every epoch; other data comes in its own batches and order. Images are
        flattened. Returns a record for each epoch, which ``on_epoch`` (None: nobody) gets as soon
        as it is there: epoch (from 1), lr, train_loss and train_accuracy (while training), saved
        and, with ``val``, val_loss and val_accuracy.

        With ``val`` the weights of the best validation accuracy (the first of equals) are kept, and
        written to ``save_path`` as they are found; without, those of every epoch. Raises ValueError
        on options out of range or data without batches, TypeError on images that are integers.
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
        """(accuracy, loss) over ``data``: tensors (images, labels), or batches of them."""
        return self._run(data, batch_size)

    def _run(
        self,
        data: Batches,
        batch_size: int,
        generator: torch.Generator | None = None,
        lr: float | None = None,
    ) -> Score:
        """One pass over ``data``, with an SGD step for each batch where ``lr`` is given."""
        like = self.params["w1"]
        rows, sums = 0, torch.zeros(2, dtype=torch.float64, device=like.device)
        for images, labels in _batches(data, batch_size, generator):
            if not images.is_floating_point():
                raise TypeError(f"images must be floating point, scaled, got {images.dtype}")
            x = images.flatten(1).to(like.device, like.dtype)
            y = _labels(labels.to(like.device), (len(x), len(self.params["b2"])))
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
        """Writes ``params`` to ``path``, whole or not at all: a ``torch.save`` of a plain dict.

        Raises OSError where the file cannot be written.
        """
        # through memory, so that a full disk is an OSError and not torch.save's RuntimeError
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in self.params.items()}, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Reads what :meth:`save_model` wrote into ``params``, keeping their device and dtype.

        Raises OSError where there is no such file, and ValueError where it is damaged or of a model
        of another shape; ``params`` are then as they were.
        """
        buffer = io.BytesIO(Path(path).read_bytes())
        try:
            loaded = torch.load(buffer, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make unpickling fail in any way there is
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
    """Batches (x, y) of ``data``; a pair of tensors is cut up, in random order with a generator."""
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
