"""Sentences that say what figures say: which of the course's conclusions hold, which do not, and
which nobody can tell from the scatter between seeds.

A difference counts where chance alone makes one as large in fewer than 1 of 20 cases (Welch's t
test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

HOLDS, FAILS, NOISE, UNKNOWN = "holds", "does not hold", "within noise", "cannot be said"
STUDENT = {
    **{1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26},
    **{10: 2.23, 12: 2.18, 15: 2.13, 20: 2.09, 30: 2.04, 60: 2.00, 120: 1.98},
}
"""By degrees of freedom, the standard errors within which chance stays in 19 of 20 cases."""


@dataclass(frozen=True)
class Stat:
    """Mean and standard deviation of a share (0 to 1) over seeds; the deviation of one is None."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat | None:
        """None without values."""
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {100 * self.sd:.2f}"
        return f"{100 * self.mean:.2f}{spread} %"


def _student(degrees: float) -> float:
    """That of the next smaller number of degrees in the table, which is on the safe side."""
    return STUDENT[max(each for each in STUDENT if each <= max(degrees, 1))]


def shown(stat: Stat | None) -> str:
    """A figure, or that there is none."""
    return "diverged" if stat is None else str(stat)


def chance(first: Stat, second: Stat) -> float | None:
    """The difference of two means up to which it may be chance; None where either is of one
    seed."""
    if first.sd is None or second.sd is None:
        return None
    parts = [stat.sd**2 / stat.count for stat in (first, second) if stat.sd is not None]
    if not sum(parts):
        return 0.0
    terms = zip(parts, (first, second), strict=True)
    degrees = sum(parts) ** 2 / sum(part**2 / (stat.count - 1) for part, stat in terms)
    return _student(degrees) * math.sqrt(sum(parts))


@dataclass(frozen=True)
class Finding:
    """A claim, what became of it, and the figures that say so."""

    claim: str
    verdict: str
    sentence: str


def best_of(
    name: str, values: Sequence[object], stats: Sequence[Stat | None], claimed: object
) -> Finding:
    """Whether the ``claimed`` one of the values of ``name`` gives the highest accuracy. A value
    without a figure, whose runs diverged, is never the best."""
    claim = f"the best {name} of {', '.join(map(_text, values))} is {_text(claimed)}"
    figures = {value: stat for value, stat in zip(values, stats, strict=True) if stat is not None}
    if not figures:
        return Finding(claim, UNKNOWN, "every run diverged")
    ranked = sorted(figures, key=lambda value: figures[value].mean, reverse=True)
    best = ranked[0]
    if claimed not in figures:
        sentence = f"{_text(claimed)} diverged; the best is {_text(best)} with {figures[best]}"
        return Finding(claim, FAILS, sentence)
    if len(ranked) == 1:
        sentence = f"{_text(claimed)}, with {figures[best]}, is the only one that did not diverge"
        return Finding(claim, HOLDS, sentence)
    rival = ranked[1] if best == claimed else best
    verdict, words = _compare(figures[claimed], figures[rival])
    return Finding(
        claim,
        verdict,
        f"{_text(claimed)} gives {figures[claimed]}, "
        f"{'the next best' if best == claimed else 'the best'}, {_text(rival)}, "
        f"{figures[rival]}: {words}",
    )


def higher(claim: str, first: tuple[str, Stat | None], second: tuple[str, Stat | None]) -> Finding:
    """Whether the first of two named figures is the higher one."""
    if first[1] is None or second[1] is None:
        lost = " and ".join(name for name, stat in (first, second) if stat is None)
        return Finding(claim, UNKNOWN, f"{lost} diverged")
    verdict, words = _compare(first[1], second[1])
    sentence = f"{first[0]} gives {first[1]}, {second[0]} {second[1]}: {words}"
    return Finding(claim, verdict, sentence)


def _compare(first: Stat, second: Stat) -> tuple[str, str]:
    """Whether the first is higher, and by how much."""
    difference, noise = first.mean - second.mean, chance(first, second)
    points = f"{abs(100 * difference):.2f} points {'more' if difference >= 0 else 'less'}"
    if noise is None:
        return HOLDS if difference > 0 else FAILS, f"{points}, on one seed, which shows no scatter"
    if abs(difference) <= noise:
        return NOISE, f"{points}, where up to {100 * noise:.2f} may be chance"
    return (
        HOLDS if difference > 0 else FAILS,
        f"{points}, where chance makes up to {100 * noise:.2f}",
    )


def beside_course(stat: Stat | None, course: float) -> tuple[str, str]:
    """A verdict and words on a figure beside the course report's, which is of a single run."""
    if stat is None:
        return UNKNOWN, "every run diverged"
    difference = stat.mean - course
    points = f"{100 * difference:+.2f} points"
    if stat.sd is None:
        return UNKNOWN, f"{points}, on one seed, which shows no scatter"
    scatter = _student(stat.count - 1) * stat.sd * math.sqrt(1 + 1 / stat.count)
    if abs(difference) <= scatter:
        return HOLDS, f"{points}, within the scatter of single runs (± {100 * scatter:.2f})"
    return FAILS, f"{points}, outside the scatter of single runs (± {100 * scatter:.2f})"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
