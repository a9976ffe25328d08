"""Few combinations of many options, in which every two values of different options still meet.

A fault that takes one value, or two together, is found as by all combinations; these grow with the
product of all options, and the rows here with that of the two longest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

Pair = tuple[int, int, int, int]
"""An option and the place of its value, and the same of a later option."""


def covering_rows(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Return rows of places below ``lengths`` in which every pair of two columns occurs.

    Greedy: a row begins with the first pair that is left; every other column takes the place that
    meets most of what is left, where several do the next in turn."""
    columns = range(len(lengths))
    left: dict[Pair, None] = {
        (i, a, j, b): None
        for i, j in itertools.combinations(columns, 2)
        for a, b in itertools.product(range(lengths[i]), range(lengths[j]))
    }
    rows: list[tuple[int, ...]] = []
    while left:
        i, a, j, b = next(iter(left))
        row = {i: a, j: b}
        for column in columns:
            if column not in row:
                turns = [(len(rows) + k) % lengths[column] for k in range(lengths[column])]
                met = [sum(p in left for p in _pairs({**row, column: turn})) for turn in turns]
                row[column] = turns[met.index(max(met))]
        for pair in _pairs(row):
            left.pop(pair, None)
        rows.append(tuple(row[column] for column in columns))
    return sorted(rows)


def _pairs(row: Mapping[int, int]) -> list[Pair]:
    """Return the pairs of a row, of which some columns may be missing."""
    return [(i, row[i], j, row[j]) for i, j in itertools.combinations(sorted(row), 2)]


def pairwise(**options: Mapping[str, Any] | Sequence[Any]) -> pytest.MarkDecorator:
    """Return ``parametrize`` for all ``options``, each a sequence, or values by their names."""
    named = [
        list(values.items()) if isinstance(values, Mapping) else [(_name(v), v) for v in values]
        for values in options.values()
    ]
    rows = covering_rows([len(values) for values in named])
    chosen = [[values[place] for values, place in zip(named, row, strict=True)] for row in rows]
    return pytest.mark.parametrize(
        list(options),
        [[value for _, value in row] for row in chosen],
        ids=["-".join(name for name, _ in row) for row in chosen],
    )


def _name(value: Any) -> str:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
