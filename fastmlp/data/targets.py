"""Turn the target column of a table into what a network is trained to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.encoding import MAX_CATEGORIES, category_names, category_order, first_text
from fastmlp.data.tables import Column, Table, is_text, listed, missing
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import quoted

TASKS = ("classification", "regression")


@dataclass(frozen=True)
class TargetEncoding:
    """How a target column becomes targets: labels (n,) int64, indices into ``classes``, or numbers
    (n,) float32, (value - mean) / deviation, in a regression."""

    task: str
    name: str
    classes: tuple[str, ...] = ()
    numeric: bool = False
    """Whether the classes were numbers."""
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit(
        cls, column: Column, name: str, task: str | None = None, *, standardise: bool = True
    ) -> TargetEncoding:
        """Fit the encoding to the training rows' targets.

        ``task`` is one of :data:`TASKS`; where it is None, texts and whole numbers of at most
        :data:`GUESSED_CLASSES` values are classes. Raises UserError that
        names the column and the row for what cannot be a target, and for a single class. Without
        ``standardise`` numbers stay as they are.
        """
        task = task or guessed_task(column)
        if task not in TASKS:
            raise UserError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        table = Table({name: column}, "the target")
        gaps = missing(column)
        if gaps.any():
            raise UserError(
                f"The target {quoted(name)} has no value in row {int(gaps.argmax()) + 1} "
                f"({int(gaps.sum()):,} are missing); leave such rows out."
            )
        if task == "regression":
            values = _target_numbers(table, name)
            if len(values) < 2 or values.min() == values.max():
                raise UserError(
                    f"The target {quoted(name)} is the same in every training row, so nothing can "
                    "be learned; pass rows with several values."
                )
            if not standardise:
                return cls(task, name)
            return cls(task, name, mean=float(values.mean()), deviation=float(values.std()))
        found = sorted(set(category_names(table, name)), key=category_order)
        if len(found) < 2:
            raise UserError(
                f"The target {quoted(name)} has the single class {quoted(found[0])} in all "
                "training rows, and "
                "a classification needs two; pass rows of another class, or task regression.",
                options=("task",),
            )
        if len(found) > MAX_CATEGORIES:
            raise UserError(
                f"The target {quoted(name)} has {len(found):,} classes, more than "
                f"{MAX_CATEGORIES:,}; pass task regression if they are numbers.",
                options=("task",),
            )
        return cls(task, name, tuple(str(each) for each in found), not is_text(column))

    @property
    def labels(self) -> NDArray[Any]:
        """The classes as the target had them: float64 or int64 for numbers, else texts."""
        if not self.numeric:
            return np.array(self.classes, dtype=object)
        values = np.array([float(name) for name in self.classes])
        whole = bool((values == np.floor(values)).all())
        return values.astype(np.int64) if whole else values

    def apply(self, column: Column) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return the targets (n,); raise UserError, naming the row, for an unknown class or what is
        no number."""
        table = Table({self.name: column}, "the target")
        if self.task == "regression":
            values = _target_numbers(table, self.name)
            return ((values - self.mean) / self.deviation).astype(np.float32)
        index = {name: i for i, name in enumerate(self.classes)}
        labels = np.empty(len(column), np.int64)
        for row, value in enumerate(category_names(table, self.name)):
            if value not in index:
                raise UserError(
                    f"The target {quoted(self.name)} is {quoted(value)} in row {row + 1}, a class "
                    "that no "
                    f"training row has; those are {listed(self.classes)}."
                )
            labels[row] = index[value]
        return labels

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON has it; :meth:`from_dict` reads it."""
        return {
            "task": self.task,
            "name": self.name,
            "classes": list(self.classes),
            "numeric": self.numeric,
            "mean": self.mean,
            "deviation": self.deviation,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TargetEncoding:
        """Return the encoding of a :meth:`to_dict`."""
        return cls(**{**values, "classes": tuple(values["classes"])})


GUESSED_CLASSES = 100
"""Whole numbers of more values than these are taken for a regression's where no task is given."""


def guessed_task(column: Column) -> str:
    """Return the task that a target column looks like."""
    if is_text(column):
        return "classification"
    values = column[~np.isnan(column)]
    whole = bool((values == np.floor(values)).all())
    return TASKS[0] if whole and len(np.unique(values)) <= GUESSED_CLASSES else TASKS[1]


def _target_numbers(table: Table, name: str) -> NDArray[np.float64]:
    column = table.columns[name]
    if is_text(column):
        row = first_text(column)
        raise UserError(
            f"The target {quoted(name)} has the text {quoted(column[row])} in row {row + 1}, and "
            "a regression needs numbers; correct it, or pass task classification.",
            options=("task",),
        )
    infinite = ~np.isfinite(column)
    if infinite.any():
        raise UserError(
            f"The target {quoted(name)} is {column[infinite][0]} in row "
            f"{int(infinite.argmax()) + 1}; correct it or leave the row out."
        )
    return column
