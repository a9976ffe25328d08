"""csrc/plan.h: which blocks of blocked SGD our own products take, and how they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.native_module import internals
from support.plans import AMPERE, EXAMPLES, H100, HOPPER, TURING


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    internals()


def products(rows, inputs, planes, hidden, networks=1, *, doubles=False, gpu=(H100, *HOPPER)):
    plans = internals()
    return plans.plan_block_products(
        rows, inputs, planes, hidden, networks, doubles, plans.Gpu(*gpu)
    )


def test_which_blocks_our_products_take():
    def reason(*args, **kwargs):
        return products(*args, **kwargs).unsupported_reason

    for shape in ((128, 3072, 3, 256), (1, 784, 1, 1), (64, 16, 1, 1024), (128, 33024, 1, 8)):
        assert reason(*shape) is None
    assert "float64" in reason(128, 3072, 3, 256, doubles=True)
    assert "bfloat16" in reason(128, 3072, 3, 256, gpu=(40, *TURING))
    assert reason(128, 3072, 3, 256, gpu=(108, *AMPERE)) is None
    assert reason(128, 3072, 3, 256, gpu=(58, 89, 99 << 10)) is None  # by fewer warps
    assert "shared memory" in reason(128, 3072, 3, 256, gpu=(58, 89, 48 << 10))
    assert "128 images" in reason(129, 3072, 3, 256)
    assert "128 images" in reason(0, 3072, 3, 256)
    assert "multiple of 16" in reason(128, 300, 3, 256)
    assert "multiple of 16" in reason(128, 3 * 40, 3, 256)
    assert "multiple of 16" in reason(128, 3072, 0, 256)
    assert "33,025" in reason(128, 33040, 1, 256)
    assert "its networks" in reason(128, 3072, 3, 256, 65536)


def test_how_they_are_cut():
    one = products(128, 3072, 3, 256)
    assert (one.warps, one.unit_blocks, one.tiles) == (8, 2, 64)
    assert (one.tiles_of_slice, one.slices) == (2, 32)  # 64 blocks beside a cluster of 8
    three = products(128, 3072, 3, 256, 3)
    assert (three.tiles_of_slice, three.slices) == (4, 16)  # 96 blocks beside 24
    twelve = products(128, 3072, 3, 256, 12)
    assert (twelve.tiles_of_slice, twelve.slices) == (13, 5)  # of 24 blocks each, on 132
    narrow = products(128, 3072, 3, 64, 32)
    assert (narrow.warps, narrow.unit_blocks) == (4, 1)
    assert (narrow.tiles_of_slice, narrow.slices) == (8, 8)  # two blocks to a multiprocessor
    ada = products(128, 3072, 3, 256, gpu=(58, 89, 99 << 10))
    assert (ada.warps, ada.unit_blocks) == (4, 4)
    assert (ada.tiles_of_slice, ada.slices) == (5, 13)  # 52 blocks on 58
    assert products(128, 3072, 3, 256, gpu=(4, *AMPERE)).slices == 2


@EXAMPLES
@given(
    inputs=st.integers(1, 300),
    hidden=st.integers(1, 1024),
    networks=st.integers(1, 200),
    processors=st.integers(1, 200),
    gpu=st.sampled_from([HOPPER, AMPERE, (89, 99 << 10)]),
)
def test_every_column_and_unit_is_in_one_part(inputs, hidden, networks, processors, gpu):
    plan = products(8, 16 * inputs, 1, hidden, networks, gpu=(processors, *gpu))
    assert plan.unsupported_reason is None
    assert 48 * (plan.tiles - 1) < 16 * inputs <= 48 * plan.tiles
    assert plan.tiles_of_slice * (plan.slices - 1) < plan.tiles
    assert plan.tiles <= plan.tiles_of_slice * plan.slices
    of_block = 16 * plan.warps
    assert of_block * (plan.unit_blocks - 1) < hidden <= of_block * plan.unit_blocks
    at_once = processors * (2 if plan.warps == 4 and gpu != (89, 99 << 10) else 1)
    blocks = plan.slices * plan.unit_blocks * networks
    assert plan.slices == 1 or blocks <= at_once
