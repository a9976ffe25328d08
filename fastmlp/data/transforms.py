"""Augment and normalise uint8 images.

The random flips and shifts of an epoch are drawn ahead and applied as an image is read, so that
every engine trains on the same pictures and none holds a second copy of the data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmlp.ops._load import native_available
from fastmlp.ops.flip_shift import flip_shift, flip_shift_ref
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.untrusted import quoted

MAX_SHIFT = 127


@dataclass(frozen=True)
class FlipShifts:
    """The moves of N images of ``shape`` (planes, height, width).

    ``values`` (N, 3) int8 on the CPU: rows down, columns to the right, and 1 if the image is
    flipped left to right first.
    """

    values: Tensor
    shape: tuple[int, int, int]

    def __getitem__(self, rows: slice) -> FlipShifts:
        return FlipShifts(self.values[rows], self.shape)

    def apply(self, images: Tensor, *, reference: bool = False) -> Tensor:
        """Move images (N, features) uint8; ``reference`` avoids the kernel for plain PyTorch."""
        if reference or images.device.type != "cpu" or not native_available():
            return flip_shift_ref(images, self.values, self.shape)
        return flip_shift(images, self.values, self.shape)


@dataclass(frozen=True)
class RandomFlipShift:
    """Shift each image by up to ``shift`` pixels each way, mirroring the image at its edges.

    With ``flip``, flip it left to right first with probability 1/2.
    """

    flip: bool = False
    shift: int = 0

    def draw(
        self, images: int, shape: tuple[int, int, int], generator: torch.Generator
    ) -> FlipShifts:
        """Draw moves for N images, all values equally likely.

        Raises ValueError for images too small for the shift.
        """
        if self.shift >= min(shape[1:]):
            raise ValueError(
                f"images of {shape[1]} x {shape[2]} cannot be shifted by {self.shift} pixels"
            )
        shifts = torch.randint(-self.shift, self.shift + 1, (images, 2), generator=generator)
        flips = torch.randint(2, (images, 1), generator=generator) * self.flip
        return FlipShifts(torch.cat([shifts, flips], 1).to(torch.int8), shape)


def parse_augmentation(text: str) -> RandomFlipShift | None:
    """Parse ``"flip"``, ``"shift:3"``, ``"flip,shift:3"`` or ``"none"``; raises ValueError."""
    match = re.fullmatch(r"(flip)?(?:(?:^|(?<=p),)shift:([0-9]{1,3}))?", text)
    shift = int(match[2] or 0) if match else 0
    if text == "none":
        return None
    if not match or not text or shift > MAX_SHIFT:
        raise ValueError(
            f"augment must be none, flip, shift:N or flip,shift:N with N up to {MAX_SHIFT} pixels, "
            f"got {quoted(text)}"
        )
    return RandomFlipShift(bool(match[1]), shift)


def image_shape(features: int) -> tuple[int, int, int] | None:
    """Return (planes, height, width) of square images, in three planes if possible, else in one.

    Returns None if ``features`` fits neither.
    """
    for planes in (3, 1):
        side = math.isqrt(features // planes)
        if planes * side * side == features:
            return planes, side, side
    return None


@dataclass(frozen=True)
class Normalization:
    """``x = u8 * scale + shift`` with float32 ``scale`` and ``shift`` (features,)."""

    name: str
    scale: torch.Tensor
    shift: torch.Tensor

    @property
    def identity(self) -> bool:
        """Whether it leaves rows of numbers as they are."""
        return self.name == "none"

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images (..., features) uint8 to float32 on their device.

        The normalization ``none`` takes rows of float32 as they are. Raises TypeError for another
        dtype, which would be normalised twice.
        """
        if self.identity:
            if images.dtype != torch.float32:
                raise TypeError(f"rows of numbers must be float32, got {images.dtype}")
            return images
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        scale, shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)


def make_normalization(name: str, train_images: torch.Tensor) -> Normalization:
    """Return ``unit``: ``u8 / 255``, or ``standard``: ``(u8 - mean) / std`` of each channel.

    ``train_images`` (N, features) uint8 give the mean and the standard deviation; features are
    three colour planes one after another, or one grey plane if 3 does not divide them. ``none``
    is for rows of numbers. Raises UserError for another name.
    """
    features = train_images.shape[-1]
    statistics = channel_statistics(train_images) if name == "standard" else ([0.0], [1.0])
    return normalization_of(name, features, *statistics)


def normalization_of(
    name: str, features: int, means: Sequence[float], deviations: Sequence[float]
) -> Normalization:
    """Return the normalization of that name for rows of so many features; ``standard`` has these
    means and deviations of each channel."""
    if name == "none":
        means, deviations = [0.0], [1.0]
    elif name == "unit":
        means, deviations = [0.0], [255.0]
    elif name != "standard":
        raise UserError(
            f"normalize must be unit or standard, got {name!r}.", EXIT_USAGE, ("normalize",)
        )
    scale = 1 / torch.tensor(deviations, dtype=torch.float64)
    shift = -torch.tensor(means, dtype=torch.float64) * scale
    plane = features // len(scale)
    return Normalization(
        name, *(values.float().repeat_interleave(plane) for values in (scale, shift))
    )


def channel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of images (N, features) uint8.

    They are on the scale of 0 to 255 and exact but for the last rounding; the deviation is that of
    the population, and 1 for a constant channel.
    """
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
