"""What is shown while a report is made: shares, and the time that is left."""

from __future__ import annotations

import pytest

from fastmlp.cli import reproduce
from fastmlp.cli.reproduce import Display


class Clock:
    """Stands in for time.perf_counter."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reproduce, "time", clock)
    return clock


def test_lines_with_shares_and_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(bar=False) as display:
        display.on_start(1, 3, 0.1)
        clock.now += 12
        display.on_epoch("the letter a", 1, 2, 0.15)  # 5 of the 90 that are left in 12 s
        clock.now += 1
        display.on_epoch("the letter a", 1, 2, 0.15)  # too soon for a line
        display.on_epoch("the letter a", 2, 2, 0.2)
        clock.now += 50
        display.on_epoch("the letter b", 1, 4, 0.4)
        display.on_drawing()
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "1 of 3 parts are there already",
        " 15%  the letter a: epoch 1 of 2, 3 min 24 s left",
        " 20%  the letter a: epoch 2 of 2, 1 min 44 s left",
        " 40%  the letter b: epoch 1 of 4, 2 min 6 s left",
        "drawing",
    ]


def test_no_guess_from_next_to_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(bar=False) as display:
        display.on_start(0, 3, 0.0)
        clock.now += 20
        display.on_epoch("b", 1, 1000, 0.0008)
    assert capsys.readouterr().out == "  0%  b: epoch 1 of 1000\n"


def test_a_bar_on_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Display(bar=True) as display:
        display.on_start(1, 3, 0.1)
        clock.now += 45
        display.on_epoch("everything", 1, 2, 0.55)
        display.on_drawing()
    out, err = capsys.readouterr()
    assert out == "1 of 3 parts are there already\ndrawing\n"
    assert "everything" in err
    assert "55%" in err
    assert "epoch 1 of 2, 45 s left" in err
