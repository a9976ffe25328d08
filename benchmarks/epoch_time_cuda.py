"""Time a training step on a GPU; run by ``epoch_time.py --device cuda``.

Every contender has a process of its own and the same steps to do, which is checked first; then they
take turns. What is timed is an epoch of 30,000 random images, or as many steps of it as take
TURN_SECONDS, between two moments at which the GPU is idle; graphs and compilations were made
before. Last comes what a user sees: the course's run, 200 epochs with a validation after each.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import (
    OURS,
    Contender,
    ContenderError,
    Task,
    available,
    random_part,
)
from display import Display
from epoch_turns import AnyContender, images_of_turn, prepare_all
from machine import provenance, save
from op_time_cuda import driver_version
from peers_cuda import CUDA_PEERS
from timing import Watch, summarize

from fastmlp.data.splits import DataSplits
from fastmlp.training.api import fit
from fastmlp.training.presets import resolve_config

TASKS = [(8, 256, 1), (4, 256, 1), (16, 64, 1), (128, 256, 1), (8, 256, 12), (16, 64, 32)]
"""Batch size, hidden units, models."""
TURN_SECONDS = 0.5
IMAGES = 30_000


def task_of(batch: int, hidden: int, models: int, images: int = IMAGES) -> Task:
    """Return a task of whole batches: some peers would compile anew for a smaller last one."""
    return Task(batch, hidden, models, images - images % batch)


@dataclass
class Turns:
    """A contender's turns at a task: the images of an epoch, the microseconds that a step of a
    model took in each epoch, and the GPU's clock in MHz after the last one."""

    images: int
    microseconds: list[float] = field(default_factory=list)
    clock: float | None = None


def time_steps(
    contenders: Sequence[AnyContender], task: Task, rounds: int, dropped: dict[str, str]
) -> dict[str, Turns]:
    """Return the turns of all contenders; put those that fail into ``dropped`` instead."""
    turns: dict[str, Turns] = {}
    for number in range(rounds + 1):
        for contender in contenders:
            name = contender.name
            if name in dropped:
                continue
            try:
                if number == 0:  # not counted: longer than any before, perhaps another graph
                    turns[name] = Turns(images_of_turn(contender, task, TURN_SECONDS))
                    contender.epoch(3, turns[name].images)
                    continue
                take_turn(contender, turns[name], number, task)
            except ContenderError as error:
                dropped[name] = str(error).splitlines()[0]
                continue
            if number == rounds:
                turns[name].clock = processor_clock()
    return {name: mine for name, mine in turns.items() if name not in dropped}


def take_turn(contender: AnyContender, turns: Turns, number: int, task: Task) -> None:
    """Time epochs for half of TURN_SECONDS, at least one."""
    steps, spent = turns.images // task.batch * task.models, 0.0
    while spent < TURN_SECONDS / 2:
        seconds = contender.epoch(3 + number, turns.images)
        turns.microseconds.append(seconds * 1e6 / steps)
        spent += seconds


def processor_clock(which: str = "clocks.sm") -> float | None:
    """Return the first GPU's clock in MHz, or None where nvidia-smi does not tell."""
    command = ["nvidia-smi", f"--query-gpu={which}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        return float(run.stdout.splitlines()[0])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def row_of(task: Task, turns: dict[str, Turns], dropped: dict[str, str]) -> dict[str, Any]:
    """Print a row of results and return it."""
    times = {name: summarize(mine.microseconds) for name, mine in turns.items()}
    print(f"\nbatch {task.batch}, hidden {task.hidden}, models {task.models}:")
    fastest = min((t.median_us for t in times.values()), default=0.0)
    cycles: dict[str, int | None] = {}
    for name, t in times.items():
        clock = turns[name].clock
        cycles[name] = round(t.median_us * clock) if clock else None
        print(
            f"  {name:40}{t.median_us:9.2f} us a step ({t.p20_us:.2f} to {t.p80_us:.2f}) "
            f"{t.median_us / fastest:8.1f}x  {cycles[name]} cycles",
            flush=True,
        )
    for name, why in dropped.items():
        print(f"  {name:40} left out: {why}", flush=True)
    return {
        **{"batch": task.batch, "hidden": task.hidden, "models": task.models},
        **{"step": times, "cycles_a_step": cycles, "dropped": dropped},
        "sm_mhz": {name: mine.clock for name, mine in turns.items()},
        "steps_a_turn": {name: mine.images // task.batch for name, mine in turns.items()},
    }


def time_task(asked: Sequence[AnyContender], task: Task, rounds: int) -> dict[str, Any]:
    """Check that the contenders do the same steps, time them, and return a row of results."""
    contenders, dropped = prepare_all(asked, task)
    return row_of(task, time_steps(contenders, task, rounds, dropped), dropped)


def course_run(device: str, epochs: int, images: int = IMAGES) -> dict[str, Any]:
    """Time the course's run from its first step to its test, on random images, with a third as many
    to validate and to test. Setting up does not count."""
    train, val, test = (random_part(count) for count in (images, images // 3, images // 3))
    begin = 0.0

    def never() -> bool:
        nonlocal begin
        begin = begin or time.perf_counter()  # first asked when all is set up
        return False

    config = resolve_config({"device": device, "epochs": epochs}, preset="course")
    run = fit(config, DataSplits(train, val, test), should_stop=never)
    seconds = time.perf_counter() - begin
    print(f"\nthe course's run: {epochs} epochs in {seconds:.2f} s by {run.config.engine}")
    return {
        **{"seconds": round(seconds, 3), "epochs": epochs, "engine": run.config.engine},
        "steps": epochs * (images // config.batch_size),
    }


def device_provenance(device: torch.device) -> dict[str, Any]:
    """Return what a number needs to be believed."""
    if device.type != "cuda":
        return provenance()
    return provenance() | {
        "device": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "sm_mhz_most": processor_clock("clocks.max.sm"),
    }


def run(
    device: str,
    rounds: int,
    out: Path,
    minutes: float = 6.0,
    epochs: int = 200,
    tasks: Sequence[tuple[int, int, int]] = TASKS,
    images: int = IMAGES,
) -> None:
    """Time as many of the tasks as fit into the minutes and write the results.

    Raises SystemExit where one of fastmlp's engines failed or computed something else.
    """
    end = time.monotonic() + 60 * minutes
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    failed: list[str] = []
    course: dict[str, Any] | None = None
    where, watch = torch.device(device), Watch()
    try:
        with Display(60 * minutes) as display, contextlib.ExitStack() as stack:
            everyone = [stack.enter_context(Contender(name, device)) for name in available(device)]
            for task in (task_of(*each, images) for each in tasks):
                if time.monotonic() > end:
                    left_out.append(str(task))
                    continue
                display.doing(str(task))
                asked = [
                    contender
                    for contender in everyone
                    if contender.name.startswith(OURS)
                    or task.models <= CUDA_PEERS[contender.name].most_models
                ]
                rows.append(watch.row(partial(time_task, asked, task, rounds), again=lambda: False))
                failed += [n for n in rows[-1]["dropped"] if n.startswith(OURS)]
                display.advance(60 * minutes / (len(tasks) + 1))
            display.doing("the course's run")
            course = course_run(device, epochs, images)
    finally:  # what was measured is kept, whatever happened
        head = {"provenance": device_provenance(where), "failed": failed, "left_out": left_out}
        save(out, {**head, "rows": rows, "course_run": course})
    if failed:
        raise SystemExit(f"failed, or differed from its peers: {', '.join(sorted(set(failed)))}")
