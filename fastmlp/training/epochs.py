"""What a run trains on: its initial parameters, and for each epoch the images, in order.

All of it is a function of the configuration and the seed alone. Runs that share a seed get the very
same tensors, by which engines know that they can share the work.
"""

from __future__ import annotations

from torch import Tensor

from fastmlp.data.sampling import epoch_moves, epoch_order, seeded_generator, sliding_order
from fastmlp.data.transforms import parse_augmentation
from fastmlp.engines.base import Epoch
from fastmlp.nn.init import init_parameters
from fastmlp.nn.modules import MLP
from fastmlp.training.config import TrainConfig


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
        order = sliding_order(config.seed, epoch, images, config.batch_size)
    else:
        order = epoch_order(config.seed, epoch, images)
    augmentation = parse_augmentation(config.augment)
    moves = None
    if augmentation is not None and shape is not None:
        moves = epoch_moves(augmentation, config.seed, epoch, len(order), shape)
    return Epoch(order, config.lr_at(epoch), moves, start_step)


def initial_parameters(sizes: list[int], init: str, seed: int) -> dict[str, Tensor]:
    """The ``state_dict``, float32, that a run with these layer sizes begins with: a function of its
    arguments alone. Raises ValueError for an unknown ``init``."""
    model = MLP(sizes, init="torch", device="meta").to_empty(device="cpu")
    init_parameters(model, init, seeded_generator(seed, 0))
    return model.state_dict()
