"""Train networks: one with :func:`fit`, many side by side with :func:`fit_many`, and one that was
stopped with :func:`resume`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.splits import DataSplits
from fastmlp.training.callbacks import (
    Callback,
    SaveRun,
    ShowBar,
    StopOnSignals,
    StopWhen,
    checked_callbacks,
)
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import load_splits
from fastmlp.training.loggers import PrintEpochs
from fastmlp.training.run import DivergedError, RunResult, TrainingRun
from fastmlp.training.run_directory import RunDirectory
from fastmlp.training.trainer import Trainer, thread_count
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.files import expanded


def fit(
    config: TrainConfig,
    data: DataSplits | None = None,
    *,
    out: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    should_stop: Callable[[], bool] | None = None,
    verbose: bool = False,
    encoding: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train a network, keep the parameters of the best epoch, and test those.

    ``data`` is loaded as ``config`` says where it is not given; ``verbose`` shows downloads, and
    prints a line for each epoch unless one of the callbacks does.
    ``out`` is a folder for the run's files (:mod:`fastmlp.training.run_directory`), new or empty;
    without one nothing is written. ``encoding``, how raw rows became the data, is kept there as
    ``encoding.json``. Where ``should_stop`` is not given, Ctrl-C, SIGTERM and SIGHUP let the
    present step finish and end the run. A notebook shows a bar. Raises :class:`UserError` for what
    the user can mend and :class:`DivergedError`.
    """
    callbacks = _with_lines(checked_callbacks(callbacks), verbose)
    with RunDirectory.new(out) if out is not None else contextlib.nullcontext() as folder:
        if data is None:
            data = load_splits(config, verbose)
            config = replace(config, dataset=data.name)  # "auto" means the same when resumed
        files: list[Callback] = []
        if folder is not None:
            files = [SaveRun(folder, resumed=False, encoding=encoding)]
        return _train_one(config, data, folder, None, [*files, *callbacks], should_stop)


