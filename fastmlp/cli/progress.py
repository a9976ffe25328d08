"""What a person sees while a run goes on: a bar on a terminal, and one line per epoch."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

from fastmlp.engines.metrics import EpochMetrics, EpochRecord

BAR_FORMAT = "{desc} |{bar}| {percentage:3.0f}%{postfix}  {rate_fmt}  {remaining} left"


class Progress:
    """Writes to ``stream``, and, where ``bar`` is true, draws a bar on standard error.

    ``quiet`` leaves out everything but :meth:`final`. Without a stream nothing is written at all.
    """

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, bar: bool = False
    ) -> None:
        self._stream = stream
        self._quiet = quiet
        self._wants_bar = bar and self.verbose
        self._bar: Any = None
        self._epochs = 0
        self._images = 0
        self._validation = ""

    @property
    def verbose(self) -> bool:
        """Whether more than the last line is wanted."""
        return self._stream is not None and not self._quiet

    def say(self, text: str) -> None:
        """A line for those who want to follow."""
        if self.verbose:
            self.final(text)

    def final(self, text: str) -> None:
        """A line that even a quiet run writes."""
        if self._stream is not None:
            print(text, file=self._stream, flush=True)

    def start(self, epochs: int, images: int, done: int) -> None:
        """A run of ``epochs`` epochs of ``images`` images each begins, or goes on after ``done``
        images."""
        self._epochs, self._images = epochs, images
        if self._wants_bar:
            self._bar = tqdm(
                total=epochs * images,
                initial=done,
                unit=" images",
                unit_scale=True,
                bar_format=BAR_FORMAT,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0,  # the engine chooses the moments
                leave=False,
            )

    def step(self, epoch: int, stats: EpochMetrics) -> None:
        """``stats`` is what is done of the epoch, counted from 1."""
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(
                f"loss {stats.loss:.3f}, accuracy {stats.accuracy:.1%}{self._validation}",
                refresh=False,
            )
            self._bar.update((epoch - 1) * self._images + stats.samples - self._bar.n)

    def epoch(self, record: EpochRecord, improved: bool) -> None:
        """An epoch is done; ``improved``: its parameters are the best so far."""
        width = len(str(self._epochs))
        line = (
            f"epoch {record.epoch:{width}}/{self._epochs}"
            f"  train {record.train_loss:.4f} {record.train_acc:6.2%}"
            f"  validation {record.val_loss:.4f} {record.val_acc:6.2%}"
            f"  lr {record.lr:.4g}  {record.seconds:.2f} s  {record.images_per_s:,.0f} images/s"
            f"{'  [MODEL SAVED]' if improved else ''}"
        )
        self._validation = f", validation {record.val_acc:.1%}"
        if self._bar is None:
            self.say(line)
        else:
            tqdm.write(line, file=self._stream)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
