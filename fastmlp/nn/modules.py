"""The layers as ``nn.Module``: what ``torch.nn`` has, on fastmlp's kernels.

Each one takes the constructor arguments of its ``torch.nn`` counterpart (plus ``backend=``) and has
the same ``state_dict``, so weights move between the two unchanged in both directions.
"""

from __future__ import annotations

import copy
import numbers
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastmlp.nn import functional
from fastmlp.nn.init import init_parameters, linears_of
from fastmlp.ops._load import resolve_backend
from fastmlp.ops.activations import ACTIVATIONS, row_of

Net = TypeVar("Net", bound=nn.Sequential)


def _checked_backend(backend: str | None) -> str | None:
    """Return ``backend`` itself, or raise what :func:`resolve_backend` raises. None stays None: the
    default is looked up at every call, so that ``set_backend`` reaches existing layers."""
    if backend is not None:
        resolve_backend(backend)
    return backend


def _with_backend(text: str, backend: str | None) -> str:
    """Return an ``extra_repr`` that names the backend where one was chosen."""
    return ", ".join(part for part in (text, backend and f"backend={backend!r}") if part)


class Linear(nn.Linear):
    """``y = x @ weight.T + bias``: x (..., I) -> y (..., O). Counterpart: ``torch.nn.Linear``.

    Same constructor, initialisation and ``state_dict`` (weight (O, I), bias (O,)). Errors are those
    of :func:`fastmlp.functional.linear`, and of :func:`resolve_backend` for ``backend``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.backend = _checked_backend(backend)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias, backend=self.backend)

    def extra_repr(self) -> str:
        return _with_backend(super().extra_repr(), self.backend)


class LinearActivation(Linear):
    """``y = act(x @ weight.T + bias)``. Counterpart: ``nn.Linear``, then the activation's module.

    Constructor and ``state_dict`` are those of :class:`Linear`; ``activation`` is a name that
    :func:`fastmlp.functional.linear` takes. Raises ValueError for another one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "relu",
        backend: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, backend=backend)
        self.activation = row_of(activation).name

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(
            input, self.weight, self.bias, self.activation, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


class LinearReLU(Linear):
    """``y = relu(x @ weight.T + bias)`` in one kernel. Counterpart: ``nn.Linear`` then ``nn.ReLU``.

    Constructor and ``state_dict`` are those of :class:`Linear`.
    """

    activation = "relu"

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear_relu(input, self.weight, self.bias, backend=self.backend)


class ReLU(nn.ReLU):
    """``max(x, 0)``, any shape; nan stays nan. Counterpart: ``torch.nn.ReLU``, never in place."""

    def __init__(self, *, backend: str | None = None) -> None:
        super().__init__()
        self.backend = _checked_backend(backend)

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, backend=self.backend)

    def extra_repr(self) -> str:
        return _with_backend("", self.backend)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Mean, sum or vector of -log softmax(input)[target]. Counterpart: ``nn.CrossEntropyLoss``.

    input (C,), (N, C) or (N, C, d1, ...); target class indices, int64 or uint8 (not probabilities).
    ``weight`` (C,) is a buffer and part of the ``state_dict``, as in PyTorch. Errors are those of
    :func:`fastmlp.functional.cross_entropy`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.backend = _checked_backend(backend)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            self.reduction,
            self.ignore_index,
            self.label_smoothing,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        text = (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )
        return _with_backend(text, self.backend)


