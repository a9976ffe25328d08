"""What an epoch consists of: the order of its images, how they are moved, its learning rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmlp.data.sampling import epoch_order, sliding_part, sliding_rows
from fastmlp.data.splits import Subset
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import make_epoch

CONFIG = TrainConfig(batch_size=8, epochs=5, lr=0.1, lr_schedule="constant")
SHAPE = (3, 2, 2)


def test_the_sliding_loader_by_hand() -> None:
    rows = torch.tensor([5, 0, 3, 1, 4, 2, 6])
    assert sliding_rows(rows, 3).tolist() == [5, 0, 3, 0, 3, 1]
    assert sliding_rows(rows, 2).tolist() == [5, 0, 0, 3, 3, 1]
    assert sliding_rows(rows, 1).tolist() == rows.tolist()
    assert sliding_rows(rows, 4).tolist() == [5, 0, 3, 1]
    assert sliding_rows(rows, 7).tolist() == rows.tolist()
    assert sliding_rows(rows, 8).tolist() == rows.tolist()  # one batch of all there are


@pytest.mark.parametrize(
    ("images", "batch", "steps", "distinct"),
    [(30_000, 8, 3750, 3757), (10_000, 8, 1250, 1257), (30_000, 16, 1875, 1890), (90, 4, 22, 25)],
)
def test_a_sliding_epoch_sees_few_images(
    images: int, batch: int, steps: int, distinct: int
) -> None:
    config = replace(CONFIG, loader="sliding", batch_size=batch)
    order = make_epoch(config, 2, images, None).order.indices
    shuffled = epoch_order(0, 2, images)
    assert len(order) == steps * batch
    for step in (0, 1, steps - 1):
        batch_rows = order[step * batch : (step + 1) * batch]
        assert torch.equal(batch_rows, shuffled[step : step + batch])
    assert len(order.unique()) == distinct


def test_validation_through_a_sliding_loader() -> None:
    part = Subset(torch.arange(20, dtype=torch.uint8).reshape(10, 2), torch.arange(10) % 3)
    seen = sliding_part(part, 4)
    assert (seen.total, len(seen.labels)) == (8, 5)
    rows = sliding_rows(torch.arange(10), 4).sort().values
    assert torch.equal(seen.spread.images, part.images[rows])
    assert torch.equal(seen.spread.labels, part.labels[rows])
    whole = sliding_part(part, 11)
    assert torch.equal(whole.spread.images, part.images)
    assert part.spread is part


@pytest.mark.parametrize("loader", ["shuffle", "sliding"])
def test_equal_seeds_share_the_very_same_order(loader: str) -> None:
    """By its identity engines know that networks can use the same images together."""
    config = replace(CONFIG, loader=loader, augment="flip,shift:1")
    first = make_epoch(config, 1, 60, SHAPE)
    other = replace(config, lr=0.5, hidden=(3,), momentum=0.0, nesterov=False)
    second = make_epoch(other, 1, 60, SHAPE, start_step=2)
    assert first.order is second.order
    assert first.order.flip_shifts is not None
    for changed, epoch in ((replace(config, seed=1), 1), (config, 2)):
        third = make_epoch(changed, epoch, 60, SHAPE)
        assert not torch.equal(first.order.indices, third.order.indices)
        assert third.order.flip_shifts is not None
        moved = [epoch.order.flip_shifts.values for epoch in (first, third)]
        assert not torch.equal(*moved)
    still = make_epoch(replace(config, augment="none"), 1, 60, SHAPE)
    assert still.order is not first.order
    assert still.order.indices is first.order.indices


def test_batch_sizes_share_the_shuffled_order_but_not_the_sliding_one() -> None:
    orders = {}
    for loader in ("shuffle", "sliding"):
        for batch in (4, 8):
            config = replace(CONFIG, loader=loader, batch_size=batch)
            orders[loader, batch] = make_epoch(config, 0, 60, None).order
    assert orders["shuffle", 4] is orders["shuffle", 8]
    assert torch.equal(orders["shuffle", 4].indices.sort().values, torch.arange(60))
    assert not torch.equal(orders["sliding", 4].indices, orders["sliding", 8].indices)


def test_every_use_of_an_image_is_moved_afresh() -> None:
    config = replace(CONFIG, loader="sliding", augment="flip,shift:1", batch_size=4)
    order = make_epoch(config, 0, 402, SHAPE).order
    assert order.flip_shifts is not None
    assert order.flip_shifts.shape == SHAPE
    assert order.flip_shifts.values.shape == (len(order), 3)
    assert len(order) == 400
    uses = order.flip_shifts.values[order.indices == order.indices[3]]
    assert len(uses) == 4
    assert len(uses.unique(dim=0)) > 1
    assert sorted(order.flip_shifts.values.unique().tolist()) == [-1, 0, 1]


def test_nothing_is_moved_without_augmentation() -> None:
    assert make_epoch(CONFIG, 0, 60, SHAPE).order.flip_shifts is None
    assert make_epoch(replace(CONFIG, augment="flip"), 0, 60, None).order.flip_shifts is None
    with pytest.raises(ValueError, match="images of 2 x 2 cannot be shifted by 2 pixels"):
        make_epoch(replace(CONFIG, augment="shift:2"), 0, 60, SHAPE)


def test_the_learning_rate_and_the_step_to_go_on_from() -> None:
    config = replace(CONFIG, lr_decay=0.5, lr_schedule="cosine")
    epoch = make_epoch(config, 2, 60, None, start_step=3)
    assert epoch.lr == config.lr_at(2) == pytest.approx(0.1 * 0.25 * 0.6545085)
    assert epoch.start_step == 3
