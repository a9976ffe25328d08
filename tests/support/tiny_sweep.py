"""A sweep small enough for a test, and what it left; as a program, one that is killed."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from support.tiny import assert_same_tensors, tiny_data

import fastmlp
from fastmlp.sweeps import checkpoint as sweep_folder
from fastmlp.sweeps.checkpoint import SweepDirectory
from fastmlp.training.presets import resolve_config

DATA = tiny_data()
BASE = resolve_config(
    {"hidden": 16, "batch_size": 8, "lr": 0.05, "epochs": 8, "device": "cpu", "threads": 1},
    preset="sweep",
)
# Runs of different lengths and kinds, so that a stop finds them at different places.
MIXED: dict[str, list[Any]] = {
    "lr": [0.05, 0.01, 1e25],
    "batch_size": [8, 40, 200],
    "normalize": ["standard", "unit"],
    "hidden": [(16,), (16, 5)],
}


def table(path: Path) -> list[dict[str, str]]:
    """A csv file without what the clock says."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in rows]


def assert_same_results(ours: Path, theirs: Path) -> None:
    """The result files are the same but for the clock."""
    for name in ("results.csv", "epochs.csv"):
        assert table(ours / name) == table(theirs / name), name
    assert (ours / "best.toml").read_text() == (theirs / "best.toml").read_text()


def assert_same_sweep(ours: Path, theirs: Path) -> None:
    """The same, down to the parameters, whatever ``ours`` may hold beyond that."""
    assert_same_results(ours, theirs)
    first, second = (SweepDirectory(path, 0).read_states() for path in (ours, theirs))
    assert second
    for key, state in second.items():
        assert_same_tensors(first[key].best, state.best)
        for part, tensors in state.engine.items():
            assert_same_tensors(first[key].engine[part], tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sweep_folder.SAVE_SECONDS = 0.0
    save, left = SweepDirectory.save, 3

    def save_and_die(self: SweepDirectory, states: Any) -> None:
        """The third save is the last thing that this process does."""
        global left
        save(self, states)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    SweepDirectory.save = save_and_die  # type: ignore[method-assign]
    fastmlp.sweep(BASE, MIXED, data=DATA, out=sys.argv[1], successive_halving=True)
