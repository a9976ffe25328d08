"""Describe a data folder that does not hold CIFAR-10, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fastmlp.data.images import CIFAR100_ARCHIVE, CIFAR100_FOLDER, IDX_SETS, IMAGE_ENDINGS
from fastmlp.data.tables import FORMATS
from fastmlp.utils.untrusted import quoted

LOOKED_AT = 1000
"""Entries of a folder that are looked at; more of one kind tell nothing new."""
UNREAD = {
    ".mat": "a file of MATLAB",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".tfrecord": "a file of TensorFlow records",
    ".arrow": "an Arrow file",
    ".zip": "a zip archive",
}
"""Files that are read nowhere here, by the end of their names."""


def found_instead(root: Path) -> list[str]:
    """Return, as parts of a sentence, what a folder without CIFAR-10 holds, each kind once, with
    what to do about it."""
    found: dict[str, str] = {}
    for path in _entries(root):
        told = _told(path, root)
        if told is not None:
            found.setdefault(told[0], f"{quoted(path.name)}, {told[1]}")
    return list(found.values())


def _told(path: Path, root: Path) -> tuple[str, str] | None:
    """Return the kind of an entry of ``root``, and what to say about it; None for nothing."""
    name, ending = path.name.lower(), path.suffix.lower()
    if path.name in (CIFAR100_ARCHIVE, CIFAR100_FOLDER):
        return "cifar100", "which is CIFAR-100 (dataset cifar100)"
    if name.startswith("cifar-100"):
        wanted = f"of which {CIFAR100_ARCHIVE} is read (dataset cifar100)"
        return "cifar100 otherwise", f"which is CIFAR-100, {wanted}"
    for dataset, official in IDX_SETS.items():
        if path.name in {folder.split("/")[0] for folder in official.folders}:
            return dataset, f"where {dataset} would be (dataset {dataset})"
    by_class = path.is_dir() and any(p.suffix.lower() in IMAGE_ENDINGS for p in _entries(path))
    if by_class:
        return "images", f"a folder of images (train --data {root} learns folders by class)"
    if ending in IMAGE_ENDINGS:
        return "images", "an image (train --data FOLDER learns images, a folder for each class)"
    if ending in FORMATS:
        return f"table{ending}", f"a table (train --data {path} --target COLUMN learns it)"
    if ending in UNREAD:
        return (
            ending,
            f"{UNREAD[ending]}, which is not read; save it as one of {', '.join(FORMATS)}",
        )
    return None


def _entries(folder: Path) -> Iterator[Path]:
    """Return the first entries of a folder that are not hidden; none where it cannot be read."""
    try:
        return islice((p for p in sorted(folder.iterdir()) if p.name[0] != "."), LOOKED_AT)
    except OSError:
        return iter(())
