"""Read sets of images: MNIST and Fashion-MNIST (IDX files), CIFAR-100 (binary) and a folder of
images by class. Nothing is downloaded and no code in a file is run."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import check_growth, growth_of
from fastmlp.data.cifar10 import Images, Labels
from fastmlp.data.digests import check_sum, read_sums
from fastmlp.data.pixels import Pixels
from fastmlp.data.tables import needs
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import expanded
from fastmlp.utils.untrusted import reason

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
"""What those are; some of Pillow's other formats are read by running another program."""
MOST_SCANS = 100
"""Of a JPEG: a progressive one has about ten, each of which is a walk over the whole picture."""
TILE_TAGS, LARGEST_TILE = (322, 323), 1 << 20
"""A TIFF's width and height of a tile, and the pixels that one may have in any case."""


@dataclass(frozen=True)
class ImageSet:
    """Images (n, features) uint8, planes one after another, and labels (n,) int64, indices into
    ``classes``; ``shape`` is (planes, height, width). A set without a test part of its own has an
    empty one."""

    name: str
    source: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    images: Images
    labels: Labels
    test_images: Images
    test_labels: Labels


@dataclass(frozen=True)
class IdxSet:
    """An official set of IDX files: the folders that it is usually in, its classes, and the MD5 of
    each compressed file, as ``torchvision.datasets`` has them."""

    folders: tuple[str, ...]
    classes: tuple[str, ...]
    md5: Mapping[str, str]


