"""Engines that Python drives step by step: the loop over an epoch's batches and the evaluation."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, Normalization
from fastmlp.engines.base import Engine, Epoch, TrainState
from fastmlp.engines.metrics import (
    EpochMetrics,
    EvalMetrics,
    MetricsAccumulator,
    NonFiniteLossError,
)
from fastmlp.engines.resident import resident

CHUNK_ROWS = 256
"""Images gathered and normalised at once: few enough to stay in a core's cache until used."""

EVALUATION_ROWS = 512
"""Images per batch of an evaluation: as many as fastmlp's own matrix products take."""

REPORT_SECONDS = 0.15
"""How often an epoch reports its progress, and how late a non-finite loss may be noticed."""

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes a step on x (N, I), labels (N,); returns the mean loss and the logits (N, C), both from
before the update."""


class StepEngine(Engine):
    """An engine that Python drives step by step, one network after the other."""

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        super().__init__(train, normalization, device)
        self._evaluated: Subset | None = None

    @abstractmethod
    def _open_epoch(self, state: TrainState, lr: float) -> AbstractContextManager[Step]:
        """Return a context that yields the steps of ``state`` with this learning rate."""

    @abstractmethod
    def _evaluate_batch(
        self, state: TrainState, x: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the logits (N, C) of x (N, I), labels (N,)."""

    def train_epoch(
        self,
        states: Sequence[TrainState],
        epochs: Sequence[Epoch],
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """Run one network's epoch after the other; see :meth:`Engine.train_epoch`."""
        results: list[EpochMetrics | NonFiniteLossError] = []
        so_far = [EpochMetrics()] * len(states)

        def report(metrics: EpochMetrics) -> None:
            so_far[len(results)] = metrics
            if on_progress is not None:
                on_progress(list(so_far))

        for i, (state, epoch) in enumerate(zip(states, epochs, strict=True)):
            try:
                so_far[i] = self._train_network(state, epoch, should_stop, report)
                results.append(so_far[i])
            except NonFiniteLossError as error:
                results.append(error)
        return results

    def _train_network(
        self,
        state: TrainState,
        epoch: Epoch,
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[EpochMetrics], None],
    ) -> EpochMetrics:
        batch, start = state.config.batch_size, epoch.start_step
        metrics = MetricsAccumulator(len(epoch.order), batch, start, self.device)
        indices, flip_shifts = epoch.order.indices.to(self.device), epoch.order.flip_shifts
        chunk_steps = max(1, CHUNK_ROWS // batch)
        report_at = time.perf_counter() + REPORT_SECONDS
        with self._open_epoch(state, epoch.lr) as step:
            # Chunks begin at the same steps whatever start is, so a batch always has the same
            # alignment in memory, on which the rounding of a matrix product may depend.
            for chunk in range(start - start % chunk_steps, metrics.total, chunk_steps):
                rows = slice(chunk * batch, (chunk + chunk_steps) * batch)
                with torch.no_grad():
                    images = self._images.index_select(0, indices[rows])
                    if flip_shifts is not None:
                        images = self._augmented(images, flip_shifts[rows])
                    inputs = self._normalization.apply(images).to(state.layers_dtype)
                    labels = self._labels.index_select(0, indices[rows])
                    skipped = max(start - chunk, 0)
                    batches = list(
                        zip(torch.split(inputs, batch), torch.split(labels, batch), strict=True)
                    )
                    stop = _run_steps(step, batches[skipped:], should_stop, metrics)
                if stop:
                    break
                if time.perf_counter() >= report_at:
                    on_progress(metrics.read())
                    report_at = time.perf_counter() + REPORT_SECONDS
        return metrics.read()

    def evaluate(self, states: Sequence[TrainState], subset: Subset) -> list[EvalMetrics]:
        """Return each network's loss and accuracy on ``subset``, all on the same inputs."""
        count, size = subset.total, self._evaluation_rows()
        data = self._on_device(subset)
        sums = torch.zeros(2, len(states), dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for start in range(0, count, size):
                rows = slice(start, start + size)
                inputs, labels = self._normalization.apply(data.images[rows]), data.labels[rows]
                for i, state in enumerate(states):
                    x = inputs.to(state.layers_dtype)
                    loss, logits = self._evaluate_batch(state, x, labels)
                    sums[0, i] += loss
                    sums[1, i] += (logits.argmax(1) == labels).sum()
        losses, hits = sums.tolist()
        return [
            EvalMetrics(loss / count, correct / count, count)
            for loss, correct in zip(losses, hits, strict=True)
        ]

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS

    def _on_device(self, subset: Subset) -> Subset:
        """Return ``subset`` on the engine's device, and keep it there until another is asked for,
        as every epoch ends with the same one."""
        self._evaluated = Subset(
            resident(subset.spread.images, self.device), resident(subset.spread.labels, self.device)
        )
        return self._evaluated

    def _augmented(self, images: Tensor, flip_shifts: FlipShifts) -> Tensor:
        return flip_shifts.apply(images)


def _run_steps(
    step: Step,
    batches: Sequence[tuple[Tensor, Tensor]],
    should_stop: Callable[[], bool] | None,
    metrics: MetricsAccumulator,
) -> bool:
    """Take a step on each batch; return whether ``should_stop`` ended it."""
    done, stop = [], False
    for x, labels in batches:
        done.append(step(x, labels))
        stop = should_stop is not None and should_stop()
        if stop:
            break
    losses, logits = zip(*done, strict=True)
    truth = torch.cat([labels for _, labels in batches[: len(done)]])
    metrics.add(torch.stack(losses), torch.cat(logits).argmax(1) == truth)
    return stop
