"""The configurations that a sweep tries: one hyper-parameter at a time, a grid, or at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastmlp.training.config import OPTIONS, TrainConfig
from fastmlp.training.option_schema import written_widths
from fastmlp.utils.errors import EXIT_USAGE, UserError

VARIED = [name for name, option in OPTIONS.items() if option.varied]
"""The options that a sweep can vary."""
VARY = "one, grid or random:N"
MAX_RUNS = 100_000
"""The largest number of runs in a sweep: more than any machine has memory for."""


def plan(
    base: TrainConfig, values: Mapping[str, Sequence[Any]], vary: str = "one"
) -> tuple[TrainConfig, list[TrainConfig]]:
    """Return the configuration that "one" starts from, and all configurations to try, each once.

    ``values`` are those of each hyper-parameter that is varied. ``vary``: "one" changes one of them
    at a time, all others being the base's, where the base has the first of the values unless its
    own is among them; "grid" is all combinations; "random:N" is N draws: numbers from the interval
    that the values span, evenly in the logarithm, whole where they are whole, all else from the
    list, with the base's seed. Raises :class:`UserError` for what is not one of these.
    """
    names = list(values)
    lists: dict[str, list[Any]] = {}
    for name in names:
        if name not in VARIED:
            raise UserError(
                f"{name} cannot be varied, only {', '.join(VARIED)} can; give it one value",
                EXIT_USAGE,
            )
        if isinstance(values[name], str) or not isinstance(values[name], Iterable):
            raise UserError(
                f"{name} must be a list of values to try, got {values[name]!r}", EXIT_USAGE
            )
        # Through the configuration, so that every value is checked and means one thing.
        read = [getattr(_changed(base, {name: value}), name) for value in values[name]]
        lists[name] = list(dict.fromkeys(read))
        if not lists[name]:
            raise UserError(f"{name} has no values to try; give at least one", EXIT_USAGE)
    own = {n: getattr(base, n) for n in names}
    start = {n: own[n] if own[n] in lists[n] else lists[n][0] for n in names}
    if vary == "one":
        changes = [{}, *({name: value} for name in names for value in lists[name])]
    elif vary == "grid":
        check_count(math.prod(map(len, lists.values())))
        changes = [
            dict(zip(names, point, strict=True)) for point in itertools.product(*lists.values())
        ]
    else:
        changes = _random_changes(lists, vary, base.seed)
    configs = [_changed(base, {**start, **change}) for change in changes]
    return _changed(base, start), list(dict.fromkeys(configs))


def check_count(configs: int, seeds: int = 1) -> None:
    """Raise :class:`UserError` where these are too many runs."""
    if configs * seeds > MAX_RUNS:
        raise UserError(
            f"A sweep has at most {MAX_RUNS:,} runs, and this one would have {configs * seeds:,}; "
            "try fewer values or seeds, or --vary random:N",
            EXIT_USAGE,
        )


def _changed(base: TrainConfig, change: Mapping[str, Any]) -> TrainConfig:
    if change.get("momentum") == 0:
        change = {**change, "nesterov": False}
    return replace(base, **change)


def _random_changes(
    lists: Mapping[str, Sequence[Any]], vary: str, seed: int
) -> list[dict[str, Any]]:
    kind, _, number = vary.partition(":")
    if kind != "random" or not number.isdecimal() or not 0 < int(number) <= MAX_RUNS:
        raise UserError(
            f"vary must be {VARY}, N from 1 to {MAX_RUNS}, got {vary!r}", EXIT_USAGE, ("vary",)
        )
    random = np.random.default_rng(seed)
    return [
        {name: _draw(values, random) for name, values in lists.items()} for _ in range(int(number))
    ]


def _draw(values: Sequence[Any], random: np.random.Generator) -> Any:
    """Draw log-uniformly between the smallest and the largest value if all are positive numbers or
    widths of one layer, else pick one of the values."""
    single = all(isinstance(value, tuple) and len(value) == 1 for value in values)
    numbers = [value[0] for value in values] if single else list(values)
    if not all(isinstance(n, (int, float)) and n > 0 for n in numbers):
        return values[int(random.integers(len(values)))]
    low, high = min(numbers), max(numbers)
    drawn = math.exp(random.uniform(math.log(low), math.log(high)))
    if all(isinstance(n, int) for n in numbers):
        whole = min(max(round(drawn), low), high)
        return (whole,) if single else whole
    return min(max(float(f"{drawn:.6g}"), low), high)


def shown(value: Any) -> float | int | str:
    """Return a value as a person writes it: a network of one hidden layer by its width."""
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else written_widths(value, "-")
    return value  # type: ignore[no-any-return]
