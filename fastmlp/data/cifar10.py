"""Find and read CIFAR-10 on disk, in either of its two official layouts.

Nothing here touches the network or writes a file, and nothing in a data file is executed.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir

from fastmlp.data.digests import SUMS, check_sum, read_sums
from fastmlp.data.pickles import LARGEST, PickleError, read_dictionary
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import expanded
from fastmlp.utils.untrusted import reason

DIRECTORY_VARIABLE = "FASTMLP_DATA"
"""The environment variable that names the data folder."""

BATCH = 10_000
"""Images in each of the six files of CIFAR-10."""
PIXELS = 3 * 32 * 32

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Archive:
    """One of the official archives.

    ``members`` are the files of its folder with their sizes in bytes: the five training batches in
    order, the test batch, the class names. ``md5`` are their digests, where their authors or
    ``torchvision.datasets`` give them.
    """

    url: str
    size: int
    sha256: str
    folder: str
    members: Mapping[str, int]
    md5: Mapping[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


BINARY = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    members={
        **{f"data_batch_{number}.bin": 30_730_000 for number in range(1, 6)},
        "test_batch.bin": 30_730_000,
        "batches.meta.txt": 61,
    },
)
PYTHON = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    size=170_498_071,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    folder="cifar-10-batches-py",
    members={
        "data_batch_1": 31_035_704,
        "data_batch_2": 31_035_320,
        "data_batch_3": 31_035_999,
        "data_batch_4": 31_035_696,
        "data_batch_5": 31_035_623,
        "test_batch": 31_035_526,
        "batches.meta": 158,
    },
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
ARCHIVES = (BINARY, PYTHON)
"""In order of preference: the binary one needs no unpickling."""


def cache_folder() -> Path:
    """Return the folder for downloads, ``~/.cache/fastmlp`` on Linux without $XDG_CACHE_HOME."""
    return Path(user_cache_dir("fastmlp", appauthor=False))


def search_path(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to search; raises UserError for a named one that is no folder."""
    given, source = data_dir, "data_dir"
    if given is None:
        given, source = os.environ.get(DIRECTORY_VARIABLE) or None, f"${DIRECTORY_VARIABLE}"
    if given is None:
        return [cache_folder()]
    root = expanded(given)
    if not root.is_dir():
        raise UserError(
            f"{source} must be an existing folder, and {root} is"
            f" {'a file' if root.exists() else 'missing'}; correct it or make the folder.",
            options=("data_dir",),
        )
    return [root] if data_dir is not None else [root, cache_folder()]


def find_folder(root: Path) -> tuple[Archive, Path] | None:
    """Return the unpacked CIFAR-10 that ``root`` is or holds: its archive and its folder."""
    for folder in (root, *(root / archive.folder for archive in ARCHIVES)):
        for archive in ARCHIVES:
            if (folder.name == archive.folder and folder.is_dir()) or any(
                (folder / name).exists() for name in archive.members
            ):
                return archive, folder
    return None


def find_deeper(root: Path) -> tuple[Archive, Path] | None:
    """Return what :func:`find_folder` finds in the first of the folders within ``root`` that are
    not hidden and hold one."""
    try:
        folders = sorted(path for path in root.iterdir() if path.name[0] != "." and path.is_dir())
    except OSError:  # missing, or not to be read
        return None
    return next((found for folder in folders if (found := find_folder(folder))), None)


def read(archive: Archive, folder: Path) -> tuple[Images, Labels]:
    """Return images (60000, 3072) uint8 and labels (60000,) int64, the test batch last.

    Raises UserError that names the file which is missing or wrong: a file that is not what
    ``SHA256SUMS`` beside it says or, where there is none, one of an official file's size that has
    not the official digest.
    """
    pickled = archive.folder == PYTHON.folder
    sums = read_sums(folder)
    images, labels = [], []
    for path in (folder / name for name in list(archive.members)[:6]):
        if not path.is_file():
            raise _refusal(path, "is missing")
        content = _content(path, LARGEST if pickled else BATCH * (1 + PIXELS))
        check_sum(path, content, sums)
        if path.name not in sums:
            _check_official(archive, path, content)
        pixels, indices = (_parse_pickle if pickled else _parse_binary)(path, content)
        if indices.min() < 0 or indices.max() > 9:
            raise _refusal(path, f"has labels from {indices.min()} to {indices.max()}, not 0 to 9")
        images.append(pixels)
        labels.append(indices)
    return np.concatenate(images), np.concatenate(labels)


def _content(path: Path, most: int) -> Images:
    """Return the bytes of a file, of ``most`` at most and one more where it has more."""
    return np.fromfile(path, np.uint8, count=most + 1)


def _check_official(archive: Archive, path: Path, content: Images) -> None:
    """Raise UserError where a file has the size of the official one and another digest; one of
    another size is another writing of the same data."""
    wanted = archive.md5.get(path.name)
    if wanted is None or len(content) != archive.members[path.name]:
        return
    if hashlib.md5(content.data, usedforsecurity=False).hexdigest() != wanted:
        problem = f"is damaged, or no official file: it has the size of one, not its MD5 ({SUMS} in"
        raise _refusal(path, f"{problem} its folder would say what it should be)")


def _parse_binary(path: Path, content: Images) -> tuple[Images, Labels]:
    """Read a file of the binary layout: records of one byte of label and 3072 of image."""
    wanted = BATCH * (1 + PIXELS)
    if len(content) != wanted:
        raise _refusal(path, f"has {path.stat().st_size:,} bytes, not {wanted:,}")
    records = content.reshape(BATCH, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _parse_pickle(path: Path, content: Images) -> tuple[Images, Labels]:
    """Read a file of the pickled layout: a dictionary with ``data``, an array, and ``labels``."""
    try:
        batch = read_dictionary(io.BytesIO(content.data))
        images: Any = batch.get("data")
        labels = np.asarray(batch.get("labels")).astype(np.int64, casting="same_kind")
    except (PickleError, TypeError, ValueError, OverflowError) as error:
        raise _refusal(path, f"cannot be read ({reason(error)})") from error
    if getattr(images, "dtype", None) != np.uint8 or images.shape != (BATCH, PIXELS):
        raise _refusal(path, f"has no uint8 array of {BATCH:,} x {PIXELS:,} as its data")
    if labels.shape != (BATCH,):
        raise _refusal(path, f"has {labels.size:,} labels, not {BATCH:,}")
    return images, labels


def _refusal(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} {problem}; put the right file there, or move its folder away and run again to"
        " download CIFAR-10 anew."
    )
