"""A sweep: many configurations, each with several seeds, trained side by side and compared."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastmlp.data.splits import DataSplits
from fastmlp.sweeps.checkpoint import SweepDirectory, config_key
from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.results import SweepResult, make_result
from fastmlp.sweeps.search_space import check_count, plan
from fastmlp.training.api import Run, runs_of, thread_count
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.cohort import Cohort
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import load_splits
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.signals import stop_on_signals

if TYPE_CHECKING:
    pass


def sweep(
    base: TrainConfig,
    values: Mapping[str, Sequence[Any]],
    *,
    vary: str = "one",
    seeds: int = 1,
    successive_halving: bool = False,
    data: DataSplits | None = None,
    out: str | Path | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_epoch: Callable[[SweepResult, int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> SweepResult:
    """Trains the configurations that :func:`~fastmlp.sweeps.search_space.plan` makes of ``values``,
    each with ``seeds`` seeds from the base's on, all side by side, and compares them on the
    validation part.

    Each run comes to what ``fit`` makes of it. One that diverges is marked so. With
    ``successive_halving`` the half of the configurations with the lower scores is dropped after an
    eighth, a quarter and a half of the epochs. ``out`` is a folder for the results, new, empty or
    that of the same sweep, which then goes on where it was stopped. Under ``torchrun`` every
    process trains its share, on a GPU of its own where there are any, and all get the whole result.
    ``on_epoch`` gets the results so far, of this process, and the number of epochs done;
    ``on_progress``, several times a second, that number with its fraction. Raises
    :class:`UserError`.
    """
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, got {seeds}", EXIT_USAGE)
    base, configs = plan(base, values, vary)
    check_count(len(configs), seeds)
    lists = {
        name: list(dict.fromkeys(getattr(config, name) for config in configs)) for name in values
    }
    workers = ProcessGroup.join()
    out = workers.gather([out])[0]  # where it is named by the time, each has its own
    with contextlib.ExitStack() as stack:
        data = data or workers.first_then_others(lambda: load_splits(base, workers.is_first))
        folder = stack.enter_context(SweepDirectory.at(out, workers)) if out is not None else None
        stack.enter_context(thread_count(base.threads or torch.get_num_threads()))
        stop = should_stop or stack.enter_context(stop_on_signals())
        seeded = [replace(c, seed=c.seed + s) for s in range(seeds) for c in configs]
        under_way = _Sweep((base, lists, configs), workers.share(seeded), data, folder, workers)
        rungs = _rungs(base.epochs) if successive_halving else []
        under_way.run(stop, rungs, on_epoch, on_progress)
        interrupted = any(workers.gather([bool(under_way.cohort.running)]))
        result = make_result(base, lists, configs, workers.gather(under_way.runs()))
        result = replace(result, interrupted=interrupted)
        if folder is not None and workers.is_first:
            folder.write(result)
        return result


def _rungs(epochs: int) -> list[int]:
    return sorted({epochs // part for part in (8, 4, 2)} - {0})


class _Sweep:
    """This process's share of a sweep under way."""

    def __init__(
        self,
        plan: tuple[TrainConfig, dict[str, list[Any]], list[TrainConfig]],
        seeded: list[TrainConfig],
        data: DataSplits,
        folder: SweepDirectory | None,
        workers: ProcessGroup,
    ) -> None:
        self.plan, self.seeded, self.folder, self.workers = plan, seeded, folder, workers
        states = folder.read_states() if folder is not None else {}
        self.cohort = Cohort(
            [workers.placed(config) for config in seeded],
            data,
            [states.get(config_key(config)) for config in seeded],
        )

    def run(
        self,
        stop: Callable[[], bool],
        rungs: Sequence[int],
        on_epoch: Callable[[SweepResult, int], None] | None,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        """Trains until all are done or ``stop()`` is true; saves now and then, and at the end."""
        cohort, alive = self.cohort, set(self.plan[2])
        for rung in (*rungs, self.plan[0].epochs):
            cohort.goals = [rung if self._unseeded(c) in alive else 0 for c in self.seeded]
            self._train(stop, on_epoch, on_progress)
            if any(self.workers.gather([bool(cohort.running)])):
                break  # stopped, perhaps in another process
            if rung in rungs:
                alive = self._better_half(alive, rung)
        if self.folder is not None:
            self.folder.save(self._states())

    def _train(
        self,
        stop: Callable[[], bool],
        on_epoch: Callable[[SweepResult, int], None] | None,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        """Trains until the runs have come to their goals or ``stop()`` is true."""
        while running := self.cohort.running:
            if stop():
                break
            trainings = [self.cohort.trainings[i] for i in running]
            images = sum(training.images for training in trainings)
            before = self.epoch + sum(t.state.partial.samples for t in trainings) / images

            def report(done: int, before: float = before, images: int = images) -> None:
                if on_progress is not None:
                    on_progress(before + done / images)

            self.cohort.train_epoch(stop, report)
            if self.folder is not None:
                self.folder.save_now_and_then(self._states)
            if on_epoch is not None:
                on_epoch(make_result(*self.plan, self.runs()), self.epoch)

    @property
    def epoch(self) -> int:
        """How many epochs the running runs have done."""
        running = self.cohort.running or range(len(self.seeded))
        return max((self.cohort.trainings[i].epoch for i in running), default=0)

    def _better_half(self, alive: set[TrainConfig], rung: int) -> set[TrainConfig]:
        """Those of these configurations with the better half of the scores after so many epochs,
        whatever they have come to since: the same in every process and sitting."""
        runs = [
            replace(run, history=run.history[:rung])
            for run in self.workers.gather(self.runs())
            if self._unseeded(run.config) in alive
        ]
        trials = make_result(*self.plan, runs).trials
        trials.sort(key=lambda trial: trial.score, reverse=True)
        return {trial.config for trial in trials[: math.ceil(len(trials) / 2)]}

    def _unseeded(self, config: TrainConfig) -> TrainConfig:
        return replace(config, seed=self.plan[0].seed)

    def _states(self) -> dict[str, Checkpoint]:
        """Those of runs that diverged are left out: what they were is lost."""
        states = zip(map(config_key, self.seeded), self.cohort.states(), strict=True)
        return {key: s for i, (key, s) in enumerate(states) if i not in self.cohort.errors}

    def runs(self) -> list[Run]:
        """What the runs have come to so far."""
        return runs_of(self.cohort, self.seeded, {})