class MLP(nn.Sequential):
    """Linear layers of the given sizes with an activation in between, by default ReLU: x (...,
    sizes[0]) -> (..., sizes[-1]).

    Counterpart: ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear, ...)``, with the same ``state_dict``
    keys ("0.weight", "0.bias", "2.weight", ...) and the same index for each layer: a LinearReLU (or
    LinearActivation) stands at 0, an Identity where its ReLU was, a Linear at the end. Inputs are
    not flattened.

    ``activation`` is a name that :func:`fastmlp.functional.linear` takes. ``init`` is a name of
    :func:`init_parameters`, drawn from PyTorch's global generator; for a generator of your own,
    call :func:`init_parameters` on the model. Raises ValueError for other sizes than a list or
    tuple of at least two integers >= 1, and for an unknown ``init`` or ``activation``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        bias: bool = True,
        init: str = "kaiming",
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        activation: str = "relu",
    ) -> None:
        sizes, row = _checked_sizes(sizes), row_of(activation)
        relu = row.name == "relu"
        fused = LinearReLU if relu else partial(LinearActivation, activation=row.name)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers.append(fused(fan_in, fan_out, bias, device, dtype, backend=backend))
            layers.append(nn.Identity())
        layers.append(Linear(sizes[-2], sizes[-1], bias, device, dtype, backend=backend))
        super().__init__(*layers)
        self.activation = row.name
        if init != "torch":  # the layers have just drawn that one, as torch.nn's would
            init_parameters(self, init, activation=row.name)

    @property
    def sizes(self) -> list[int]:
        """Return the widths from input to output, as given to the constructor."""
        linears = list(linears_of(self))
        return [linears[0].in_features, *(layer.out_features for layer in linears)]

    def __getitem__(self, index: Any) -> Any:
        """As ``nn.Sequential``; a slice is a plain ``nn.Sequential`` of the same layers."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)

    @classmethod
    def from_torch(cls, sequential: nn.Sequential, backend: str | None = None) -> MLP:
        """Return an MLP with copies of the parameters of ``nn.Sequential(Linear, ReLU, Linear,
        ...)``, or of another activation of the table.

        dtype, device, ``requires_grad`` and train/eval mode are the original's. Raises ValueError
        for a module of another make.
        """
        modules = list(sequential) if isinstance(sequential, nn.Sequential) else []
        linears = [m for m in modules[::2] if isinstance(m, nn.Linear)]
        names = [_name_of(m) for m in modules[1::2]]
        fused = any(isinstance(m, (LinearReLU, LinearActivation)) for m in linears)
        regular = len(linears) == len(names) + 1 and len(linears) + len(names) == len(modules)
        if fused or not regular or None in names or len(set(names)) > 1:
            made_of = ", ".join(type(m).__name__ for m in modules) or "no layers"
            raise ValueError(
                "sequential must be, with ReLU or another activation that fastmlp has throughout, "
                "an nn.Sequential of Linear, ReLU, Linear, ..., Linear, "
                f"got {type(sequential).__name__} of {made_of}"
            )
        sizes = [linears[0].in_features, *(layer.out_features for layer in linears)]
        name = next(iter(names), None) or "relu"
        mlp = cls(sizes, init="torch", backend=backend, device="meta", activation=name)
        return _transplant(sequential, mlp)

    def to_torch(self) -> nn.Sequential:
        """Return the equivalent ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear, ...)``, with the
        activation's module and copies of the parameters.

        dtype, device, ``requires_grad`` and train/eval mode are kept.
        """
        modules: list[nn.Module] = []
        for layer in linears_of(self):
            modules.append(nn.Linear(layer.in_features, layer.out_features, device="meta"))
            modules.append(row_of(self.activation).module())
        return _transplant(self, nn.Sequential(*modules[:-1]))


def _name_of(module: nn.Module) -> str | None:
    """Return the name of the activation that ``module`` computes, with its default options; None
    where the table has none."""
    for row in ACTIVATIONS.values():
        if type(module) is row.module or (row.name == "relu" and type(module) is ReLU):
            twin, options = row.module(), getattr(row.module, "__constants__", [])
            same = [getattr(module, o) == getattr(twin, o) for o in options if o != "inplace"]
            return row.name if all(same) else None
    return None


def _checked_sizes(sizes: Sequence[int]) -> list[int]:
    """Return ``sizes`` as plain integers; ValueError unless two or more in a list or tuple."""
    good = isinstance(sizes, (list, tuple)) and len(sizes) >= 2
    if not good or not all(
        isinstance(size, numbers.Integral) and not isinstance(size, bool) and size >= 1
        for size in sizes
    ):
        raise ValueError(
            "sizes must be a list of at least two integers >= 1, such as [3072, 256, 10], "
            f"got {sizes!r}"
        )
    return [int(size) for size in sizes]


def _transplant(source: nn.Sequential, target: Net) -> Net:
    """Return ``target`` with copies of ``source``'s linear parameters, and its mode."""
    for old, new in zip(linears_of(source), linears_of(target), strict=True):
        new.weight, new.bias = copy.deepcopy(old.weight), copy.deepcopy(old.bias)
    return target.train(source.training)
