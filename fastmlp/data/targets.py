"""Turn the target columns of a table into what a network is trained to predict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.encoding import (
    MAX_CATEGORIES,
    category_order,
    first_text,
    label_names,
    mean_and_deviation,
    scaled,
)
from fastmlp.data.tables import Column, Table, as_numbers, is_text, listed, missing
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import quoted
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

TASKS = ("classification", "regression")
_WHOLE = re.compile("-?[0-9]+")


@dataclass(frozen=True)
class TargetColumn:
    """How one column becomes targets: indices into ``classes``, or numbers, (value - mean) /
    deviation, in a regression, where there are no classes."""

    name: str
    classes: tuple[str, ...] = ()
    numeric: bool = False
    """Whether the classes were numbers."""
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit_numbers(cls, table: Table, name: str, *, standardise: bool = True) -> TargetColumn:
        """Fit to the training rows of a regression; without ``standardise`` numbers stay as they
        are."""
        values = _target_numbers(table, name)
        if len(values) < 2 or values.min() == values.max():
            raise UserError(
                f"The target {quoted(name)} is the same in every training row, so nothing can "
                "be learned; pass rows with several values."
            )
        if not standardise:
            return cls(name)
        mean, deviation = mean_and_deviation(table, name, values)
        return cls(name, mean=mean, deviation=deviation or 1.0)

    @classmethod
    def fit_classes(cls, table: Table, name: str) -> TargetColumn:
        """Fit to the classes of the training rows."""
        found = sorted(set(label_names(table, name)), key=category_order)
        if len(found) < 2:
            raise UserError(
                f"The target {quoted(name)} has the single class {quoted(found[0])} in all "
                "training rows, and a classification needs two; pass rows of another class, or "
                "task regression.",
                options=("task",),
            )
        if len(found) > MAX_CATEGORIES:
            raise UserError(
                f"The target {quoted(name)} has {len(found):,} classes, more than "
                f"{MAX_CATEGORIES:,}; pass task regression if they are numbers.",
                options=("task",),
            )
        return cls(name, tuple(str(each) for each in found), not is_text(table.columns[name]))

    @property
    def labels(self) -> NDArray[Any]:
        """The classes as the target had them: float64 or int64 for numbers, else texts."""
        if not self.numeric:
            return np.array(self.classes, dtype=object)
        if all(_WHOLE.fullmatch(name) for name in self.classes):
            return np.array([int(name) for name in self.classes])
        return np.array([float(name) for name in self.classes])

    def apply(self, table: Table) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return the targets (n,); raise UserError, naming the row, for an unknown class or what is
        no number."""
        if not self.classes:
            values = _target_numbers(table, self.name)
            return scaled(table, self.name, values, self.mean, self.deviation)
        index = {name: i for i, name in enumerate(self.classes)}
        labels = np.empty(len(table), np.int64)
        for row, value in enumerate(label_names(table, self.name)):
            if value not in index:
                raise UserError(
                    f"The target {quoted(self.name)} is {quoted(value)} in row "
                    f"{table.number(row)}, a class that no training row has; those are "
                    f"{listed(self.classes)}."
                )
            labels[row] = index[value]
        return labels

    def to_dict(self) -> dict[str, Any]:
        """Return the column as JSON has it; :meth:`from_dict` reads it."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "numeric": self.numeric,
            "mean": self.mean,
            "deviation": self.deviation,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TargetColumn:
        """Return the column of a :meth:`to_dict`; raise ValueError where it is none."""
        check_fields("a target", values, _TARGET)
        column = cls(**{**values, "classes": tuple(values["classes"])})
        if column.numeric and not np.isfinite([float(name) for name in column.classes]).all():
            raise ValueError("a class that is a number is not finite")
        return column


@dataclass(frozen=True)
class TargetEncoding:
    """How the columns of targets become what a network is trained on: the labels (n,) int64 of a
    classification with one column, else numbers (n, columns) float32, which are 0 and 1 in a
    classification: each of its columns then has two classes."""

    task: str
    columns: tuple[TargetColumn, ...]

    @classmethod
    def fit(
        cls, table: Table, task: str | None = None, *, standardise: bool = True
    ) -> TargetEncoding:
        """Fit the encoding to the training rows' targets.

        ``task`` is one of :data:`TASKS`; where it is None, texts and whole numbers of at most
        :data:`GUESSED_CLASSES` values are classes and, where there are several columns, these are
        classes if each has two, or if one has texts. Raises UserError that names the column and the
        row for what cannot be a target, and for a single class. Without ``standardise`` numbers
        stay as they are.
        """
        task = task or guessed_task(table)
        if task not in TASKS:
            raise UserError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        for name, column in table.columns.items():
            gaps = missing(column)
            if gaps.any():
                raise UserError(
                    f"The target {quoted(name)} has no value in row "
                    f"{table.number(int(gaps.argmax()))} ({int(gaps.sum()):,} are missing); "
                    "leave such rows out."
                )
        if task == "regression":
            fitted = [
                TargetColumn.fit_numbers(table, n, standardise=standardise) for n in table.names
            ]
            return cls(task, tuple(fitted))
        fitted = [TargetColumn.fit_classes(table, name) for name in table.names]
        for each in fitted:
            if len(fitted) > 1 and len(each.classes) > 2:
                raise UserError(
                    f"The target {quoted(each.name)} has {len(each.classes):,} classes, and of "
                    "several targets each must have two; pass one target, or task regression.",
                    options=("target", "task"),
                )
        return cls(task, tuple(fitted))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of which a row has one; none in a regression and where there are several
        columns."""
        return self.columns[0].classes if len(self.columns) == 1 else ()

    @property
    def outputs(self) -> int:
        """The number of a network's outputs."""
        return len(self.classes) or len(self.columns)

    def apply(self, table: Table) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return the targets; raise UserError as :meth:`TargetColumn.apply`."""
        if self.classes:
            return self.columns[0].apply(table)
        found = [column.apply(table).astype(np.float32) for column in self.columns]
        return np.stack(found, axis=1)

    def predictions(self, expected: NDArray[np.float32]) -> NDArray[Any]:
        """Return what the expected targets (n, :attr:`outputs`), probabilities in a classification,
        predict: classes or numbers as the targets had them, (n,), or (n, columns) for several
        columns."""
        if self.classes:
            labels: NDArray[Any] = self.columns[0].labels[expected.argmax(1)]
            return labels
        found = [
            column.labels[(values > 0.5).astype(np.int64)]
            if column.classes
            else values.astype(np.float64) * column.deviation + column.mean
            for column, values in zip(self.columns, expected.T, strict=True)
        ]
        if len({each.dtype for each in found}) > 1:  # numbers beside texts stay what they are
            found = [each.astype(object) for each in found]
        return np.stack(found, axis=1) if len(found) > 1 else found[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON has it; :meth:`from_dict` reads it."""
        return {"task": self.task, "columns": [column.to_dict() for column in self.columns]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TargetEncoding:
        """Return the encoding of a :meth:`to_dict`; raise ValueError where it is none."""
        check_fields("the target", values, _TARGETS)
        columns = tuple(map(TargetColumn.from_dict, values["columns"]))
        least, most = (0, 0) if values["task"] == "regression" else (2, MAX_CATEGORIES)
        for column in columns:
            if not least <= len(column.classes) <= (2 if least and len(columns) > 1 else most):
                raise ValueError(f"a {values['task']} cannot have {len(column.classes)} classes")
        if len({column.name for column in columns}) < len(columns):
            raise ValueError("a target stands twice")
        return cls(values["task"], columns)


_TARGET: Fields = {
    "name": is_name,
    "classes": distinct(is_name),
    "numeric": is_flag,
    "mean": is_scale,
    "deviation": is_deviation,
}
_TARGETS: Fields = {"task": one_of(*TASKS), "columns": list_of(is_object, 1)}
GUESSED_CLASSES = 100
"""Whole numbers of more values than these are taken for a regression's where no task is given."""


def guessed_task(table: Table) -> str:
    """Return the task that the target columns look like."""
    columns = list(table.columns.values())
    if any(is_text(column) for column in columns):
        return "classification"
    most = GUESSED_CLASSES if len(columns) == 1 else 2
    return TASKS[0] if all(_few_whole(column, most) for column in columns) else TASKS[1]


def _few_whole(column: Column, most: int) -> bool:
    """Return whether a column of numbers has whole ones alone, of at most so many values."""
    values = np.unique(column[~missing(column)])
    return len(values) <= most and bool((values == np.floor(as_numbers(values))).all())


def _target_numbers(table: Table, name: str) -> NDArray[np.float64]:
    column = table.columns[name]
    if is_text(column):
        row = first_text(column)
        raise UserError(
            f"The target {quoted(name)} has the text {quoted(column[row])} in row "
            f"{table.number(row)}, and a regression needs numbers; correct it, or pass task "
            "classification.",
            options=("task",),
        )
    column = as_numbers(column)
    infinite = ~np.isfinite(column)
    if infinite.any():
        row = int(infinite.argmax())
        raise UserError(
            f"The target {quoted(name)} is {column[row]} in row {table.number(row)}; "
            "correct it or leave the row out."
        )
    return column
