"""Rows of pixels: they stay uint8 from the user's array to the engine, which normalises them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmlp.data.tables import Table, as_array, as_table
from fastmlp.data.transforms import Normalization, channel_statistics, normalization_of
from fastmlp.utils.errors import UserError
from fastmlp.utils.value_checks import (
    Fields,
    check_fields,
    is_count,
    is_deviation,
    is_duration,
    list_of,
    optional,
)


@dataclass(frozen=True)
class Pixels:
    """Rows (n, features) uint8, of images of ``shape`` (planes, height, width) where that is
    known."""

    values: NDArray[np.uint8]
    source: str = "X"
    shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, indices: NDArray[np.int64] | slice) -> Pixels:
        """Return some of the rows."""
        return replace(self, values=self.values[indices])


@dataclass(frozen=True)
class PixelEncoding:
    """Which rows of pixels a network takes, and the mean and deviation of each channel in the
    training rows, on the scale of 0 to 255."""

    width: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    shape: tuple[int, ...] | None = None

    @classmethod
    def fit(cls, pixels: Pixels) -> PixelEncoding:
        """Fit the encoding to the training rows."""
        means, deviations = channel_statistics(_tensor(pixels.values))
        return cls(pixels.values.shape[1], tuple(means), tuple(deviations), pixels.shape)

    def apply(self, pixels: Pixels) -> NDArray[np.uint8]:
        """Return the rows; raise UserError where they have another width."""
        if self.shape and pixels.shape and self.shape != pixels.shape:
            raise UserError(
                f"{pixels.source} has images of {_size(pixels.shape)}, and the network was trained "
                f"on {_size(self.shape)}; scale them to that size."
            )
        if pixels.values.shape[1] != self.width:
            raise UserError(
                f"{pixels.source} has rows of {pixels.values.shape[1]:,} pixels, and the network "
                f"was trained on {self.width:,}; pass images of that size."
            )
        return pixels.values

    def normalization(self, name: str) -> Normalization:
        """Return the normalization of that name for the training rows."""
        return normalization_of(name, self.width, self.means, self.deviations)

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON has it; :meth:`from_dict` reads it."""
        return {
            "pixels": self.width,
            "means": list(self.means),
            "deviations": list(self.deviations),
            "shape": None if self.shape is None else list(self.shape),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PixelEncoding:
        """Return the encoding of a :meth:`to_dict`; raise ValueError where it is none."""
        check_fields("the inputs", values, _ENCODING)
        width = values["pixels"]
        means, deviations = (tuple(map(float, values[key])) for key in ("means", "deviations"))
        shape = None if values["shape"] is None else tuple(values["shape"])
        if not width or len(means) != len(deviations) or width % len(means):
            raise ValueError("there must be a mean and a deviation for each channel")
        if shape is not None and (len(shape) != 3 or math.prod(shape) != width):
            raise ValueError(f"shape must be three sizes of {width} pixels together, got {shape}")
        return cls(width, means, deviations, shape)


_ENCODING: Fields = {
    "pixels": is_count,
    "means": list_of(is_duration, 1),
    "deviations": list_of(is_deviation, 1),
    "shape": optional(list_of(is_count, 3)),
}


def as_rows(data: object, source: str = "X") -> Table | Pixels:
    """Return pixels of an array or tensor (n, features) uint8, and a table of anything else that
    :func:`~fastmlp.data.tables.as_table` takes."""
    if isinstance(data, Pixels):
        return data
    if str(getattr(data, "dtype", "")).removeprefix("torch.") == "uint8" and data.ndim == 2:  # type: ignore[attr-defined]
        return Pixels(as_array(data, source), source)
    return as_table(data, source)


def as_pixels(data: object, source: str = "X") -> Pixels:
    """Return rows of pixels; raise UserError for anything but (n, features) uint8."""
    rows = as_rows(data, source)
    if isinstance(rows, Table):
        raise UserError(
            f"{rows.source} must be pixels, an array (n, features) of uint8, as the network was "
            "trained on them."
        )
    return rows


def _size(shape: tuple[int, ...]) -> str:
    planes, height, width = shape
    return f"{width} x {height} pixels in {'colour' if planes == 3 else 'grey'}"


def _tensor(values: NDArray[np.uint8]) -> torch.Tensor:
    """Return the values as a tensor, which shares their memory unless that must not be written."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
