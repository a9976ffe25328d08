"""Time fairly: contenders take turns, and a row that the machine disturbed is marked.

A slow moment of the machine hits all contenders when they take turns. Whether there was one is told
by a :class:`Watch`: a fixed computation before and after each row, and what the kernel counted.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SLOWER = 1.2
"""A calibration that takes this many times the quickest one tells of a disturbed machine."""
SWITCHES_PER_SECOND = 60
"""Involuntary context switches of a calibration; an idle machine makes a few, a busy one 100."""
STOLEN = 0.02
"""Share of a core that the hypervisor gave to others, and that other processes took."""
TAKEN = 0.1
SETTLE_SECONDS = 0.3
"""Wait before a calibration: idle threads of a contender's libraries may still be spinning."""


@dataclass(frozen=True)
class Timing:
    """Microseconds a call takes: median, 20th and 80th percentile over ``samples`` measurements."""

    median_us: float
    p20_us: float
    p80_us: float
    samples: int


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    least_sample_us: float = 200.0,
) -> dict[str, Timing]:
    """Time every contender for about ``seconds``, one sample each in turn.

    A sample is as many calls in a row as take ``least_sample_us`` together, at least one. Every
    contender is called before it is timed.
    """
    calls = {name: _calls_per_sample(f, least_sample_us) for name, f in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds * len(contenders)
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, f in contenders.items():
            samples[name].append(_sample(f, calls[name]))
    return {name: summarize(values) for name, values in samples.items()}


def summarize(microseconds: list[float]) -> Timing:
    """Return the median and percentiles of single measurements."""
    if len(microseconds) == 1:
        return Timing(microseconds[0], microseconds[0], microseconds[0], samples=1)
    cuts = statistics.quantiles(microseconds, n=5, method="inclusive")
    return Timing(statistics.median(microseconds), cuts[0], cuts[-1], samples=len(microseconds))


@dataclass(frozen=True)
class Reading:
    """The state of the machine at a moment. Times are seconds: of the calibration, and since boot
    on the clock, stolen by the hypervisor, and used by processes that are not ours."""

    calibration: float
    switches_per_second: float
    clock: float
    stolen: float
    taken: float


class Watch:
    """Tells whether something else kept the machine busy while a row was measured."""

    def __init__(self) -> None:
        self._matrix = torch.randn(384, 384)
        self.read()  # the first products are slow: memory, threads
        self._latest = self.read()
        self._quickest = self._latest.calibration

    def read(self) -> Reading:
        """Return a reading; takes about half a second."""
        time.sleep(SETTLE_SECONDS)
        switched, begin = _involuntary_switches(), time.perf_counter()
        calibration = statistics.median(self._calibrate() for _ in range(40))
        seconds = time.perf_counter() - begin
        switches = (_involuntary_switches() - switched) / seconds
        stolen, busy = _machine_seconds()
        return Reading(calibration, switches, time.perf_counter(), stolen, busy - _our_seconds())

    @staticmethod
    def compare(before: Reading, after: Reading, quickest: float) -> list[str]:
        """Return what disturbed the machine between two readings; an empty list if nothing did.

        ``quickest`` is the time of the quickest calibration so far, in seconds.
        """
        reasons = []
        slowest = max(before.calibration, after.calibration) / quickest
        if slowest > SLOWER:
            reasons.append(f"calibration {slowest:.1f} times slower than the quickest")
        switches = max(before.switches_per_second, after.switches_per_second)
        if switches > SWITCHES_PER_SECOND:
            reasons.append(f"{switches:.0f} involuntary context switches a second")
        clock = max(after.clock - before.clock, 1e-9)
        stolen, taken = after.stolen - before.stolen, after.taken - before.taken
        if stolen > STOLEN * clock:
            reasons.append(f"the hypervisor took {stolen / clock:.2f} of a core")
        spare = max((os.cpu_count() or 1) - torch.get_num_threads(), 0)
        if taken > (spare + TAKEN) * clock:
            reasons.append(f"other processes took {taken / clock:.2f} of a core")
        return reasons

    def row(
        self,
        measure: Callable[[], dict[str, Any]],
        *,
        again: Callable[[], bool] = lambda: True,
        tell: Callable[[str], None] = print,
    ) -> dict[str, Any]:
        """Return the row that ``measure`` returns.

        Where the machine was disturbed it is measured once more, if ``again()`` allows it; a row
        that still was has the reasons under the key "disturbed". ``tell`` is called with them.
        """
        row, reasons = self._measured(measure)
        if reasons and again():
            tell(f"  disturbed: {', '.join(reasons)}; measuring again")
            row, reasons = self._measured(measure)
        if not reasons:
            return row
        tell(f"  disturbed: {', '.join(reasons)}")
        return {**row, "disturbed": reasons}

    def _measured(self, measure: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        """A row, and what disturbed it."""
        before, row = self._latest, measure()
        self._latest = self.read()
        self._quickest = min(self._quickest, self._latest.calibration)
        return row, self.compare(before, self._latest, self._quickest)

    def _calibrate(self) -> float:
        begin = time.perf_counter()
        for _ in range(8):
            self._matrix @ self._matrix
        return time.perf_counter() - begin


def _calls_per_sample(f: Callable[[], object], least_us: float) -> int:
    f()
    return max(1, round(least_us / max(_sample(f, 1), 0.1)))


def _sample(f: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        f()
    return (time.perf_counter() - begin) * 1e6 / calls


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _machine_seconds() -> tuple[float, float]:
    """Seconds stolen, and seconds in which some process computed, summed over all cores since boot;
    zeros where the system does not tell."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
    except OSError:
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(ticks) for ticks in first[1:9])
    hertz = os.sysconf("SC_CLK_TCK")
    return steal / hertz, (user + nice + system + irq + softirq) / hertz


def _our_seconds() -> float:
    """Seconds of computing by this process and its children, those that have ended included."""
    total = sum(os.times()[:4])
    hertz = os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        try:
            stat = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            continue
        user, system = stat.rpartition(")")[2].split()[11:13]
        total += (int(user) + int(system)) / hertz
    return total
