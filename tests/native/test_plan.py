"""csrc/plan.h: which kernel computes a shape, and how its work is cut up."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.native_module import internals
from support.plans import AMPERE, EXAMPLES, H100, HOPPER, TURING

from fastmlp.ops.matmul_precision import FLOAT32, FMA, TF32, TF32_ALLOWED, THREE_TF32

SHARED_BYTES = 99 << 10
"""What every GPU from compute capability 8.0 on gives a block, and the chain takes at most."""

sizes = st.integers(0, 5000)


@pytest.fixture(scope="module", autouse=True)
def plans() -> ModuleType:
    return internals()


# ---- the layers' products -----------------------------------------------------------------------


def test_who_computes_a_layer_on_the_cpu(plans):
    for batch, inputs, outputs, numbers, ours, reason in (
        (8, 3072, 256, "wider", True, "skinny: up to 512 rows"),
        (512, 3072, 256, "wider", True, "skinny"),
        (513, 3072, 256, "wider", False, "large"),
        (513, 3072, 256, "float16", True, "float16: ATen's"),
        (513, 15, 256, "wider", True, "narrow"),
        (513, 256, 15, "bfloat16", True, "narrow"),
        (4, 256, 256, "bfloat16", True, "skinny"),
        (5, 256, 256, "bfloat16", False, "bfloat16: the BLAS"),
    ):
        kind = getattr(plans.Numbers, numbers)
        mine, why = plans.plan_linear_cpu(batch, inputs, outputs, kind)
        assert mine == ours
        assert why.startswith(reason)


@pytest.mark.parametrize(
    ("shape", "doubles", "half_width", "ours", "reason"),
    [
        ((8, 3072, 256), False, False, True, "skinny"),
        ((256, 1024, 1024), False, False, True, "skinny"),
        ((8, 3072, 256), True, False, False, "float64"),
        ((257, 3072, 256), False, False, False, "large: more than 256 rows"),
        ((256, 4096, 4096), False, False, False, "large: too much"),
        ((256, 2048, 1024), False, False, True, "skinny"),  # 2^29 products
        ((256, 2049, 1024), False, False, False, "large: too much"),
        ((8, 3072, 256), False, True, True, "skinny"),
        ((256, 256, 10), False, True, True, "skinny"),
        ((8, 1024, 1024), False, True, False, "large: too much"),  # 2^23
        ((0, 1 << 40, 0), False, False, False, "large: too much"),
    ],
)
def test_who_computes_a_layer_on_a_gpu(plans, shape, doubles, half_width, ours, reason):
    mine, why = plans.plan_linear_cuda(*shape, doubles, half_width)
    assert mine == ours
    assert why.startswith(reason)


def test_no_size_of_a_layer_overflows(plans):
    """As a product of three sizes would."""
    huge = (1 << 31) - 1
    for batch, inputs, outputs in itertools.product((0, 1, 256, huge), (0, 1, huge), (0, 1, huge)):
        exact = batch <= 256 and max(batch, 1) * max(inputs, 1) * max(outputs, 1) <= 1 << 29
        assert plans.plan_linear_cuda(batch, inputs, outputs, False, False)[0] == exact


@pytest.mark.parametrize(
    ("shape", "tile", "splits"),
    [
        ((8, 256, 3072), 16, 24),
        ((32, 256, 3072), 32, 24),
        ((256, 1024, 1024), 64, 4),
        ((8, 10, 256), 16, 1),
    ],
)
def test_the_parts_of_a_product_on_an_h100(plans, shape, tile, splits):
    assert plans.plan_product(*shape, H100)[:2] == (tile, splits)


@EXAMPLES
@given(m=sizes, n=sizes, k=st.integers(0, 1 << 20), processors=st.integers(1, 200))
def test_the_parts_of_a_product_cover_its_sum_once(m, n, k, processors):
    tile, splits, chunk = internals().plan_product(m, n, k, processors)
    assert tile == next((t for t in (16, 32) if m <= t), 64)
    assert chunk > 0
    assert chunk % 64 == 0  # a whole number of the deepest tile
    assert (splits - 1) * chunk < max(k, 1) <= max(splits * chunk, 1)  # none empty, none missing
    assert splits <= 64
    if k < 512:
        assert splits == 1
    if splits > 1:  # parts are no shorter than they need be to fill the GPU twice
        tiles = max(-(-m // tile), 1) * max(-(-n // 64), 1)
        assert chunk >= 128
        assert (splits - 1) * tiles < 2 * processors + tiles


@pytest.mark.parametrize(
    ("shape", "capability", "wanted", "chosen", "reason"),
    [
        ((8, 256, 3072), 90, FLOAT32, FMA, "FMA: bound by reading"),
        ((16, 256, 3072), 90, FLOAT32, FMA, "FMA: bound by reading"),
        ((32, 256, 3072), 90, FLOAT32, THREE_TF32, "three TF32 products: bound by arithmetic"),
        ((256, 10, 256), 90, FLOAT32, FMA, "FMA: bound by reading"),
        ((0, 10, 256), 90, FLOAT32, FMA, "FMA: bound by reading"),
        ((32, 256, 3072), 80, FLOAT32, THREE_TF32, "three TF32 products: bound by arithmetic"),
        ((32, 256, 3072), 100, FLOAT32, THREE_TF32, "three TF32 products: bound by arithmetic"),
        ((32, 256, 3072), 86, FLOAT32, FMA, "FMA: this GPU's tensor cores are no faster"),
        ((32, 256, 3072), 120, FLOAT32, FMA, "FMA: this GPU's tensor cores are no faster"),
        ((32, 256, 3072), 120, TF32_ALLOWED, TF32, "TF32, which torch allows"),
        ((8, 256, 3072), 90, TF32_ALLOWED, FMA, "FMA: bound by reading"),
        ((8, 256, 3072), 90, TF32, TF32, "as asked for"),
        *(
            ((32, 256, 3072), 75, by, FMA, "FMA: this GPU's tensor cores know float16 alone")
            for by in (FLOAT32, TF32_ALLOWED, FMA, THREE_TF32, TF32)
        ),
    ],
)
def test_how_float32_is_multiplied(plans, shape, capability, wanted, chosen, reason):
    assert plans.plan_matmul_precision(*shape, capability, wanted) == (chosen, reason)


@EXAMPLES
@given(m=sizes, n=sizes, k=sizes, capability=st.sampled_from([75, 80, 86, 89, 90, 100, 103, 120]))
def test_tf32_is_never_chosen_unasked(m, n, k, capability):
    plan = internals().plan_matmul_precision
    assert plan(m, n, k, capability, FLOAT32)[0] in (FMA, THREE_TF32)
    assert plan(m, n, k, capability, TF32_ALLOWED)[0] in (FMA, TF32)
    for wanted in (FMA, THREE_TF32, TF32):
        assert plan(m, n, k, capability, wanted)[0] == (wanted if capability >= 80 else FMA)


@pytest.mark.parametrize(
    ("in_reach", "capability", "wanted", "direct", "reason"),
    [
        *((True, 90, by, True, "straight into registers") for by in (FLOAT32, TF32_ALLOWED, FMA)),
        (False, 90, FLOAT32, False, "rows that are not contiguous, or too far apart"),
        (True, 90, THREE_TF32, False, "as asked for"),
        (True, 80, TF32, False, "as asked for"),
        (True, 75, TF32, True, "straight into registers"),  # which has no TF32
    ],
)
def test_which_products_go_straight_into_registers(
    plans, in_reach, capability, wanted, direct, reason
):
    assert plans.plan_direct(in_reach, capability, wanted) == (direct, reason)
    linear = plans.plan_direct_linear_or_tiles(8, 3072, 256, in_reach, capability, wanted)
    assert linear == (direct, reason)


def test_what_an_int_counts_is_in_reach(plans):
    assert plans.is_in_reach(0, 1 << 24)
    assert not plans.is_in_reach(0, (1 << 24) + 1)
    assert plans.is_in_reach(192, 1 << 22)
    assert not plans.is_in_reach(193, 1 << 22)


@pytest.mark.parametrize(
    ("shape", "direct"),
    [
        ((32, 3072, 256), True),
        ((32, 1024, 1024), True),
        ((40, 1024, 1024), True),  # just so
        ((41, 1024, 1024), False),
        ((64, 3072, 256), False),
        ((256, 256, 10), True),
        ((256, 1 << 29, 0), True),
    ],
)
def test_which_batches_linear_reads_without_tiles(plans, shape, direct):
    mine, why = plans.plan_direct_linear_or_tiles(*shape, True, 90, FLOAT32)
    assert mine == direct
    assert why == ("straight into registers" if direct else "too much to read without tiles")


def test_the_direct_kernels_of_a_layer_on_an_h100(plans):
    def linear(*shape):
        plan = plans.plan_direct_linear(*shape, H100)
        return plan.column_blocks, plan.row_blocks, plan.out_bits, plan.k_warps

    assert linear(8, 3072, 256) == (64, 1, 0, 12)  # twelve warps read twice 512 bytes of a row
    assert linear(32, 256, 10) == (3, 4, 0, 2)
    assert linear(32, 1024, 1024) == (256, 4, 0, 8)
    assert linear(32, 256, 1024) == (64, 4, 2, 2)
    assert linear(1, 1, 1) == (1, 1, 0, 1)

    def gradients(*shape, dx=True, dw=True, db=True):
        plan = plans.plan_direct_gradients(*shape, H100, dx, dw, db)
        return plan.dx_blocks, plan.dw_blocks, plan.row_tiles, plan.row_bits, plan.out_bits

    assert gradients(8, 3072, 256) == (192, 96, 1, -1, 3)
    assert gradients(32, 3072, 256) == (192, 192, 4, -1, 2)  # a warp has half the batch
    assert gradients(33, 3072, 256) == (72, 192, 1, 1, 2)
    assert gradients(128, 3072, 256) == (192, 192, 1, 1, 2)
    assert gradients(256, 3072, 256) == (192, 192, 1, 2, 2)
    assert gradients(128, 1024, 1024) == (64, 256, 1, 1, 2)
    assert gradients(8, 256, 10) == (16, 2, 1, -1, 1)
    assert gradients(8, 3072, 256, dx=False) == (0, 96, 1, -1, 3)
    assert gradients(8, 3072, 256, dw=False) == (192, 4, 1, -1, 3)
    assert gradients(8, 3072, 256, dw=False, db=False) == (192, 0, 1, -1, 3)


@EXAMPLES
@given(batch=st.integers(1, 256), inputs=sizes, outputs=sizes, processors=st.integers(1, 200))
def test_the_direct_kernels_make_every_result_once(batch, inputs, outputs, processors):
    plans = internals()
    plan = plans.plan_direct_linear(batch, inputs, outputs, processors)
    assert 1 <= plan.k_warps << plan.out_bits <= 12
    assert plan.row_blocks == math.ceil(batch / 8)
    assert plan.column_blocks == math.ceil(outputs / (4 << plan.out_bits))
    backward = plans.plan_direct_gradients(batch, inputs, outputs, processors, True, True, True)
    assert 0 <= backward.out_bits <= 3
    assert (backward.row_bits >= 0) == (batch > 32)
    if batch > 32:
        rows, columns = 8 << backward.row_bits, 128
    else:
        rows, columns = 8 * backward.row_tiles, 16
    assert backward.row_bits <= 3
    assert backward.dx_blocks == math.ceil(batch / rows) * math.ceil(inputs / columns)
    outs = 8 << backward.out_bits
    assert backward.dw_blocks == math.ceil(outputs / outs) * math.ceil(inputs / 128)


# ---- blocks of steps ----------------------------------------------------------------------------


def test_block_lengths_on_the_cpu(plans):
    def block_steps(batch, hidden, momentum=False, fresh=None):
        return plans.plan_blocked_cpu(batch, hidden, momentum, batch if fresh is None else fresh)

    batches = (1, 8, 31, 32, 64, 65, 100, 1024)
    assert [block_steps(b, 1025) for b in batches] == [288, 36, 9, 9, 4, 4, 2, 1]
    assert [block_steps(b, 513) for b in batches] == [144, 18, 4, 4, 2, 2, 1, 1]
    assert [block_steps(b, 512) for b in batches] == [96, 12, 3, 3, 1, 1, 1, 1]
    assert [block_steps(8, h) for h in (1, 32, 33, 513, 1024)] == [6, 6, 12, 18, 18]
    for hidden in (33, 4096):
        assert [block_steps(b, hidden, momentum=True) for b in batches] == [96, 12, 3, *5 * [1]]
    assert [block_steps(b, 512, fresh=1) for b in batches[1:]] == [89, 66, 65, 65, 66, 101, 1025]
    assert [block_steps(8, 512, momentum, 2) for momentum in (False, True)] == [45, 45]
    assert block_steps(8, 512, fresh=0) == 89
    assert [block_steps(b, 512, fresh=1) for b in (2048, 2049, 15000)] == [2049, 1, 1]


@EXAMPLES
@given(
    batch=st.integers(1, 3000),
    hidden=st.integers(1, 5000),
    momentum=st.booleans(),
    fresh=st.integers(0, 3000),
)
def test_a_block_on_the_cpu_keeps_its_rows_within_bounds(batch, hidden, momentum, fresh):
    steps = internals().plan_blocked_cpu(batch, hidden, momentum, fresh)
    assert steps >= 1
    distinct = batch + (steps - 1) * min(fresh, batch)
    assert steps == 1 or distinct <= max(288, 2 * batch)  # rows of the Gram matrix
    if fresh >= batch and steps > 1:
        assert steps * batch <= 288


def block_steps(batch, hidden=256, classes=10, doubles=False, gpu=HOPPER):
    plans = internals()
    return plans.plan_blocked_cuda(batch, hidden, classes, doubles, plans.Gpu(H100, *gpu))


def test_block_lengths_on_a_gpu():
    # 16 tiles of 8 rows, where the pipelined kernel takes them
    assert [block_steps(b) for b in (1, 3, 8, 9, 17, 64, 65, 128)] == [16, 16, 16, 8, 5, 2, 1, 1]
    # else 128 rows
    for other in ({"hidden": 257}, {"classes": 17}, {"doubles": True}, {"gpu": TURING}):
        lengths = [block_steps(batch, **other) for batch in (1, 3, 8, 64, 65, 128, 129)]
        assert lengths == [128, 42, 16, 2, 1, 1, 1]


# ---- the chain of a block on a GPU --------------------------------------------------------------


def test_which_blocks_the_chain_takes(plans):
    def reason(batch, hidden, classes, steps=None, doubles=False):
        if steps is None:
            steps = block_steps(batch, hidden, classes, doubles, TURING)
        gpu = plans.Gpu(H100, *TURING)
        plan = plans.plan_chain_cuda(batch, hidden, classes, steps, doubles, gpu)
        return plan.unsupported_reason

    for doubles in (False, True):
        for shape in ((1, 1, 1), (8, 256, 10), (16, 1024, 10), (100, 256, 10)):
            assert reason(*shape, doubles=doubles) is None
        assert "1 to 128 images" in reason(129, 256, 10, doubles=doubles)
        assert "up to 1024 hidden" in reason(8, 1025, 10, doubles=doubles)
        assert "up to 128 classes" in reason(8, 256, 129, doubles=doubles)
        assert "1 to 1024 images" in reason(8, 256, 10, 129, doubles=doubles)
        assert "shared memory" in reason(64, 256, 10, 16, doubles=doubles)
    for empty in ((0, 8, 3, 1), (8, 0, 3, 1), (8, 8, 0, 1), (8, 8, 3, 0)):
        assert reason(*empty)


@EXAMPLES
@given(
    batch=st.integers(1, 128),
    hidden=st.integers(1, 1024),
    classes=st.integers(1, 128),
    share=st.floats(0, 1),
    doubles=st.booleans(),
    gpu=st.sampled_from([HOPPER, AMPERE, TURING]),
)
def test_a_chain_fits_into_the_memory_and_the_threads_of_a_block(
    batch, hidden, classes, share, doubles, gpu
):
    steps = max(1, round(share * (1024 // batch)))
    plans = internals()
    plan = plans.plan_chain_cuda(batch, hidden, classes, steps, doubles, plans.Gpu(H100, *gpu))
    if plan.unsupported_reason is not None:
        assert "shared memory" in plan.unsupported_reason
        return
    assert plan.threads % 32 == 0
    assert plan.threads <= 512
    assert hidden <= plan.threads * plan.units < hidden + 32 * plan.units
    assert plan.tile in (2, 4, 8)
    assert plan.size * (8 if doubles else 4) <= min(SHARED_BYTES, gpu[1])

    rows = math.ceil(batch / plan.tile) * plan.tile
    arrays = [
        (0, 6 * (steps + 1)),  # the recurrence
        (plan.bias, classes),
        (plan.weight, classes * hidden if plan.keeps_weight else 0),
        (plan.partial, 2 * plan.threads // 32 * classes * plan.tile),
        (plan.dlogits, classes * rows),
        (plan.history, min(steps - 1, 2) * plan.history_size),
        (plan.losses, batch * steps),
        (plan.hits, batch * steps),
    ]
    assert plan.history_size == rows * (steps - 1) * batch
    ends = [begin for begin, _ in arrays[1:]] + [plan.size]
    for (begin, count), end in zip(arrays, ends, strict=True):
        assert begin % 4 == 0  # 16 bytes
        assert begin + count <= end < begin + count + 4  # apart, and nothing between


@EXAMPLES
@given(
    batch=st.integers(1, 128),
    hidden=st.integers(1, 1024),
    classes=st.integers(1, 128),
    doubles=st.booleans(),
)
def test_shorter_chains_fit_where_longer_ones_do(batch, hidden, classes, doubles):
    plans = internals()
    gpu = plans.Gpu(H100, *TURING)
    fits = [
        plans.plan_chain_cuda(batch, hidden, classes, steps, doubles, gpu).unsupported_reason
        is None
        for steps in range(2, min(1024 // batch, 40) + 1)
    ]
    assert fits == sorted(fits, reverse=True)


def pipelined(batch, hidden, classes, steps, doubles=False, gpu=HOPPER):
    plans = internals()
    return plans.plan_pipelined_chain(batch, hidden, classes, steps, doubles, plans.Gpu(H100, *gpu))


def test_which_blocks_the_pipelined_chain_takes():
    def reason(*args, **kwargs):
        return pipelined(*args, **kwargs).unsupported_reason

    for shape in ((8, 256, 10, 16), (1, 1, 1, 16), (128, 256, 16, 1), (16, 64, 2, 8)):
        assert reason(*shape) is None
    assert "float64" in reason(8, 64, 10, 16, doubles=True)
    assert "tensor cores" in reason(8, 64, 10, 16, gpu=TURING)
    assert "256 hidden units" in reason(8, 257, 10, 16)
    assert "16 classes" in reason(8, 256, 17, 16)
    assert "shared memory" in reason(8, 256, 10, 16, gpu=AMPERE)
    assert reason(8, 128, 10, 16, gpu=AMPERE) is None
    for outside in ((0, 8, 3, 1), (129, 8, 3, 1), (8, 8, 3, 0), (8, 8, 3, 129)):
        assert "its rows" in reason(*outside)
    assert reason(8, 0, 3, 1)
    assert reason(8, 8, 0, 1)


@EXAMPLES
@given(
    batch=st.integers(1, 128),
    hidden=st.integers(1, 256),
    classes=st.integers(1, 16),
    share=st.floats(0, 1),
)
def test_a_pipelined_chain_fits_into_the_memory_of_a_block(batch, hidden, classes, share):
    steps = max(1, round(share * (160 // batch)))
    plan = pipelined(batch, hidden, classes, steps)
    if plan.unsupported_reason is not None:
        assert "shared memory" in plan.unsupported_reason
        return
    assert plan.tiles_of_step == math.ceil(batch / 8)
    assert plan.tiles == steps * plan.tiles_of_step
    assert plan.warps in (1, 2, 4, 8)
    assert plan.warps == 1 or 16 * plan.warps < hidden
    assert hidden <= 32 * plan.warps
    assert 4 * plan.size <= HOPPER[1]
    rows, pairs = 8 * plan.tiles, math.ceil(plan.tiles / 2)
    arrays = [
        (0, 6 * (steps + 1)),  # the recurrence
        (plan.slots, rows * (32 * plan.warps + 4)),
        # two tiles' rows have 8 factors, 8 and 16 more for each two tiles before them
        (plan.factors, sum(16 * (16 * i + 8) for i in range(pairs)) if steps > 1 else 0),
        (plan.weight, 32 * plan.warps * (8 if classes <= 4 else 24)),
        (plan.partial, 2 * plan.warps * 8 * 20),
        (plan.dlogits, 8 * plan.tiles_of_step * 16),
        *((begin, rows) for begin in (plan.labels, plan.sums, plan.margins, plan.hits)),
        (plan.flags, 2 * 2 * plan.warps * plan.tiles),
    ]
    ends = [begin for begin, _ in arrays[1:]] + [plan.size]
    for (begin, count), end in zip(arrays, ends, strict=True):
        assert begin % 4 == 0  # 16 bytes
        assert begin + count <= end < begin + count + 4  # apart, and nothing between
