"""Swap the layers of a user's model for ours, in place, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from fastmlp.nn.counterparts import change_class, counterpart_of, plain_class, to_counterpart
from fastmlp.nn.layers import CrossEntropyLoss, Linear, LinearActivation, ReLU, checked_backend
from fastmlp.nn.mlp import MLP
from fastmlp.ops._load import native_available, unsupported_reason
from fastmlp.ops.checks import FLOATING

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    kind.counterpart: kind for kind in (Linear, ReLU, CrossEntropyLoss)
}


@dataclass(frozen=True)
class Replacement:
    """What :func:`replace` or :func:`restore` did: the qualified names of the modules ("" is the
    model itself) with the class that each now has, and, of the others, why they stayed. Printed as
    a table."""

    swapped: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, ["(model)", *self.swapped, *self.kept]))
        lines = []
        for title, names in (("swapped", self.swapped), ("kept", self.kept)):
            lines.append(f"{title}: {len(names)}")
            lines += [f"  {name or '(model)':{width}}  {text}" for name, text in names.items()]
        return "\n".join(lines)


def replace(model: nn.Module, backend: str | None = None) -> Replacement:
    """Make every ``nn.Linear``, ``nn.ReLU`` and ``nn.CrossEntropyLoss`` in ``model`` the layer of
    ours, in place, and return which, and why the other layers stayed.

    The modules themselves stay, with their class changed: parameters, ``state_dict``, hooks,
    parametrizations, ties, device, dtype, mode, and optimizers that hold the parameters, are as
    before. What stays: subclasses with code of their own, layers of a dtype or on a device without
    kernels, and those of an :class:`MLP`, which are fused already. Raises ValueError for an unknown
    ``backend``.

    >>> import fastmlp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> swapped = fastmlp.replace(model)
    >>> type(model[0])
    <class 'fastmlp.nn.layers.Linear'>
    """
    checked_backend(backend)
    swapped, kept, passed = {}, {}, set[nn.Module]()
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            passed.update(module.children())
        if parametrize.is_parametrized(module):
            passed.update(module.parametrizations.modules())
        if module in passed or hasattr(type(module), "counterpart"):
            continue
        ours = _OURS.get(plain_class(module))
        reason = _why_not(module, ours, backend)
        if ours is not None and reason is None:
            change_class(module, ours)
            vars(module)["backend"] = backend
            swapped[name] = ours.__name__
        elif reason is not None:
            kept[name] = f"{type(module).__name__}: {reason}"
    return Replacement(swapped, kept)


def restore(model: nn.Module) -> Replacement:
    """Make every layer of ours in ``model`` its counterpart in ``torch.nn``, in place, and return
    which: what :func:`replace` did is undone, and an ``MLP`` becomes an ``nn.Sequential``.

    As there, the modules themselves stay. :class:`LinearReLU` and :class:`LinearActivation` have no
    counterpart that is one module; they and subclasses of ours stay.

    >>> import fastmlp
    >>> from torch import nn
    >>> model = nn.Sequential(fastmlp.Linear(4, 8), nn.ReLU())
    >>> swapped = fastmlp.restore(model)
    >>> type(model[0])
    <class 'torch.nn.modules.linear.Linear'>
    """
    swapped, kept = {}, {}
    for name, module in model.named_modules():
        kind = counterpart_of(module)
        if kind is not None:
            to_counterpart(module)
            swapped[name] = kind.__name__
        elif isinstance(module, LinearActivation):
            kept[name] = f"{type(module).__name__}: torch.nn has no one module that does the same"
        elif hasattr(type(module), "counterpart"):
            kept[name] = f"{type(module).__name__}: a subclass, with code of its own"
    return Replacement(swapped, kept)


def _why_not(module: nn.Module, ours: type[nn.Module] | None, backend: str | None) -> str | None:
    """Return why ``module`` is not swapped; None where it is, and for containers of others."""
    if ours is None:
        if isinstance(module, tuple(_OURS)):
            return "a subclass, with code of its own"
        leaf = next(module.children(), None) is None
        return "fastmlp has no such layer" if leaf else None
    if "forward" in vars(module):
        return "its forward has been replaced"
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype not in FLOATING:
            return f"no kernels for {tensor.dtype}"
        device = tensor.device.type
        if backend is None and device != "meta" and not native_available(device):
            return unsupported_reason(device)
    return None
