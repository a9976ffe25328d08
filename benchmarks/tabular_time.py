"""Time an epoch of small networks on tables of numbers, beside other libraries, on two threads.

python benchmarks/tabular_time.py          some ten minutes; writes results/tabular_time.MAKE.json
python benchmarks/tabular_time.py --quick  two minutes, writes nothing

Contenders are in processes of their own, start from the same parameters, are first checked to take
the same steps, and then take turns. The last row trains 32 networks at once and one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import (
    OURS,
    Contender,
    ContenderError,
)
from display import Display
from epoch_turns import prepare, prepare_all, time_epochs
from machine import provenance, results_file, save
from tabular_peers import PEERS, TabularTask, TabularWorker, missing
from timing import Timing, Watch, summarize

NATIVE, BLOCKED = f"{OURS}native", f"{OURS}blocked"
TASKS = (
    TabularTask(1_437, (64, 100, 10), 200),
    TabularTask(30_000, (100, 100, 2), 200),
    TabularTask(100_000, (54, 128, 64, 7), 200),
    TabularTask(30_000, (100, 100, 10), 32),
    TabularTask(60_000, (784, 128, 10), 128),
    TabularTask(30_000, (3072, 256, 10), 128, "sgd", pixels=True),
)
MANY = TabularTask(30_000, (100, 100, 10), 200, models=32)
THREADS = 2
START_SECONDS, PREPARE_SECONDS = 5.0, 4.0
"""Expected for starting a contender, and for making it and checking its steps."""


def measure(
    contenders: Sequence[Any], task: TabularTask, rounds: int, seconds: float, display: Display
) -> dict[str, Any]:
    """Check that the contenders take the same steps, time them, and return a row of results."""
    display.line(f"\n{task}:")
    fitting = [c for c in contenders if task.pixels or c.name != BLOCKED]
    ready, dropped = prepare_all(fitting, task, lambda name: display.advance(PREPARE_SECONDS))
    for name, why in dropped.items():
        display.line(f"  {name:30} left out: {why}")
    first: list[float] = []

    def on_done(name: str, timing: Timing) -> None:
        ms = timing.median_us / 1e3
        first.append(ms)
        display.line(f"  {name:30}{ms:9.2f} ms an epoch{ms / first[0]:8.2f}x")

    ordered = [contender for contender in fitting if contender in ready]  # ours first
    times = time_epochs(
        *(ordered, task, rounds, seconds),
        on_turn=lambda name: display.advance(seconds),
        on_done=on_done,
    )
    return {**_facts(task), "epoch": times, "dropped": dropped}


def measure_many(
    one: Any, many: Any, task: TabularTask, rounds: int, seconds: float, display: Display
) -> dict[str, Any]:
    """Check that networks come to the same bits alone and together, and return a row with the times
    of an epoch of one and of all, and how many times more networks an hour the latter makes."""
    alone, together = prepare(one, replace(task, models=1)), prepare(many, task)
    for name, tensor in alone[0].items():
        assert torch.equal(tensor, together[0][name]), f"{name} differs alone and together"
    times = {"1 model": list[float](), f"{task.models} models": list[float]()}
    for turn in range(rounds + 1):
        for found, contender in zip(times.values(), (one, many), strict=True):
            epochs = list[float]()  # microseconds
            while sum(epochs) < seconds * 5e5:
                epochs.append(contender.epoch(100 * turn + len(epochs)) * 1e6)
            found.append(statistics.mean(epochs))
            display.advance(seconds)
    alone_us, together_us = (summarize(found[1:]) for found in times.values())
    throughput = task.models * alone_us.median_us / together_us.median_us
    display.line(f"\n{task}: {task.models} models at once, {throughput:.2f} times the throughput")
    epochs_us = dict(zip(times, (alone_us, together_us), strict=True))
    return {**_facts(task), "epoch": epochs_us, "throughput": round(throughput, 3)}


def _facts(task: TabularTask) -> dict[str, Any]:
    facts = {"case": str(task), "rows": task.rows, "sizes": task.sizes, "batch": task.batch}
    return {**facts, "optimizer": task.optimizer, "models": task.models}


def run(
    tasks: Sequence[TabularTask], many: TabularTask, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Time every task with turns of about ``seconds``. Raises SystemExit where an engine of fastmlp
    fails or takes other steps than its peers."""
    absent = missing()
    names = [NATIVE, BLOCKED, *(name for name in PEERS if name not in absent)]
    turns = (len(names) * len(tasks) + 2) * (rounds + 1) * seconds
    starts = len(names) * (START_SECONDS + PREPARE_SECONDS * len(tasks))
    rows, watch = list[dict[str, Any]](), Watch()
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display(turns + starts))
        for name, packages in absent.items():
            display.line(f"{name} is left out: pip install {' '.join(packages)}")
        contenders = [
            stack.enter_context(Contender(name, kind=TabularWorker)) for name in (*names, NATIVE)
        ]
        for contender in contenders:
            with contextlib.suppress(ContenderError):  # told when its turn comes
                contender.make(replace(tasks[0], rows=tasks[0].batch))
            display.advance(START_SECONDS)
        *contenders, second = contenders
        for task in tasks:
            timed = partial(measure, contenders, task, rounds, seconds, display)
            rows.append(watch.row(timed, tell=display.line))
            display.left()
        timed = partial(measure_many, second, contenders[0], many, rounds, seconds, display)
        rows.append(watch.row(timed, tell=display.line))
    failed = {name for row in rows for name in row.get("dropped", ()) if name.startswith(OURS)}
    if failed:
        raise SystemExit(f"failed, or differed from its peers: {', '.join(sorted(failed))}")
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a short time for each, no file")
    parser.add_argument("--rounds", type=int, help="turns of each contender that count")
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if hasattr(os, "sched_setaffinity"):  # for libraries with threads of their own, too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    seconds, rounds = (0.2, 2) if options.quick else (1.0, 5)
    rows = run(TASKS, MANY, options.rounds or rounds, seconds)
    if not options.quick or options.out:
        results = {"provenance": provenance(), "rows": rows}
        save(options.out or results_file("tabular_time"), results)


if __name__ == "__main__":
    main()
