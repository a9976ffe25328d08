"""What a person sees while the report is made: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

Place = tuple[str, int]
"""A study and a seed."""
BAR_FORMAT = "{desc} |{bar}| {percentage:3.0f}%{postfix}"
LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""


class ReportProgress:
    """Counts what is done, weighted by what it costs. Lines go to standard output, the bar, if one
    is wanted, to standard error."""

    def __init__(self, bar: bool) -> None:
        self._wants_bar = bar
        self._bar: Any = None
        self._costs: Mapping[Place, float] = {}
        self._done = self._before = self._under_way = 0.0
        self._what, self._clock, self._last_line = "", time.perf_counter(), 0.0

    def __enter__(self) -> ReportProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        """A line."""
        if self._bar is None:
            print(text, flush=True)
        else:
            tqdm.write(text, file=sys.stdout)

    def start(self, costs: Mapping[Place, float], kept: Collection[Place]) -> None:
        """``costs`` has all that is to be done, ``kept`` what of it is there already."""
        self._costs, self._clock = costs, time.perf_counter()
        self._before = self._done = sum(costs[place] for place in kept)
        if kept:
            self.say(f"{len(kept)} of {len(costs)} parts are there already")
        if self._wants_bar:
            self._bar = tqdm(
                total=sum(costs.values()),
                initial=self._done,
                bar_format=BAR_FORMAT,
                file=sys.stderr,
                dynamic_ncols=True,
                leave=False,
            )

    def begin(self, places: Sequence[Place], what: str) -> None:
        """Some of it begins."""
        self._what = what
        self._under_way = sum(self._costs[place] for place in places)
        self._last_line = 0.0
        if self._bar is not None:
            self._bar.set_description_str(what)

    def epoch(self, done: int, total: int) -> None:
        """So many epochs of what has begun are done."""
        now = self._done + self._under_way * done / total
        words = f"epoch {done} of {total}{self._time_left(now)}"
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(now - self._bar.n)
        elif time.perf_counter() - self._last_line > LINE_SECONDS or done == total:
            self._last_line = time.perf_counter()
            share = now / sum(self._costs.values())
            self.say(f"{share:4.0%}  {self._what}: {words}")

    def end(self) -> None:
        """What has begun is done."""
        self._done += self._under_way
        self._under_way = 0.0

    def _time_left(self, now: float) -> str:
        total = sum(self._costs.values())
        if now - self._before < 0.01 * total:
            return ""  # too early to tell
        spent = time.perf_counter() - self._clock
        minutes, seconds = divmod(round(spent * (total - now) / (now - self._before)), 60)
        return f", {f'{minutes} min ' if minutes else ''}{seconds} s left"
