"""Compare accuracies over seeds and put the verdict into a sentence.

A difference counts if chance alone produces one as large in fewer than 1 of 20 cases (Welch's
t test, two-sided).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

HOLDS, FAILS, NOISE, UNKNOWN = "holds", "does not hold", "within noise", "cannot be said"


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation of a share (0 to 1) over ``count`` seeds.

    ``sd`` is None for a single seed.
    """

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat | None:
        """Summarise ``values``; return None if there are none."""
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {100 * self.sd:.2f}"
        return f"{100 * self.mean:.2f}{spread} %"


def shown(stat: Stat | None) -> str:
    """Format a figure; one without values belongs to runs that all diverged."""
    return "diverged" if stat is None else str(stat)


def chance(first: Stat, second: Stat) -> float | None:
    """Return half the width of Welch's 95 % confidence interval of the difference of two means.

    A smaller difference may be chance. Returns None if either figure comes from a single seed.
    """
    if first.sd is None or second.sd is None:
        return None
    a, b = first.sd**2 / first.count, second.sd**2 / second.count
    if a + b == 0:
        return 0.0
    degrees = (a + b) ** 2 / (a**2 / (first.count - 1) + b**2 / (second.count - 1))
    return _t_quantile(degrees) * math.sqrt(a + b)


def _t_quantile(degrees: float) -> float:
    """Return the standard errors within which chance stays in 19 of 20 cases."""
    from scipy.stats import t  # takes a second to import

    return float(t.ppf(0.975, degrees))


@dataclass(frozen=True)
class Finding:
    """A claim of the course, the verdict on it, and a sentence with the figures behind it."""

    claim: str
    verdict: str
    sentence: str


def best_of(
    name: str, values: Sequence[object], stats: Sequence[Stat | None], claimed: object
) -> Finding:
    """Judge the claim that ``claimed``, of the values of ``name``, gives the highest accuracy.

    ``stats`` has a figure for each value; None means that all runs diverged, which is never best.
    """
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
    """Judge the claim that the first of two named figures is higher than the second."""
    if first[1] is None or second[1] is None:
        lost = " and ".join(name for name, stat in (first, second) if stat is None)
        return Finding(claim, UNKNOWN, f"{lost} diverged")
    verdict, words = _compare(first[1], second[1])
    sentence = f"{first[0]} gives {first[1]}, {second[0]} {second[1]}: {words}"
    return Finding(claim, verdict, sentence)


def _compare(first: Stat, second: Stat) -> tuple[str, str]:
    """Return the verdict on "the first is higher" and the words for the difference."""
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
    """Return the verdict and the words on a figure beside the course's, a single run."""
    if stat is None:
        return UNKNOWN, "every run diverged"
    difference = stat.mean - course
    points = f"{100 * difference:+.2f} points"
    if stat.sd is None:
        return UNKNOWN, f"{points}, on one seed, which shows no scatter"
    scatter = _t_quantile(stat.count - 1) * stat.sd * math.sqrt(1 + 1 / stat.count)
    if abs(difference) <= scatter:
        return HOLDS, f"{points}, within the scatter of single runs (± {100 * scatter:.2f})"
    return FAILS, f"{points}, outside the scatter of single runs (± {100 * scatter:.2f})"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
