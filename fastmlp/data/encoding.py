"""Turn the rows of a table into the inputs of a network.

The encoding is fitted on the training rows alone and becomes part of the saved model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.tables import Column, Table, as_numbers, is_text, listed, missing
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import printable, quoted
from fastmlp.utils.value_checks import (
    Fields,
    check_fields,
    distinct,
    is_deviation,
    is_flag,
    is_name,
    is_object,
    is_scale,
    list_of,
    one_of,
)

MISSING = ("error", "mean")
"""What is done about missing numbers: refuse them, or take the column's mean."""
MAX_CATEGORIES = 1000
"""More one-hot columns than this are a mistake, such as a column of names."""


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: its input is (value - mean) / deviation, of the training rows."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories: its inputs are 1 for the row's category and 0 for the others; all are
    0 for a category that the training rows do not have."""

    categories: tuple[str, ...]


@dataclass(frozen=True)
class TableEncoding:
    """How rows of a table become inputs (n, :attr:`width`) float32; made by :meth:`fit`.

    ``columns`` are those that are read, by name; a table may have more, in any order. Without
    ``named`` they are known by their places alone.
    """

    columns: Mapping[str, NumberColumn | CategoryColumn]
    missing: str = "error"
    named: bool = True

    @classmethod
    def fit(
        cls,
        table: Table,
        *,
        categories: Iterable[str] = (),
        missing: str = "error",
        keep_constant: bool = False,
    ) -> TableEncoding:
        """Fit the encoding to the training rows.

        ``categories`` are the columns to make one-hot. ``missing`` is one of :data:`MISSING`.
        ``keep_constant`` keeps columns with a single value, whose input is then 0. Raises UserError
        that names the column and the row for a text, a missing value or an infinite number in a
        column of numbers, and for a constant column.
        """
        categories = tuple(categories)
        if missing not in MISSING:
            raise UserError(f"missing must be one of {', '.join(MISSING)}, got {missing!r}.")
        table.check_named("categories", categories)
        fitted = {
            name: _fit_categories(table, name)
            if name in categories
            else _fit_numbers(table, name, missing)
            for name in table.names
        }
        if not keep_constant:
            for name, column in fitted.items():
                _check_varies(table, name, column)
        return cls(fitted, missing, table.named)

    @property
    def categories(self) -> tuple[str, ...]:
        """The columns that are one-hot."""
        return tuple(n for n, column in self.columns.items() if isinstance(column, CategoryColumn))

    @property
    def width(self) -> int:
        """The number of inputs."""
        return len(self.input_names)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of each input: its column's, with ``=category`` for a one-hot one."""
        names: list[str] = []
        for name, column in self.columns.items():
            if isinstance(column, NumberColumn):
                names.append(name)
            else:
                names += [f"{name}={category}" for category in column.categories]
        return tuple(names)

    def apply(self, table: Table) -> NDArray[np.float32]:
        """Return the inputs (n, :attr:`width`) of raw rows; raise UserError as :meth:`fit`, and for
        a column that is missing."""
        if not self.named and len(table.names) != len(self.columns):
            raise UserError(
                f"{table.source} has {len(table.names)} columns, and the network was trained on "
                f"{len(self.columns)}; pass the same columns in the same order."
            )
        absent = tuple(name for name in self.columns if name not in table.columns)
        if absent:
            raise UserError(
                f"{table.source} lacks the column{'s' * (len(absent) > 1)} {listed(absent)}, which "
                "the network was trained on; add them to the data."
            )
        inputs = np.empty((len(table), self.width), np.float32)
        at = 0
        for name, column in self.columns.items():
            if isinstance(column, NumberColumn):
                values = numbers(table, name, self.missing)
                values = np.where(np.isnan(values), column.mean, values)
                inputs[:, at] = scaled(table, name, values, column.mean, column.deviation)
                at += 1
            else:
                end = at + len(column.categories)
                names = category_names(table, name)
                _warn_of_unseen(table, name, set(names) - {None, *column.categories})
                rows = np.array(names, dtype=object)[:, None]
                inputs[:, at:end] = rows == np.array(column.categories, dtype=object)
                at = end
        return inputs

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON has it; :meth:`from_dict` reads it."""
        columns = [
            {"name": name, "mean": column.mean, "deviation": column.deviation}
            if isinstance(column, NumberColumn)
            else {"name": name, "categories": list(column.categories)}
            for name, column in self.columns.items()
        ]
        return {"columns": columns, "missing": self.missing, "named": self.named}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TableEncoding:
        """Return the encoding of a :meth:`to_dict`; raise ValueError where it is none."""
        check_fields("the inputs", values, _ENCODING)
        columns: dict[str, NumberColumn | CategoryColumn] = {}
        for each in values["columns"]:
            kind = _CATEGORIES if "categories" in each else _NUMBERS
            check_fields("a column", each, {"name": is_name, **kind})
            if each["name"] in columns:
                raise ValueError(f"the column {quoted(each['name'])} stands twice")
            columns[each["name"]] = (
                CategoryColumn(tuple(each["categories"]))
                if kind is _CATEGORIES
                else NumberColumn(float(each["mean"]), float(each["deviation"]))
            )
        return cls(columns, values["missing"], values["named"])


_ENCODING: Fields = {
    "columns": list_of(is_object, 1),
    "missing": one_of(*MISSING),
    "named": is_flag,
}
_NUMBERS: Fields = {"mean": is_scale, "deviation": is_deviation}
_CATEGORIES: Fields = {"categories": distinct(is_name)}


def numbers(table: Table, name: str, missing_values: str = "error") -> NDArray[np.float64]:
    """Return a column of numbers (n,), nan where a value is missing; raise UserError for a text, an
    infinite number and, with ``missing_values`` "error", a missing value."""
    column = table.columns[name]
    gaps = missing(column)
    if is_text(column):
        row = first_text(column)
        mixed = any(_reads_as_number(value) for value in column)
        raise UserError(
            f"Column {quoted(name)} of {table.source} has the text {quoted(column[row])} in row "
            f"{table.number(row)}{', among numbers' * mixed}; "
            f"{'correct it' if mixed else 'leave the column out by drop'}, or name the column in "
            "categories to make it one-hot.",
            options=("categories", "drop"),
        )
    if gaps.any() and missing_values == "error":
        row = int(gaps.argmax())
        raise UserError(
            f"Column {quoted(name)} of {table.source} has no value in row {table.number(row)} "
            f"({int(gaps.sum()):,} are missing); fill them in, or pass missing mean to take the "
            "column's mean.",
            options=("missing",),
        )
    column = as_numbers(column)
    infinite = np.isinf(column)
    if infinite.any():
        row = table.number(int(infinite.argmax()))
        raise UserError(
            f"Column {quoted(name)} of {table.source} is infinite in row {row}; "
            "correct it, or leave it empty and pass missing mean.",
            options=("missing",),
        )
    return column


def _fit_numbers(table: Table, name: str, missing_values: str) -> NumberColumn:
    values = numbers(table, name, missing_values)
    values = values[~np.isnan(values)]
    if not len(values):
        raise UserError(
            f"Column {quoted(name)} of {table.source} has no value in any training row; leave it "
            "out."
        )
    mean, deviation = mean_and_deviation(table, name, values)
    scale = float(np.abs(values).max())
    constant = deviation <= 1e-12 * scale or values.min() == values.max()
    return NumberColumn(mean, 1.0 if constant else deviation)


def scaled(
    table: Table, name: str, values: NDArray[np.float64], mean: float, deviation: float
) -> NDArray[np.float32]:
    """Return (values - mean) / deviation; raise UserError, naming the row, where float32 does not
    hold it."""
    with np.errstate(over="ignore"):
        found = ((values - mean) / deviation).astype(np.float32)
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found)).argmax())
        raise UserError(
            f"Column {quoted(name)} of {table.source} is {values[row]:.3g} in row "
            f"{table.number(row)}, too far from the others (mean {mean:.3g}, deviation "
            f"{deviation:.3g}) to compute with; correct it or leave the row out."
        )
    return found


def mean_and_deviation(table: Table, name: str, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and the standard deviation of a column's ``values``, 0 where none can be
    divided by it; raise UserError where they are too large for float64."""
    with np.errstate(over="ignore"):
        mean, deviation = float(values.mean()), float(values.std())
    if not np.isfinite([mean, deviation]).all():
        raise UserError(
            f"Column {quoted(name)} of {table.source} has numbers as large as "
            f"{np.abs(values).max():.3g}, whose mean or deviation no float64 holds; divide them by "
            "some number."
        )
    return mean, deviation if is_deviation(deviation) else 0.0


