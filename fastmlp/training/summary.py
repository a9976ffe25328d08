"""The summary of a finished run: its results and what is needed to reproduce them."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.splits import DataSplits
from fastmlp.engines.metrics import EvalMetrics
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.utils.environment import device_name, git_commit, package_version


def make_summary(
    config: TrainConfig, data: DataSplits, state: Checkpoint, test: EvalMetrics
) -> dict[str, Any]:
    """Return the content of ``summary.json``; ``config`` has every "auto" resolved, ``test`` was
    measured with the parameters of the best epoch. Losses are means per image, accuracies 0 to
    1."""
    seconds = sum(record.seconds for record in state.history)
    images = len(data.train.labels)
    return {
        "test_accuracy": round(test.accuracy, 6),
        "test_loss": round(test.loss, 6),
        "test_images": test.count,
        "best": asdict(state.best_record),
        "last": asdict(state.history[-1]),
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
