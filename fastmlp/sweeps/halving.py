"""Successive halving: the worse half of a sweep's configurations is dropped on the way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.results import SweepShare
from fastmlp.training.callbacks import Callback

if TYPE_CHECKING:
    from fastmlp.training.trainer import Trainer


class SuccessiveHalving(Callback):
    """Drops the half of the configurations with the lower scores after an eighth, a quarter and a
    half of the epochs: the same in every process and sitting."""

    def __init__(self, share: SweepShare, workers: ProcessGroup) -> None:
        self._share, self._workers = share, workers
        self._alive = set(share.configs)
        epochs = share.base.epochs
        self._rungs = sorted({epochs // part for part in (8, 4, 2)} - {0})

    def on_train_begin(self, trainer: Trainer) -> None:
        self._set_goals(trainer)

    def on_goals(self, trainer: Trainer) -> bool:
        if not self._rungs:
            return False
        if any(self._workers.gather([bool(trainer.active)])):
            return False  # stopped, perhaps in another process
        self._drop_worse_half(trainer, self._rungs.pop(0))
        self._set_goals(trainer)
        return True

    def _set_goals(self, trainer: Trainer) -> None:
        """Let each run that is alive train to the next comparison, or to its end."""
        goal = self._rungs[0] if self._rungs else self._share.base.epochs
        for config, run in zip(self._share.seeded, trainer.runs, strict=True):
            run.goal = goal if self._share.without_seed(config) in self._alive else 0

    def _drop_worse_half(self, trainer: Trainer, rung: int) -> None:
        """Compare the scores after ``rung`` epochs, whatever the runs have come to since."""
        runs = [
            replace(run, history=run.history[:rung])
            for run in self._workers.gather(self._share.runs(trainer))
            if self._share.without_seed(run.config) in self._alive
        ]
        trials = self._share.result(runs).trials
        trials.sort(key=lambda trial: trial.score, reverse=True)
        self._alive = {trial.config for trial in trials[: math.ceil(len(trials) / 2)]}
