"""What the trainer tells while it trains, and the callbacks that act on it."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fastmlp.engines.metrics import EpochRecord
from fastmlp.training.option_schema import NOT_NEGATIVE, one_of, whole
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.environment import in_notebook
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.progress import ProgressBar
from fastmlp.utils.signals import stop_on_signals

if TYPE_CHECKING:
    from fastmlp.training.run import TrainingRun
    from fastmlp.training.trainer import Trainer


class Callback:
    """Base class: does nothing. The methods are called in the order in which they stand here.

    >>> import fastmlp, numpy as np
    >>> class Count(Callback):
    ...     epochs = 0
    ...     def on_epoch_end(self, trainer):
    ...         self.epochs += 1
    >>> count, X = Count(), np.random.default_rng(0).normal(size=(50, 3))
    >>> run = fastmlp.fit(X, X[:, 0] > 0, epochs=3, callbacks=[count])
    >>> count.epochs
    3
    """

    def on_train_begin(self, trainer: Trainer) -> None:
        """Training begins or resumes."""

    def should_stop(self) -> bool:
        """Return whether to stop: asked before each epoch and after each step or block of them."""
        return False

    def on_progress(self, trainer: Trainer) -> None:
        """``TrainingRun.under_way`` has changed; called a few times a second."""

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        """A run has finished an epoch; ``improved``: with the best parameters so far."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """All active runs have finished an epoch, diverged or been stopped."""

    def on_goals(self, trainer: Trainer) -> bool:
        """All runs have reached their epoch goals or were stopped; return whether new goals were
        set."""
        return False

    def on_train_end(self, trainer: Trainer) -> None:
        """Training is over, or was stopped; not called after an exception."""

    def close(self) -> None:
        """Release what the callback holds; called however training ends."""


def checked_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks as a list; raise UserError where they are none."""
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise UserError("callbacks must be a list; write callbacks=[...] around a single one")
    found = list(callbacks)
    for each in found:
        if not isinstance(each, Callback):
            raise UserError(
                f"callbacks must be of classes made from fastmlp.callbacks.Callback, got {each!r}"
            )
    return found


class StopWhen(Callback):
    """Stops when a function returns true.

    >>> import fastmlp, numpy as np, time
    >>> X, end = np.random.default_rng(0).normal(size=(50, 3)), time.monotonic() + 0.2
    >>> stop = StopWhen(lambda: time.monotonic() > end)
    >>> run = fastmlp.fit(X, X[:, 0] > 0, epochs=100_000, callbacks=[stop])
    >>> run.interrupted
    True
    """

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def should_stop(self) -> bool:
        return self._condition()


class EarlyStopping(Callback):
    """Ends a run after ``patience`` epochs in a row that are not better by more than ``min_delta``
    than the best before them; it counts as finished, with the parameters of its best epoch.

    ``monitor`` is a field of :class:`~fastmlp.engines.metrics.EpochRecord`, of which less is better
    where its name ends in "loss"; without one it is what decides on the best epoch: accuracy in
    validation, or loss in a regression. Without ``patience`` each run's is that of its
    configuration, where 0 means never. Of several runs each is ended by itself. Only the history
    counts, so a resumed run ends where it would have ended.

    >>> import fastmlp
    >>> EarlyStopping(patience=5, monitor="val_loss", min_delta=1e-4).patience
    5

    As ``keras.callbacks.EarlyStopping``. Raises :class:`UserError` for values that cannot be used.
    """

    def __init__(
        self, patience: int | None = None, *, monitor: str | None = None, min_delta: float = 0.0
    ) -> None:
        if patience is not None:
            whole(1).check("patience", patience)
        NOT_NEGATIVE.check("min_delta", min_delta)
        if monitor is not None:
            one_of(field.name for field in fields(EpochRecord)).check("monitor", monitor)
        self.patience, self._monitor, self._min_delta = patience, monitor, min_delta

    def on_train_begin(self, trainer: Trainer) -> None:
        for run in trainer.runs:
            self._check(run)

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        self._check(run)

    def _check(self, run: TrainingRun) -> None:
        patience = run.config.patience if self.patience is None else self.patience
        if patience and self._waited(run.checkpoint.history) >= patience:
            run.stop_early()

    def _waited(self, history: Sequence[EpochRecord]) -> int:
        """Return the number of epochs since the last that was better than all before it."""
        best, waited = -math.inf, 0
        for record in history:
            value = self._value(record)
            if value > best + (self._min_delta if best > -math.inf else 0):
                best, waited = value, 0
            else:
                waited += 1
        return waited

    def _value(self, record: EpochRecord) -> float:
        if self._monitor is None:
            return record.score
        value = float(getattr(record, self._monitor))
        return -value if self._monitor.endswith("loss") else value


