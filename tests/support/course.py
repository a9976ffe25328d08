"""Small problems for the layers that are called by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmlp.ops._load import native_available

BACKENDS = ["reference", *(["native"] if native_available() else [])]


def blobs(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 2, 2) of three classes, each around a corner of its own."""

    def randn(*shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    labels = torch.arange(n) % 3
    centres = 2.5 * randn(3, 12, seed=77)
    return (centres[labels] + randn(n, 12, seed=seed)).view(n, 3, 2, 2), labels


def pictures(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 2, 2, 3) uint8 of three classes."""
    images, labels = blobs(n, seed)
    return (128 + 30 * images).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1), labels
