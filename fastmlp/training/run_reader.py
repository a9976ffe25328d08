"""Read what a run has left in its folder, to show it and to compare it with others."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmlp.engines.metrics import EpochRecord, best_of
from fastmlp.training.checkpoint import epochs_of
from fastmlp.training.config import TrainConfig
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.files import read_bytes
from fastmlp.utils.untrusted import reason

LARGEST_METRICS = 1 << 26
"""Bytes of a ``metrics.csv``: some 100 for each epoch."""


@dataclass(frozen=True)
class RecordedRun:
    """A run read from its folder; ``summary`` is None before its end."""

    folder: Path
    config: TrainConfig
    history: list[EpochRecord]
    summary: dict[str, Any] | None

    @property
    def best(self) -> EpochRecord:
        """The epoch with the highest score."""
        return best_of(self.history)

    @property
    def seconds(self) -> float:
        """The time spent training, without validation."""
        return math.fsum(record.seconds for record in self.history)

    @property
    def state(self) -> str:
        """How far it has come: "finished", or the number of epochs."""
        return "finished" if self.summary else f"{len(self.history)}/{self.config.epochs} epochs"


def read_run(path: str | Path) -> RecordedRun:
    """Return the run in a folder; raise :class:`UserError` where there is none or a file is
    damaged."""
    folder = RunDirectory(path)
    if not folder.whole:
        raise UserError(
            f"{folder.path} is not the folder of a run: it has no config.json; pass a folder that "
            "fastmlp train has made"
        )
    summary = folder.read_summary() if folder.finished else None
    return RecordedRun(
        folder.path, folder.read_config(), _history(folder.path / "metrics.csv"), summary
    )


def _history(path: Path) -> list[EpochRecord]:
    """Return the epochs in ``metrics.csv``."""
    try:
        text = read_bytes(path, LARGEST_METRICS).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return epochs_of([{name: _number(name, row[name]) for name in row} for row in rows])
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    except (csv.Error, TypeError, ValueError) as error:  # a column or a number is missing
        raise UserError(
            f"{path} is damaged: {reason(error)}; fastmlp train --resume {path.parent} "
            "writes it again"
        ) from error


def _number(name: str, text: str) -> float:
    return int(text) if name == "epoch" else float(text)
