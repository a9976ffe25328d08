"""How the CPU engine cuts up its work: panels of inputs, and items among threads."""

from __future__ import annotations

import pytest
from support.native_module import internals, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def test_panels_hold_every_row_once_and_little_else():
    native = internals()
    for rows in range(1, 400):
        widths = [native.panel_width(rows, first) for first in range(0, rows, native.PANEL_ROWS)]
        assert all(width % native.PANEL_UNIT == 0 for width in widths)
        assert set(widths[:-1]) <= {native.PANEL_ROWS}
        assert rows <= sum(widths) < rows + native.PANEL_UNIT


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_shared_work_does_every_item_of_every_stage_once(threads):
    """Many stages close upon each other: a thread that comes late must not take from the next."""
    stages = [*range(20), *[1, 2, 3, 5] * 1000, 10_000, 0, 7]
    counts = internals().shared_work(threads, stages)
    assert [len(stage) for stage in counts] == stages
    assert all(count == 1 for stage in counts for count in stage)


def test_leader_works_alone_for_a_while_after_a_wait_that_no_item_explains():
    """A thread that lost its processor amid an item costs a time slice: not at every stage."""
    # on a busy machine the leader itself may lose its processor, and then has nothing to wait for
    assert (2, 1) in {tuple(internals().items_of_leader_after(5)) for _ in range(20)}
