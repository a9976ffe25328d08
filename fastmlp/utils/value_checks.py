"""Check values that were read from a file before they are used: nobody knows who wrote it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, float32, strided

from fastmlp.utils.untrusted import printable

Check = Callable[[Any], bool]
Fields = Mapping[str, Check]
"""What each field of an object must be."""


def is_text(value: object) -> bool:
    """Return whether it is a text of printable characters, as a line of a terminal has it."""
    return isinstance(value, str) and value.isprintable()


def is_name(value: object) -> bool:
    """Return whether it is a text, of any characters, such as a column of somebody's table has."""
    return isinstance(value, str)


def is_flag(value: object) -> bool:
    """Return whether it is true or false."""
    return isinstance(value, bool)


def is_count(value: object) -> bool:
    """Return whether it is a whole number of at least 0."""
    return type(value) is int and 0 <= value < 1 << 63


def is_number(value: object) -> bool:
    """Return whether it is a number that a float can hold: finite, infinite or nan."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 1023)


LARGEST = 1e100
"""Beyond it, sums and squares of numbers overflow, as they do below its inverse. Losses are of
float32, times are of this world."""


def is_finite(value: object) -> bool:
    """Return whether it is a finite number, 0 or of a size that can be computed with."""
    return is_number(value) and (value == 0 or 1 / LARGEST < abs(value) < LARGEST)  # type: ignore


def is_duration(value: object) -> bool:
    """Return whether it is a finite number of at least 0."""
    return is_finite(value) and value >= 0  # type: ignore[operator]


def is_scale(value: object) -> bool:
    """Return whether it is any finite number, such as the mean of a column."""
    return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def is_rate(value: object) -> bool:
    """Return whether it is any finite number of at least 0, such as a learning rate."""
    return is_scale(value) and value >= 0  # type: ignore[operator]


def is_deviation(value: object) -> bool:
    """Return whether it is a finite number above 0, by which numbers can be divided."""
    return is_scale(value) and value >= sys.float_info.min  # type: ignore[operator]


def is_share(value: object) -> bool:
    """Return whether it is from 0 to 1, or the nan of a regression."""
    return is_number(value) and (math.isnan(value) or 0 <= value <= 1)  # type: ignore


def optional(check: Check) -> Check:
    """Return a check that also accepts None."""
    return lambda value: value is None or check(value)


def list_of(check: Check, least: int = 0) -> Check:
    """Return a check for a list of at least so many values, each accepted by ``check``."""
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(check, value))


def distinct(check: Check) -> Check:
    """Return a check for a list of values, each accepted by ``check`` and none equal to another."""
    return lambda value: list_of(check)(value) and len(set(value)) == len(value)


def one_of(*values: object) -> Check:
    """Return a check for one of some texts, or None where that is among them."""
    return lambda value: isinstance(value, (str, type(None))) and value in values


def is_object(value: object) -> bool:
    """Return whether it is an object: values by name."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def is_list(value: object) -> bool:
    """Return whether it is a list."""
    return isinstance(value, list)


def is_tensor(value: object) -> bool:
    """Return whether it is a tensor as training keeps it: float32, on the CPU, each number in its
    place in memory of its own, without a gradient."""
    return (
        type(value) is Tensor
        and value.dtype == float32
        and value.device.type == "cpu"
        and value.layout == strided
        and not value.is_nested
        and value.is_contiguous()
        and not value.requires_grad
        and not value.is_conj()
        and not value.is_neg()
    )


def check_fields(what: str, values: object, fields: Fields) -> dict[str, Any]:
    """Return ``values``; raise ValueError unless it is an object of just these fields, each as its
    check wants it."""
    if not isinstance(values, dict) or set(values) != set(fields):
        raise ValueError(f"{what} does not hold {', '.join(fields)}")
    for name, is_right in fields.items():
        if not is_right(values[name]):
            raise ValueError(f"{name} of {what} cannot be {_shown(values[name])}")
    return values


def _shown(value: object) -> str:
    if isinstance(value, (dict, list, tuple, Tensor)):
        return f"such a {type(value).__name__}"
    if type(value) is int and abs(value) >= 1 << 1023:
        return "a number of so many digits"
    return printable(repr(value), 50)
