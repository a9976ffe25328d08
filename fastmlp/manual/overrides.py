"""Tell whether a student overrode a method: in a subclass, on an instance, or on our own class, as
one does who writes a class cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)
_WRITTEN: dict[type, dict[str, Any]] = {}
"""The methods of a class as they were written here."""


def watched(*names: str) -> Callable[[_Class], _Class]:
    """Return a decorator of a class whose methods of these names :func:`unchanged` looks at."""

    def watch(own: _Class) -> _Class:
        _WRITTEN[own] = {name: getattr(own, name) for name in names}
        return own

    return watch


def unchanged(thing: object, own: type) -> bool:
    """Return whether a thing is of the class ``own`` and has its watched methods as written."""
    return isinstance(thing, own) and all(
        getattr(type(thing), name) is method and name not in vars(thing)
        for name, method in _WRITTEN[own].items()
    )
