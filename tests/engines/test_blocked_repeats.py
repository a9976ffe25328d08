"""Orders in which images come again soon, as through a sliding window: each is computed once in a
block, and blocks are as long as it has different ones."""

from __future__ import annotations

import pytest
import torch
from support.blocked import (
    ENDS,
    OPTIMIZERS,
    assert_as_close_as_pytorch,
    assert_is_sgd,
    assert_threads_change_nothing,
    problem,
)
from support.marks import needs_native
from support.pairwise import pairwise

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.transforms import RandomFlipShift
from fastmlp.engines.base import Epoch
from fastmlp.engines.blocked import fresh_images

pytestmark = needs_native


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def test_images_that_a_step_adds():
    moves = RandomFlipShift(True, 1).draw(400, (1, 3, 3), torch.Generator())
    sliding = torch.arange(1000).unfold(0, 8, 1).flatten()
    for order, batch, moved, fresh in (
        (torch.randperm(211), 8, None, 8),
        (torch.randperm(211).repeat(3), 8, None, 8),  # not soon again
        (sliding, 8, None, 1),
        (sliding[:61], 8, None, 1),
        (sliding[:400], 8, moves, 8),
        (torch.arange(1000).unfold(0, 8, 2).flatten(), 8, None, 2),
        (torch.full((50,), 3), 8, None, 0),
        (torch.zeros(5).long(), 8, None, 8),  # one step
        (torch.tensor([0, 1, 2, 3, 1]), 2, None, 1),
    ):
        assert fresh_images(Epoch(EpochOrder(order, moved), 0.1), batch) == fresh


REPEATS = {
    "a sliding window": torch.arange(60).unfold(0, 8, 1).flatten(),
    "few images": torch.tensor([i * i % 23 % 7 for i in range(211)]),
    "one image": torch.full((50,), 3),
    "twice in a batch": torch.tensor([5, 5, *range(20), 9, 9, 9]),
    "without repeats in some blocks": torch.tensor([*range(100), *range(20), 0, 1, 0]),
}


@pairwise(options=OPTIMIZERS, order=REPEATS, batch=[1, 8, 100])
def test_orders_with_repeats(options, order, batch, threads):
    data, options = problem(), {"batch_size": batch, **options}
    assert_is_sgd(data, options, order, lr=0.01)  # more is chaotic on so few images
    assert_threads_change_nothing(threads, data, options, order, hidden=(300,))


@ENDS
def test_a_chain_of_wide_layers_on_images_that_repeat(options, threads):
    data, order = problem(images=150), torch.arange(60).unfold(0, 16, 1).flatten()
    options = {"batch_size": 16, **options}
    assert_is_sgd(data, options, order, hidden=(300, 300))
    assert_threads_change_nothing(threads, data, options, order, hidden=(300, 300))


@ENDS
@pytest.mark.parametrize("batch", [4, 100])
def test_repeats_in_float32_are_as_close_to_the_truth_as_pytorch(options, batch):
    data, options = problem(images=400), {"batch_size": batch, **options}
    order = torch.randperm(400).unfold(0, batch, 1).flatten()[:1200]
    assert_as_close_as_pytorch(data, options, order, 0.002, (None, 500))