IDX_SETS = {
    "mnist": IdxSet(
        ("mnist", "MNIST", "MNIST/raw"),
        tuple(map(str, range(10))),
        {
            "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": IdxSet(
        ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        {
            "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}
"""The sets of IDX files by name."""

IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CIFAR100_FOLDER = "cifar-100-binary"
CIFAR100_ARCHIVE = "cifar-100-binary.tar.gz"
CIFAR100_MD5 = "03b5dce01913d631647c71ecec9e9cb8"


def load_images(name: str, roots: list[Path]) -> ImageSet:
    """Return the set ``mnist``, ``fashion-mnist`` or ``cifar100`` from the first of the folders
    ``roots`` that holds it; raise UserError, saying what was looked for, where none does."""
    if name == "cifar100":
        for root in roots:
            found = _find_cifar100(root)
            if found is not None:
                return found
        wanted = f"{CIFAR100_FOLDER} or {CIFAR100_ARCHIVE}"
    else:
        for root in roots:
            for folder in (root / each for each in IDX_SETS[name].folders):
                if any(_idx_path(folder, file) for file in IDX_SETS[name].md5):
                    return _read_idx_set(name, folder)
        wanted = f"{IDX_SETS[name].folders[0]}/train-images-idx3-ubyte.gz"
    raise UserError(
        f"There is no {name} in {' or '.join(map(str, roots))} (looked for {wanted}); put its "
        "official files there, or pass the data_dir that has them.",
        options=("data_dir",),
    )


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    """Return the array of an IDX file, compressed (.gz) or not; raise UserError where it is none,
    or cut short. The format: http://yann.lecun.com/exdb/mnist/"""
    path = Path(path)
    return _parse_idx(path, path.read_bytes())


def _parse_idx(path: Path, data: bytes) -> NDArray[np.generic]:
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(growth_of(len(data)))
                if file.read(1):
                    raise _damaged(path, "would take far more memory than it has bytes")
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, f"is no whole gzip file ({reason(error)})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_DTYPES or not 1 <= data[3] <= 8:
        raise _damaged(path, "is no IDX file of 1 to 8 dimensions")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise _damaged(path, "is cut short")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(IDX_DTYPES[data[2]])
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise _damaged(path, f"has {len(data):,} bytes of content, not {wanted:,}")
    array: NDArray[np.generic] = np.frombuffer(data, dtype, offset=start).reshape(shape).copy()
    return array.astype(dtype.newbyteorder("="))


def _idx_path(folder: Path, name: str) -> Path | None:
    for each in (f"{name}.gz", name, f"{name}.gz".replace("-idx", ".idx")):
        if (folder / each).is_file():
            return folder / each
    return None


def _read_idx_set(name: str, folder: Path) -> ImageSet:
    official = IDX_SETS[name]
    arrays: list[NDArray[np.generic]] = []
    sums = read_sums(folder)
    for file, md5 in official.md5.items():
        path = _idx_path(folder, file)
        if path is None:
            raise _damaged(folder / f"{file}.gz", "is missing")
        data = path.read_bytes()
        check_sum(path, data, sums)
        if path.suffix == ".gz" and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise _damaged(path, f"is not the official file of {name} (its MD5 is another)")
        arrays.append(_parse_idx(path, data))
    parts: list[NDArray[Any]] = []
    for images, labels in (arrays[:2], arrays[2:]):
        if (
            images.dtype != np.uint8
            or images.ndim != 3
            or not images.size
            or images.shape[1:] != arrays[0].shape[1:]
            or labels.shape != (len(images),)
            or labels.dtype.kind not in "iu"
        ):
            raise _damaged(folder, f"does not hold images and as many labels of {name}")
        low, high = int(labels.min()), int(labels.max())  # type: ignore[call-overload]
        if low < 0 or high >= len(official.classes):
            raise _damaged(folder, f"has labels below 0, or of {len(official.classes)} and above")
        parts += [images.reshape(len(images), -1), labels.astype(np.int64)]
    height, width = arrays[0].shape[1:]
    return ImageSet(name, str(folder), official.classes, (1, height, width), *parts)


def _find_cifar100(root: Path) -> ImageSet | None:
    for folder in (root, root / CIFAR100_FOLDER):
        if (folder / "fine_label_names.txt").is_file() and (folder / "train.bin").is_file():
            return _cifar100(str(folder), partial(_bytes_of, folder))
    archive = root / CIFAR100_ARCHIVE
    if not archive.is_file():
        return None
    if hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest() != CIFAR100_MD5:
        raise _damaged(archive, "is not the official archive (its MD5 is another)")
    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(f"{CIFAR100_FOLDER}/{name}")
            assert file is not None  # the archive is the official one
            return file.read()

        return _cifar100(str(archive), member)


def _cifar100(source: str, content: Callable[[str], bytes]) -> ImageSet:
    """Return CIFAR-100 from its files' bytes: records of a coarse label, a fine label and 3072
    bytes of image."""
    names = Path(source, "fine_label_names.txt")
    classes = tuple(content(names.name).decode("ascii", "replace").split())
    if len(set(classes)) != len(classes) or len(classes) > 256 or "\ufffd" in "".join(classes):
        raise _damaged(names, "does not hold the names of the classes")
    parts: list[NDArray[Any]] = []
    for name in ("train.bin", "test.bin"):
        data = content(name)
        if not data or len(data) % 3074:
            raise _damaged(Path(source, name), f"has {len(data):,} bytes, no multiple of 3,074")
        records = np.frombuffer(data, np.uint8).reshape(-1, 3074)
        if int(records[:, 1].max()) >= len(classes):
            raise _damaged(Path(source, name), f"has labels of {len(classes)} and above")
        parts += [records[:, 2:].copy(), records[:, 1].astype(np.int64)]
    return ImageSet("cifar100", source, classes, (3, 32, 32), *parts)


def _bytes_of(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise _damaged(path, "is missing")
    content = path.read_bytes()
    check_sum(path, content, read_sums(folder))
    return content


def read_image_folder(root: str | os.PathLike[str]) -> ImageSet:
    """Read a folder that has a folder of images for each class, its name being the class's.

    Classes are in the order of their names, images in the order of theirs. All images must have
    one size; they are read as grey where all are, else in three planes. Raises UserError for a
    folder without classes, an image of another size and a file that cannot be read.
    """
    root = expanded(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    files = [_image_files(folder) for folder in folders]
    if len(folders) < 2 or not all(files):
        empty = next((str(f) for f, found in zip(folders, files, strict=True) if not found), None)
        count = f"{len(folders)} folder{'s' * (len(folders) != 1)}"
        what = f"{empty} has no images" if empty else f"{root} has {count}"
        raise UserError(
            f"{what}; a folder of images needs two or more folders, one for each class, with "
            f"images ({', '.join(IMAGE_ENDINGS)}) in each."
        )
    flat, shape = _read_pictures([file for each in files for file in each])
    labels = np.repeat(np.arange(len(folders)), [len(each) for each in files])
    classes = tuple(folder.name for folder in folders)
    return ImageSet(
        root.name, str(root), classes, shape, flat, labels, flat[:0].copy(), labels[:0].copy()
    )


def read_images(root: str | os.PathLike[str], planes: int | None) -> tuple[list[Path], Pixels]:
    """Return the image files in a folder and in those within it, in the order of their names, and
    their pixels; as grey for one of ``planes``, in colour for three.

    Raises UserError as :func:`read_image_folder`, and for a folder without images.
    """
    root = expanded(root)
    files = _image_files(root) + [
        file for path in sorted(root.rglob("*")) if path.is_dir() for file in _image_files(path)
    ]
    if not files:
        raise UserError(
            f"{root} has no images; pass a folder with some ({', '.join(IMAGE_ENDINGS)})."
        )
    flat, shape = _read_pictures(files, planes)
    return files, Pixels(flat, str(root), shape)


def _check_effort(file: Path, image: Any) -> None:
    """Raise ValueError for an image that takes far more time or memory than its size tells."""
    if image.format == "JPEG" and file.read_bytes().count(b"\xff\xda") > MOST_SCANS:
        raise ValueError(f"it has more than {MOST_SCANS} scans")
    if image.format == "TIFF":
        width, height = (image.tag_v2.get(tag, 0) for tag in TILE_TAGS)
        if width * height > 4 * image.width * image.height + LARGEST_TILE:
            raise ValueError(f"it has tiles of {width} x {height} pixels")


def _read_pictures(
    files: list[Path], planes: int | None = None
) -> tuple[Images, tuple[int, int, int]]:
    """Return the pixels (n, features) of images of one size, planes one after another, and their
    shape; grey where ``planes`` is 1 or all are grey."""
    pillow = needs("PIL.Image", "images", "A folder of images")
    pictures: list[NDArray[np.uint8]] = []
    length = sum(file.stat().st_size for file in files)
    for file in files:
        try:
            with pillow.open(file, formats=IMAGE_FORMATS) as image:
                _check_effort(file, image)
                if not pictures or image.size != pictures[0].shape[1::-1]:
                    check_growth(file, length, image.width * image.height * 3 * len(files))
                grey = planes == 1 or (
                    planes is None and image.mode in ("1", "L", "I", "I;16", "F")
                )
                pictures.append(np.asarray(image.convert("L" if grey else "RGB"), np.uint8))
        except UserError:
            raise
        except Exception as error:  # Pillow's, of any kind, for a damaged file or a huge one
            raise UserError(
                f"{file} cannot be read as an image ({reason(error)}); remove it."
            ) from error
        size, first = pictures[-1].shape[:2], pictures[0].shape[:2]
        if size != first:
            raise UserError(
                f"{file} is {size[1]} x {size[0]} pixels and {files[0]} is {first[1]} x "
                f"{first[0]}; scale all images to one size."
            )
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[..., None], 3, 2) for p in pictures]
        images = np.stack(pictures).transpose(0, 3, 1, 2)
    else:
        images = np.stack(pictures)[:, None]
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return np.ascontiguousarray(images).reshape(len(images), -1), shape


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()
    )


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} {problem}; put the official file there.")
