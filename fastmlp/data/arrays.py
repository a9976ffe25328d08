"""Read the arrays of .npy and .npz files, and bound what a file may grow to in memory."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import reason

ALWAYS = 1 << 28
"""Bytes that any file may take in memory."""
OF_NUMBERS, OF_TEXTS = 48, 192
"""Bytes that a number or a text takes at the most, on its way from a file into a column."""
TIMES = 100
"""How many times its own length a larger one may take; no table or picture that is worth learning
from compresses to less, and a few bytes can be made to take all memory there is."""


def growth_of(length: int) -> int:
    """Return how many bytes a file of ``length`` bytes may take in memory."""
    return max(ALWAYS, TIMES * length)


def check_growth(path: str | os.PathLike[str], length: int, wanted: int) -> None:
    """Raise UserError where the content of a file of ``length`` bytes would take ``wanted`` bytes
    in memory, out of all proportion."""
    if wanted > growth_of(length):
        raise UserError(
            f"{path} has {length:,} bytes and would take {wanted:,} in memory, more than {TIMES} "
            "times as many; write it as .npy, or uncompressed, if that is right."
        )


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array of an .npy file, memory-mapped; raise UserError where it is damaged, or
    holds neither numbers nor texts."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an .npz file by its content")
        check_kind(array)
    except OSError:
        raise
    except Exception as error:  # numpy has many for a header that is none
        raise UserError(
            f"{path} cannot be read ({reason(error)}); save numbers or texts of one dtype with "
            "numpy.save."
        ) from error
    return array


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name, compressed or not.

    Raises UserError where they would take far more memory than the file has bytes, and ValueError
    or another exception where it is damaged.
    """
    if not zipfile.is_zipfile(path):  # numpy would advise to load it as a pickle
        raise ValueError("an .npz file must be an archive of numpy.savez")
    with zipfile.ZipFile(path) as archive:
        wanted = sum(_size(archive, part) for part in archive.infolist())
    check_growth(path, path.stat().st_size, wanted)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: check_kind(arrays[name]) for name in arrays.files}


def _size(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> int:
    """Return the bytes that an array of an .npz file takes, at the most, until it is columns."""
    formats = np.lib.format
    with archive.open(part) as file:
        version = formats.read_magic(file)
        read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind == "V" or min(shape, default=0) < 0:
        raise ValueError(f"{part.filename} has items of the dtype {dtype}, or the shape {shape}")
    each = OF_NUMBERS if dtype.kind in "fiub" else max(OF_TEXTS, 3 * dtype.itemsize)
    return math.prod(shape) * each


def check_kind(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array; raise ValueError where its items are records, or of no bytes at all, of
    which a small file can hold any number."""
    if array.dtype.kind == "V" or not array.dtype.itemsize:
        raise ValueError(f"its items are of the dtype {array.dtype}")
    return array
