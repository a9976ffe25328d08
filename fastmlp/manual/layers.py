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

from typing import Any

import torch
from torch import Tensor

from fastmlp.nn import functional
from fastmlp.ops._load import resolve_backend
from fastmlp.ops.activations import activation_backward, activation_backward_ref
from fastmlp.ops.linear import linear_backward, linear_backward_ref

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
            return linear_backward_ref(*args)
        return linear_backward(*args)


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
            return activation_backward_ref(backprop, y, "relu")
        return activation_backward(backprop, y, "relu")


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
        loss = functional.cross_entropy(
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
