"""What is seen while a report is made: shares, and the time that is left."""

from __future__ import annotations

import pytest

from fastmlp.report import progress as report_progress
from fastmlp.report.progress import ReportProgress

COSTS = {("a", 0): 10.0, ("a", 1): 10.0, ("b", 0): 80.0}


class Clock:
    """Stands in for time.perf_counter."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(report_progress, "time", clock)
    return clock


def test_lines_with_shares_and_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ReportProgress(bar=False) as progress:
        progress.start(COSTS, {("a", 0)})
        progress.begin([("a", 1)], "the letter a")
        clock.now += 12
        progress.epoch(1, 2)  # 5 of the 90 that are left in 12 s
        clock.now += 1
        progress.epoch(1, 2)  # too soon for a line
        progress.epoch(2, 2)
        progress.end()
        progress.begin([("b", 0)], "the letter b")
        clock.now += 50
        progress.epoch(1, 4)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "1 of 3 parts are there already",
        " 15%  the letter a: epoch 1 of 2, 3 min 24 s left",
        " 20%  the letter a: epoch 2 of 2, 1 min 44 s left",
        " 40%  the letter b: epoch 1 of 4, 2 min 6 s left",
    ]


def test_no_guess_from_next_to_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ReportProgress(bar=False) as progress:
        progress.start(COSTS, [])
        progress.begin([("b", 0)], "b")
        clock.now += 20
        progress.epoch(1, 1000)
    assert capsys.readouterr().out == "  0%  b: epoch 1 of 1000\n"


def test_a_bar_on_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ReportProgress(bar=True) as progress:
        progress.start(COSTS, {("a", 0)})
        progress.begin([("a", 1), ("b", 0)], "everything")
        clock.now += 45
        progress.epoch(1, 2)
        assert progress._bar.n == pytest.approx(55)
        progress.say("a line")
    out, err = capsys.readouterr()
    assert out == "1 of 3 parts are there already\na line\n"
    assert "everything" in err
    assert "epoch 1 of 2, 45 s left" in err
