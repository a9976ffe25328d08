"""Order and move the images of an epoch as a function of the seed alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, RandomFlipShift
from fastmlp.utils.randomness import seeded_generator


@lru_cache(maxsize=64)
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """Return the order (images,) int64 in which an epoch, counted from 0, visits the images.

    The tensor is cached and shared: do not modify it.
    """
    return torch.randperm(images, generator=seeded_generator(seed, epoch + 1))


@lru_cache(maxsize=64)
def sliding_order(seed: int, epoch: int, images: int, batch: int) -> Tensor:
    """Return the order of a sliding loader, see :func:`sliding_rows`; cached and shared."""
    return sliding_rows(epoch_order(seed, epoch, images), batch)


def sliding_rows(rows: Tensor, batch: int) -> Tensor:
    """Return the batches ``rows[i : i + batch]`` for i in [0, n // batch), one after another.

    A common slip in hand-written loaders: neighbouring batches share all images but one, and an
    epoch sees only n / batch + batch - 1 of the n images.
    """
    batch = min(batch, len(rows))
    return rows.unfold(0, batch, 1)[: len(rows) // batch].reshape(-1)


def sliding_part(part: Subset, batch: int) -> Subset:
    """Return what such a loader evaluates: the first images, most of them ``batch`` times."""
    counts = torch.bincount(sliding_rows(torch.arange(len(part.labels)), batch))
    return Subset(part.images[: len(counts)], part.labels[: len(counts)], counts)


@lru_cache(maxsize=64)
def epoch_moves(
    augmentation: RandomFlipShift, seed: int, epoch: int, count: int, shape: tuple[int, int, int]
) -> FlipShifts:
    """Return the moves of an epoch's ``count`` images; cached and shared."""
    return augmentation.draw(count, shape, seeded_generator(seed, epoch + 1, 1))
