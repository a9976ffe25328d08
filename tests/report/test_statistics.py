"""The sentences say what the figures say."""

from __future__ import annotations

import pytest
from scipy.stats import ttest_ind

from fastmlp.report.statistics import (
    FAILS,
    HOLDS,
    NOISE,
    UNKNOWN,
    Stat,
    beside_course,
    best_of,
    chance,
    higher,
    shown,
)


def stat(*percent: float) -> Stat:
    found = Stat.of([value / 100 for value in percent])
    assert found is not None
    return found


def test_a_figure_is_mean_and_deviation_of_a_sample() -> None:
    assert str(stat(30, 32)) == "31.00 ± 1.41 %"
    assert str(stat(30)) == "30.00 %"
    assert Stat.of([]) is None
    assert shown(None) == "diverged"


def test_chance_is_welchs() -> None:
    first, second = (29, 30, 31), (38, 40, 42)
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = chance(stat(*first), stat(*second))
    assert found == pytest.approx((interval.high - interval.low) / 200)
    assert chance(stat(1), stat(2, 3)) is None
    assert chance(stat(2, 2), stat(3, 3)) == 0


@pytest.mark.parametrize(
    ("stats", "verdict", "words"),
    [
        ([stat(40, 40.2, 40.4), stat(30, 30.1, 30.3)], HOLDS, "10.07 points more"),
        ([stat(30, 30.1, 30.3), stat(40, 40.2, 40.4)], FAILS, "10.07 points less"),
        ([stat(30, 34, 38), stat(31, 33, 35)], NOISE, "may be chance"),
        ([stat(31, 33, 35), stat(30, 34, 38)], NOISE, "may be chance"),
        ([stat(40), stat(30)], HOLDS, "one seed"),
        ([stat(30), stat(40)], FAILS, "one seed"),
        ([None, stat(30, 31)], FAILS, "0.1 diverged; the best is 2 with 30.50 ± 0.71 %"),
        ([stat(30, 31), None], HOLDS, "the only one that did not diverge"),
        ([None, None], UNKNOWN, "every run diverged"),
    ],
)
def test_the_best_of_a_sweep(stats: list[Stat | None], verdict: str, words: str) -> None:
    finding = best_of("rate", (0.1, 2), stats, 0.1)
    assert finding.claim == "the best rate of 0.1, 2 is 0.1"
    assert finding.verdict == verdict
    assert words in finding.sentence


def test_the_rival_is_the_best_of_the_others() -> None:
    third = [stat(10, 10.1), stat(40, 40.1), stat(30, 30.1)]
    assert "the next best, 3, 30.05" in best_of("n", (1, 2, 3), third, 2).sentence
    assert "the best, 2, 40.05" in best_of("n", (1, 2, 3), third, 1).sentence


def test_which_of_two_is_higher() -> None:
    low, high = ("low", stat(30, 30.2, 30.1)), ("high", stat(40, 40.2, 40.1))
    assert higher("c", high, low).verdict == HOLDS
    assert higher("c", low, high).verdict == FAILS
    assert higher("c", low, ("same", stat(29, 30, 31.2))).verdict == NOISE
    lost = higher("c", low, ("lost", None))
    assert (lost.verdict, lost.sentence) == (UNKNOWN, "lost diverged")


def test_beside_a_single_run_of_the_course() -> None:
    found = stat(33, 34, 35)  # chance: 4.30 * 1 * sqrt(4 / 3) = 4.97
    assert beside_course(found, 0.345)[0] == HOLDS
    assert beside_course(found, 0.389)[0] == HOLDS
    assert beside_course(found, 0.391)[0] == FAILS
    assert "-5.10 points" in beside_course(found, 0.391)[1]
    assert beside_course(stat(34), 0.34)[0] == UNKNOWN
    assert beside_course(None, 0.34)[0] == UNKNOWN
