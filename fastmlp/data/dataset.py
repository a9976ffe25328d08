"""CIFAR-10, or the built-in offline set where it cannot be had: found, read, split, normalised.

Images stay uint8 from the file to the model; a :class:`Normalization` turns a batch into float32.
``python -m fastmlp.data info|samples|download`` shows what there is, draws it, or fetches it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from fastmlp.data import synthetic
from fastmlp.data.cifar10 import (
    ARCHIVES,
    Archive,
    find_folder,
    read,
    search_path,
)
from fastmlp.data.download import DownloadError, fetch, unpack
from fastmlp.utils.errors import EXIT_USAGE, UserError

CIFAR10_CLASSES: tuple[str, ...] = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
DATASETS = ("auto", "cifar10", "offline")
TEST_SETS = ("split", "official")
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Dataset:
    """A data set in its official order. ``name`` is ``cifar10`` or ``offline``; ``source`` the path
    it came from, or that it is the built-in set, of which ``offline`` is True."""

    name: str
    source: str
    offline: bool
    classes: tuple[str, ...]
    images: torch.Tensor  # (50000, 3, 32, 32) uint8
    labels: torch.Tensor  # (50000,) int64, indices into classes
    test_images: torch.Tensor  # (10000, 3, 32, 32) uint8
    test_labels: torch.Tensor  # (10000,) int64


@dataclass(frozen=True)
class Part:
    """Images to train on or to measure on; the parts of a split are views of the data set."""

    images: torch.Tensor  # (n, 3072) uint8, contiguous
    labels: torch.Tensor  # (n,) int64
    counts: torch.Tensor | None = None  # (n,) int64: how often each is measured; None: once

    @property
    def total(self) -> int:
        """How many images are measured."""
        return len(self.labels) if self.counts is None else int(self.counts.sum())

    @cached_property
    def spread(self) -> Part:
        """The same without counts: each image as many times in a row as it is measured."""
        if self.counts is None:
            return self
        return Part(
            self.images.repeat_interleave(self.counts, 0),
            self.labels.repeat_interleave(self.counts),
        )


@dataclass(frozen=True)
class Split:
    """What is trained on, what choices are made on, and what is only reported on."""

    train: Part
    val: Part
    test: Part


def load_dataset(
    dataset: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    data_url: str | None = None,
    *,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """CIFAR-10 or the built-in offline set.

    ``dataset``: ``cifar10``; ``offline``; or ``auto``, which is CIFAR-10 if it is found or can be
    downloaded, else the offline set with a warning on standard error that nobody can miss.
    ``data_dir``: the only folder to look in and to download to; without it ``$FASTMLP_DATA`` (if
    set), then ``~/.cache/fastmlp`` are searched, and the first of them is downloaded to.
    ``data_url``: a mirror. ``download=False`` never touches the network. ``progress`` shows a
    download on standard error.

    Raises :class:`UserError` where ``cifar10`` cannot be had, where ``data_dir`` does not exist
    or, with ``download=False``, holds no CIFAR-10, and wherever a file that was found is damaged.
    """
    if dataset not in DATASETS:
        raise UserError(
            f"--dataset wants one of {', '.join(DATASETS)}, got {dataset!r}.", EXIT_USAGE
        )
    if dataset == "offline":
        return _offline_dataset()
    roots = search_path(data_dir)
    for root in roots:
        found = _find(root, progress)
        if found is not None:
            return found
    try:
        if not download:
            raise DownloadError("downloading is off")
        return _read(*fetch(roots[0], data_url, progress=progress))
    except DownloadError as error:
        reason = (
            f"There is no CIFAR-10 in {' or '.join(map(str, roots))} (looked for"
            f" {', '.join([*(a.folder for a in ARCHIVES), *(a.filename for a in ARCHIVES)])}):"
            f" {error}"
        )
        if dataset == "cifar10" or (data_dir is not None and not download):
            raise DownloadError(reason) from error
    print(synthetic.warning(reason), file=sys.stderr)
    return _offline_dataset()


def parse_split(text: str) -> tuple[int, int, int]:
    """``"60/20/20"`` -> (60, 20, 20): whole percentages of training, validation and test.

    Raises :class:`UserError` (exit code 2) unless they sum to 100 and the first two are at least
    1; the last may be 0, for use with the official test set.
    """
    match = re.fullmatch(r"\s*([0-9]{1,3})/([0-9]{1,3})/([0-9]{1,3})\s*", text)
    train, val, test = map(int, match.groups()) if match else (0, 0, 0)
    if train + val + test != 100 or not train or not val:
        raise UserError(
            "--split wants three whole percentages that sum to 100, of which training and"
            f" validation are at least 1, such as 60/20/20; got {text!r}.",
            EXIT_USAGE,
        )
    return train, val, test


def split_dataset(dataset: Dataset, split: str = "60/20/20", test_set: str = "split") -> Split:
    """Cuts the training images, in their order, into the three parts of ``split`` (percentages).

    With ``test_set="official"`` the test part is the official test set instead, and the third
    share is left unused. Raises :class:`UserError` for a malformed ``split`` or ``test_set``.
    """
    train, val, test = parse_split(split)
    if test_set not in TEST_SETS:
        raise UserError(f"--test-set wants split or official, got {test_set!r}.", EXIT_USAGE)
    if test_set == "split" and not test:
        raise UserError(
            f"--split {split} leaves nothing to test on; pass --test-set official.", EXIT_USAGE
        )
    count = len(dataset.labels)
    ends = count * train // 100, count * (train + val) // 100

    def part(start: int, end: int) -> Part:
        return Part(dataset.images.flatten(1)[start:end], dataset.labels[start:end])

    official = Part(dataset.test_images.flatten(1), dataset.test_labels)
    return Split(
        train=part(0, ends[0]),
        val=part(*ends),
        test=official if test_set == "official" else part(ends[1], count),
    )


def _find(root: Path, progress: bool) -> Dataset | None:
    """CIFAR-10 in ``root``, which may be one of its folders, hold one, or hold an archive."""
    unpacked = find_folder(root)
    if unpacked is not None:
        return _read(*unpacked)
    for archive in ARCHIVES:
        path = root / archive.filename
        if path.is_file():
            if os.access(root, os.W_OK):
                return _read(archive, unpack(archive, path, root, progress=progress))
            with tempfile.TemporaryDirectory() as scratch:
                folder = unpack(archive, path, Path(scratch), progress=progress)
                return replace(_read(archive, folder), source=str(path))
    return None


def _read(archive: Archive, folder: Path) -> Dataset:
    images, labels = map(torch.from_numpy, read(archive, folder))
    return _dataset("cifar10", str(folder), CIFAR10_CLASSES, images.view(-1, *SHAPE), labels)


def _offline_dataset() -> Dataset:
    images, labels = map(torch.from_numpy, synthetic.generate(60_000, seed=0))
    source = "the built-in offline set (drawn shapes and textures, not CIFAR-10)"
    return _dataset("offline", source, synthetic.CLASSES, images, labels)


def _dataset(
    name: str, source: str, classes: tuple[str, ...], images: torch.Tensor, labels: torch.Tensor
) -> Dataset:
    """Takes the last sixth for the official test set."""
    end = len(labels) * 5 // 6
    parts = images[:end], labels[:end], images[end:], labels[end:]
    return Dataset(name, source, name == "offline", classes, *parts)
