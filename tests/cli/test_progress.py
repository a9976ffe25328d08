"""What a person sees of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from support.tiny import tiny_data

from fastmlp.cli.progress import Progress, ShowRun
from fastmlp.engines.metrics import EpochMetrics, EpochRecord
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig

RECORD = EpochRecord(2, 1.23456, 0.5, 1.5, 0.456, 0.02, 1.25, 24000.4)
STATS = EpochMetrics(10, 500, 650.0, 200)


def play(progress: Progress) -> None:
    progress.say("hello")
    progress.start(12, 1000, done=1000)
    progress.step(2, STATS)
    progress.epoch(RECORD, improved=True)
    progress.epoch(RECORD, improved=False)
    progress.step(3, STATS)
    progress.close()
    progress.final("the end")


def test_one_line_per_epoch() -> None:
    stream = io.StringIO()
    play(Progress(stream))
    line = (
        "epoch  2/12  train 1.2346 50.00%  validation 1.5000 45.60%"
        "  lr 0.02  1.25 s  24,000 images/s"
    )
    assert stream.getvalue().splitlines() == ["hello", f"{line}  [MODEL SAVED]", line, "the end"]


def test_what_is_no_image_is_a_row() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start(12, 1000, done=0, unit="rows")
    progress.epoch(RECORD, improved=False)
    assert stream.getvalue().endswith("  24,000 rows/s\n")


def test_quiet_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    play(Progress(stream, quiet=True, bar=True))
    assert stream.getvalue() == "the end\n"
    play(Progress(bar=True))
    assert capsys.readouterr() == ("", "")


def test_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    stream = io.StringIO()
    play(Progress(stream, bar=True))
    drawn = capsys.readouterr().err
    assert "epoch 2/12 |" in drawn
    assert "loss 1.300, accuracy 40.0%" in drawn
    assert "loss 1.300, accuracy 40.0%, validation 45.6%" in drawn
    assert "  8%" in drawn  # 1,000 were done at the start
    assert " 12%" in drawn  # 1,500 of 12,000 images
    assert " images/s" in drawn
    assert " left" in drawn
    assert stream.getvalue().count("epoch  2/12") == 2


def test_the_bar_of_a_resumed_epoch_counts_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.stepwise.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("fastmlp.engines.stepwise.CHUNK_ROWS", 16)
    config = TrainConfig(hidden=(4,), batch_size=8, epochs=2, device="cpu", engine="reference")
    answers = iter([False] * 5 + [True] * 2)  # asked before the epoch and after every step
    fit(config, tiny_data(), out=tmp_path, should_stop=lambda: next(answers))
    seen: list[tuple[int, int]] = []
    progress = Progress()
    monkeypatch.setattr(progress, "step", lambda epoch, stats: seen.append((epoch, stats.samples)))
    resume(tmp_path, tiny_data(), callbacks=[ShowRun(progress, tmp_path)])
    assert seen[:5] == [(1, 48), (1, 64), (1, 80), (1, 90), (2, 16)]
