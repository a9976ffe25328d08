"""Turn modules into their counterparts, in place, by a change of class.

A module keeps its identity and so everything that hangs on it: parameters and the optimizers that
hold them, buffers, hooks, ties, names, mode. A class of ours names its class of ``torch.nn`` as
``counterpart`` and adds nothing to an object but the attribute ``backend``, and ``activation`` in
an MLP.
"""

from __future__ import annotations

import copy
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.utils import parametrize

Module = TypeVar("Module", bound=nn.Module)
_scripted: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of ``module``, without what ``torch.nn.utils.parametrize`` made of it."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def counterpart_of(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of ``torch.nn`` that computes what ``module`` does, None where that is not
    exactly a layer of ours."""
    kind: type[nn.Module] | None = vars(plain_class(module)).get("counterpart")
    return kind


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make ``module`` one of class ``kind``, which has the same attributes; parametrizations
    stay."""
    if parametrize.is_parametrized(module):
        old = type(module)
        own = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
        kind = type(f"Parametrized{kind.__name__}", (kind,), own)
    module.__class__ = kind


def to_counterpart(module: nn.Module) -> None:
    """Make a layer of ours its counterpart in ``torch.nn``; leave another module as it is."""
    kind = counterpart_of(module)
    if kind is not None:
        for name in ("backend", "activation"):  # the latter an MLP's
            vars(module).pop(name, None)
        change_class(module, kind)


def copy_of(module: Module) -> Module:
    """Return a deep copy with its own parameters, ties and hooks.

    Tensors that a hook computes from parameters before each forward pass, as those of
    ``weight_norm`` and of pruning, are copied by value; ``copy.deepcopy`` refuses them.
    """
    tensors = (t for m in module.modules() for t in vars(m).values() if isinstance(t, Tensor))
    return copy.deepcopy(module, {id(t): t.detach().clone() for t in tensors if not t.is_leaf})


def scriptable(module: nn.Module) -> nn.Module:
    """Return the counterpart of ``module`` with the same parameters, hooks and layers: what
    ``torch.jit.script`` compiles in its place."""
    twin = copy.copy(module)
    to_counterpart(twin)
    return keep_for_script(module, twin)


def keep_for_script(module: nn.Module, twin: nn.Module) -> nn.Module:
    """Return ``twin``, and keep ``module`` as long as it lives: ``torch.jit.script`` knows modules
    by their ``id``, which must not pass to another one while it works."""
    _scripted[twin] = module
    return twin
