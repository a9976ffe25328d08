"""Render the report's template, ``report.html.jinja``, with Jinja2.

All text is escaped, and the page holds its pictures, so that one file is the whole report.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

GOOD, BAD, UNSURE = "good", "bad", "unsure"
"""Kinds of :class:`Mark`."""


@dataclass(frozen=True)
class Mark:
    """A verdict shown in colour; its text says the same."""

    text: str
    kind: str

    def __html__(self) -> str:
        return Markup('<span class="mark {}">{}</span>').format(self.kind, self.text)


Point = tuple[Mark | None, str]
"""A sentence of a list, with its verdict if it has one."""


@dataclass(frozen=True)
class Table:
    """A table whose columns named in ``right`` hold numbers and are aligned to the right.

    Raises ValueError for a row that is not as long as the header, and for a name it lacks.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Mark]]
    right: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not set(self.right) <= set(self.header):
            raise ValueError(f"right must be columns of {self.header}, got {self.right}")
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"rows must have {len(self.header)} cells, got {len(row)}")


def render(**content: Any) -> str:
    """Return the page; ``content`` is what :func:`fastmlp.report.sections.make_report` collects.

    Raises OSError for a picture that cannot be read and jinja2.UndefinedError for missing content.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"base64": _base64, "nonbreaking": _nonbreaking, "count": _count}
    return environment.get_template("report.html.jinja").render(content)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _nonbreaking(page: str) -> Markup:
    """Keep a figure on one line with its deviation and its per cent sign."""
    return Markup(
        re.sub(r"(?<=\d) (± (?=\d)|%)", lambda m: "&nbsp;" + m[1].replace(" ", "&nbsp;"), page)
    )


def _count(items: Sequence[Any]) -> str:
    return f"{len(items):,}"
