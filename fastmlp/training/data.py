"""What a run trains on: its data, and each epoch's images in order.

All of it is a function of the configuration and the seed alone.
"""

from __future__ import annotations

from fastmlp.data.dataset import load_dataset
from fastmlp.data.sampling import draw_epoch_order
from fastmlp.data.splits import DataSplits, split_dataset
from fastmlp.data.transforms import parse_augmentation
from fastmlp.engines.base import Epoch
from fastmlp.training.config import TrainConfig


def load_splits(config: TrainConfig, progress: bool = True, *, download: bool = True) -> DataSplits:
    """Return the data set that ``config`` names, split as it says; ``progress`` shows downloads,
    of which there are none without ``download``.

    Raises :class:`UserError` where it cannot be loaded or split.
    """
    dataset = load_dataset(
        *(config.dataset, config.data_dir, config.data_url), download=download, progress=progress
    )
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
    order = draw_epoch_order(
        config.seed,
        epoch,
        images,
        sliding_batch=config.batch_size if config.loader == "sliding" else None,
        augmentation=parse_augmentation(config.augment),
        shape=shape,
    )
    return Epoch(order, config.lr_at(epoch), start_step, epoch)
