"""A problem small enough to train on in a test; as a program, the command ``train`` on it."""

from __future__ import annotations

import os
import sys

import torch

from fastmlp import fitting
from fastmlp.data import Part, Split
from fastmlp.errors import run_command
from fastmlp.run_data import RunData

FEATURES, CLASSES = 12, 3


def tiny_data(images: int = 90, seed: int = 0) -> RunData:
    """``images`` random pictures to train on, 40 to validate and 50 to test: a pixel of each class
    is bright."""
    random = torch.Generator().manual_seed(seed)

    def part(count: int) -> Part:
        labels = torch.randint(CLASSES, (count,), generator=random)
        pixels = torch.randint(0, 200, (count, FEATURES), generator=random, dtype=torch.uint8)
        pixels[torch.arange(count), labels] += 55
        return Part(pixels, labels)

    return RunData(Split(part(images), part(40), part(50)), CLASSES, name=f"tiny{seed}")


if __name__ == "__main__":
    from fastmlp.train import main

    data = tiny_data(int(os.environ.get("TINY_IMAGES", "90")))
    fitting.load_run_data = lambda config: data
    run_command(main, sys.argv[1:])
