"""Turn the rows of a table into the inputs of a network.

The encoding is fitted on the training rows alone and becomes part of the saved model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.tables import Column, Table, is_text, listed, missing
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import printable, quoted

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
        for name in categories:
            if name not in table.columns:
                raise UserError(
                    f"categories names the column {quoted(name)}, and {table.source} has only "
                    f"{listed(table.names)}.",
                    options=("categories",),
                )
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
        absent = tuple(name for name in self.columns if name not in table.columns)
        if absent:
            raise UserError(
                f"{table.source} lacks the column{'s' * (len(absent) > 1)} {listed(absent)}, which "
                "the network was trained on; add them to the data."
            )
        if not self.named and len(table.names) != len(self.columns):
            raise UserError(
                f"{table.source} has {len(table.names)} columns, and the network was trained on "
                f"{len(self.columns)}; pass the same columns in the same order."
            )
        inputs = np.empty((len(table), self.width), np.float32)
        at = 0
        for name, column in self.columns.items():
            if isinstance(column, NumberColumn):
                values = numbers(table, name, self.missing)
                values = np.where(np.isnan(values), column.mean, values)
                inputs[:, at] = (values - column.mean) / column.deviation
                at += 1
            else:
                end = at + len(column.categories)
                names = np.array(category_names(table, name), dtype=object)[:, None]
                inputs[:, at:end] = names == np.array(column.categories, dtype=object)
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
        """Return the encoding of a :meth:`to_dict`; raise KeyError, TypeError or ValueError where
        it is none."""
        columns: dict[str, NumberColumn | CategoryColumn] = {}
        for each in values["columns"]:
            if "categories" in each:
                columns[each["name"]] = CategoryColumn(tuple(map(str, each["categories"])))
            else:
                columns[each["name"]] = NumberColumn(float(each["mean"]), float(each["deviation"]))
        return cls(columns, str(values["missing"]), bool(values["named"]))


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
            f"{'correct it' if mixed else 'leave the column out'}, or name the column in "
            "categories to make it one-hot.",
            options=("categories",),
        )
    if gaps.any() and missing_values == "error":
        row = int(gaps.argmax())
        raise UserError(
            f"Column {quoted(name)} of {table.source} has no value in row {table.number(row)} "
            f"({int(gaps.sum()):,} are missing); fill them in, or pass missing mean to take the "
            "column's mean.",
            options=("missing",),
        )
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
    mean, scale = float(values.mean()), float(np.abs(values).max())
    deviation = float(values.std())
    constant = deviation <= 1e-12 * scale or values.min() == values.max()
    return NumberColumn(mean, 1.0 if constant else deviation)


def _fit_categories(table: Table, name: str) -> CategoryColumn:
    found = sorted(set(category_names(table, name)) - {None}, key=category_order)
    if len(found) > MAX_CATEGORIES:
        raise UserError(
            f"Column {quoted(name)} of {table.source} has {len(found):,} categories, and at most "
            f"{MAX_CATEGORIES:,} are made one-hot; leave it out.",
            options=("categories",),
        )
    return CategoryColumn(tuple(str(each) for each in found))


def category_names(table: Table, name: str) -> list[str | None]:
    """Return each row's category as a text, None where it is missing; 3 and 3.0 are one."""
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
