"""The data of a run: its three parts, where they came from, and a fingerprint to know them by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from fastmlp.data.dataset import Dataset, Split, load_dataset, split_dataset
from fastmlp.data.transforms import Normalization, image_shape, make_normalization
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import UserError


@dataclass(frozen=True)
class RunData:
    """Images (n, features) uint8 and labels (n,) int64 from 0 to ``classes - 1``, in three parts
    of at least one image each. Raises :class:`UserError` where they are not that."""

    split: Split
    classes: int = 10
    name: str = "custom"
    source: str = "given by the caller"
    offline: bool = False
    """Whether this is the built-in set, which stands in for CIFAR-10 without a network."""
    class_names: tuple[str, ...] = ()
    """Of the labels, where they have names."""

    def __post_init__(self) -> None:
        parts = {
            "training": self.split.train,
            "validation": self.split.val,
            "test": self.split.test,
        }
        for name, part in parts.items():
            if len(part.labels) == 0:
                raise UserError(f"The {name} part has no images; pass another --split")
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= self.classes:
                raise UserError(
                    f"Labels must be from 0 to {self.classes - 1}, the {name} part has "
                    f"{low} to {high}"
                )

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(planes, height, width) of the images, None where they are not square."""
        return image_shape(self.split.train.images.shape[1])

    def normalization(self, name: str) -> Normalization:
        """:func:`fastmlp.data.make_normalization` on the training images, made once."""
        if name not in self._normalizations:
            self._normalizations[name] = make_normalization(name, self.split.train.images)
        return self._normalizations[name]

    @cached_property
    def _normalizations(self) -> dict[str, Normalization]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The name and a hash of all that training and the choice of the best epoch depend on."""
        digest = hashlib.sha256()
        for part in (self.split.train, self.split.val):
            for tensor in (part.images, part.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return f"{self.name}:{digest.hexdigest()[:32]}"


def make_run_data(dataset: Dataset, split: str, test_set: str) -> RunData:
    """The data set in three parts, as :func:`fastmlp.data.split_dataset` cuts it."""
    return RunData(
        split_dataset(dataset, split, test_set),
        len(dataset.classes),
        dataset.name,
        str(dataset.source),
        dataset.offline,
        tuple(dataset.classes),
    )


def load_run_data(config: TrainConfig, progress: bool = True) -> RunData:
    """The data set that ``config`` names, split as it says; ``progress`` shows downloads.

    Raises :class:`UserError` where it cannot be had or split.
    """
    dataset = load_dataset(config.dataset, config.data_dir, config.data_url, progress=progress)
    return make_run_data(dataset, config.split, config.test_set)
