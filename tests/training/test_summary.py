"""What a summary says about the machine and the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.tiny import tiny_data

from fastmlp.engines.metrics import EpochRecord, EvalMetrics
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.training.summary import make_summary
from fastmlp.utils.environment import device_name, git_commit


@pytest.mark.parametrize("seconds", [0.0, 0.0004])
def test_an_epoch_of_no_time(seconds: float) -> None:
    record = EpochRecord(1, 1.5, 0.25, 1.25, 0.5, 0.1, seconds, 1500.0)
    state = Checkpoint("tiny", "asked for", {}, [record])
    summary = make_summary(TrainConfig(device="cpu"), tiny_data(), state, EvalMetrics(1.0, 0.5, 50))
    assert summary["train_seconds"] == seconds
    assert summary["images_per_s"] == (225_000 if seconds else 90_000_000)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "package").mkdir(parents=True)

    def git(*args: str) -> str:
        user = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        command = ["git", "-C", str(checkout), *user, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert git_commit(checkout) is None  # no commit yet
    (checkout / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert git_commit(checkout) == commit
    (checkout / "file").write_text("two")
    assert git_commit(checkout) == f"{commit}-dirty"
    (checkout / "file").write_text("one")  # as committed, later: git would note that in its index
    index = (checkout / ".git" / "index").read_bytes()
    assert git_commit(checkout) == commit
    assert (checkout / ".git" / "index").read_bytes() == index
    assert git_commit(checkout / "package") is None  # inside some checkout, but not its top
    assert git_commit(tmp_path) is None


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None


def test_the_name_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    text = "processor : 0\nmodel name\t: Fast: Chip 9000\nmodel name\t: Fast: Chip 9000\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert device_name(cpu) == "Fast: Chip 9000"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "")
    assert re.fullmatch(r"\S.*", device_name(cpu))
