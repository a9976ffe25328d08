"""Declare an option once: its default, help text and constraint.

A configuration is a dataclass whose fields are made by :func:`option`. Validation, error sentences,
the flags of the command line, TOML keys, the lists of a sweep and the table in the documentation
are derived from :func:`options_of` it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastmlp.utils.errors import EXIT_USAGE, UserError

MAX_WHOLE = 2**62


@dataclass(frozen=True)
class Constraint:
    """The values that an option accepts: ``wanted`` says which, ``accepts`` tests one.

    ``kind`` is the type that the command line reads: str, int, float, bool, or tuple for layer
    widths. ``choices`` are the values, where there are finitely many. ``parse`` reads a text that
    ``accepts`` let pass, and raises ValueError with a whole sentence where it has no meaning.
    """

    wanted: str
    accepts: Callable[[object], bool]
    kind: type = str
    choices: tuple[str, ...] | None = None
    parse: Callable[[str], object] | None = None

    def check(self, name: str, value: object) -> None:
        """Raise :class:`UserError`, naming the option ``name``, unless ``value`` is accepted."""
        if not self.accepts(value):
            raise UserError(
                f"{name} must be {self.wanted}, got {shown(value)}", EXIT_USAGE, options=(name,)
            )
        if self.parse is not None:
            try:
                self.parse(str(value))
            except ValueError as error:
                raise UserError(str(error), EXIT_USAGE, options=(name,)) from error


def whole(least: int, most: int = MAX_WHOLE) -> Constraint:
    """Accept whole numbers from ``least`` to ``most``."""
    limits = f"of at least {least}" if most == MAX_WHOLE else f"from {least} to {most}"
    return Constraint(f"a whole number {limits}", lambda value: is_whole(value, least, most), int)


def number(wanted: str, accepts: Callable[[float], bool]) -> Constraint:
    """Accept the finite numbers, whole or not, for which ``accepts`` is true."""

    def check(value: Any) -> bool:
        finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return finite and accepts(value)

    return Constraint(wanted, check, float)


ABOVE_ZERO = number("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = number("a number of at least 0", lambda value: value >= 0)
BELOW_ONE = number("a number from 0 up to, but not, 1", lambda value: 0 <= value < 1)
FLAG = Constraint("true or false", lambda value: isinstance(value, bool), bool)
NO_LAYERS = "none"
"""How a network without hidden layers is written."""
MAX_LAYERS = 1000
"""More hidden layers than this are a mistake, which would take long to find out."""
WIDTHS = Constraint(
    "layer widths like 256 or 512,256, at most 1,000, or none",
    lambda value: (
        isinstance(value, tuple) and len(value) <= MAX_LAYERS and all(is_whole(w, 1) for w in value)
    ),
    tuple,
)
DEVICE = Constraint(
    "auto, cpu, cuda or cuda:<number>",
    lambda value: (
        isinstance(value, str)
        and re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?", value) is not None
    ),
)


def one_of(names: Iterable[str]) -> Constraint:
    """Accept the names themselves."""
    choices = tuple(names)
    return Constraint(
        f"one of {', '.join(choices)}", lambda value: value in choices, choices=choices
    )


def text(
    wanted: str,
    *,
    parse: Callable[[str], object] | None = None,
    choices: Iterable[str] | None = None,
    none: bool = False,
) -> Constraint:
    """Accept texts, and None where ``none`` is true; of the ``choices`` only on the command line,
    where there are any."""
    return Constraint(
        wanted,
        lambda value: isinstance(value, str) or (none and value is None),
        choices=tuple(choices) if choices is not None else None,
        parse=parse,
    )


@dataclass(frozen=True)
class Option:
    """A field of a configuration, as :func:`option` declares it."""

    default: Any
    help: str
    constraint: Constraint
    group: str
    metavar: str | None
    varied: bool
    machine: bool
    normalize: Callable[[Any], Any] | None
    name: str = ""

    @property
    def listed(self) -> bool:
        """Whether a sweep reads several values with commas between them: numbers and widths."""
        return self.varied and self.constraint.kind in (int, float, tuple)

    def read(self, value: Any) -> Any:
        """Return the one form of ``value``; raise :class:`UserError` if it is not accepted."""
        if self.normalize is not None:
            value = self.normalize(value)
        self.constraint.check(self.name, value)
        return value


def option(
    default: Any,
    help: str,
    constraint: Constraint,
    *,
    group: str = "training",
    metavar: str | None = None,
    varied: bool = False,
    machine: bool = False,
    normalize: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a dataclass field.

    ``group`` is where ``--help`` lists it, ``metavar`` stands for its value there. ``varied``: a
    sweep may try several values. ``machine``: it does not decide the results, up to rounding.
    ``normalize`` maps the ways to write a value to one, and returns what it does not know as it is.
    """
    declared = Option(default, help, constraint, group, metavar, varied, machine, normalize)
    return field(default=default, metadata={"option": declared})


def options_of(config: type) -> dict[str, Option]:
    """Return the options of a configuration class by name, in the order of its fields."""
    return {f.name: replace(f.metadata["option"], name=f.name) for f in fields(config)}


def options_table(defaults: Any) -> str:
    """Return the options of a configuration, with its values as defaults, as a table in
    Markdown."""
    rows = [
        "| Option | Default | Values | Meaning | A sweep may vary it |",
        "|---|---|---|---|---|",
    ]
    for name, each in options_of(type(defaults)).items():
        default = getattr(defaults, name)
        names = each.constraint.choices or (each.metavar or "").split("|")
        values = ", ".join(f"`{n}`" for n in names) if len(names) > 1 else each.constraint.wanted
        cells = [
            f"`{name}`",
            "" if default is None else f"`{_written(default)}`",
            values,
            each.help,
            "yes" if each.varied else "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return written_widths(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_widths(hidden: object) -> object:
    """Return a tuple of layer widths for 256, "256", "512,256" or a sequence of whole numbers, an
    empty one for "none", and anything else as it is."""
    parts: object = hidden
    if hidden == NO_LAYERS:
        parts = ()
    elif isinstance(hidden, str):
        parts = [int(part) if _is_digits(part) else part for part in hidden.split(",")]
    elif isinstance(hidden, int):
        parts = [hidden]
    if isinstance(parts, (list, tuple)) and all(is_whole(part, 1) for part in parts):
        return tuple(parts)
    return hidden


def written_widths(widths: tuple[int, ...], between: str = ",") -> str:
    """Return layer widths as :func:`parse_widths` reads them, or as others ``between`` them."""
    return between.join(map(str, widths)) or NO_LAYERS


def is_whole(value: object, least: int, most: int = MAX_WHOLE) -> bool:
    """Return whether ``value`` is a whole number, and no bool, between these limits."""
    return type(value) is int and least <= value <= most


def _is_digits(text: str) -> bool:
    """Return whether ``text`` is a whole number, not too long for Python to read."""
    return re.fullmatch(r"\s*\d{1,19}\s*", text) is not None


def shown(value: object) -> str:
    """Return ``repr(value)``, cut to what a person reads."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of many digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
