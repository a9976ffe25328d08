"""The summary of a finished run: its results and all that one needs to reproduce them."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastmlp.training.config import TrainConfig
from fastmlp.engines.base import EvalStats
from fastmlp.training.run_data import RunData
from fastmlp.training.checkpoint import RunState


def make_summary(
    config: TrainConfig, data: RunData, state: RunState, test: EvalStats
) -> dict[str, Any]:
    """What ``summary.json`` holds; ``config`` has every "auto" resolved, ``test`` was measured
    with the parameters of the best epoch. Losses are means per image, accuracies 0 to 1."""
    seconds = sum(record.seconds for record in state.history)
    images = len(data.split.train.labels)
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
        "offline": data.offline,
        "seed": config.seed,
        "engine": config.engine,
        "engine_reason": state.engine_reason,
        "device": config.device,
        "device_name": device_name(torch.device(config.device)),
        "threads": config.threads,
        "versions": {
            "fastmlp": _package_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git_commit": git_commit(Path(__file__).resolve().parents[2]),
        "config": config.to_dict(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's or processor's name, as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit(checkout: Path) -> str | None:
    """The commit of the git checkout whose top folder is ``checkout``, "-dirty" added where tracked
    files differ from it; None where it is no such folder or git is not there."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _package_version() -> str:
    try:
        return metadata.version("fastmlp")
    except metadata.PackageNotFoundError:
        return "not installed"
