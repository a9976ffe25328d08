"""Fair timings: contenders take turns, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastmlp
from fastmlp.utils.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"


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
    """Times every contender for about ``seconds``, one sample each in turn.

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
    """The median and percentiles of single measurements."""
    if len(microseconds) == 1:
        return Timing(microseconds[0], microseconds[0], microseconds[0], samples=1)
    cuts = statistics.quantiles(microseconds, n=5, method="inclusive")
    return Timing(statistics.median(microseconds), cuts[0], cuts[-1], samples=len(microseconds))


def _calls_per_sample(f: Callable[[], object], least_us: float) -> int:
    f()
    return max(1, round(least_us / max(_sample(f, 1), 0.1)))


def _sample(f: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        f()
    return (time.perf_counter() - begin) * 1e6 / calls


def provenance() -> dict[str, Any]:
    """What a number needs to be believed: machine, versions, commit, time."""
    return {
        "device": _cpu_name(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": torch.ops.fastmlp.cpu_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastmlp": fastmlp.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results as JSON, whole or not at all; dataclasses become objects."""
    write_text(path, json.dumps(results, indent=1, default=asdict) + "\n")
    print(f"\nwritten to {path}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*args: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *args]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip()
