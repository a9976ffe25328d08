"""Searches by Optuna, in batches of trials that train side by side: samplers, pruners and storage
are Optuna's, so that several machines can share a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastmlp.data.splits import DataSplits
from fastmlp.engines.metrics import best_of
from fastmlp.training.api import stopping
from fastmlp.training.callbacks import Callback
from fastmlp.training.config import TrainConfig, config_from_dict
from fastmlp.training.data import load_splits
from fastmlp.training.option_schema import whole
from fastmlp.training.own_data import resolve_base
from fastmlp.training.trainer import Trainer, thread_count
from fastmlp.utils.errors import UserError

try:
    import optuna
    from optuna.trial import TrialState
except ImportError as error:
    raise ImportError(
        "fastmlp.sweeps.optuna needs the package optuna; pip install optuna"
    ) from error

if TYPE_CHECKING:
    from fastmlp.training.run import RunResult, TrainingRun


def optimize(
    study: optuna.Study,
    suggest: Callable[[optuna.Trial], Mapping[str, Any]],
    base: TrainConfig | Mapping[str, Any],
    data: DataSplits | tuple[object, object] | None = None,
    *,
    n_trials: int,
    batch: int = 16,
    callbacks: Iterable[Callback] = (),
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Run ``n_trials`` trials of ``study``, ``batch`` at a time side by side.

    ``suggest`` returns the options of a trial, which replace those of ``base``; ``base`` and
    ``data`` are those of :func:`fastmlp.sweep`. The study maximizes the validation accuracy of the
    best epoch or, in a regression, minimizes its validation loss. Each epoch is reported, and a
    trial that the study's pruner gives up is stopped; one that diverges fails, as do those under
    way where ``should_stop``, Ctrl-C or SIGTERM stops the search. Trials of a batch are asked for
    before any of them is told: give ``TPESampler`` ``constant_liar=True``. Processes and machines
    with one storage share the study, each with an ``n_trials`` of its own. :func:`best_config`
    returns what was best.

    >>> import optuna, numpy as np
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> X = np.random.default_rng(0).normal(size=(100, 4))
    >>> study = optuna.create_study(direction="maximize")
    >>> optimize(
    ...     study,
    ...     lambda trial: {"lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True)},
    ...     {"epochs": 3, "hidden": 8},
    ...     (X, X[:, 0] > 0),
    ...     n_trials=6,
    ...     batch=3,
    ... )
    >>> best_config(study).lr == study.best_params["lr"]
    True

    Raises :class:`~fastmlp.utils.errors.UserError` for values that cannot be used.
    """
    whole(1).check("n_trials", n_trials)
    whole(1).check("batch", batch)
    base, splits = resolve_base(base, data)
    splits = splits or load_splits(base)
    _check_direction(study, regression=splits.train.labels.is_floating_point())
    left = n_trials
    while left > 0 and _run_batch(
        study, suggest, base, splits, min(batch, left), [*callbacks, stopping(should_stop)]
    ):
        left -= batch


def best_config(study: optuna.Study) -> TrainConfig:
    """Return the configuration of the study's best trial. Raises ValueError, as
    ``study.best_trial``, where none is complete."""
    return config_from_dict(study.best_trial.user_attrs["config"], "the study")


def _check_direction(study: optuna.Study, regression: bool) -> None:
    wanted = "minimize" if regression else "maximize"
    if [direction.name.lower() for direction in study.directions] != [wanted]:
        what = "loss of a regression" if regression else "accuracy"
        raise UserError(
            f"The study must {wanted} the validation {what}; make it with "
            f'optuna.create_study(direction="{wanted}")'
        )


def _run_batch(
    study: optuna.Study,
    suggest: Callable[[optuna.Trial], Mapping[str, Any]],
    base: TrainConfig,
    data: DataSplits,
    size: int,
    callbacks: list[Callback],
) -> bool:
    """Run some trials side by side; return whether they came to their ends."""
    trials: list[optuna.Trial] = []
    told: set[int] = set()
    try:
        for _ in range(size):
            trials.append(study.ask())
        configs = [replace(base, **suggest(trial)) for trial in trials]
        for trial, config in zip(trials, configs, strict=True):
            trial.set_user_attr("config", config.to_dict())
        prune = Prune(trials)
        with thread_count(base.threads):
            trainer = Trainer(configs, data, callbacks=[prune, *callbacks])
            trainer.fit()
        for trial, run in zip(trials, trainer.runs, strict=True):
            told.add(trial.number)
            _tell(study, trial, run.result(), trial.number in prune.pruned)
        return not trainer.active
    finally:  # no trial is left as if it were running
        for trial in trials:
            if trial.number not in told:
                study.tell(trial, state=TrialState.FAIL)


def _tell(study: optuna.Study, trial: optuna.Trial, result: RunResult, pruned: bool) -> None:
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif result.finished:
        study.tell(trial, best_of(result.history).shown[1])
    else:
        study.tell(trial, state=TrialState.FAIL)


class Prune(Callback):
    """Reports each epoch of the runs to their trials, and ends those that the pruner gives up."""

    def __init__(self, trials: list[optuna.Trial]) -> None:
        self._trials = trials
        self.pruned: set[int] = set()
        """The numbers of the trials that were ended."""

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        trial = self._trials[trainer.runs.index(run)]
        trial.report(run.checkpoint.history[-1].shown[1], run.epoch)
        if not run.finished and trial.should_prune():
            self.pruned.add(trial.number)
            run.stop_early()
