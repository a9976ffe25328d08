"""What the trainer tells while it trains, and the callbacks that act on it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.environment import in_notebook
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.progress import ProgressBar
from fastmlp.utils.signals import stop_on_signals

if TYPE_CHECKING:
    from fastmlp.training.run import TrainingRun
    from fastmlp.training.trainer import Trainer


class Callback:
    """Base class: does nothing. The methods are called in the order in which they stand here."""

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


class StopWhen(Callback):
    """Stops when a function returns true."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def should_stop(self) -> bool:
        return self._condition()


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
        elif not run.finished or not self._folder.whole:
            self._save(run)
        if run.checkpoint.history:
            self._draw(run)
        if run.finished and run.error is None:
            self._folder.write_summary(run.summary)

    def _save(self, run: TrainingRun) -> None:
        if not self._folder.whole:
            warnings.warn(
                f"{self._folder.path} was removed while the run trained; it is made again",
                stacklevel=2,
            )
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
