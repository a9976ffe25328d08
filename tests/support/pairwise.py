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
    meets most of what is left, and where several do, the one that has met the row's others least.
    So no pair hangs on a single row, as there may be little to see in that one."""
    columns = range(len(lengths))
    met: dict[Pair, int] = {
        (i, a, j, b): 0
        for i, j in itertools.combinations(columns, 2)
        for a, b in itertools.product(range(lengths[i]), range(lengths[j]))
    }
    rows: list[tuple[int, ...]] = []
    while any(count == 0 for count in met.values()):
        i, a, j, b = next(pair for pair, count in met.items() if count == 0)
        row = {i: a, j: b}
        for column in columns:
            if column not in row:
                row[column] = min(
                    range(lengths[column]), key=lambda place, c=column: _use(met, {**row, c: place})
                )
        for pair in _pairs(row):
            met[pair] += 1
        rows.append(tuple(row[column] for column in columns))
    return sorted(rows)


def _use(met: Mapping[Pair, int], row: Mapping[int, int]) -> tuple[int, int]:
    """Return how many of the row's pairs, negated, are new, and how often the others were met."""
    counts = [met[pair] for pair in _pairs(row)]
    return -counts.count(0), sum(counts)


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
