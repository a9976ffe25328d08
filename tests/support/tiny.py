"""A problem small enough to train on in a test, and what its run left; as a program, the command
``train`` on it."""

from __future__ import annotations

import csv
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp.cli.parser import run_command
from fastmlp.data.splits import DataSplits, Subset
from fastmlp.training import api as fitting

FEATURES, CLASSES = 12, 3


def tiny_data(images: int = 90, seed: int = 0) -> DataSplits:
    """``images`` random pictures to train on, 40 to validate and 50 to test: a pixel of each class
    is bright."""
    random = torch.Generator().manual_seed(seed)

    def part(count: int) -> Subset:
        labels = torch.randint(CLASSES, (count,), generator=random)
        pixels = torch.randint(0, 200, (count, FEATURES), generator=random, dtype=torch.uint8)
        pixels[torch.arange(count), labels] += 55
        return Subset(pixels, labels)

    return DataSplits(part(images), part(40), part(50), CLASSES, name=f"tiny{seed}")


def stop_after(calls: int | None) -> Callable[[], bool]:
    """A ``should_stop`` that is true from its call number ``calls`` on; never for None."""
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return calls is not None and count >= calls

    return stop


def tensors(path: Path) -> dict[str, Tensor]:
    """The ``state_dict`` in a file."""
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, in the same order, with bitwise the same values."""
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_run(ours: Path, theirs: Path) -> None:
    """All that does not depend on the clock is bitwise the same."""
    for name in ("best.pt", "last.pt"):
        assert_same_tensors(tensors(ours / name), tensors(theirs / name))
    mine, other = (torch.load(path / "resume.pt", weights_only=True) for path in (ours, theirs))
    assert list(mine["engine"]) == list(other["engine"])
    for kind, kept in mine["engine"].items():
        assert_same_tensors(kept, other["engine"][kind])
    for key in ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr"):
        assert [row[key] for row in rows(ours)] == [row[key] for row in rows(theirs)], key
    first, second = (json.loads((path / "summary.json").read_text()) for path in (ours, theirs))
    assert first["test_accuracy"] == second["test_accuracy"]
    assert first["test_loss"] == second["test_loss"]
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


def edit_json(path: Path, **changes: Any) -> None:
    """Change values in a JSON file of ours, as a user would: without its digest."""
    values = {**json.loads(path.read_text()), **changes}
    del values["sha256"]
    path.write_text(json.dumps(values))


def rows(folder: Path) -> list[dict[str, str]]:
    """The epochs in a run's metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    from fastmlp.cli.train import main

    data = tiny_data(int(os.environ.get("TINY_IMAGES", "90")))
    fitting.load_splits = lambda *_, **__: data
    undrawn = types.ModuleType("a picture takes longer than such a run")
    undrawn.learning_curves = lambda *args: None  # type: ignore[attr-defined]
    sys.modules["fastmlp.plotting.curves"] = undrawn
    run_command(main, sys.argv[1:])
