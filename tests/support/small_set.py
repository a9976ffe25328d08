"""A data set of a few drawn images, of CIFAR-10's shape, and the report made from it; as a program,
the command ``reproduce`` on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from fastmlp.cli import reproduce
from fastmlp.cli.parser import run_command
from fastmlp.data import synthetic as synthetic
from fastmlp.data.dataset import Dataset
from fastmlp.report import figures as report_pictures
from fastmlp.report.experiments import Budget

TINY = Budget(2, 2, 2, 2, 1, 1, 2, 2)


def small_set(images: int = 100, name: str = "cifar10") -> Dataset:
    """It calls itself CIFAR-10 unless it is told to be ``synthetic``."""
    pixels, labels = map(torch.from_numpy, synthetic.generate(images + 20, seed=1))
    return Dataset(
        *(name, "drawn for a test", name == "synthetic", synthetic.CLASSES),
        *(pixels[:images], labels[:images], pixels[images:], labels[images:]),
    )


def no_drawings(*args: Any) -> dict[str, Callable[..., None]]:
    """Stand in for ``drawings``: pictures of a few bytes."""
    return {name: lambda path: path.write_bytes(b"picture") for name in PICTURES}


PICTURES = [
    *("classes", "final", "network", "confusion", "weights", "mistakes"),
    *(
        f"sweep-{preset}-{name}"
        for preset in ("course", "course-fixed")
        for name in ("lr", "batch_size", "hidden", "lr_decay")
    ),
]

if __name__ == "__main__":
    data = small_set(int(os.environ["IMAGES"]))
    reproduce.load_dataset = lambda *args, **options: data
    reproduce.QUICK = Budget(*(int(n) for n in os.environ["BUDGET"].split(",")))
    report_pictures.drawings = no_drawings
    run_command(reproduce.main, sys.argv[1:])
