"""The layers as ``nn.Module``: what ``torch.nn`` has, on fastmlp's kernels.

Each one takes the constructor arguments of its ``torch.nn`` counterpart (plus ``backend=``) and has
the same ``state_dict``, so weights move between the two unchanged in both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from fastmlp.nn import functional
from fastmlp.nn.counterparts import keep_for_script, scriptable
from fastmlp.ops._load import resolve_backend
from fastmlp.ops.activations import row_of


def checked_backend(backend: str | None) -> str | None:
    """Return ``backend`` itself, or raise what :func:`resolve_backend` raises. None stays None: the
    default is looked up at every call, so that ``set_backend`` reaches existing layers."""
    if backend is not None:
        resolve_backend(backend)
    return backend


def with_backend(text: str, backend: str | None) -> str:
    """Return an ``extra_repr`` that names the backend where one was chosen."""
    return ", ".join(part for part in (text, backend and f"backend={backend!r}") if part)


class Linear(nn.Linear):
    """``y = x @ weight.T + bias``: x (..., I) -> y (..., O). Counterpart: ``torch.nn.Linear``.

    Same constructor, initialisation and ``state_dict`` (weight (O, I), bias (O,)). Errors are those
    of :func:`fastmlp.functional.linear`, and of :func:`resolve_backend` for ``backend``.

    >>> import fastmlp, torch
    >>> layer = fastmlp.Linear(4, 3)
    >>> layer(torch.ones(2, 4)).shape
    torch.Size([2, 3])
    """

    counterpart: ClassVar[type[nn.Module]] = nn.Linear
    backend: str | None = None

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

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
        self.backend = checked_backend(backend)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias, backend=self.backend)

    def extra_repr(self) -> str:
        return with_backend(super().extra_repr(), self.backend)

    __prepare_scriptable__ = scriptable


class LinearActivation(nn.Module):
    """``y = act(x @ weight.T + bias)``. Counterpart: ``nn.Linear``, then the activation's module.

    Constructor and ``state_dict`` are those of :class:`Linear`; ``activation`` is a name that
    :func:`fastmlp.functional.linear` takes. Not an ``nn.Linear``, so that a tool that replaces
    those does not drop the activation. Raises ValueError for another name.

    >>> import torch
    >>> LinearActivation(4, 3, activation="gelu")(torch.ones(2, 4)).shape
    torch.Size([2, 3])
    """

    counterpart: ClassVar[type[nn.Module] | None] = None  # torch.nn has none that is one module
    weight: nn.Parameter
    bias: nn.Parameter | None

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

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
        super().__init__()
        drawn = nn.Linear(in_features, out_features, bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight = cast(nn.Parameter, drawn.weight)
        self.register_parameter("bias", drawn.bias)
        self.backend = checked_backend(backend)
        self.activation = row_of(activation).name

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(
            input, self.weight, self.bias, self.activation, backend=self.backend
        )

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, "
        text += f"bias={self.bias is not None}"
        return f"{with_backend(text, self.backend)}, activation={self.activation!r}"

    def __prepare_scriptable__(self) -> nn.Module:
        """Return two modules of ``torch.nn`` with the same parameters, for ``torch.jit.script``."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = self.weight
        linear.register_parameter("bias", self.bias)
        twin = nn.Sequential(linear, row_of(self.activation).module()).train(self.training)
        return keep_for_script(self, twin)


class LinearReLU(LinearActivation):
    """``y = relu(x @ weight.T + bias)`` in one kernel. Counterpart: ``nn.Linear`` then ``nn.ReLU``.

    Constructor and ``state_dict`` are those of :class:`Linear`; not an ``nn.Linear``, as
    :class:`LinearActivation`.

    >>> import fastmlp, torch
    >>> bool((fastmlp.LinearReLU(4, 3)(torch.randn(2, 4)) >= 0).all())
    True
    """

    activation = "relu"

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
        super().__init__(in_features, out_features, bias, device, dtype, backend=backend)


class ReLU(nn.ReLU):
    """``max(x, 0)``, any shape; nan stays nan. Counterpart: ``torch.nn.ReLU``, as is its
    constructor.

    >>> import fastmlp, torch
    >>> fastmlp.ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    counterpart: ClassVar[type[nn.Module]] = nn.ReLU
    backend: str | None = None

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    def __init__(self, inplace: bool = False, *, backend: str | None = None) -> None:
        super().__init__(inplace)
        self.backend = checked_backend(backend)

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, self.inplace, backend=self.backend)

    def extra_repr(self) -> str:
        return with_backend(super().extra_repr(), self.backend)

    __prepare_scriptable__ = scriptable


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Mean, sum or vector of -log softmax(input)[target]. Counterpart: ``nn.CrossEntropyLoss``, as
    is its constructor.

    input (C,), (N, C) or (N, C, d1, ...); target class indices, int64 or uint8, or probabilities of
    input's shape. ``weight`` (C,) is a buffer and part of the ``state_dict``, as in PyTorch. Errors
    are those of :func:`fastmlp.functional.cross_entropy`.

    >>> import fastmlp, torch
    >>> loss = fastmlp.CrossEntropyLoss()
    >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]))  # log 4
    tensor(1.3863)
    """

    counterpart: ClassVar[type[nn.Module]] = nn.CrossEntropyLoss
    backend: str | None = None

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, target: Tensor) -> Tensor: ...

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.backend = checked_backend(backend)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        text = (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )
        return with_backend(text, self.backend)

    __prepare_scriptable__ = scriptable
