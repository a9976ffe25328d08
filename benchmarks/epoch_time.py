"""Time a training epoch: 30,000 images through 3072-256-10 with plain SGD.

python benchmarks/epoch_time.py             two minutes: four batch sizes, five contenders
python benchmarks/epoch_time.py --full      every batch size and contender, about 15 minutes;
                                            writes results/epoch_time.MAKE.json
python benchmarks/epoch_time.py --grow      how the time grows, about 5 minutes;
                                            writes results/growth.MAKE.json
python benchmarks/epoch_time.py --device cuda     on a GPU, the default where fastmlp has kernels
                                            for one; writes results/epoch_time.cuda.json

fastmlp's engines start from the uint8 images, as they do for users; the peers get float32 images,
normalised beforehand. All are first checked to reach the same parameters after 64 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import epoch_time_cuda
import torch
from contenders import (
    OURS,
    Contender,
    ContenderError,
    Task,
    available,
    missing,
)
from display import Display
from epoch_turns import prepare_all, time_epochs
from machine import RESULTS, processor, provenance, results_file, save
from timing import Timing, Watch

from fastmlp import native_available

MODULE = "nn.Module + torch.optim.SGD"
BLOCKED = f"{OURS}blocked"
QUICK = [BLOCKED, MODULE, "hand-written loop in torch", "JAX jit(scan)", "scikit-learn"]
GROWING = [BLOCKED, MODULE]
QUICK_BATCHES = [4, 8, 32, 128]
GROWTH = {
    "batch": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
    "hidden": [16, 32, 64, 128, 256, 512],
    "models": [1, 2, 4, 8, 16, 32],
}
GROWTH_BASE = {
    "batch": {"hidden": 256},
    "hidden": {"batch": 8},
    "models": {"hidden": 64, "batch": 16},
}
TURN_SECONDS = (0.2, 2.0)
"""At least and at most: a shorter turn measures noise, a longer one tells nothing more."""
START_SECONDS, PREPARE_SECONDS = 8.0, 1.0
"""Expected for starting all contenders, and for making one and checking it."""


@dataclass(frozen=True)
class Plan:
    """What is timed: (axis, task) pairs, the contenders' names, counted rounds of turns, and the
    seconds that all of it may take, or None for as long as it takes."""

    tasks: Sequence[tuple[str, Task]]
    names: Sequence[str]
    rounds: int
    seconds: float | None = None

    def turn_seconds(self, left: float, tasks: int) -> float:
        """Return how long a turn is when ``left`` seconds remain for so many ``tasks``."""
        least, most = TURN_SECONDS
        if self.seconds is None:
            return most
        share = left / tasks - PREPARE_SECONDS * len(self.names)
        return min(max(share / (len(self.names) * (self.rounds + 1)), least), most)

    def task_seconds(self, turn: float) -> float:
        """Return how long a task is expected to take with turns of ``turn`` seconds."""
        return len(self.names) * (PREPARE_SECONDS + (self.rounds + 1) * turn)


class Benchmark:
    """Times the tasks of a plan one by one, showing each contender as soon as it is timed."""

    def __init__(self, plan: Plan, display: Display, sgemm: float) -> None:
        self._plan, self._display, self._sgemm = plan, display, sgemm
        self._end = time.monotonic() + (plan.seconds or 0.0)
        self._task_begin = 0.0
        self.failed: set[str] = set()

    def run(self) -> list[dict[str, Any]]:
        """Return a row of results for each task that there was time for."""
        rows, count = list[dict[str, Any]](), len(self._plan.tasks)
        with contextlib.ExitStack() as stack:
            contenders = [stack.enter_context(Contender(name)) for name in self._plan.names]
            for contender in contenders:
                with contextlib.suppress(ContenderError):  # told when its turn comes
                    contender.make(Task(images=8))
                self._display.advance(START_SECONDS / len(contenders))
            watch = Watch()
            for done, (axis, task) in enumerate(self._plan.tasks):
                if rows and self._left() < 0:
                    self._display.line(
                        f"\nbatch {task.batch} is left out: the time is up, --minutes gives more"
                    )
                    continue
                measure = partial(self._measure, contenders, task, count - done)
                again = partial(self._again, count - done)
                row = watch.row(measure, again=again, tell=self._display.line)
                rows.append({"axis": axis, **row})
                self._display.left()
        return rows

    def _left(self) -> float:
        """Seconds left of those that the plan may take."""
        return math.inf if self._plan.seconds is None else self._end - time.monotonic()

    def _again(self, tasks: int) -> bool:
        """Whether there is time to repeat the first of the last ``tasks`` tasks."""
        if self._plan.seconds is None:
            self._display.extend(self._plan.task_seconds(TURN_SECONDS[1]))
        took = time.monotonic() - self._task_begin
        return self._left() > tasks * took / 2  # shorter turns save about half

    def _measure(
        self, contenders: Sequence[Contender], task: Task, tasks_left: int
    ) -> dict[str, Any]:
        plan, display = self._plan, self._display
        seconds = plan.turn_seconds(self._left(), tasks_left)
        self._task_begin = time.monotonic()
        what = f"batch {task.batch}, hidden {task.hidden}, models {task.models}"
        display.line(f"\n{what}:")

        def on_ready(name: str) -> None:
            display.advance(PREPARE_SECONDS)
            display.doing(f"{what}: checked {name}")

        def on_turn(name: str) -> None:
            display.advance(seconds)
            display.doing(f"{what}: timed {name}")

        def on_done(name: str, timing: Timing) -> None:
            fastest.append(timing.median_us)
            display.line(self._line(name, task, timing, fastest[0]))

        fastest: list[float] = []
        ready, dropped = prepare_all(contenders, task, on_ready)
        for name, why in dropped.items():
            display.line(f"  {name:30} left out: {why}")
        self.failed |= {name for name in dropped if name.startswith(OURS)}
        ordered = [contender for contender in contenders if contender in ready]  # ours first
        times = time_epochs(ordered, task, plan.rounds, seconds, on_turn=on_turn, on_done=on_done)
        return {
            "batch": task.batch,
            "hidden": task.hidden,
            "models": task.models,
            "steps": task.steps,
            "epoch": times,
            "gflop_per_s": {n: round(task.flop / t.median_us / 1e3, 1) for n, t in times.items()},
            "dropped": dropped,
        }

    def _line(self, name: str, task: Task, timing: Timing, first: float) -> str:
        """A contender's epoch in words, compared with the one that is listed first."""
        rate = task.flop / timing.median_us / 1e3
        return (
            f"  {name:30}{timing.median_us / 1e6:8.3f} s/epoch{timing.median_us / task.steps:9.1f}"
            f" us/step{timing.median_us / first:7.2f}x{rate:7.1f} GFLOP/s, "
            f"{rate / self._sgemm:.0%} of sgemm"
        )


