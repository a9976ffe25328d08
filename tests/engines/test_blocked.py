"""The blocked engine and its operator: exact SGD, in another order of summation."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.blocked import (
    CPU,
    ENDS,
    OPTIMIZER,
    OPTIMIZERS,
    assert_as_close_as_pytorch,
    assert_is_sgd,
    assert_same_state,
    assert_threads_change_nothing,
    flat,
    make,
    problem,
)
from support.compare import assert_within_2x
from support.draws import by_name, training_draws
from support.marks import needs_native
from support.pairwise import pairwise

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import RandomFlipShift, make_normalization
from fastmlp.engines import compiled
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.metrics import NonFiniteLossError
from fastmlp.engines.native import NativeEngine
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.engines.registry import choose_engine
from fastmlp.ops.blocked_sgd import block_steps, recurrence
from fastmlp.utils.errors import UserError

pytestmark = needs_native


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """Several are for the tests that ask for them: plain PyTorch gains nothing at these sizes."""
    threads(1)


# ---- the plan -----------------------------------------------------------------------------------


@OPTIMIZER
def test_the_recurrence_is_torchs_sgd(options):
    options = {k: v for k, v in options.items() if k != "grad_average"}
    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, **options)
    w.grad = torch.tensor([0.3], dtype=torch.float64)
    optimizer.step()  # the block begins after one step, with some momentum
    w0, v0 = w.item(), optimizer.state[w].get("momentum_buffer", torch.zeros(1)).item() or 0.0
    gradients = [0.5, -1.0, 2.0, 0.25]
    table = recurrence(len(gradients), 0.1, **options)
    for t, gradient in enumerate([*gradients, 0.0]):
        past = sum(table[t - u, 2].item() * gradients[u] for u in range(t))
        expected = table[t, 0].item() * w0 + table[t, 1].item() * v0 + past
        assert w.item() == pytest.approx(expected, rel=1e-12)
        w.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()


def test_block_lengths_are_the_plans():
    """Which they are, tests/native/test_plan.py says."""
    assert [block_steps(b, 512) for b in (1, 8, 32, 64)] == [96, 12, 3, 1]
    assert [block_steps(8, 512, momentum, 2) for momentum in (False, True)] == [45, 45]
    assert block_steps(8, 512, fresh=0) == 89
    for sizes in ((0, 256), (8, 0), (8, 256, False, -1)):
        with pytest.raises(RuntimeError, match="batch and hidden must be above 0, fresh not below"):
            block_steps(*sizes)


# ---- exactness ----------------------------------------------------------------------------------


@OPTIMIZER
@pytest.mark.parametrize("batch", [*range(1, 18), 100, 128])
def test_float64_is_sgd_to_the_last_bits(options, batch):
    assert_is_sgd(problem(), {"batch_size": batch, **options}, torch.randperm(211))


@OPTIMIZER
@pytest.mark.parametrize("hidden", [(19, 7), (12, 9, 5)])
@pytest.mark.parametrize("batch", [1, 6, 70])
def test_deeper_networks(options, hidden, batch):
    assert_is_sgd(problem(), {"batch_size": batch, **options}, torch.randperm(211), hidden=hidden)


@ENDS
def test_a_chain_of_wide_layers(options, threads):
    """Wide enough that csrc/plan.h gives its steps several threads."""
    data, order = problem(images=150), torch.randperm(150)
    options = {"batch_size": 16, **options}
    assert_is_sgd(data, options, order, hidden=(300, 300))
    assert_threads_change_nothing(threads, data, options, order, hidden=(300, 300))


@ENDS
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("batch", [3, 8, 100])
def test_moved_images(options, repeats, batch, threads):
    data, options = problem(inputs=3 * 5 * 5), {"batch_size": batch, **options}
    order = torch.randint(0, 20, (211,)) if repeats else torch.randperm(211)
    moves = RandomFlipShift(True, 3).draw(211, (3, 5, 5), torch.Generator())
    assert_is_sgd(data, options, order, lr=0.01, flip_shifts=moves)
    assert_threads_change_nothing(threads, data, options, order, moves, hidden=(300,))


@pairwise(
    options=OPTIMIZERS,
    limit=[1, 2, 15, 16, 17, 50],
    inputs=[{}, {"planes": 3}, {"inputs": 200, "planes": 2}],
)
def test_float32_is_as_close_to_the_truth_as_pytorch(options, limit, inputs):
    data = problem(images=8 * limit - 3, **inputs)
    order = torch.randperm(8 * limit - 3)
    lengths = (1, 2, 16, 32)
    assert_as_close_as_pytorch(data, {"batch_size": 8, **options}, order, 0.05, lengths)


def _all_white(pixels):
    pixels[:, -1024:] = 255


def _one_dark_pixel(pixels):
    _all_white(pixels)
    pixels[7, -1] = 3


def _bright_and_flat(pixels):
    pixels[:] = (torch.randn(pixels.shape) * 10 + 230).clamp(0, 255)


def _of_two_levels(pixels):
    """Their shift is far above what normalised pixels come to, which so lose digits."""
    pixels[:] = 254 + (torch.rand(pixels.shape) < torch.rand(len(pixels), 1))


@pytest.mark.parametrize("change", [_all_white, _one_dark_pixel, _bright_and_flat, _of_two_levels])
def test_images_far_from_the_middle_of_the_range(change):
    """Their Gram matrix is what little is left of large sums."""
    images = torch.randint(0, 256, (640, 3072), dtype=torch.uint8)
    change(images)
    data = Subset(images, torch.randint(0, 5, (640,))), make_normalization("standard", images)
    how, order = {"options": {"batch_size": 8}, "hidden": (33,)}, torch.arange(640)
    truth = make(ReferenceEngine, data, dtype=torch.float64, **how)
    ours = make(BlockedEngine, data, **how)
    for engine in (truth, ours):
        engine.train_epoch(order, 0.002)
    draws = training_draws(partial(make, ReferenceEngine, **how), data, [(order, 0.002)], 8)
    theirs, mine = by_name(draws), flat(ours)
    for name, true in flat(truth).items():
        assert_within_2x(mine[name], theirs[name], true)


@OPTIMIZER
@pytest.mark.parametrize("steps", [1, 2, 16, 32])
def test_blocks_of_any_length_are_sgd(options, steps):
    options = {"batch_size": 5, **options}
    assert_is_sgd(problem(), options, torch.randperm(211), steps=steps, hidden=(19, 6))


@pytest.mark.parametrize("hidden", [1, 8, 31, 64, 256, 1000])
@pytest.mark.parametrize("classes", [2, 17, 100])
def test_widths(hidden, classes):
    data = problem(images=70, inputs=50, classes=classes)
    options = {"batch_size": 6, "momentum": 0.9}
    order = torch.randperm(70)
    assert_is_sgd(data, options, order, lr=0.01, hidden=(hidden,), classes=classes)


@ENDS
@pytest.mark.parametrize(
    ("batch", "images", "inputs", "hidden", "classes", "lr"),
    [
        (1024, 1100, 5, (7, 3), 4, 0.05),
        (256, 300, 6, (300, 20), 4, 0.05),
        (200_000, 200_000, 1, (3,), 2, 0.01),  # no Gram matrix of so many rows
        (3, 20, 4, (4096,), 5, 0.01),
        (2, 9, 4, (3, 4096, 2), 5, 0.001),
        (4, 30, 6, (7,), 1024, 0.05),
        (8, 40, 16384, (5,), 4, 1e-5),
        (1, 90, 1, (9,), 3, 0.05),
        (8, 90, 1, (1, 1), 2, 0.05),
    ],
)
def test_extreme_shapes(options, batch, images, inputs, hidden, classes, lr):
    data = problem(images, inputs, classes)
    options = {"batch_size": batch, **options}
    assert_is_sgd(data, options, torch.randperm(images), lr=lr, hidden=hidden, classes=classes)


@OPTIMIZER
@pytest.mark.parametrize("hidden", [(70,), (70, 33)])
def test_threads_and_reruns_do_not_change_a_bit(options, hidden, threads):
    data, order = problem(inputs=300), torch.randperm(211)
    options = {"batch_size": 8, **options}
    assert_threads_change_nothing(threads, data, options, order, hidden=hidden)


# ---- an epoch under way -------------------------------------------------------------------------


@OPTIMIZER
def test_stopping_between_blocks_changes_nothing(options, monkeypatch):
    monkeypatch.setattr(compiled, "CALL_SECONDS", 0.0)  # one block a call
    data, order = problem(), torch.randperm(211)
    options = {"batch_size": 3, **options}
    whole, parts = (make(BlockedEngine, data, options, steps=4) for _ in range(2))
    want = whole.train_epoch(order, 0.05)
    first = parts.train_epoch(order, 0.05, should_stop=lambda: True)
    assert (first.steps, first.finished) == (4, False)
    again = make(BlockedEngine, data, options, steps=4)
    again.load_state_dict(parts.state_dict())
    second = again.train_epoch(order, 0.05, start_step=first.steps)
    assert_same_state(whole, again)
    total = first + second
    assert (total.samples, total.correct) == (want.samples, want.correct)
    assert total.loss_sum == pytest.approx(want.loss_sum)


@OPTIMIZER
def test_blocks_in_one_call_or_in_many(options, monkeypatch):
    data, order = problem(), torch.randint(0, 211, (400,))
    ends = []
    for seconds in (0.0, 1e6):  # one block a call, or twice as many in each as before
        monkeypatch.setattr(compiled, "CALL_SECONDS", seconds)
        engine = make(BlockedEngine, data, {"batch_size": 2, **options}, steps=5)
        ends.append((engine, engine.train_epoch(order, 0.02)))
    assert_same_state(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("steps_before", [1, 3, 8, 11])
def test_takes_over_from_another_engine_in_the_middle_of_a_block(steps_before):
    data, order = problem(), torch.randperm(211)
    options = {"batch_size": 8, "momentum": 0.9}
    eager = make(EagerEngine, data, options, dtype=torch.float64)
    late = make(BlockedEngine, data, options, dtype=torch.float64)
    calls = iter([*(steps_before - 1) * [False], True])
    done = eager.train_epoch(order, 0.05, should_stop=lambda: next(calls)).steps
    assert done == steps_before
    late.load_state_dict(eager.state_dict())
    late.train_epoch(order, 0.05, start_step=done)
    eager.train_epoch(order, 0.05, start_step=done)
    for name, tensor in flat(eager).items():
        torch.testing.assert_close(flat(late)[name], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_diverging_model_names_its_step_and_ends(dtype):
    data, order = problem(), torch.randperm(211)
    engine = make(BlockedEngine, data, {"batch_size": 8}, dtype=dtype)
    with pytest.raises(NonFiniteLossError) as caught:
        engine.train_epoch(order, 1e20)
    assert 0 < caught.value.step < 27
    assert not math.isfinite(caught.value.loss)


def test_progress_is_reported(monkeypatch):
    monkeypatch.setattr(compiled, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(compiled, "CALL_SECONDS", 0.0)
    seen = []
    engine = make(BlockedEngine, problem(), {"batch_size": 8}, steps=2)
    end = engine.train_epoch(torch.randperm(211), 0.05, on_progress=seen.append)
    assert [stats.steps for stats in seen] == [*range(2, 27, 2), 27]
    assert seen[-1] == end


def test_auto_takes_it_where_it_applies_and_says_why_not():
    for sizes in ([3072, 256, 10], [3072, 256, 64, 10], [3072, 10, 10, 10, 10]):
        assert choose_engine("auto", CPU, sizes)[0] is BlockedEngine
    linear, reason = choose_engine("auto", CPU, [3072, 10])
    assert linear is NativeEngine
    assert "not blocked, because it wants at least one hidden layer" in reason
    with pytest.raises(UserError, match="blocked cannot run here: it wants at least one hidden"):
        choose_engine("blocked", CPU, [3072, 10])
