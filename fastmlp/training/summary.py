"""The summary of a finished run: its results and what is needed to reproduce them."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.splits import DataSplits
from fastmlp.engines.metrics import EpochRecord, EvalMetrics
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.utils.environment import device_name, git_commit, package_version


def make_summary(
    config: TrainConfig, data: DataSplits, state: Checkpoint, test: EvalMetrics | None
) -> dict[str, Any]:
    """Return the content of ``summary.json``; ``config`` has every "auto" resolved, ``test`` was
    measured with the parameters of the best epoch, None where there is no test part. Losses are
    means per image, accuracies 0 to 1, None in a regression."""
    seconds = sum(record.seconds for record in state.history)
    images = len(data.train.labels)
    return {
        "test_accuracy": None if test is None else _finite(round(test.accuracy, 6)),
        "test_loss": None if test is None else round(test.loss, 6),
        "test_images": 0 if test is None else test.count,
        "best": _row(state.best_record),
        "last": _row(state.history[-1]),
        "epochs": len(state.history),
        "train_images": images,
        "train_seconds": round(seconds, 6),
        "total_seconds": round(state.seconds, 3),
        "images_per_s": round(images * len(state.history) / max(seconds, 1e-6), 1),
        "dataset": data.name,
        "source": data.source,
        "synthetic": data.synthetic,
        "seed": config.seed,
        "engine": config.engine,
        "engine_reason": state.engine_reason,
        "device": config.device,
        "device_name": device_name(torch.device(config.device)),
        "threads": config.threads,
        "versions": {
            "fastmlp": package_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git_commit": git_commit(Path(__file__).resolve().parents[2]),
        "config": config.to_dict(),
    }


def _row(record: EpochRecord) -> dict[str, Any]:
    return {name: _finite(value) for name, value in asdict(record).items()}


def _finite(value: float) -> float | None:
    """Return None for nan, which JSON does not have."""
    return None if math.isnan(value) else value
