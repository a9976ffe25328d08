"""Split a data set into training, validation and test parts."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

import torch

from fastmlp.data.dataset import Dataset
from fastmlp.data.transforms import Normalization, image_shape, make_normalization
from fastmlp.utils.errors import EXIT_USAGE, UserError

TEST_SETS = ("split", "official")


@dataclass(frozen=True)
class Subset:
    """Images, or rows of numbers, to train or to evaluate on; the parts of a split are views of the
    data set."""

    images: torch.Tensor  # (n, features) uint8 or float32, contiguous
    labels: torch.Tensor  # (n,) int64, or numbers to predict (n, outputs) float32
    counts: torch.Tensor | None = None  # (n,) int64: how often each counts; None: once
    weights: torch.Tensor | None = None  # (n,) float32: factors of their losses; None: 1

    @property
    def plain(self) -> bool:
        """Whether it is uint8 images with labels and without weights."""
        dtypes = self.images.dtype, self.labels.dtype
        return dtypes == (torch.uint8, torch.int64) and self.weights is None

    @property
    def total_weight(self) -> float:
        """The sum of the weights of the images evaluated; their number where there are none."""
        weights = self.spread.weights
        return float(self.total) if weights is None else float(weights.double().sum())

    @property
    def total(self) -> int:
        """The number of images evaluated."""
        return len(self.labels) if self.counts is None else int(self.counts.sum())

    @cached_property
    def spread(self) -> Subset:
        """The same images without counts, each repeated as often as it counts."""
        if self.counts is None:
            return self
        return Subset(
            self.images.repeat_interleave(self.counts, 0),
            self.labels.repeat_interleave(self.counts, 0),
            weights=None if self.weights is None else self.weights.repeat_interleave(self.counts),
        )


def parse_split(text: str) -> tuple[int, int, int]:
    """Parse ``"60/20/20"``: whole percentages of training, validation and test.

    Raises UserError (exit code 2) unless they sum to 100 and the first two are at least 1; the last
    may be 0, for use with the official test set.
    """
    match = re.fullmatch(r"\s*([0-9]{1,3})/([0-9]{1,3})/([0-9]{1,3})\s*", text)
    train, val, test = map(int, match.groups()) if match else (0, 0, 0)
    if train + val + test != 100 or not train or not val:
        raise UserError(
            "split must be three whole percentages that sum to 100, of which training and"
            f" validation are at least 1, such as 60/20/20; got {text!r}.",
            EXIT_USAGE,
            ("split",),
        )
    return train, val, test


def split_dataset(dataset: Dataset, split: str = "60/20/20", test_set: str = "split") -> DataSplits:
    """Cut the training images, in their order, into the three parts of ``split`` (percentages).

    With ``test_set="official"`` the test part is the official test set, and the third share is
    unused. Raises UserError for a malformed ``split`` or ``test_set``.
    """
    train, val, test = parse_split(split)
    if test_set not in TEST_SETS:
        raise UserError(
            f"test_set must be split or official, got {test_set!r}.", EXIT_USAGE, ("test_set",)
        )
    if test_set == "split" and not test:
        raise UserError(
            f"split {split} leaves nothing to test on; pass test_set official.",
            EXIT_USAGE,
            ("split", "test_set"),
        )
    count = len(dataset.labels)
    ends = count * train // 100, count * (train + val) // 100

    def part(start: int, end: int) -> Subset:
        return Subset(dataset.images.flatten(1)[start:end], dataset.labels[start:end])

    official = Subset(dataset.test_images.flatten(1), dataset.test_labels)
    return DataSplits(
        train=part(0, ends[0]),
        val=part(*ends),
        test=official if test_set == "official" else part(ends[1], count),
        classes=len(dataset.classes),
        name=dataset.name,
        source=str(dataset.source),
        synthetic=dataset.synthetic,
        class_names=tuple(dataset.classes),
    )


@dataclass(frozen=True)
class DataSplits:
    """Images (n, features) uint8, or rows of numbers float32, and labels (n,) int64, or numbers to
    predict (n, classes) float32, in three parts, of which the last may be missing.

    Raises UserError for a part without images and for labels that are not in [0, classes).
    """

    train: Subset
    val: Subset
    test: Subset | None
    classes: int = 10
    """The number of classes or, in a regression, of numbers to predict: a network's outputs."""
    name: str = "custom"
    source: str = "given by the caller"
    synthetic: bool = False
    """Whether this is the built-in set, the stand-in for CIFAR-10."""
    class_names: tuple[str, ...] = ()
    """The names of the labels, if any."""

    def __post_init__(self) -> None:
        parts = {"training": self.train, "validation": self.val, "test": self.test}
        for name, part in parts.items():
            if part is None:
                continue
            if len(part.labels) == 0:
                raise UserError(
                    f"The {name} part has no images; pass another split", options=("split",)
                )
            if part.labels.is_floating_point():
                continue
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= self.classes:
                raise UserError(
                    f"Labels must be from 0 to {self.classes - 1}, the {name} part has "
                    f"{low} to {high}"
                )

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(planes, height, width) of the images, or None if they are not square, or numbers."""
        if self.train.images.is_floating_point():
            return None
        return image_shape(self.train.images.shape[1])

    def normalization(self, name: str) -> Normalization:
        """Return the normalization of that name for the training images, cached; rows of numbers
        stay as they are."""
        if self.train.images.is_floating_point():
            name = "none"
        if name not in self._normalizations:
            self._normalizations[name] = make_normalization(name, self.train.images)
        return self._normalizations[name]

    @cached_property
    def _normalizations(self) -> dict[str, Normalization]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The name and a hash of the training and validation parts."""
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            for tensor in (part.images, part.labels, part.weights):
                if tensor is None:
                    continue
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return f"{self.name}:{digest.hexdigest()[:32]}"
