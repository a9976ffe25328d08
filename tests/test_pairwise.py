"""Few rows of options, in which every two values meet."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from support.pairwise import covering_rows, pairwise


@pytest.mark.parametrize("lengths", [[1], [3], [4, 2], [19, 4, 2], [2, 3, 3, 2, 3], [2] * 10])
def test_every_two_places_meet_in_few_rows(lengths):
    rows = covering_rows(lengths)
    assert len(rows) == len(set(rows))
    for i, j in itertools.combinations(range(len(lengths)), 2):
        pairs = {(row[i], row[j]) for row in rows}
        assert pairs == set(itertools.product(range(lengths[i]), range(lengths[j])))
    longest = sorted(lengths)[-2:]
    assert len(rows) <= 1.5 * math.prod(longest) + 4


def test_no_pair_of_short_options_hangs_on_one_row():
    """With fifteen shapes, some of which are empty, in four dtypes."""
    rows = covering_rows([15, 4, 2, 2])
    assert len(rows) == 60
    for i, j in ((1, 2), (1, 3), (2, 3)):
        assert min(Counter((row[i], row[j]) for row in rows).values()) >= 6


def test_values_have_the_names_that_a_mapping_gives_them():
    mark = pairwise(shape=[(1, 2), (3,)], how={"plain": {}, "all": {"momentum": 0.9}})
    names, rows = mark.args
    assert names == ["shape", "how"]
    assert dict(zip(mark.kwargs["ids"], rows, strict=True)) == {
        "(1, 2)-plain": [(1, 2), {}],
        "(1, 2)-all": [(1, 2), {"momentum": 0.9}],
        "(3,)-plain": [(3,), {}],
        "(3,)-all": [(3,), {"momentum": 0.9}],
    }