class StopOnSignals(Callback):
    """Stops after the present step on Ctrl-C, SIGTERM and SIGHUP."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._stopped: Callable[[], bool] = lambda: False

    def on_train_begin(self, trainer: Trainer) -> None:
        self._stopped = self._stack.enter_context(stop_on_signals())

    def should_stop(self) -> bool:
        return self._stopped()

    def close(self) -> None:
        self._stack.close()


class ShowBar(Callback):
    """Shows a bar with the time left, in epochs of the longest run, in a notebook."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        if in_notebook():
            epochs = max(run.config.epochs for run in trainer.runs)
            self._bar = ProgressBar(epochs, self._text(trainer), terminal=False)
            self.on_progress(trainer)

    def on_progress(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.move(trainer.epochs_done, self._text(trainer))

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.on_progress(trainer)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    @staticmethod
    def _text(trainer: Trainer) -> str:
        count = len(trainer.active)
        return "training" if count <= 1 else f"training {count} networks"


class SaveRun(Callback):
    """Keeps the files of a single run in its folder; ``resumed``: it was there already;
    ``encoding`` is what ``encoding.json`` is to hold."""

    def __init__(
        self, folder: RunDirectory, resumed: bool, encoding: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._resumed, self._encoding = folder, resumed, encoding

    def on_train_begin(self, trainer: Trainer) -> None:
        (run,) = trainer.runs
        if self._resumed:
            if self._folder.has_encoding:
                self._encoding = self._folder.read_encoding()
            self._folder.reopen()
            self._folder.save(run.save_point())
            self._folder.write_config(run.config)
        else:
            self._write_config(run)  # first: it makes the folder that of a run
            self._folder.save(run.save_point())

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        if run.epoch % run.config.save_every == 0 or run.finished:
            self._save(run)
        elif improved:
            self._folder.save_best(run.checkpoint)

    def on_train_end(self, trainer: Trainer) -> None:
        (run,) = trainer.runs
        if run.error is not None:  # the parameters are lost: resume.pt stays as it was
            if run.checkpoint.history:
                self._folder.write_metrics(run.checkpoint)
            elif not self._resumed:
                self._folder.discard()
        elif not run.finished or run.stopped_early or not self._folder.whole:
            # where it was stopped early, that was not known when its last epoch was told
            self._save(run)
        finished = run.finished and run.error is None
        if run.checkpoint.history:
            try:
                self._draw(run)
            except UserError:
                raise  # a disk that fails: the run is finished once its picture is there
            except Exception:
                if finished:
                    self._folder.write_summary(run.summary)
                raise
        if finished:
            self._folder.write_summary(run.summary)

    def _save(self, run: TrainingRun) -> None:
        if not self._folder.whole:
            warnings.warn(
                f"{self._folder.path} was removed while the run trained; it is made again",
                stacklevel=2,
            )
            self._folder.lock()
            self._write_config(run)
        self._folder.save(run.save_point())

    def _write_config(self, run: TrainingRun) -> None:
        self._folder.write_config(run.config)
        if self._encoding is not None:
            self._folder.write_encoding(self._encoding)

    def _draw(self, run: TrainingRun) -> None:
        from fastmlp.plotting.curves import learning_curves  # matplotlib takes a second to import

        network = "-".join(map(str, run.sizes))
        title = f"{self._folder.path.name}: {run.data.name}, {network}"
        best = run.checkpoint.best_record.epoch
        try:
            learning_curves(run.checkpoint.history, best, title, self._folder.path / "curves.png")
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