def fit_many(
    configs: Sequence[TrainConfig],
    data: DataSplits | None = None,
    *,
    callbacks: Iterable[Callback] = (),
    should_stop: Callable[[], bool] | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> list[RunResult]:
    """Train many configurations side by side on the same data; write no files.

    Each run comes to what :func:`fit` makes of it. One that diverges says so and disturbs no other.
    ``data`` is loaded as the first configuration says where it is not given. ``on_epoch`` is told
    the number of epochs done and that of the longest run.

    >>> import fastmlp, torch
    >>> from fastmlp.data.splits import DataSplits, Subset
    >>> images = torch.randint(256, (60, 12), dtype=torch.uint8)
    >>> part = Subset(images, images[:, 0].long() // 128)
    >>> configs = [fastmlp.TrainConfig(hidden=8, epochs=2, lr=lr) for lr in (0.01, 0.001)]
    >>> runs = fastmlp.fit_many(configs, DataSplits(part, part, part, classes=2))
    >>> [len(run.history) for run in runs]
    [2, 2]
    """
    if not configs:
        return []
    data = data or load_splits(configs[0])
    threads = configs[0].threads or torch.get_num_threads()
    configs = [replace(config, threads=threads) for config in configs]
    callbacks = [stopping(should_stop), *checked_callbacks(callbacks), ShowBar()]
    if on_epoch is not None:
        callbacks.append(_CountEpochs(on_epoch, max(config.epochs for config in configs)))
    with thread_count(threads):
        trainer = Trainer(configs, data, callbacks=callbacks)
        trainer.fit(test=True)
    return [run.result() for run in trainer.runs]


def resume(
    path: str | Path,
    data: DataSplits | None = None,
    *,
    epochs: int | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    callbacks: Iterable[Callback] = (),
    should_stop: Callable[[], bool] | None = None,
    verbose: bool = False,
) -> RunResult:
    """Resume the run in the folder ``path`` as if it had never stopped, bit by bit.

    A run on rows of one's own goes on with ``fit(X, y, out=path, resume=True)``.
    ``epochs`` trains it longer; ``device`` and ``data_dir`` replace what its configuration says.
    On another kind of device the results agree to rounding. Otherwise as :func:`fit`.

    >>> import fastmlp, tempfile
    >>> constant = {"dataset": "synthetic", "lr_schedule": "constant"}
    >>> config = fastmlp.TrainConfig(hidden=8, epochs=1, **constant)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = fastmlp.fit(config, out=folder)
    ...     longer = fastmlp.resume(folder, epochs=2)
    >>> len(longer.history), longer.history[0] == run.history[0]
    (2, True)
    """
    callbacks = _with_lines(checked_callbacks(callbacks), verbose)
    given: dict[str, Any] = {"epochs": epochs, "device": device, "data_dir": data_dir}
    given = {key: value for key, value in given.items() if value is not None}
    with RunDirectory.existing(path) as folder:
        old, checkpoint = folder.read_config(), folder.read_state()
        config = _resumed_config(old, checkpoint, given)
        if data is None and folder.has_encoding:
            raise UserError(
                f"The run in {folder.path} was trained on rows of your own; call fit(X, y, "
                "out=..., resume=True) with these and the same options to go on with it"
            )
        if data is None:  # never from where a stranger's file says
            data = load_splits(config, verbose, download=False)
        all_callbacks = [SaveRun(folder, resumed=True), *callbacks]
        return _train_one(config, data, folder, checkpoint, all_callbacks, should_stop)


def _with_lines(callbacks: list[Callback], verbose: bool) -> list[Callback]:
    """Return the callbacks, and one that prints the epochs where ``verbose`` wants it and none of
    them does."""
    if verbose and not any(isinstance(callback, PrintEpochs) for callback in callbacks):
        return [*callbacks, PrintEpochs()]
    return callbacks


def stopping(should_stop: Callable[[], bool] | None) -> Callback:
    """Return the callback that stops training when ``should_stop`` says so, or on a signal."""
    return StopWhen(should_stop) if should_stop is not None else StopOnSignals()


def _resumed_config(old: TrainConfig, checkpoint: Checkpoint, given: dict[str, Any]) -> TrainConfig:
    """Return the configuration that a run resumes with: ``given`` replaces values of the old."""
    config = replace(old, **given)
    done = len(checkpoint.history)
    if config.epochs < done:
        raise UserError(
            f"epochs must be at least the {done} already done, got {config.epochs}",
            EXIT_USAGE,
            options=("epochs",),
        )
    if config.epochs != old.epochs and config.lr_schedule != "constant":
        raise UserError(
            f"The {config.lr_schedule} learning-rate schedule of this run is laid out for "
            f"{old.epochs} epochs, so their number cannot change; start a new run, with "
            "lr_schedule constant if it may go on later",
            EXIT_USAGE,
            options=("lr_schedule",),
        )
    if config.device != old.device:
        config = replace(config, engine="auto")  # not every engine runs on every device
    return config


def _train_one(
    config: TrainConfig,
    data: DataSplits,
    folder: RunDirectory | None,
    checkpoint: Checkpoint | None,
    callbacks: Iterable[Callback],
    should_stop: Callable[[], bool] | None,
) -> RunResult:
    config = replace(config, threads=config.threads or torch.get_num_threads())
    if config.data_dir is not None:  # means the same when resumed from another folder
        config = replace(config, data_dir=os.path.abspath(expanded(config.data_dir)))
    with thread_count(config.threads):
        trainer = Trainer(
            [config], data, [checkpoint], [stopping(should_stop), *callbacks, ShowBar()]
        )
        trainer.fit(test=True)
    (run,) = trainer.runs
    if run.error is not None:
        raise _with_folder(run.error, run, folder) from run.error.__cause__
    path = folder.path if folder is not None else None
    summary = run.summary if run.finished else {}
    return replace(run.result(), folder=path, summary=summary)


def _with_folder(
    error: DivergedError, run: TrainingRun, folder: RunDirectory | None
) -> DivergedError:
    """Return the error, saying what is left of the run."""
    if folder is None or not run.checkpoint.history:
        return error
    message = f"{error}; the best parameters so far are in {folder.path / 'best.pt'}"
    return DivergedError(message, error.epoch, error.step)


class _CountEpochs(Callback):
    def __init__(self, tell: Callable[[int, int], None], epochs: int) -> None:
        self._tell, self._epochs, self._done = tell, epochs, 0

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._done += 1
        self._tell(self._done, self._epochs)