def _fit_categories(table: Table, name: str) -> CategoryColumn:
    found = sorted(set(category_names(table, name)) - {None}, key=category_order)
    if len(found) > MAX_CATEGORIES:
        raise UserError(
            f"Column {quoted(name)} of {table.source} has {len(found):,} categories, and at most "
            f"{MAX_CATEGORIES:,} are made one-hot; leave it out.",
            options=("categories",),
        )
    return CategoryColumn(tuple(str(each) for each in found))


def _warn_of_unseen(table: Table, name: str, unseen: set[str | None]) -> None:
    if unseen:
        few = tuple(str(each) for each in sorted(unseen, key=category_order)[:3])
        warnings.warn(
            f"Column {quoted(name)} of {table.source} has {len(unseen)} "
            f"{'category' if len(unseen) == 1 else 'categories'} that the training rows lack: "
            f"{listed(few)}{', ...' * (len(unseen) > len(few))}; there all its inputs are 0",
            stacklevel=2,
        )


def category_names(table: Table, name: str) -> list[str | None]:
    """Return each row's category as a text, None where it is missing.

    Numbers and truth values are called the same whether they are texts or not, since what a column
    is taken for depends on all its rows: 3, 3.0 and "3.0" are one, and so are True, "true" and 1.
    """
    return [None if each is None else _category(each) for each in label_names(table, name)]


