"""Order and move the images of an epoch as a function of the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, RandomFlipShift
from fastmlp.utils.randomness import seeded_generator


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The training images of an epoch in the order of their use, and how each is augmented.

    ``indices`` (n,) int64, on the CPU, may name an image several times or never; ``flip_shifts``
    holds n flips and shifts, None for images as they are. Compared and hashed by identity: networks
    whose epochs have the very same order may share its images.
    """

    indices: Tensor
    flip_shifts: FlipShifts | None = None

    def __len__(self) -> int:
        """Return the number of images that the epoch uses, repetitions counted."""
        return len(self.indices)


@lru_cache(maxsize=64)
def draw_epoch_order(
    seed: int,
    epoch: int,
    images: int,
    *,
    sliding_batch: int | None = None,
    augmentation: RandomFlipShift | None = None,
    shape: tuple[int, int, int] | None = None,
) -> EpochOrder:
    """Return the order of an epoch, counted from 0; equal arguments give the very same object.

    ``sliding_batch`` is the batch size under the sliding loader, None under the shuffling one.
    ``augmentation`` applies to images of a ``shape`` (planes, height, width). Raises ValueError
    where these are too small to be shifted.
    """
    if sliding_batch is None:
        indices = epoch_order(seed, epoch, images)
    else:
        indices = sliding_order(seed, epoch, images, sliding_batch)
    if augmentation is None or shape is None:
        return EpochOrder(indices)
    return EpochOrder(indices, epoch_moves(augmentation, seed, epoch, len(indices), shape))


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
    """Return the images that a sliding loader evaluates, with how often: most of them ``batch``
    times."""
    counts = torch.bincount(sliding_rows(torch.arange(len(part.labels)), batch))
    return Subset(part.images[: len(counts)], part.labels[: len(counts)], counts)


def epoch_moves(
    augmentation: RandomFlipShift, seed: int, epoch: int, count: int, shape: tuple[int, int, int]
) -> FlipShifts:
    """Return the moves of an epoch's ``count`` images."""
    return augmentation.draw(count, shape, seeded_generator(seed, epoch + 1, 1))
