"""The network: linear layers with an activation in between."""

from __future__ import annotations

import numbers
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastmlp.nn import functional
from fastmlp.nn.counterparts import (
    change_class,
    copy_of,
    counterpart_of,
    plain_class,
    scriptable,
    to_counterpart,
)
from fastmlp.nn.init import init_parameters, linears_of
from fastmlp.nn.layers import Linear, LinearActivation, ReLU, checked_backend, with_backend
from fastmlp.ops._load import is_exporting, runs_reference
from fastmlp.ops.activations import ACTIVATIONS, row_of
from fastmlp.ops.checks import is_foreign
from fastmlp.ops.linear import check_linear
from fastmlp.ops.mlp import Layer, takes_one_call
from fastmlp.ops.mlp import mlp as mlp_op

_LINEARS = (nn.Linear, Linear)


class MLP(nn.Sequential):
    """Linear layers of the given sizes with an activation in between, by default ReLU: x (...,
    sizes[0]) -> (..., sizes[-1]).

    Counterpart: ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear, ...)``, of which it has the very
    modules, so that what walks modules (pruning, quantisation, attribution, adapters) finds what it
    looks for. ``forward`` computes a linear layer and the activation after it in one kernel
    wherever both are what they were: layers with hooks, parametrizations or another class are
    called, so they run as they would in an ``nn.Sequential``. Inputs are not flattened.

    ``activation`` is a name that :func:`fastmlp.functional.linear` takes. ``init`` is a name of
    :func:`init_parameters`, drawn from PyTorch's global generator; for a generator of your own,
    call :func:`init_parameters` on the model. Raises ValueError for other sizes than a list or
    tuple of at least two integers >= 1, and for an unknown ``init`` or ``activation``.

    >>> import fastmlp, torch
    >>> model = fastmlp.MLP([8, 16, 3], activation="gelu")
    >>> model(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    >>> model
    MLP(
      (0): Linear(in_features=8, out_features=16, bias=True)
      (1): GELU(approximate='none')
      (2): Linear(in_features=16, out_features=3, bias=True)
    )
    """

    counterpart: ClassVar[type[nn.Module]] = nn.Sequential
    backend: str | None = None

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

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
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out, bias, device, dtype), row.module()]
        super().__init__(*layers[:-1])
        self.backend = checked_backend(backend)
        self.activation = row.name
        if init != "torch":  # the layers have just drawn that one, as torch.nn's would
            init_parameters(self, init, activation=row.name)

    @property
    def sizes(self) -> list[int]:
        """Return the widths from input to output, as given to the constructor."""
        linears = list(linears_of(self))
        return [linears[0].in_features, *(layer.out_features for layer in linears)]

    def forward(self, input: Tensor) -> Tensor:
        if (
            is_foreign(input)  # torch.fx, for one, wants to see each module,
            or is_exporting()  # as what is exported tells from which module it came
            or _has_any_global_hook()  # type: ignore[no-untyped-call]
        ):
            return cast(Tensor, super().forward(input))  # type: ignore[no-untyped-call]
        modules = [*self, None]
        x, position = input, 0
        layers: list[Layer] = []
        while (module := modules[position]) is not None:
            position += 1
            if type(module) not in _LINEARS or not _is_untouched(module):
                x = module(apply_layers(x, layers, self.backend))
                layers = []
                continue
            name, following = "none", modules[position]
            if following is not None and _is_untouched(following):
                found = name_of(following)
                if found is not None:
                    name, position = found, position + 1
            own = module._parameters  # quicker than the attributes
            layers.append(Layer(own["weight"], own["bias"], name))
        return apply_layers(x, layers, self.backend)

    def __getitem__(self, index: Any) -> Any:
        """As ``nn.Sequential``; a slice is a plain ``nn.Sequential`` of the same layers."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickle, also of a version whose MLP consisted of LinearReLU and Identity."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "backend" not in state:
            _unfuse(self)

    def extra_repr(self) -> str:
        return with_backend("", self.backend)

    __prepare_scriptable__ = scriptable

    @classmethod
    def from_torch(cls, sequential: nn.Sequential, backend: str | None = None) -> MLP:
        """Return an MLP with copies of the modules of ``nn.Sequential(Linear, ReLU, Linear,
        ...)``, or of another activation of the table.

        Parameters with their ties and parametrizations, hooks, dtype, device, ``requires_grad`` and
        train/eval mode are the original's. Raises ValueError for a module of another make.
        """
        activation = _checked_layers(sequential)
        mlp = copy_of(sequential)
        for module in mlp.modules():
            to_counterpart(module)
        change_class(mlp, cls)
        assert isinstance(mlp, MLP)
        mlp.backend, mlp.activation = checked_backend(backend), activation
        del mlp[:0]  # deletes nothing, but numbers the layers anew
        return mlp

    def to_torch(self) -> nn.Sequential:
        """Return a copy as ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear, ...)`` of what the MLP
        now consists of, with its own parameters.

        Ties, hooks, parametrizations, dtype, device, ``requires_grad`` and train/eval mode are
        kept; modules that are not ours are copied as they are. Raises ValueError, naming it, for a
        module of ours that has no counterpart in ``torch.nn``.
        """
        for name, module in self.named_modules():
            if module is self and type(self).forward is MLP.forward:
                continue
            if hasattr(type(module), "counterpart") and counterpart_of(module) is None:
                raise ValueError(
                    f"to_torch needs modules with a counterpart in torch.nn, got "
                    f"{type(module).__name__} as module {name!r}; put in its place what it "
                    "consists of, such as nn.Linear and nn.ReLU"
                )
        copied = copy_of(self)
        change_class(copied, MLP)  # of which this may be a subclass
        for module in copied.modules():
            to_counterpart(module)
        return copied


def apply_layers(x: Tensor, layers: list[Layer], backend: str | None = None) -> Tensor:
    """Return what linear layers make of x, one after the other; errors are those of
    :func:`fastmlp.functional.linear`."""
    if len(layers) > 1 and not runs_reference(backend, x) and takes_one_call(layers):
        try:
            return mlp_op(x, layers)
        except RuntimeError:
            _check(x, layers)
            raise
    for weight, bias, activation in layers:
        x = functional.linear(x, weight, bias, activation, backend=backend)
    return x


def _check(x: Tensor, layers: list[Layer]) -> None:
    """Raise the error of the first layer that does not fit the one before it, if any."""
    check_linear(x, *layers[0])
    for before, layer in pairwise(layers):
        check_linear(x.new_empty(0, before.weight.shape[0]), *layer)


def _is_untouched(module: nn.Module) -> bool:
    """Return whether a call of ``module`` is one of its class's ``forward`` and nothing else, and
    its weight and bias, if it has any, are parameters of its own."""
    own = module._parameters
    return (
        not own or (len(own) == 2 and own.get("weight") is not None and "bias" in own)
    ) and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )


def name_of(module: nn.Module) -> str | None:
    """Return the name of the activation that ``module`` computes, with its default options; None
    where the table has none."""
    kind = type(module)
    if kind is nn.ReLU or kind is ReLU:
        return "relu"
    for row in ACTIVATIONS.values():
        if kind is row.module:
            same = all(getattr(module, option) == value for option, value in row.options)
            return row.name if same else None
    return None


def _checked_layers(sequential: nn.Module) -> str:
    """Return the name of the activation throughout ``nn.Sequential(Linear, ReLU, Linear, ...)``;
    raises ValueError for a module of another make."""
    plain = getattr(type(sequential), "forward", None) in (nn.Sequential.forward, MLP.forward)
    modules = list(sequential) if plain else []  # type: ignore[call-overload]
    names = [name_of(module) for module in modules[1::2]]
    fits = [plain_class(module) in _LINEARS for module in modules]
    fits[1::2] = [name is not None for name in names]
    if len(modules) % 2 and all(fits) and len(set(names)) <= 1:
        return next(iter(names), None) or "relu"
    made_of = ", ".join(type(m).__name__ for m in modules) or "no layers"
    odd = [f", where module {i} is neither" for i, good in enumerate(fits) if not good][:1]
    raise ValueError(
        "sequential must be, with ReLU or another activation that fastmlp has throughout, "
        "an nn.Sequential of Linear, ReLU, Linear, ..., Linear, "
        f"got {type(sequential).__name__} of {made_of}{''.join(odd)}"
    )


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


def _unfuse(mlp: MLP) -> None:
    """Put Linear and an activation where an earlier version had LinearReLU and Identity."""
    layers = list(mlp)
    for position, layer in enumerate(layers):
        if isinstance(layer, (Linear, LinearActivation)) and mlp.backend is None:
            mlp.backend = layer.backend
        if type(layer) is Linear:
            to_counterpart(layer)
        elif isinstance(layer, LinearActivation):
            following = layers[position + 1 : position + 2]
            if [type(m) for m in following] != [nn.Identity] or not all(
                map(_is_untouched, (layer, *following))
            ):
                continue
            mlp[position + 1] = row_of(layer.activation).module().train(layer.training)
            vars(layer).pop("activation", None)
            vars(layer).pop("backend", None)
            change_class(layer, nn.Linear)
