"""The order in which an epoch visits the images, as a function of the seed alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, RandomFlipShift
from fastmlp.utils.randomness import seeded_generator


@lru_cache(maxsize=64)
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order (images,) int64 in which an epoch, counted from 0, visits the training images: a
    function of its arguments alone. It is shared, so nobody may change it."""
    return torch.randperm(images, generator=seeded_generator(seed, epoch + 1))


@lru_cache(maxsize=64)
def sliding_order(seed: int, epoch: int, images: int, batch: int) -> Tensor:
    return sliding_rows(epoch_order(seed, epoch, images), batch)


def sliding_rows(rows: Tensor, batch: int) -> Tensor:
    """The order in which a loader visits ``rows`` (n,) whose batch number i is
    ``rows[i : i + batch]``, for i from 0 to n // batch - 1.

    It is a slip that is easy to make in a loader of one's own: neighbouring batches share all but
    one image, and an epoch sees only n / batch + batch - 1 of them.
    """
    batch = min(batch, len(rows))
    return rows.unfold(0, batch, 1)[: len(rows) // batch].reshape(-1)


def sliding_part(part: Subset, batch: int) -> Subset:
    """What is measured of ``part`` through such a loader: its first images, most of them ``batch``
    times."""
    counts = torch.bincount(sliding_rows(torch.arange(len(part.labels)), batch))
    return Subset(part.images[: len(counts)], part.labels[: len(counts)], counts)


@lru_cache(maxsize=64)
def epoch_moves(
    augmentation: RandomFlipShift, seed: int, epoch: int, count: int, shape: tuple[int, int, int]
) -> FlipShifts:
    return augmentation.draw(count, shape, seeded_generator(seed, epoch + 1, 1))
