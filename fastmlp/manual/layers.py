"""Offer layers whose forward and backward are called by hand.

The interface of a course in which the student, not autograd, applies the chain rule. A weight ``w``
has shape (D, F), so that a layer reads ``x @ w + b``. Nothing is recorded for autograd, whether or
not a tensor requires grad. Wrong shapes raise AssertionError with what was expected and what was
passed; a backward without its forward raises RuntimeError.

    fc = FullyConnectedLayer()
    loss = SoftmaxCrossEntropy()
    pred_y, value = loss.forward(labels, fc.forward(x, w, b))
    dw, db = fc.backward(loss.backward())
    w -= lr * dw
    b -= lr * db
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmlp.manual.overrides import watched
from fastmlp.nn import functional
from fastmlp.ops import backend_choice
from fastmlp.ops._load import runs_reference
from fastmlp.ops.activations import activation_backward, activation_backward_ref
from fastmlp.ops.cross_entropy import (
    cross_entropy_backward_ref,
    cross_entropy_ref,
    cross_entropy_with_grad,
)
from fastmlp.ops.linear import linear_backward

IGNORE_NOTHING = torch.iinfo(torch.int64).min
"""An ``ignore_index`` that no label has, so that -100 is an error like any other invalid label."""


Array: TypeAlias = Any
"""A tensor or a NumPy array."""


def checked_device(device: torch.device | str | None) -> torch.device | None:
    """Return the device; raises ValueError, with what to do, for one that is no device or that
    PyTorch does not see."""
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'device must be a device such as "cpu" or "cuda", got {device!r}; a backend is passed '
            "by its name, as backend="
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {found} is missing: PyTorch sees {torch.cuda.device_count()} GPUs here; pass "
            'device="cpu", or in Colab choose a GPU under Runtime, Change runtime type'
        )
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        raise ValueError(f'device {found} is missing here; pass device="cpu"') from error
    return found


def torchable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as PyTorch takes one: of this machine's byte order and writeable."""
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()


def as_tensor(value: Any, device: torch.device | None = None) -> Any:
    """Return a NumPy array as a tensor, and tensors on ``device``, if one is given; anything else
    as it is."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(torchable(value))
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _gradient(backprop: Array, device: torch.device | None, like: Tensor) -> Any:
    """Return a gradient as :func:`as_tensor` does, an array in the dtype of ``like``: NumPy's own
    is float64. Raises TypeError for a tensor of another dtype."""
    found = as_tensor(backprop, device)
    if isinstance(backprop, np.ndarray):
        return found.to(like.dtype)
    if isinstance(found, Tensor) and found.dtype != like.dtype:
        raise TypeError(
            f"backprop: expected {like.dtype}, that of forward's input, got {found.dtype}; try "
            "backprop.to(x.dtype)"
        )
    return found


def _expect(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise AssertionError unless ``tensor`` has ``shape``, where a letter matches any size."""
    is_tensor = isinstance(tensor, Tensor)
    if is_tensor and len(tensor.shape) == len(shape):
        pairs = zip(shape, tensor.shape, strict=True)
        if all(want == size or isinstance(want, str) for want, size in pairs):
            return
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if not is_tensor:
        raise AssertionError(f"{name}: expected a tensor {wanted}, got {type(tensor).__name__}")
    # raised, not asserted: python -O keeps it
    raise AssertionError(f"{name}: expected shape {wanted}, got {tuple(tensor.shape)}")


class _Saved:
    """Tensors that one call saves for a later one; reading them too early or too late fails."""

    def __init__(self, owner: object, **tensors: Tensor) -> None:
        self._owner = type(owner).__name__
        self._tensors: dict[str, tuple[Tensor, int]] = {}
        self.put(**tensors)

    def put(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self._tensors[name] = (tensor, _version(tensor))

    def get(self, name: str, after: str = "forward") -> Tensor:
        """Return a tensor; raises RuntimeError before ``after`` or if it was modified since."""
        if name not in self._tensors:
            raise RuntimeError(f"{self._owner}: call {after} first, it keeps the {name} for this")
        tensor, version = self._tensors[name]
        if _version(tensor) != version:
            raise RuntimeError(
                f"{self._owner}: {name} changed since {after}; take all gradients before the update"
            )
        return tensor


def _version(tensor: Tensor) -> int:
    """Return how often ``tensor`` was modified in place; 0 for inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


@watched("forward", "backward", "dx")
class FullyConnectedLayer:
    """Compute ``y = x @ w + b``. Counterpart: ``F.linear`` with ``weight = w.T``.

    With g = backprop, the chain rule (``grad_average=False``) gives

        dw = x.T @ g,   db = sum over rows of g,   dx = g @ w.T

    ``grad_average=True``, the course's convention, divides dw and db (never dx) by N once more, in
    addition to the loss's own division by N.

    Inputs are moved to ``device``; without one they stay where they are. Raises ValueError for
    what is no device here.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        backend: str | None = None,
        grad_average: bool = True,
    ) -> None:
        self.device = checked_device(device)
        self.backend = backend
        self.grad_average = grad_average
        self._saved = _Saved(self)
        self._bias_is_a_row = False

    @torch.no_grad()
    def forward(self, x: Array, w: Array, b: Array) -> Tensor:
        """Return the output (N, F) for x (N, D), w (D, F), b (F,) or (1, F) of one floating-point
        dtype."""
        x, w, b = (as_tensor(value, self.device) for value in (x, w, b))
        _expect("w", w, "D", "F")
        _expect("x", x, "N", w.shape[0])
        self._bias_is_a_row = isinstance(b, Tensor) and b.dim() == 2 and len(b) == 1
        b = b[0] if self._bias_is_a_row else b
        _expect("b", b, w.shape[1])
        self._saved = _Saved(self, x=x, w=w)
        return functional.linear(x, w.t(), b, backend=self.backend)

    @torch.no_grad()
    def backward(self, backprop: Array) -> tuple[Tensor, Tensor]:
        """Return (dw (D, F), db in the shape of b) for ``backprop`` (N, F), the gradient of the
        output."""
        x, w = self._saved.get("x"), self._saved.get("w")
        backprop = _gradient(backprop, self.device, x)
        _expect("backprop", backprop, len(x), w.shape[1])
        self._saved.put(backprop=backprop)
        dw = self._weight_gradient(x, w, backprop)
        db = backprop.sum(0, keepdim=self._bias_is_a_row)
        if self.grad_average:
            dw /= len(x)
            db /= len(x)
        return dw, db

    @property
    @torch.no_grad()
    def dx(self) -> Tensor:
        """The gradient of x (N, D), the backprop of the layer below.

        Computed when read, so that the first layer of a network does not pay for it. Read it after
        backward and before w is updated in place; later it raises RuntimeError.
        """
        backprop = self._saved.get("backprop", after="backward")
        return functional.linear(backprop, self._saved.get("w"), backend=self.backend)

    def _weight_gradient(self, x: Tensor, w: Tensor, backprop: Tensor) -> Tensor:
        """Return ``x.T @ backprop`` (D, F): what ``weight`` gets in the backward pass of a layer
        that makes x of backprop."""
        if runs_reference(self.backend, x) or (
            self.backend is None and backend_choice.is_linear_of_pytorch(backprop, w, None)
        ):
            return x.t() @ backprop
        dw = linear_backward(x, backprop, w, None, (False, True, False))[1]
        assert dw is not None
        return dw


