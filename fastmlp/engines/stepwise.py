"""Engines that Python drives step by step."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts
from fastmlp.engines.base import Engine, Epoch
from fastmlp.engines.metrics import (
    EpochMetrics,
    EvalMetrics,
    MetricsAccumulator,
    NonFiniteLossError,
)
from fastmlp.engines.resident import resident

if TYPE_CHECKING:
    from typing_extensions import Self

CHUNK_ROWS = 256
"""Images gathered and normalised at once: few enough to stay in a core's cache until used."""


EVALUATION_ROWS = 512
"""Images per batch of an evaluation: as many as fastmlp's own matrix products take."""


REPORT_SECONDS = 0.15
"""How often an epoch reports its progress, and how late a non-finite loss may be noticed."""


class StepEngine(Engine):
    """An engine that Python drives step by step; subclasses say what a step is."""

    @abstractmethod
    def _step(self, x: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One step on x (N, I), labels (N,): the mean loss and the logits before the update."""

    @abstractmethod
    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss and the logits of x (N, I), labels (N,)."""

    @classmethod
    def train_together(
        cls,
        engines: Sequence[Self],
        epochs: Sequence[Epoch],
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """One after the other."""
        done: list[EpochMetrics | NonFiniteLossError] = []
        so_far = [EpochMetrics()] * len(engines)

        def report(stats: EpochMetrics) -> None:
            so_far[len(done)] = stats
            if on_progress is not None:
                on_progress(list(so_far))

        for engine, epoch in zip(engines, epochs, strict=True):
            try:
                stats = engine._train_epoch(epoch, should_stop, report)
                done.append(stats)
                so_far[len(done) - 1] = stats
            except NonFiniteLossError as error:
                done.append(error)
        return done

    def _train_epoch(
        self,
        epoch: Epoch,
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[EpochMetrics], None],
    ) -> EpochMetrics:
        batch, start = self.options.batch_size, epoch.start_step
        tally = MetricsAccumulator(len(epoch.order), batch, start, self.device)
        order = epoch.order.to(self.device)
        chunk_steps = max(1, CHUNK_ROWS // batch)
        report_at = time.perf_counter() + REPORT_SECONDS
        # Chunks begin at the same steps whatever start is, so a batch always has the same
        # alignment in memory, on which the rounding of a matrix product may depend.
        for chunk in range(start - start % chunk_steps, tally.total, chunk_steps):
            rows = slice(chunk * batch, (chunk + chunk_steps) * batch)
            with torch.no_grad():
                images = self._images.index_select(0, order[rows])
                if epoch.moves is not None:
                    images = self._moved(images, epoch.moves[rows])
                labels = self._labels.index_select(0, order[rows])
                skipped = max(start - chunk, 0)
                stop = self._train_chunk(images, labels, skipped, epoch.lr, should_stop, tally)
            if stop:
                break
            if time.perf_counter() >= report_at:
                on_progress(tally.read())
                report_at = time.perf_counter() + REPORT_SECONDS
        return tally.read()

    def _train_chunk(
        self,
        images: Tensor,
        labels: Tensor,
        skipped: int,
        lr: float,
        should_stop: Callable[[], bool] | None,
        tally: MetricsAccumulator,
    ) -> bool:
        """Runs the steps on these images but the first ``skipped`` ones; returns whether
        ``should_stop`` ended it."""
        batch = self.options.batch_size
        xs = torch.split(self._inputs(images), batch)
        ys = torch.split(labels, batch)
        done, stop = [], False
        for x, y in zip(xs[skipped:], ys[skipped:], strict=True):
            done.append(self._step(x, y, lr))
            stop = should_stop is not None and should_stop()
            if stop:
                break
        losses, logits = zip(*done, strict=True)
        guesses = torch.cat(logits).argmax(1)
        truth = labels[skipped * batch :][: len(guesses)]
        tally.add(torch.stack(losses), guesses == truth)
        return stop

    def evaluate(self, part: Subset) -> EvalMetrics:
        with torch.no_grad():
            loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
            correct = torch.zeros((), dtype=torch.int64, device=self.device)
            size = self._evaluation_rows()
            there = self._on_device(part)
            for start in range(0, part.total, size):
                rows = slice(start, start + size)
                x, labels = self._inputs(there.images[rows]), there.labels[rows]
                loss, logits = self._evaluate(x, labels)
                loss_sum += loss
                correct += (logits.argmax(1) == labels).sum()
        count = part.total
        return EvalMetrics(loss_sum.item() / count, int(correct) / count, count)

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS

    def _on_device(self, part: Subset) -> Subset:
        """``part`` where the engine is; it stays there until another is asked for, as every epoch
        ends with the same one."""
        self._evaluated = Subset(
            resident(part.spread.images, self.device), resident(part.spread.labels, self.device)
        )
        return self._evaluated

    def _moved(self, images: Tensor, moves: FlipShifts) -> Tensor:
        return moves.apply(images)

    def _inputs(self, images: Tensor) -> Tensor:
        return self._normalization.apply(images).to(self._layers_dtype)
