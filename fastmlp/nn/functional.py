"""The layers as functions, on either backend: compiled kernels or their pure-PyTorch twins.

``backend="native"`` runs the compiled operators of :mod:`fastmlp.ops`, ``backend="reference"``
their references in the same files. ``None`` takes the default: native, or, where there are no
compiled kernels for the tensor's device, the reference, after one warning that says why.
"""

from __future__ import annotations

from torch import Tensor

from fastmlp.ops import activations
from fastmlp.ops import cross_entropy as cross_entropy_ops
from fastmlp.ops import linear as linear_ops
from fastmlp.ops._load import resolve_backend
from fastmlp.ops.checks import check_floating


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> Tensor:
    """``act(x @ weight.T + bias)``: x (..., I), weight (O, I), bias (O,) -> (..., O).

    ``activation`` is a name of :data:`fastmlp.ops.activations.ACTIVATIONS`: "none", "relu",
    "leaky_relu", "tanh", "sigmoid", "gelu" or "silu". Counterpart of ``torch.nn.functional.linear``
    and the function of that name. Raises ValueError on shapes that do not fit and on another name,
    TypeError on dtypes that are not floating point or that differ.
    """
    linear_ops.check_linear(x, weight, bias, activation)
    if resolve_backend(backend, x.device.type) == "reference":
        return linear_ops.linear_ref(x, weight, bias, activation)
    return linear_ops.linear(x, weight, bias, activation)


def linear_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``relu(x @ weight.T + bias)`` in one kernel; see :func:`linear`."""
    return linear(x, weight, bias, "relu", backend=backend)


def activation(x: Tensor, name: str, *, backend: str | None = None) -> Tensor:
    """``act(x)`` of any shape, for a name that :func:`linear` takes.

    Counterpart of the function of that name in ``torch.nn.functional``. Raises ValueError for
    another name, TypeError on a dtype that is not floating point.
    """
    activations.check_activation(x, name)
    if resolve_backend(backend, x.device.type) == "reference":
        return activations.activation_ref(x, name)
    return activations.activation(x, name)


def relu(x: Tensor, *, backend: str | None = None) -> Tensor:
    """``max(x, 0)``, any shape; nan stays nan. Counterpart of ``torch.nn.functional.relu``."""
    check_floating("x", x)
    if resolve_backend(backend, x.device.type) == "reference":
        return activations.activation_ref(x, "relu")
    return activations.activation(x, "relu")


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Softmax cross entropy with class-index targets, as ``torch.nn.functional.cross_entropy``.

    logits (C,), (N, C) or (N, C, d1, ...); target (), (N,) or (N, d1, ...), int64 or uint8;
    weight (C,) -> a scalar for "mean" and "sum", target's shape for "none".
    Raises ValueError on shapes or options that do not fit, TypeError on dtypes, IndexError (CPU) on
    a label outside [0, C) that is not ``ignore_index``.
    """
    args = (logits, target, weight, reduction, ignore_index, label_smoothing)
    cross_entropy_ops.check_cross_entropy(*args)
    if resolve_backend(backend, logits.device.type) == "reference":
        return cross_entropy_ops.cross_entropy_ref(*args)
    return cross_entropy_ops.cross_entropy(*args)
