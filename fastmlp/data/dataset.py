"""CIFAR-10, or the built-in offline set where it cannot be had: found, read, split, normalised.

Images stay uint8 from the file to the model; a :class:`Normalization` turns a batch into float32.
``python -m fastmlp.data info|samples|download`` shows what there is, draws it, or fetches it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fastmlp.data import synthetic as offline
from fastmlp.data.cifar10 import ARCHIVES, CACHE, DIRECTORY_VARIABLE, Archive, find_folder, read, search_path
from fastmlp.data.download import URL_VARIABLE, DownloadError, fetch, unpack
from fastmlp.utils.errors import EXIT_USAGE, ArgumentParser, UserError, run_command
from fastmlp.utils.files import atomic_path

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


@dataclass(frozen=True)
class Normalization:
    """``x = u8 * scale + shift`` with float32 ``scale`` and ``shift`` of shape (features,)."""

    name: str
    scale: torch.Tensor
    shift: torch.Tensor

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Images (..., features) uint8 -> float32 of the same shape, on the device of ``images``.
        Raises TypeError for another dtype: that would be normalised twice."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        scale, shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)


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
    print(offline.warning(reason), file=sys.stderr)
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


def make_normalization(name: str, train_images: torch.Tensor) -> Normalization:
    """``unit``: ``u8 / 255``. ``standard``: ``(u8 - mean) / std`` with the mean and the standard
    deviation of each colour channel of ``train_images``, and of nothing else.

    ``train_images``: (n, features) uint8, features being three colour planes one after another
    (or, where three does not divide them, one grey plane). Raises :class:`UserError` for another
    name.
    """
    features = train_images.shape[-1]
    if name == "unit":
        mean, std = [0.0], [255.0]
    elif name == "standard":
        mean, std = channel_statistics(train_images)
    else:
        raise UserError(f"--normalize wants unit or standard, got {name!r}.", EXIT_USAGE)
    scale = 1 / torch.tensor(std, dtype=torch.float64)
    shift = -torch.tensor(mean, dtype=torch.float64) * scale
    plane = features // len(std)
    return Normalization(
        name, *(values.float().repeat_interleave(plane) for values in (scale, shift))
    )


def channel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (of the population; 1 for a constant channel) of each channel of
    images (n, features) uint8, on the scale of 0 to 255; exact but for the last rounding."""
    planes = images.reshape(len(images), 3 if images.shape[-1] % 3 == 0 else 1, -1)
    means, deviations = [], []
    for channel in range(planes.shape[1]):
        counts = torch.bincount(planes[:, channel].flatten(), minlength=256).tolist()
        count = sum(counts)
        total = sum(value * times for value, times in enumerate(counts))
        squares = sum(value * value * times for value, times in enumerate(counts))
        means.append(total / count)
        deviations.append((count * squares - total * total) ** 0.5 / count or 1.0)
    return means, deviations


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--dataset --data-dir --data-url --split --test-set``, whose values are the arguments
    of :func:`load_dataset` and :func:`split_dataset` of the same names."""
    _add_source_arguments(parser)
    parser.add_argument(
        "--split",
        type=lambda text: parse_split(text) and text,  # refused before anything is downloaded
        default="60/20/20",
        metavar="TRAIN/VAL/TEST",
        help="percentages of the 50,000 training images, in their order",
    )
    parser.add_argument(
        "--test-set",
        choices=TEST_SETS,
        default="split",
        help="test on the third part of the split or on the 10,000 official test images",
    )


def _add_source_arguments(parser: argparse._ActionsContainer, dataset: bool = True) -> None:
    if dataset:
        parser.add_argument(
            "--dataset",
            choices=DATASETS,
            default="auto",
            help="auto: CIFAR-10 if found or downloadable, else the built-in offline set",
        )
    # "%(default).0s" prints nothing; it keeps "(default: None)" away.
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where CIFAR-10 lies or is downloaded to; if not given, "
        f"${DIRECTORY_VARIABLE}, then {CACHE}%(default).0s",
    )
    parser.add_argument(
        "--data-url",
        metavar="URL",
        help="a mirror of either official archive; if not given, "
        f"${URL_VARIABLE}, then the official host%(default).0s",
    )


def main(argv: list[str]) -> int:
    """``python -m fastmlp.data``: returns the exit code. Raises UserError."""
    parser = ArgumentParser(prog="python -m fastmlp.data", description="Shows or fetches the data.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print sizes, classes, counts and statistics")
    add_data_arguments(info)
    samples = commands.add_parser("samples", help="draw ten training images of each class")
    _add_source_arguments(samples)
    samples.add_argument("--out", default="samples.png", help="image file to write")
    download = commands.add_parser("download", help="fetch CIFAR-10 if it is not there")
    _add_source_arguments(download, dataset=False)
    download.set_defaults(dataset="cifar10")
    options = parser.parse_args(argv)

    dataset = load_dataset(options.dataset, options.data_dir, options.data_url)
    if options.command == "info":
        print(describe(dataset, options.split, options.test_set))
    elif options.command == "samples":
        draw_samples(dataset, Path(options.out))
        print(f"Ten images of each class of {dataset.source} are in {options.out}")
    else:
        print(f"CIFAR-10 is in {dataset.source}")
    return 0


def describe(dataset: Dataset, split: str = "60/20/20", test_set: str = "split") -> str:
    """What a person asks about a data set first, in lines of text."""
    parts = split_dataset(dataset, split, test_set)
    columns = {"train": parts.train, "val": parts.val, "test": parts.test}
    counts = [torch.bincount(part.labels, minlength=10).tolist() for part in columns.values()]
    means, deviations = channel_statistics(parts.train.images)
    lines = [
        f"data set   {dataset.name}",
        f"source     {dataset.source}",
        f"images     {len(dataset.images):,} training {tuple(dataset.images.shape[1:])} and"
        f" {len(dataset.test_images):,} official test",
        f"dtype      {str(dataset.images.dtype).removeprefix('torch.')}, values from"
        f" {dataset.images.min()} to {dataset.images.max()}",
        f"classes    {len(dataset.classes)}",
        f"split      {split}, test set: {test_set}",
        "",
        f"{'images of':14}" + "".join(f"{name:>8}" for name in columns),
    ]
    for name, *row in zip(dataset.classes, *counts, strict=True):
        lines.append(f"{name:14}" + "".join(f"{count:8,}" for count in row))
    lines.append(f"{'all':14}" + "".join(f"{sum(column):8,}" for column in counts))
    lines += [
        "",
        f"{'training part':14}" + "".join(f"{name:>8}" for name in ("red", "green", "blue")),
    ]
    for name, values in (("mean / 255", means), ("std / 255", deviations)):
        lines.append(f"{name:14}" + "".join(f"{value / 255:8.4f}" for value in values))
    return "\n".join(lines)


def draw_samples(dataset: Dataset, out: Path) -> None:
    """Writes an image file to ``out``: a row of each class, of its first ten training images.

    Raises :class:`UserError` for a file type that matplotlib cannot write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cell, columns = 34, 10  # an image and a white gap of two pixels
    grid = np.full((len(dataset.classes) * cell, columns * cell, 3), 255, np.uint8)
    for row in range(len(dataset.classes)):
        chosen = dataset.images[dataset.labels == row][:columns].permute(0, 2, 3, 1).numpy()
        for column, image in enumerate(chosen):
            y, x = row * cell + 1, column * cell + 1
            grid[y : y + 32, x : x + 32] = image

    figure = Figure(figsize=(9, 9))
    canvas = FigureCanvasAgg(figure)
    kind = out.suffix[1:].lower()
    if kind not in canvas.get_supported_filetypes():
        raise UserError(f"--out wants a file name that ends in .png, .pdf or .svg, got {out}.")
    axes = figure.add_subplot()
    axes.imshow(grid, interpolation="nearest")
    axes.set_title(f"{dataset.name}: ten training images of each class", fontsize=13)
    axes.set_yticks([(row + 0.5) * cell for row in range(len(dataset.classes))], dataset.classes)
    axes.tick_params(axis="y", length=0, labelsize=12)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight")


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
    images, labels = map(torch.from_numpy, offline.generate(60_000, seed=0))
    source = "the built-in offline set (drawn shapes and textures, not CIFAR-10)"
    return _dataset("offline", source, offline.CLASSES, images, labels)


def _dataset(
    name: str, source: str, classes: tuple[str, ...], images: torch.Tensor, labels: torch.Tensor
) -> Dataset:
    """Takes the last sixth for the official test set."""
    end = len(labels) * 5 // 6
    parts = images[:end], labels[:end], images[end:], labels[end:]
    return Dataset(name, source, name == "offline", classes, *parts)

