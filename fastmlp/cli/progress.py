"""The display of a command: lines on a stream, and a bar on a terminal."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TextIO

import rich.progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from fastmlp.engines.metrics import EpochMetrics, EpochRecord
from fastmlp.training.loggers import PrintEpochs, epoch_line, unit_of
from fastmlp.training.run import TrainingRun
from fastmlp.training.trainer import Trainer
from fastmlp.utils.untrusted import printable


class Lines:
    """Writes lines to ``stream``, or none if it is None; ``quiet`` omits all but :meth:`final`."""

    def __init__(self, stream: TextIO | None, quiet: bool) -> None:
        self.stream = stream
        self.verbose = stream is not None and not quiet

    def say(self, text: str) -> None:
        """Write a line for those who want to follow."""
        if self.verbose:
            self.final(text)

    def final(self, text: str) -> None:
        """Write a line that is wanted even of a quiet command."""
        if self.stream is not None:
            print(text, file=self.stream, flush=True)


ONE_LINE = Column(no_wrap=True)
WIDE = 100
"""The width of a terminal, in characters, on which a bar has room for the speed."""


class TimeLeft(rich.progress.TimeRemainingColumn):
    """The time left, as "00:12 left"."""

    def __init__(self) -> None:
        super().__init__(compact=True, table_column=ONE_LINE)

    def render(self, task: rich.progress.Task) -> Text:
        return super().render(task).append(" left")


class Rate(rich.progress.ProgressColumn):
    """The speed, as "24,000 images/s"."""

    def __init__(self, unit: str) -> None:
        super().__init__(ONE_LINE)
        self._unit = unit

    def render(self, task: rich.progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{f'{speed:,.0f}' if speed else '?'} {self._unit}/s")


def one_line(template: str) -> rich.progress.TextColumn:
    """Return a column of text that does not wrap."""
    return rich.progress.TextColumn(template, table_column=ONE_LINE)


def make_bar(console: Console, *columns: rich.progress.ProgressColumn) -> rich.progress.Progress:
    """Return a bar between its description and ``columns`` with the time left; it is removed when
    it is stopped, and drawn anew only when it is told to."""
    return rich.progress.Progress(
        one_line("{task.description} |"),
        rich.progress.BarColumn(bar_width=None),
        one_line("|{task.percentage:3.0f}%"),
        *columns,
        TimeLeft(),
        console=console,
        expand=True,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


class Progress(Lines):
    """The progress of one run: a line for each epoch and, where ``bar`` is true, a bar on standard
    error."""

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, bar: bool = False
    ) -> None:
        super().__init__(stream, quiet)
        self._wants_bar = bar and self.verbose
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        self._epochs = 0
        self._images = 0
        self.unit = "images"
        """What the data has many of."""
        self._validation = ""

    def start(self, epochs: int, images: int, done: int, unit: str = "images") -> None:
        """Begin a run of ``epochs`` epochs of ``images`` images each, or resume it after ``done``
        images; ``unit`` is what they are called."""
        self._epochs, self._images, self.unit = epochs, images, unit
        if self._wants_bar:
            console = Console(file=sys.stderr, force_terminal=True, highlight=False)
            rate = [Rate(unit)] if console.width >= WIDE else []
            self._bar = make_bar(console, one_line("{task.fields[text]}"), *rate)
            epoch = f"epoch {min(done // images + 1, epochs)}/{epochs}"
            self._task = self._bar.add_task(epoch, total=epochs * images, completed=done, text="")
            self._bar.start()

    def step(self, epoch: int, metrics: EpochMetrics) -> None:
        """Show what is done of the epoch, counted from 1."""
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=f"epoch {epoch}/{self._epochs}",
                text=f"loss {metrics.loss:.3f}, accuracy {metrics.accuracy:.1%}{self._validation}",
                completed=(epoch - 1) * self._images + metrics.samples,
                refresh=True,  # the engine chooses the moments
            )

    def epoch(self, record: EpochRecord, improved: bool) -> None:
        """Tell that an epoch is done; ``improved``: its parameters are the best so far."""
        line = epoch_line(record, self._epochs, self.unit, improved)
        regression = math.isnan(record.val_acc)
        validation = f"loss {record.val_loss:.3f}" if regression else f"{record.val_acc:.1%}"
        self._validation = f", validation {validation}"
        if self._bar is not None:
            self._bar.stop()  # the line takes the bar's place, and the bar moves below it
        self.say(line)
        if self._bar is not None and record.epoch < self._epochs:
            self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class ShowRun(PrintEpochs):
    """Shows a single run, which has its files in ``folder``."""

    def __init__(self, progress: Progress, folder: Path) -> None:
        super().__init__(progress.stream)
        self._progress, self._folder = progress, folder

    def on_train_begin(self, trainer: Trainer) -> None:
        (run,) = trainer.runs
        config, data, say = run.config, trainer.data, self._progress.say
        parts = ", ".join(
            f"{len(part.labels):,} {name}"
            for name, part in (
                ("to train", data.train),
                ("to validate", data.val),
                ("to test", data.test),
            )
            if part is not None
        )
        say(f"data     {printable(data.name)} from {printable(data.source)}: {parts}")
        network = "-".join(map(str, run.sizes))
        say(f"network  {network}, {run.steps} batches of {config.batch_size} an epoch")
        say(f"engine   {config.engine} on {config.device} ({run.checkpoint.engine_reason})")
        say(f"folder   {self._folder}")
        partial = run.checkpoint.partial
        if run.epoch or partial.steps:
            say(f"resumed  after {run.epoch} epochs and {partial.steps} steps")
        done = run.epoch * run.images + partial.samples
        self._progress.start(config.epochs, run.images, done, unit_of(trainer))

    def on_progress(self, trainer: Trainer) -> None:
        (run,) = trainer.runs
        self._progress.step(run.epoch + 1, run.under_way)

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        self._progress.epoch(run.checkpoint.history[-1], improved)

    def close(self) -> None:
        self._progress.close()
