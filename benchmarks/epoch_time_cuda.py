"""How long a training step takes on a GPU; run by ``epoch_time.py --device cuda``.

Every contender has a process of its own and the same steps to do, which is checked first; then they
take turns. A turn is an epoch of 30,000 random images, or as many steps of it as take TURN_SECONDS,
between two moments at which the GPU has nothing left to do; what is made once, graphs and
compilations, was made before. Last comes what a user sees: the course's run, 200 epochs with a
validation after each.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import (
    OURS,
    STEPS_CHECKED,
    Contender,
    ContenderError,
    Task,
    Worker,
    available,
    check_same,
    prepare,
    random_part,
)
from op_time_cuda import driver_version
from peers_cuda import CUDA_PEERS
from timing import Timing, provenance, save, summarize

from fastmlp.config import resolve_config
from fastmlp.data import Split
from fastmlp.fitting import fit
from fastmlp.run_data import RunData

TASKS = [(8, 256, 1), (4, 256, 1), (16, 64, 1), (128, 256, 1), (8, 256, 12), (16, 64, 32)]
"""Batch size, hidden units, models."""
TURN_SECONDS = 0.5
IMAGES = 30_000

AnyContender = Contender | Worker


def task_of(batch: int, hidden: int, models: int, images: int = IMAGES) -> Task:
    """Of whole batches alone: what a smaller one costs is not the question, and some peers would
    compile their step anew for it."""
    return Task(batch, hidden, models, images - images % batch)


def prepared(
    contenders: Sequence[AnyContender], task: Task
) -> tuple[list[AnyContender], dict[str, str]]:
    """Those that are made for the task and compute the same as the first peer that can; and why the
    others are left out."""
    truth, good, dropped = None, [], {}
    for contender in sorted(contenders, key=lambda c: c.name.startswith(OURS)):  # peers first
        try:
            found = prepare(contender, task)
            truth = truth or found
            check_same(contender.name, found, truth, task)
            good.append(contender)
        except (ContenderError, AssertionError) as error:
            dropped[contender.name] = str(error).splitlines()[0]
    return good, dropped


def images_of_a_turn(contender: AnyContender, task: Task) -> int:
    """As many as take about TURN_SECONDS, in whole batches; at most an epoch's."""
    few = min(STEPS_CHECKED * task.batch, task.images)
    seconds = min(contender.epoch(turn, few) for turn in (1, 2))
    steps = int(TURN_SECONDS / seconds * few / task.batch)
    return min(max(steps, 8) * task.batch, task.images)


def time_steps(
    contenders: Sequence[AnyContender], task: Task, rounds: int
) -> tuple[dict[str, Timing], dict[str, int], dict[str, float | None]]:
    """Microseconds that a step of a model takes; steps of a turn; the clock of the GPU's processors
    in MHz as each contender's last turn has left it."""
    images = {c.name: images_of_a_turn(c, task) for c in contenders}
    for contender in contenders:
        contender.epoch(3, images[contender.name])  # longer than any before: perhaps another graph
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    clocks: dict[str, float | None] = {}
    steps = {name: count // task.batch * task.models for name, count in images.items()}
    for turn in range(rounds):
        for contender in contenders:
            name = contender.name
            taken[name].append(contender.epoch(4 + turn, images[name]) * 1e6 / steps[name])
            if turn == rounds - 1:
                clocks[name] = processor_clock()
    return {name: summarize(values) for name, values in taken.items()}, steps, clocks


def processor_clock(which: str = "clocks.sm") -> float | None:
    """MHz of the first GPU's processors, or None where nobody says."""
    command = ["nvidia-smi", f"--query-gpu={which}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        return float(run.stdout.splitlines()[0])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def row_of(
    task: Task,
    times: dict[str, Timing],
    steps: dict[str, int],
    clocks: dict[str, float | None],
    dropped: dict[str, str],
) -> dict[str, Any]:
    """A row of results; prints it."""
    print(f"\nbatch {task.batch}, hidden {task.hidden}, models {task.models}:")
    fastest = min(t.median_us for t in times.values())
    cycles: dict[str, int | None] = {}
    for name, t in times.items():
        clock = clocks[name]
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
        **{"step": times, "steps_a_turn": steps, "sm_mhz": clocks, "cycles_a_step": cycles},
        "dropped": dropped,
    }


def course_run(device: str, epochs: int, images: int = IMAGES) -> dict[str, Any]:
    """The course's run from its first step to its test, everything set up before: on random images,
    with a third as many to validate and to test."""
    parts = [random_part(count) for count in (images, images // 3, images // 3)]
    begin = 0.0

    def never() -> bool:
        nonlocal begin
        begin = begin or time.perf_counter()  # first asked when all is set up
        return False

    config = resolve_config({"device": device, "epochs": epochs}, preset="course")
    run = fit(config, RunData(Split(*parts)), should_stop=never)
    seconds = time.perf_counter() - begin
    print(f"\nthe course's run: {epochs} epochs in {seconds:.2f} s by {run.config.engine}")
    return {
        **{"seconds": round(seconds, 3), "epochs": epochs, "engine": run.config.engine},
        "steps": epochs * (images // config.batch_size),
    }


def device_provenance(device: torch.device) -> dict[str, Any]:
    """What a number needs to be believed."""
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
    """Times the tasks, as many as fit into the minutes, and writes the results. Raises SystemExit
    where one of fastmlp's engines failed or computed something else."""
    end = time.monotonic() + 60 * minutes
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    failed: list[str] = []
    course: dict[str, Any] | None = None
    where = torch.device(device)
    try:
        with contextlib.ExitStack() as stack:
            everyone = [stack.enter_context(Contender(name, device)) for name in available(device)]
            for task in (task_of(*each, images) for each in tasks):
                if time.monotonic() > end:
                    left_out.append(str(task))
                    continue
                asked = [
                    contender
                    for contender in everyone
                    if contender.name.startswith(OURS)
                    or task.models <= CUDA_PEERS[contender.name].most_models
                ]
                contenders, dropped = prepared(asked, task)
                failed += [name for name in dropped if name.startswith(OURS)]
                if contenders:
                    rows.append(row_of(task, *time_steps(contenders, task, rounds), dropped))
        course = course_run(device, epochs, images)
    finally:  # what was measured is kept, whatever happened next
        head = {"provenance": device_provenance(where), "failed": failed, "left_out": left_out}
        save(out, {**head, "rows": rows, "course_run": course})
    if failed:
        raise SystemExit(f"failed, or differed from its peers: {', '.join(sorted(set(failed)))}")