@watched("forward", "backward")
class ReLU:
    """Compute ``max(x, 0)`` of any shape. Counterpart: ``F.relu``."""

    def __init__(
        self, device: torch.device | str | None = None, *, backend: str | None = None
    ) -> None:
        self.device = checked_device(device)
        self.backend = backend
        self._saved = _Saved(self)

    @torch.no_grad()
    def forward(self, x: Array) -> Tensor:
        """Return the output in the shape of x, of any floating-point dtype."""
        x = as_tensor(x, self.device)
        y = functional.relu(x, backend=self.backend)
        self._saved = _Saved(self, output=y)
        return y

    @torch.no_grad()
    def backward(self, backprop: Array) -> Tensor:
        """Return the gradient of x for that of the output: 0 where the output is 0."""
        y = self._saved.get("output")
        backprop = _gradient(backprop, self.device, y)
        _expect("backprop", backprop, *y.shape)
        if runs_reference(self.backend, y):
            return activation_backward_ref(backprop, y, "relu")
        return activation_backward(backprop, y, "relu")


@watched("forward", "backward")
class SoftmaxCrossEntropy:
    """Compute the mean of -log softmax at the label. Counterpart: ``F.cross_entropy``."""

    def __init__(
        self, device: torch.device | str | None = None, *, backend: str | None = None
    ) -> None:
        self.device = checked_device(device)
        self.backend = backend
        self._saved = _Saved(self)

    @torch.no_grad()
    def forward(self, y: Array, net_out: Array) -> tuple[Tensor, Tensor]:
        """Return (pred_y, loss): the predicted class (N,) int64 of each row of net_out (N, C), and
        the scalar loss for labels y.

        y is (N,) or (N, 1), of integers in [0, C), or one-hot (N, C) of any dtype. Raises
        AssertionError for wrong shapes and rows that are not one-hot, TypeError for labels that are
        no integers, IndexError (CPU) for a label out of range.
        """
        net_out = as_tensor(net_out, self.device)
        _expect("net_out", net_out, "N", "C")
        labels = class_indices(as_tensor(y, net_out.device), net_out.shape)
        if runs_reference(self.backend, net_out):
            loss = cross_entropy_ref(net_out, labels, ignore_index=IGNORE_NOTHING)
            one = torch.ones_like(loss)
            dlogits = cross_entropy_backward_ref(one, net_out, labels, ignore_index=IGNORE_NOTHING)
        else:
            loss, dlogits = cross_entropy_with_grad(net_out, labels, ignore_index=IGNORE_NOTHING)
        self._saved = _Saved(self, net_out=net_out, gradient=dlogits)
        return net_out.argmax(1), loss

    @property
    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """softmax(net_out) (N, C) of the last forward; raises RuntimeError before the first."""
        return torch.softmax(self._saved.get("net_out"), 1)

    @torch.no_grad()
    def backward(self) -> Tensor:
        """Return the gradient of net_out (N, C): ``(probabilities - onehot(y)) / N``."""
        return self._saved.get("gradient").clone()


def _onehot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return (N, classes) with 1 at the label; a row of zeros for a label out of range."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def class_indices(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return class indices (N,), int64 or uint8, from y, integers or one-hot, for an output of
    ``shape``."""
    if isinstance(y, Tensor) and y.dim() == 2 and y.shape[1] == 1 != shape[1]:
        y = y[:, 0]
    if not isinstance(y, Tensor) or y.dim() != 2:
        _expect("y", y, shape[0])
        if y.is_floating_point() or y.is_complex():
            raise TypeError(f"y: expected integers, the classes, got {y.dtype}; try y.long()")
        return y if y.dtype == torch.uint8 else y.long()
    _expect("y", y, *shape)
    y = y.to(torch.uint8) if y.dtype == torch.bool else y
    labels = y.argmax(1)
    if not torch.equal(_onehot(labels, shape[1], y.dtype), y):
        raise AssertionError("y: expected a single 1 among zeros in every row, got other values")
    return labels
