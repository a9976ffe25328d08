"""What a run trains on: its initial parameters, and for each epoch the images, in order.

All of it is a function of the configuration and the seed alone. Runs that share a seed get the very
same tensors, by which engines know that they can share the work.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastmlp.data.transforms import Augmentation, Moves, parse_augmentation
from fastmlp.training.config import TrainConfig
from fastmlp.data.dataset import Part
from fastmlp.engines.base import Epoch
from fastmlp.nn.modules import MLP, init_parameters


def make_epoch(
    config: TrainConfig,
    epoch: int,
    images: int,
    shape: tuple[int, int, int] | None,
    start_step: int = 0,
) -> Epoch:
    """An epoch, counted from 0, on so many training images; ``shape`` (planes, height, width) is
    theirs, for augmentation."""
    if config.loader == "sliding":
        order = _sliding_epoch(config.seed, epoch, images, config.batch_size)
    else:
        order = epoch_order(config.seed, epoch, images)
    augmentation = parse_augmentation(config.augment)
    moves = None
    if augmentation is not None and shape is not None:
        moves = _moves(augmentation, config.seed, epoch, len(order), shape)
    return Epoch(order, config.lr_at(epoch), moves, start_step)


@lru_cache(maxsize=64)
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order (images,) int64 in which an epoch, counted from 0, visits the training images: a
    function of its arguments alone. It is shared, so nobody may change it."""
    return torch.randperm(images, generator=_generator(seed, epoch + 1))


@lru_cache(maxsize=64)
def _sliding_epoch(seed: int, epoch: int, images: int, batch: int) -> Tensor:
    return sliding_rows(epoch_order(seed, epoch, images), batch)


def sliding_rows(rows: Tensor, batch: int) -> Tensor:
    """The order in which a loader visits ``rows`` (n,) whose batch number i is
    ``rows[i : i + batch]``, for i from 0 to n // batch - 1.

    It is a slip that is easy to make in a loader of one's own: neighbouring batches share all but
    one image, and an epoch sees only n / batch + batch - 1 of them.
    """
    batch = min(batch, len(rows))
    return rows.unfold(0, batch, 1)[: len(rows) // batch].reshape(-1)


def sliding_part(part: Part, batch: int) -> Part:
    """What is measured of ``part`` through such a loader: its first images, most of them ``batch``
    times."""
    counts = torch.bincount(sliding_rows(torch.arange(len(part.labels)), batch))
    return Part(part.images[: len(counts)], part.labels[: len(counts)], counts)


@lru_cache(maxsize=64)
def _moves(
    augmentation: Augmentation, seed: int, epoch: int, count: int, shape: tuple[int, int, int]
) -> Moves:
    return augmentation.draw(count, shape, _generator(seed, epoch + 1, 1))


def initial_parameters(sizes: list[int], init: str, seed: int) -> dict[str, Tensor]:
    """The ``state_dict``, float32, that a run with these layer sizes begins with: a function of its
    arguments alone. Raises ValueError for an unknown ``init``."""
    model = MLP(sizes, init="torch", device="meta").to_empty(device="cpu")
    init_parameters(model, init, _generator(seed, 0))
    return model.state_dict()


def _generator(*stream: int) -> torch.Generator:
    """Independent random numbers for each seed and what it is used for."""
    state = np.random.SeedSequence(stream).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
