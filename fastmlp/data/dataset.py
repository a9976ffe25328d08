"""Load CIFAR-10, or the built-in synthetic set if CIFAR-10 is unavailable.

Images stay uint8 from the file to the model.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastmlp.data import synthetic
from fastmlp.data.cifar10 import (
    ARCHIVES,
    Archive,
    find_deeper,
    find_folder,
    read,
    search_path,
)
from fastmlp.data.download import DownloadError, fetch, tidy, unpack
from fastmlp.data.folder_contents import found_instead
from fastmlp.data.images import ImageSet, load_images
from fastmlp.utils.errors import EXIT_USAGE, UserError

CIFAR10_CLASSES: tuple[str, ...] = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
IMAGE_SETS = ("mnist", "fashion-mnist", "cifar100")
DATASETS = ("auto", "cifar10", "synthetic", *IMAGE_SETS)
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Dataset:
    """A data set in its official order.

    ``name`` is ``cifar10``, ``synthetic`` or one of :data:`IMAGE_SETS`, ``source`` the path
    or a description of the built-in set, for which ``synthetic`` is True.
    """

    name: str
    source: str
    synthetic: bool
    classes: tuple[str, ...]
    images: torch.Tensor  # (n, planes, height, width) uint8
    labels: torch.Tensor  # (n,) int64, indices into classes
    test_images: torch.Tensor  # (m, planes, height, width) uint8
    test_labels: torch.Tensor  # (10000,) int64


def current_name(dataset: str) -> str:
    """Return today's name of a data set: "offline" was the synthetic set's former one."""
    return "synthetic" if dataset == "offline" else dataset


def load_dataset(
    dataset: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    data_url: str | None = None,
    *,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load CIFAR-10, another official set of images or the built-in synthetic set.

    ``dataset``: ``cifar10``; ``synthetic``; or ``auto``, which is CIFAR-10 if it is found or can be
    downloaded, else the synthetic set with a prominent warning on standard error; or one of
    :data:`IMAGE_SETS`, which are never downloaded.
    ``data_dir``: the only folder to search and to download to; by default ``$FASTMLP_DATA`` (if
    set) and :func:`~fastmlp.data.cifar10.cache_folder` are searched, and the download goes to the
    first of them. ``data_url``: a mirror. ``download=False`` never touches the network.
    ``progress`` shows a download on standard error.

    Raises UserError if ``cifar10`` is unavailable, ``data_dir`` does not exist or, with
    ``download=False``, holds no CIFAR-10, or a file is damaged.
    """
    if dataset not in DATASETS:
        raise UserError(
            f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}.",
            EXIT_USAGE,
            ("dataset",),
        )
    if dataset == "synthetic":
        return _synthetic_dataset()
    roots = search_path(data_dir)
    if dataset in IMAGE_SETS:
        return _image_dataset(load_images(dataset, roots))
    for root in roots:
        found = _find(root, progress)
        if found is not None:
            return found
    instead = _found_instead(roots)
    try:
        if not download:
            raise DownloadError("downloading is off; run python -m fastmlp.data download first")
        if instead:
            print(f"fastmlp: no CIFAR-10 yet{instead}", file=sys.stderr)
        return _read(*fetch(roots[0], data_url, progress=progress))
    except DownloadError as error:
        reason = (
            f"There is no CIFAR-10 in {' or '.join(map(str, roots))} (looked for"
            f" {', '.join([*(a.folder for a in ARCHIVES), *(a.filename for a in ARCHIVES)])}"
            f"){instead}: {error}"
        )
        if dataset == "cifar10" or (data_dir is not None and not download):
            raise DownloadError(reason) from error
    print(synthetic.warning(reason), file=sys.stderr)
    return _synthetic_dataset()


def _found_instead(roots: list[Path]) -> str:
    """Return what the folders hold instead, as the end of a clause."""
    parts = [
        f"; {root} has {'; and '.join(found)}" for root in roots if (found := found_instead(root))
    ]
    return "".join(parts)


def _find(root: Path, progress: bool) -> Dataset | None:
    """Load CIFAR-10 from ``root``: one of its folders, or the parent of one or of an archive, or a
    folder that holds such a parent."""
    unpacked = find_folder(root)
    if unpacked is not None:
        tidy(unpacked[1].parent)
        return _read(*unpacked)
    for archive in ARCHIVES:
        path = root / archive.filename
        if path.is_file():
            if os.access(root, os.W_OK):
                return _read(archive, unpack(archive, path, root, progress=progress))
            with tempfile.TemporaryDirectory() as scratch:
                folder = unpack(archive, path, Path(scratch), progress=progress)
                return replace(_read(archive, folder), source=str(path))
    deeper = find_deeper(root)
    return None if deeper is None else _read(*deeper)


def _read(archive: Archive, folder: Path) -> Dataset:
    images, labels = map(torch.from_numpy, read(archive, folder))
    return _dataset("cifar10", str(folder), CIFAR10_CLASSES, images.view(-1, *SHAPE), labels)


def _image_dataset(found: ImageSet) -> Dataset:
    images, labels, test_images, test_labels = map(
        torch.from_numpy, (found.images, found.labels, found.test_images, found.test_labels)
    )
    return Dataset(
        *(found.name, found.source, False, found.classes),
        *(images.view(-1, *found.shape), labels),
        *(test_images.view(-1, *found.shape), test_labels),
    )


def _synthetic_dataset() -> Dataset:
    images, labels = map(torch.from_numpy, synthetic.generate(60_000, seed=0))
    source = "the built-in synthetic set (drawn shapes and textures, not CIFAR-10)"
    return _dataset("synthetic", source, synthetic.CLASSES, images, labels)


def _dataset(
    name: str, source: str, classes: tuple[str, ...], images: torch.Tensor, labels: torch.Tensor
) -> Dataset:
    """Make a data set whose last sixth is the official test set."""
    end = len(labels) * 5 // 6
    parts = images[:end], labels[:end], images[end:], labels[end:]
    return Dataset(name, source, name == "synthetic", classes, *parts)
