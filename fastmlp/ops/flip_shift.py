"""Images flipped and shifted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmlp.ops._load import native_available
from fastmlp.ops._register import register_fake
from fastmlp.ops.checks import check_shape


def flip_shift(images: Tensor, moves: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return images (n, planes * height * width) uint8, each flipped and shifted by its row of
    ``moves`` (n, 3) int8 as :class:`FlipShifts` has them; what comes in at an edge is mirrored."""
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


def _flip_shift_fake(images: Tensor, moves: Tensor, shape: list[int]) -> Tensor:
    if images.dim() != 2 or images.dtype != torch.uint8 or moves.dtype != torch.int8:
        raise ValueError("images must be uint8 of shape (n, pixels), and moves int8")
    if len(shape) != 3 or min(shape) < 0 or math.prod(shape) != images.shape[1]:
        raise ValueError(f"shape must be (planes, height, width) of {images.shape[1]} pixels")
    check_shape("moves", moves, (images.shape[0], 3), "images")
    if not images.is_contiguous() or not moves.is_contiguous():
        raise ValueError("images and moves must be contiguous")
    return torch.empty_like(images)


if native_available():
    register_fake("flip_shift", _flip_shift_fake)
