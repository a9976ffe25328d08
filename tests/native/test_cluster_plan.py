"""csrc/plan.h: which blocks of blocked SGD a cluster of thread blocks takes, and what it needs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.native_module import internals
from support.plans import AMPERE, EXAMPLES, H100, HOPPER, TURING


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    internals()


def clusters(batch, hidden, classes, steps, networks=1, *, doubles=False, momentum=False, gpu=None):
    plans = internals()
    gpu = plans.Gpu(*(gpu or (H100, *HOPPER)))
    return plans.plan_cluster_chain(batch, hidden, classes, steps, networks, doubles, momentum, gpu)


def test_which_blocks_the_chain_on_clusters_takes():
    def reason(*args, **kwargs):
        return clusters(*args, **kwargs).unsupported_reason

    for shape in ((8, 256, 10, 16), (1, 64, 1, 16), (16, 256, 16, 8), (8, 1024, 16, 16)):
        assert reason(*shape) is None
    assert reason(8, 256, 10, 16, 16) is None  # 128 of 132 multiprocessors
    assert "more networks" in reason(8, 256, 10, 16, 17)
    assert "float64" in reason(8, 256, 10, 16, doubles=True)
    assert "momentum" in reason(8, 256, 10, 16, momentum=True)
    for gpu in (AMPERE, TURING, (89, 99 << 10)):
        assert "without clusters" in reason(8, 256, 10, 16, gpu=(H100, *gpu))
    assert reason(8, 256, 10, 16, gpu=(170, 120, 99 << 10)) is None
    assert "shared memory" in reason(8, 1024, 10, 16, gpu=(170, 120, 99 << 10))
    assert "more networks" in reason(8, 256, 10, 16, gpu=(7, *HOPPER))
    assert "64 or more" in reason(8, 63, 10, 16)
    assert "1024 hidden" in reason(8, 1025, 10, 16)
    assert "above 8" in reason(9, 257, 10, 8)
    assert "16 classes" in reason(8, 256, 17, 16)
    for outside in ((0, 64, 3, 1), (17, 64, 3, 1), (8, 64, 3, 0), (8, 64, 3, 129)):
        assert "its rows" in reason(*outside)
    assert reason(8, 64, 0, 1)


@EXAMPLES
@given(
    batch=st.integers(1, 16),
    hidden=st.integers(64, 1024),
    classes=st.integers(1, 16),
    share=st.floats(0, 1),
)
def test_a_chain_on_clusters_fits_into_the_memory_of_a_block(batch, hidden, classes, share):
    steps = max(1, round(share * (160 // batch)))
    plan = clusters(batch, hidden, classes, steps)
    if plan.unsupported_reason is not None:
        assert "shared memory" in plan.unsupported_reason or (batch > 8 and hidden > 256)
        return
    assert plan.tiles_of_step == math.ceil(batch / 8)
    assert plan.tiles == steps * plan.tiles_of_step
    assert (plan.warps, plan.parts) in ((2, 1), (4, 1), (8, 1), (8, 2))
    units = 8 * plan.warps * plan.parts  # of a block
    assert hidden <= 8 * units
    assert units == 16 or 8 * units < 2 * hidden
    assert plan.slots_of_lane == (2 if classes <= 8 else 4)
    assert 4 * plan.size <= HOPPER[1]
    rows, rows_of_step = 8 * plan.tiles, 8 * plan.tiles_of_step
    arrays = [
        (0, 6 * (steps + 1)),  # the recurrence
        (plan.slots, plan.tiles * units * 16),
        (plan.newest, plan.tiles * 256),
        (plan.labels, rows),
        (plan.inbox, 2 * 8 * rows_of_step * 4 * plan.slots_of_lane),
        (plan.partial, 2 * plan.warps * rows_of_step * 20),
        (plan.weight, units * 20),
        (plan.columns, plan.tiles_of_step * units * 12),
        (plan.dlogits, plan.warps * rows_of_step * 20),
        *((begin, rows) for begin in (plan.sums, plan.margins, plan.hits)),
        (plan.flags, 2 * (2 + 2 * plan.warps * steps)),
    ]
    ends = [begin for begin, _ in arrays[1:]] + [plan.size]
    for (begin, count), end in zip(arrays, ends, strict=True):
        assert begin % 4 == 0  # 16 bytes
        assert begin + count <= end < begin + count + 4  # apart, and nothing between
