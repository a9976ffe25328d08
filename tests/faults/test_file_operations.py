"""Killed, or with a disk that fails, at every file operation: the same command, or the one that
resumes, comes to the result of an undisturbed run, bit by bit, and leaves nothing behind.

``FASTMLP_FAULTS=all`` takes every operation, otherwise each fifth, of a report each thirtieth.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from support.figures import count
from support.file_faults import NAMES, Outcome, run_forked
from support.small_set import no_drawings, small_set
from support.tiny import assert_same_run, rows, stop_after, tiny_data
from support.tiny_sweep import BASE, assert_same_sweep

from fastmlp.cli import predict, train
from fastmlp.data.splits import split_dataset
from fastmlp.report import figures
from fastmlp.report.experiments import Budget, studies
from fastmlp.report.html import Point
from fastmlp.report.runner import run_report
from fastmlp.sweeps.sweep import sweep
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.files import write_text

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(8,), batch_size=16, epochs=2, engine="reference", threads=1, lr_schedule="constant"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*goes on from the save before:UserWarning")
FAULTS = pytest.mark.parametrize("error", [None, *NAMES], ids=["kill", *NAMES.values()])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    """A picture is a file like the others, which takes no second to draw."""
    threads(1)  # a fork has none of the others
    monkeypatch.setattr("fastmlp.utils.files.os.fsync", lambda handle: None)
    monkeypatch.setattr(
        "fastmlp.plotting.curves.learning_curves", lambda *args: write_text(args[-1], "drawn")
    )
    monkeypatch.setattr(
        "fastmlp.plotting.sweeps.sweep_picture", lambda *args: write_text(args[-1], "drawn")
    )
    monkeypatch.setattr("fastmlp.sweeps.checkpoint.SAVE_SECONDS", 0.0)


def at_every_operation(
    work: Callable[[Path], object],
    go_on: Callable[[Path], object],
    folder: Path,
    error: int | None,
    before: Path | None = None,
    every: int = 5,
) -> int:
    """Disturb ``work`` at each of its operations in turn, from a copy of ``before``, then
    ``go_on``; return their number."""

    def start(name: str, at: int | None) -> tuple[Path, Outcome]:
        place = folder / name
        if before is not None:
            shutil.copytree(before, place)
        return place, run_forked(lambda: work(place), place, at=at, error=error)

    folder.mkdir()
    place, undisturbed = start("undisturbed", None)
    assert undisturbed.end == "done", undisturbed.said
    go_on(place)
    every = 1 if os.environ.get("FASTMLP_FAULTS") == "all" else every
    for at in range(len(folder.parent.name) % every, len(undisturbed.operations), every):
        operation = undisturbed.operations[at]
        place, outcome = start(str(at), at)
        where = f"at operation {at}, {operation}: {outcome}"
        assert outcome.end == "killed" if error is None else outcome.end in ("done", "refused"), (
            where
        )
        assert "\n" not in outcome.said, where
        try:
            go_on(place)
        except Exception as failed:
            raise AssertionError(where) from failed
        shutil.rmtree(place)
        count(**{"operations_killed" if error is None else "operations_failed": 1})
    return len(undisturbed.operations)


def started_or_resumed(place: Path) -> None:
    """What the sentence says where the first command is refused."""
    try:
        fit(CONFIG, DATA, out=place)
    except UserError as told:
        if "--resume" not in str(told):
            raise
        resume(place, DATA)


@pytest.mark.parametrize(
    "error", [None, *NAMES, errno.EROFS], ids=["kill", *NAMES.values(), "read-only"]
)
def test_a_run(error: int | None, tmp_path: Path) -> None:
    fit(CONFIG, DATA, out=tmp_path / "whole")

    def go_on(place: Path) -> None:
        started_or_resumed(place)
        assert_same_run(place, tmp_path / "whole")

    operations = at_every_operation(
        lambda place: fit(CONFIG, DATA, out=place), go_on, tmp_path / "runs", error
    )
    assert operations > 60


@FAULTS
def test_a_resumed_run(error: int | None, tmp_path: Path) -> None:
    fit(CONFIG, DATA, out=tmp_path / "whole")
    fit(CONFIG, DATA, out=tmp_path / "stopped", should_stop=stop_after(8))

    def go_on(place: Path) -> None:
        resume(place, DATA)
        assert_same_run(place, tmp_path / "whole")

    operations = at_every_operation(
        lambda place: resume(place, DATA), go_on, tmp_path / "runs", error, tmp_path / "stopped"
    )
    assert operations > 40


@FAULTS
def test_a_run_made_longer(error: int | None, tmp_path: Path) -> None:
    fit(CONFIG, DATA, out=tmp_path / "short")
    fit(replace(CONFIG, epochs=3), DATA, out=tmp_path / "whole")

    def go_on(place: Path) -> None:
        resume(place, DATA, epochs=3)
        assert_same_run(place, tmp_path / "whole")

    at_every_operation(
        lambda place: resume(place, DATA, epochs=3),
        go_on,
        tmp_path / "runs",
        error,
        tmp_path / "short",
    )


@FAULTS
def test_a_sweep(error: int | None, tmp_path: Path) -> None:
    base = replace(BASE, epochs=2, save_every=1)

    def train(place: Path) -> None:
        sweep(base, {"lr": [0.05, 0.01]}, data=DATA, out=place)

    train(tmp_path / "whole")

    def go_on(place: Path) -> None:
        train(place)
        assert_same_sweep(place, tmp_path / "whole")
        names = [{path.name for path in each.iterdir()} for each in (place, tmp_path / "whole")]
        assert names[0] == names[1]

    assert at_every_operation(train, go_on, tmp_path / "sweeps", error) > 30


@FAULTS
def test_a_prediction(error: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,y\n" + "".join(f"{i % 7},{i % 5},{i % 2}\n" for i in range(60)))
    assert (
        train.main(["--data", str(rows), "--target=y", "--epochs=1", f"--out={tmp_path}/run"]) == 0
    )

    def predicted(place: Path) -> None:
        assert predict.main([f"{tmp_path}/run", f"--data={rows}", f"--out={place}/y.csv"]) == 0

    for name in ("whole", "empty"):
        (tmp_path / name).mkdir()
    predicted(tmp_path / "whole")

    def go_on(place: Path) -> None:
        predicted(place)
        assert [path.name for path in place.iterdir()] == ["y.csv"]
        assert (place / "y.csv").read_bytes() == (tmp_path / "whole/y.csv").read_bytes()

    monkeypatch.setenv("FASTMLP_FAULTS", "all")
    folders = tmp_path / "predictions", error, tmp_path / "empty"
    assert at_every_operation(predicted, go_on, *folders) > 3


@FAULTS
def test_a_report(error: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "drawings", no_drawings)
    dataset = small_set()
    plan = studies({"device": "cpu", "threads": 1}, Budget(1, 1, 1, 1, 1, 1, 1, 1))

    def report(place: Path) -> list[Point]:
        splits, silent = split_dataset(dataset), mock.MagicMock()
        try:
            return run_report(plan, dataset, splits, place, True, silent, lambda: False)
        except OSError as failed:  # as run_command tells it
            raise UserError(describe_os_error(failed)) from failed

    findings = report(tmp_path / "whole")
    names = {str(path.relative_to(tmp_path / "whole")) for path in (tmp_path / "whole").rglob("*")}

    def go_on(place: Path) -> None:
        assert report(place) == findings
        assert {str(path.relative_to(place)) for path in place.rglob("*")} == names

    assert at_every_operation(report, go_on, tmp_path / "reports", error, every=30) > 30


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the past, by a year a look: times are differences on a clock that only goes on."""
    fit(CONFIG, DATA, out=tmp_path / "whole")
    looks = iter(range(10**9))
    monkeypatch.setattr("time.time", lambda: 2e9 - 3e7 * next(looks))
    fit(CONFIG, DATA, out=tmp_path / "run", should_stop=stop_after(8))
    resume(tmp_path / "run", DATA)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert all(float(row["seconds"]) >= 0 for row in rows(tmp_path / "run"))
