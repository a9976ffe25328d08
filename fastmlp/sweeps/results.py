"""The results of a sweep: trials, tables, pictures."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmlp.engines.metrics import best_of
from fastmlp.sweeps.search_space import shown
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import RunResult
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import write_text

if TYPE_CHECKING:
    from fastmlp.plotting.sweeps import SweepPoint
    from fastmlp.training.trainer import Trainer


@dataclass(frozen=True)
class Trial:
    """A configuration and its runs with different seeds. It is shown by accuracies, shares, 0 to 1,
    or in a regression by losses; nan where no run has got so far."""

    config: TrainConfig
    runs: list[RunResult]

    @property
    def status(self) -> str:
        """ "finished", "diverged" where any of its runs has, or how far they have come."""
        if any(run.diverged for run in self.runs):
            return "diverged"
        done = min(len(run.history) for run in self.runs)
        return "finished" if done == self.config.epochs else f"{done} epochs"

    @property
    def best_val(self) -> tuple[float, float]:
        """Mean and standard deviation over the seeds of the best epoch in validation."""
        return mean_sd(
            [best_of(run.history).shown[1] if run.history else math.nan for run in self.runs]
        )

    @property
    def final_val(self) -> tuple[float, float]:
        """Mean and standard deviation over the seeds of the last epoch in validation."""
        return mean_sd([run.history[-1].shown[1] if run.history else math.nan for run in self.runs])

    @property
    def final_train(self) -> tuple[float, float]:
        """Mean and standard deviation over the seeds of the last epoch in training."""
        return mean_sd([run.history[-1].shown[0] if run.history else math.nan for run in self.runs])

    @property
    def score(self) -> float:
        """The mean of the runs' best :attr:`~fastmlp.engines.metrics.EpochRecord.score`, by which
        trials are compared; minus infinity for a diverged one and where a run has not got so far.
        """
        if self.status == "diverged" or not all(run.history for run in self.runs):
            return -math.inf
        return statistics.fmean(best_of(run.history).score for run in self.runs)


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of a sample; the latter is 0 for a single value. Both are
    nan where a value is."""
    if any(map(math.isnan, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep: a trial for each configuration, in the order they were planned."""

    base: TrainConfig
    """The configuration that "one at a time" starts from."""
    values: dict[str, list[Any]]
    """The hyper-parameters that were varied, and their values."""
    trials: list[Trial]
    interrupted: bool = False
    """Whether it was stopped before its end."""

    def __repr__(self) -> str:
        varied = ", ".join(f"{name} ({len(values)})" for name, values in self.values.items())
        return f"SweepResult({len(self.trials)} trials, {len(self.runs)} runs, of {varied})"

    @property
    def runs(self) -> list[RunResult]:
        """All runs: every configuration with every seed."""
        return [run for trial in self.trials for run in trial.runs]

    @property
    def regression(self) -> bool:
        """Whether it is shown by losses and not by accuracies."""
        return any(record.regression for run in self.runs for record in run.history[:1])

    @property
    def best_trial(self) -> Trial:
        """The trial with the best score, of equals one that has come furthest."""
        return max(self.trials, key=lambda t: (t.score, min(len(r.history) for r in t.runs)))

    @property
    def best(self) -> TrainConfig:
        """The configuration with the best score. Raises :class:`UserError` where all diverged."""
        best = self.best_trial
        if best.score == -math.inf:
            raise UserError("No run of the sweep has finished an epoch; try smaller values of lr")
        return best.config

    @property
    def best_values(self) -> dict[str, Any]:
        """The best configuration's values of what was varied."""
        return {name: getattr(self.best, name) for name in self.values}

    def points(self, name: str) -> list[SweepPoint]:
        """Return the trials that differ from the base in ``name`` only, by its value; for values
        without any, all trials with that value."""
        by_value: dict[Any, list[Trial]] = {}
        for trial in self.trials:
            by_value.setdefault(getattr(trial.config, name), []).append(trial)
        from fastmlp.plotting.sweeps import SweepPoint

        others = [other for other in self.values if other != name]
        points = []
        for value, trials in by_value.items():
            alone = [
                trial
                for trial in trials
                if all(getattr(trial.config, o) == getattr(self.base, o) for o in others)
            ]
            runs = [run for trial in alone or trials for run in trial.runs]
            early = [run for run in runs if len(run.history) < run.config.epochs]
            ends = {"diverged" if run.diverged else "stopped" for run in early}
            histories = [run.history for run in runs]
            points.append(SweepPoint(shown(value), histories, " or ".join(sorted(ends))))
        numbers = [p for p in points if not isinstance(p.value, str)]
        return sorted(points, key=lambda p: p.value) if len(numbers) == len(points) else points

    def to_csv(self, path: str | Path) -> None:
        """Write a row for each run to a file: the values that were varied, the seed, how it ended,
        its losses and accuracies (shares, 0 to 1, nan in a regression) and seconds of training."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.values, "seed", "status", "epochs", *RESULT_COLUMNS])
        for run in self.runs:
            settings = [shown(getattr(run.config, name)) for name in self.values]
            last = run.history[-1] if run.history else None
            best = best_of(run.history) if run.history else None
            results = (
                [last.train_loss, last.train_acc, last.val_loss, last.val_acc, best.epoch]
                if last and best
                else [""] * 5
            )
            done = len(run.history) == run.config.epochs
            status = "diverged" if run.diverged else "finished" if done else "stopped"
            seconds = round(sum(r.seconds for r in run.history), 3)
            best_acc = best.val_acc if best else ""
            writer.writerow(
                [*settings, run.config.seed, status, len(run.history), *results, best_acc, seconds]
            )
        write_text(path, text.getvalue())

    def plot(self, folder: str | Path) -> list[Path]:
        """Draw a picture ``sweep-NAME.png`` for each hyper-parameter into the folder."""
        from fastmlp.plotting.sweeps import sweep_picture  # matplotlib takes a second to import

        targets = []
        for name in self.values:
            target = Path(folder) / f"sweep-{name.replace('_', '-')}.png"
            sweep_picture(name, self.points(name), target)
            targets.append(target)
        return targets


RESULT_COLUMNS = (
    *("train_loss", "train_acc", "val_loss", "val_acc"),
    *("best_epoch", "best_val_acc", "seconds"),
)


def make_result(
    base: TrainConfig,
    values: dict[str, list[Any]],
    configs: list[TrainConfig],
    runs: list[RunResult],
) -> SweepResult:
    """Return the runs as trials of their configurations, leaving out those without a run yet."""
    of: dict[TrainConfig, list[RunResult]] = {config: [] for config in configs}
    for run in runs:
        of[replace(run.config, seed=base.seed)].append(run)
    trials = [
        Trial(config, sorted(mine, key=lambda run: run.config.seed))
        for config, mine in of.items()
        if mine
    ]
    return SweepResult(base, values, trials)


@dataclass(frozen=True)
class SweepShare:
    """The plan of a sweep, and the runs of it that this process trains."""

    base: TrainConfig
    values: dict[str, list[Any]]
    configs: list[TrainConfig]
    """The configurations of the whole sweep, with the base's seed."""
    seeded: list[TrainConfig]
    """The configurations of this process's runs, each with its own seed."""

    def runs(self, trainer: Trainer) -> list[RunResult]:
        """Return what this process's runs have come to so far."""
        return [run.result(config) for config, run in zip(self.seeded, trainer.runs, strict=True)]

    def result(self, runs: list[RunResult]) -> SweepResult:
        """Return the result that consists of these runs."""
        return make_result(self.base, self.values, self.configs, runs)

    def without_seed(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration, with the base's seed, that a run belongs to."""
        return replace(config, seed=self.base.seed)
