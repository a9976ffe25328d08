"""The data of a run, and the images of each epoch in order: functions of the configuration and
the seed alone."""

from __future__ import annotations

from fastmlp.data.dataset import load_dataset
from fastmlp.data.sampling import epoch_moves, epoch_order, sliding_order
from fastmlp.data.splits import DataSplits, split_dataset
from fastmlp.data.transforms import parse_augmentation
from fastmlp.engines.base import Epoch
from fastmlp.training.config import TrainConfig


def load_splits(config: TrainConfig, progress: bool = True) -> DataSplits:
    """Return the data set that ``config`` names, split as it says; ``progress`` shows downloads.

    Raises :class:`UserError` where it cannot be loaded or split.
    """
    dataset = load_dataset(config.dataset, config.data_dir, config.data_url, progress=progress)
    return split_dataset(dataset, config.split, config.test_set)


def make_epoch(
    config: TrainConfig,
    epoch: int,
    images: int,
    shape: tuple[int, int, int] | None,
    start_step: int = 0,
) -> Epoch:
    """Return an epoch, counted from 0, on ``images`` training images; ``shape`` (planes, height,
    width) is theirs, for augmentation."""
    if config.loader == "sliding":
        order = sliding_order(config.seed, epoch, images, config.batch_size)
    else:
        order = epoch_order(config.seed, epoch, images)
    augmentation = parse_augmentation(config.augment)
    moves = None
    if augmentation is not None and shape is not None:
        moves = epoch_moves(augmentation, config.seed, epoch, len(order), shape)
    return Epoch(order, config.lr_at(epoch), moves, start_step)