def _category(name: str) -> str:
    if name in ("True", "TRUE", "true", "False", "FALSE", "false"):
        return str(int(name.lower() == "true"))
    if _PLAIN_NUMBER.fullmatch(name):
        return label_name(float(name)) if "." in name else str(int(name))
    return name


_PLAIN_NUMBER = re.compile(r"\s*[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{0,17})?\s*")
"""Without leading zeros, which codes have."""


def label_names(table: Table, name: str) -> list[str | None]:
    """Return each row's label as a text, None where it is missing; 3 and 3.0 are one."""
    column = table.columns[name]
    gaps = missing(column)
    return [
        None if gap else label_name(value) for value, gap in zip(column.tolist(), gaps, strict=True)
    ]


def label_name(value: object) -> str:
    """Return a category or label as a text: whole numbers without a point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def category_order(name: str | None) -> tuple[int, float, str]:
    """Sort numbers by value, before texts."""
    text = str(name)
    return (0, float(text), text) if _reads_as_number(text) else (1, 0.0, text)


def _check_varies(table: Table, name: str, column: NumberColumn | CategoryColumn) -> None:
    if isinstance(column, CategoryColumn):
        constant = len(column.categories) < 2 and not missing(table.columns[name]).any()
    else:
        values = table.columns[name][~missing(table.columns[name])]
        constant = len(values) > 1 and values.min() == values.max()
    if constant and len(table) > 1:
        shown = printable(label_name(table.columns[name][0]), 80)
        raise UserError(
            f"Column {quoted(name)} of {table.source} is {shown} in every training row, so "
            "nothing can be learned from it; leave it out, or pass keep_constant.",
            options=("keep_constant",),
        )


def first_text(column: Column) -> int:
    """Return the first row with a text, preferably one that does not read as a number."""
    texts = [row for row, value in enumerate(column) if isinstance(value, str)]
    return next((row for row in texts if not _reads_as_number(column[row])), texts[0])


def _reads_as_number(value: object) -> bool:
    if value is None:
        return False
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return not np.isnan(number)
