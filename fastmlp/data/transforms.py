"""Augmentation: random flips and shifts of uint8 images, drawn afresh for every epoch.

An epoch's moves are drawn ahead and applied as an image is read, so that every engine trains on the
same pictures and none keeps a second copy of the data.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmlp.ops import _load as backend
from fastmlp.ops._register import register_fake

MAX_SHIFT = 127


@dataclass(frozen=True)
class Moves:
    """How each image of an epoch is moved: ``values`` (n, 3) int8, on the CPU, are rows down,
    columns to the right and 1 where the image is flipped left to right before that, for images of
    ``shape`` (planes, height, width)."""

    values: Tensor
    shape: tuple[int, int, int]

    def __getitem__(self, rows: slice) -> Moves:
        return Moves(self.values[rows], self.shape)

    def apply(self, images: Tensor, *, reference: bool = False) -> Tensor:
        """:func:`flip_shift` of images (n, features), by its kernel on the CPU; ``reference`` keeps
        to plain PyTorch."""
        if reference or images.device.type != "cpu" or not backend.native_available():
            return flip_shift_ref(images, self.values, self.shape)
        return flip_shift(images, self.values, self.shape)


@dataclass(frozen=True)
class Augmentation:
    """``flip``: every image is flipped left to right half of the time. ``shift``: it is moved by up
    to so many pixels each way, what comes in being mirrored at the edge."""

    flip: bool = False
    shift: int = 0

    def draw(self, images: int, shape: tuple[int, int, int], generator: torch.Generator) -> Moves:
        """Moves for an epoch of so many images, each value with equal probability. Raises
        ValueError where the images are too small for the shift."""
        if self.shift >= min(shape[1:]):
            raise ValueError(
                f"images of {shape[1]} x {shape[2]} cannot be shifted by {self.shift} pixels"
            )
        shifts = torch.randint(-self.shift, self.shift + 1, (images, 2), generator=generator)
        flips = torch.randint(2, (images, 1), generator=generator) * self.flip
        return Moves(torch.cat([shifts, flips], 1).to(torch.int8), shape)


def parse_augmentation(text: str) -> Augmentation | None:
    """``"flip"``, ``"shift:3"`` or ``"flip,shift:3"``; None for ``"none"``. Raises ValueError."""
    match = re.fullmatch(r"(flip)?(?:(?:^|(?<=p),)shift:([0-9]{1,3}))?", text)
    shift = int(match[2] or 0) if match else 0
    if text == "none":
        return None
    if not match or not text or shift > MAX_SHIFT:
        raise ValueError(
            f"augment must be none, flip, shift:N or flip,shift:N with N up to {MAX_SHIFT} pixels, "
            f"got {text!r}"
        )
    return Augmentation(bool(match[1]), shift)


def image_shape(features: int) -> tuple[int, int, int] | None:
    """(planes, height, width) of square images of so many numbers, in three planes or one, as
    CIFAR-10 and MNIST have them; None where there are no such."""
    for planes in (3, 1):
        side = math.isqrt(features // planes)
        if planes * side * side == features:
            return planes, side, side
    return None


def flip_shift(images: Tensor, moves: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images (n, planes * height * width) uint8, each flipped and shifted by its row of ``moves``
    (n, 3) int8 as :class:`Moves` has them; what comes in at an edge is mirrored there."""
    out: Tensor = torch.ops.fastmlp.flip_shift.default(images, moves, shape)
    return out


def flip_shift_ref(images: Tensor, moves: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """:func:`flip_shift` in plain PyTorch, on any device."""
    planes, height, width = shape
    down, right, flip = moves.to(images.device, torch.int64).unbind(1)

    def sources(count: int, shift: Tensor) -> Tensor:
        index = (torch.arange(count, device=images.device) - shift[:, None]).abs()
        return torch.where(index < count, index, 2 * (count - 1) - index)

    rows, columns = sources(height, down), sources(width, right)
    columns = torch.where(flip[:, None] != 0, width - 1 - columns, columns)
    pixels = images.reshape(-1, planes, height, width)
    pixels = pixels.gather(2, rows[:, None, :, None].expand_as(pixels))
    pixels = pixels.gather(3, columns[:, None, None, :].expand_as(pixels))
    return pixels.reshape(images.shape)


def _flip_shift_fake(images: Tensor, moves: Any, shape: Any) -> Tensor:
    return torch.empty_like(images)


if backend.native_available():
    register_fake("flip_shift", _flip_shift_fake)
