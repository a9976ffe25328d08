"""The layers as functions, on either backend: compiled kernels or their pure-PyTorch twins.

``backend="native"`` runs the compiled operators of :mod:`fastmlp.ops`, ``backend="reference"``
their references in the same files. ``None`` takes the default: native, or, where there are no
compiled kernels for the tensor's device, the reference, after one warning that says why. What is
recorded by ``torch.fx``, ``torch.export``, ``torch.jit.trace`` or an exporter to ONNX is the
reference, which runs without fastmlp; and so it is for tensors of a class of their own (DTensor,
quantised weights), which knows PyTorch's functions.
"""

from __future__ import annotations

from contextlib import suppress

import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

from fastmlp.ops import activations, backend_choice
from fastmlp.ops import cross_entropy as cross_entropy_ops
from fastmlp.ops import linear as linear_ops
from fastmlp.ops._load import is_exporting, runs_reference
from fastmlp.ops.checks import check_floating, is_foreign


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

    >>> import torch
    >>> from fastmlp import functional
    >>> functional.linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([[11.]])
    """
    if is_foreign(x, weight) or is_exporting():
        return linear_ops.linear_ref(x, weight, bias, activation)
    try:
        if backend is None and backend_choice.is_linear_of_pytorch(x, weight, bias):
            return linear_ops.linear_ref(x, weight, bias, activation)
    except (AttributeError, RuntimeError):
        pass  # the check says better what does not fit, or is no tensor
    linear_ops.check_linear(x, weight, bias, activation)
    if runs_reference(backend, x):
        return linear_ops.linear_ref(x, weight, bias, activation)
    return linear_ops.linear(x, weight, bias, activation)


def linear_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``relu(x @ weight.T + bias)`` in one kernel; see :func:`linear`.

    >>> import torch
    >>> from fastmlp import functional
    >>> functional.linear_relu(torch.tensor([[1.0]]), torch.tensor([[2.0], [-2.0]]))
    tensor([[2., 0.]])
    """
    return linear(x, weight, bias, "relu", backend=backend)


def activation(x: Tensor, name: str, *, backend: str | None = None) -> Tensor:
    """``act(x)`` of any shape, for a name that :func:`linear` takes.

    Counterpart of the function of that name in ``torch.nn.functional``. Raises ValueError for
    another name, TypeError on a dtype that is not floating point.

    >>> import torch
    >>> from fastmlp import functional
    >>> functional.activation(torch.tensor([-1.0, 0.0, 1.0]), "tanh")
    tensor([-0.7616,  0.0000,  0.7616])
    """
    if is_foreign(x) or is_exporting():
        return activations.activation_ref(x, name)
    activations.check_activation(x, name)
    if runs_reference(backend, x):
        return activations.activation_ref(x, name)
    return activations.activation(x, name)


def relu(x: Tensor, inplace: bool = False, *, backend: str | None = None) -> Tensor:
    """``max(x, 0)``, any shape; nan stays nan. Counterpart of ``torch.nn.functional.relu``.

    ``inplace`` writes the result into ``x`` and returns it, by ``torch.relu_`` on either backend.

    >>> import torch
    >>> from fastmlp import functional
    >>> functional.relu(torch.tensor([-1.0, float("nan"), 1.0]))
    tensor([0., nan, 1.])
    """
    if is_foreign(x) or is_exporting():
        return F.relu(x, inplace)
    check_floating("x", x)
    if inplace or (backend is None and backend_choice.is_relu_of_pytorch(x)):
        return F.relu(x, inplace)
    if runs_reference(backend, x):
        return activations.activation_ref(x, "relu")
    return activations.activation(x, "relu")


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Softmax cross entropy, as ``torch.nn.functional.cross_entropy``, whose signature it has.

    logits (C,), (N, C) or (N, C, d1, ...); weight (C,) -> a scalar for "mean" and "sum", the shape
    of class indices for "none". target is class indices, (), (N,) or (N, d1, ...), int64 or uint8;
    or probabilities of logits' shape and any floating dtype, which may require a gradient and are
    computed by PyTorch's own operators on either backend. ``size_average`` and ``reduce`` are
    PyTorch's deprecated names for ``reduction``.
    Raises ValueError on shapes or options that do not fit, TypeError on dtypes, IndexError (CPU) on
    a label outside [0, C) that is not ``ignore_index``.

    >>> import torch
    >>> from fastmlp import functional
    >>> functional.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]), reduction="sum")
    tensor(2.7726)
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    args = (logits, target, weight, reduction, ignore_index, label_smoothing)
    if is_foreign(logits, target) or is_exporting():
        return cross_entropy_ops.cross_entropy_ref(*args)
    if backend is None and backend_choice.is_cross_entropy_of_pytorch(logits, target, weight):
        with suppress(ValueError, RuntimeError):  # the check says better what does not fit
            return cross_entropy_ops.cross_entropy_ref(*args)
    cross_entropy_ops.check_cross_entropy(*args)
    if target.is_floating_point() or runs_reference(backend, logits):
        return cross_entropy_ops.cross_entropy_ref(*args)
    return cross_entropy_ops.cross_entropy(*args)


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """Return the reduction that PyTorch's deprecated arguments mean, after its warning."""
    for name, value in {"size_average": size_average, "reduce": reduce}.items():
        if value is not None and not isinstance(value, bool):
            raise TypeError(
                f"{name} must be True, False or None, got {value!r}; give reduction, ignore_index "
                "and label_smoothing by name"
            )
    return str(_reduction.legacy_get_string(size_average, reduce))