def sgemm_rate() -> float:
    """Return GFLOP/s of PyTorch's own product of two large float32 matrices, the best of ten."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    seconds = []
    for _ in range(11):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return float(2 * n**3 / min(seconds[1:]) / 1e9)


def make_plan(args: argparse.Namespace) -> Plan:
    """Return what the command line asks for."""
    here = available()
    if args.grow:
        tasks = [
            (axis, Task(**{**GROWTH_BASE[axis], axis: value}))
            for axis, values in GROWTH.items()
            for value in values
        ]
        return Plan(tasks, [name for name in GROWING if name in here], args.rounds or 2)
    batches = args.batch or (GROWTH["batch"] if args.full else QUICK_BATCHES)
    tasks = [("batch", Task(batch, args.hidden)) for batch in batches]
    if args.full:
        return Plan(tasks, here, args.rounds or 3)
    return Plan(tasks, [n for n in QUICK if n in here], args.rounds or 2, 60 * args.minutes)


def run_cpu(args: argparse.Namespace, begin: float) -> None:
    """Measure on the CPU. Raises SystemExit where an engine of fastmlp differs from its peers."""
    plan, about, sgemm = make_plan(args), processor(), sgemm_rate()
    out = args.out
    if out is None and (args.full or args.grow):
        out = results_file("growth" if args.grow else "epoch_time")
    if plan.seconds is not None:  # what the imports took counts
        plan = replace(plan, seconds=plan.seconds - (time.monotonic() - begin))
    turn = plan.turn_seconds((plan.seconds or 0.0) - START_SECONDS, len(plan.tasks))
    with Display(START_SECONDS + len(plan.tasks) * plan.task_seconds(turn)) as display:
        display.line(
            f"{about['model']}, {about['isa']} kernels, {torch.get_num_threads()} threads, "
            f"sgemm at {sgemm:.0f} GFLOP/s"
        )
        for name, package in missing().items():
            display.line(f"{name} is left out: pip install {package}")
        display.doing("starting the contenders")
        benchmark = Benchmark(plan, display, sgemm)
        rows = benchmark.run()
    if out is not None:
        head = {**provenance(), "sgemm_gflop_per_s": round(sgemm, 1)}
        save(out, {"provenance": head, "rows": rows})
    if benchmark.failed:
        raise SystemExit(f"failed, or differed from its peers: {', '.join(benchmark.failed)}")


def main() -> None:
    """Run the benchmark from the command line."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--full", action="store_true", help="every batch size and contender; writes the results")
    add("--grow", action="store_true", help="time by batch size, hidden units, models")
    add("--batch", type=int, nargs="+", help="batch sizes")
    add("--hidden", type=int, default=256, help="hidden units")
    add("--rounds", type=int, help="turns of each contender that count")
    add("--device", choices=["cpu", "cuda"], help="default: cuda where fastmlp has kernels for it")
    add("--minutes", type=float, default=2.0, help="at most, without --full and --grow")
    add("--out", type=Path, metavar="FILE", help="write the results as JSON")
    args = parser.parse_args()
    gpu = torch.cuda.is_available() and native_available("cuda")
    if (args.device or ("cuda" if gpu else "cpu")) == "cpu":
        run_cpu(args, begin)
        return
    out = args.out or RESULTS / "epoch_time.cuda.json"
    minutes = max(args.minutes, 6.0) if args.full else args.minutes
    epoch_time_cuda.run("cuda:0", max(args.rounds or 0, 5), out, minutes)


if __name__ == "__main__":
    main()
