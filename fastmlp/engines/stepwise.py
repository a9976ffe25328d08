"""Engines that Python drives step by step: the loop over an epoch's batches and the evaluation."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

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
    batch_weights,
    eval_metrics,
)
from fastmlp.engines.resident import resident
from fastmlp.ops.losses import loss_row

CHUNK_ROWS = 256
"""Images gathered and normalised at once: few enough to stay in a core's cache until used."""

EVALUATION_ROWS = 512
"""Images per batch of an evaluation: as many as fastmlp's own matrix products take."""

REPORT_SECONDS = 0.15
"""How often an epoch reports its progress, and how late a non-finite loss may be noticed."""


class Batch(NamedTuple):
    """What a step, counted from 0 in its epoch, trains on: x (N, I), labels (N,) or numbers
    (N, O), and perhaps weights (N,)."""

    x: Tensor
    targets: Tensor
    weights: Tensor | None
    step: int


Step = Callable[[Batch], tuple[Tensor, Tensor]]
"""Takes a step on a batch; returns the mean loss and the outputs (N, O), both from before the
update."""


class StepEngine(Engine):
    """An engine that Python drives step by step, one network after the other."""

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        super().__init__(train, normalization, device)
        self._evaluated: Subset | None = None

    @abstractmethod
    def _open_epoch(
        self, state: TrainState, lr: float, number: int
    ) -> AbstractContextManager[Step]:
        """Return a context that yields the steps of ``state`` with this learning rate in an epoch
        of this number."""

    @abstractmethod
    def _evaluate_batch(
        self, state: TrainState, x: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the outputs (N, O) of x (N, I), labels (N,), each row's loss
        times its weight where ``weights`` (N,) are given."""

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
        weights = batch_weights(self._weights, epoch.order.indices, batch)
        metrics = MetricsAccumulator(len(epoch.order), batch, start, self.device, weights)
        indices, flip_shifts = epoch.order.indices.to(self.device), epoch.order.flip_shifts
        chunk_steps = max(1, CHUNK_ROWS // batch)
        report_at = time.perf_counter() + REPORT_SECONDS
        with self._open_epoch(state, epoch.lr, epoch.number) as step:
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
                    given = None if self._weights is None else self._weights[indices[rows]]
                    batches = list(_batches(inputs, labels, given, batch, chunk))
                    skipped = max(start - chunk, 0)
                    hits = loss_row(state.config.loss).hits
                    stop = _run_steps(step, batches[skipped:], should_stop, metrics, hits)
                if stop:
                    break
                if time.perf_counter() >= report_at:
                    on_progress(metrics.read())
                    report_at = time.perf_counter() + REPORT_SECONDS
        return metrics.read()

    def evaluate(self, states: Sequence[TrainState], subset: Subset) -> list[EvalMetrics]:
        """Return each network's loss and accuracy on ``subset``, all on the same inputs."""
        count, size = subset.total, self._evaluation_rows()
        weight = subset.total_weight
        data = self._on_device(subset)
        sums = torch.zeros(2, len(states), dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for start in range(0, count, size):
                rows = slice(start, start + size)
                inputs, labels = self._normalization.apply(data.images[rows]), data.labels[rows]
                weights = None if data.weights is None else data.weights[rows]
                for i, state in enumerate(states):
                    x = inputs.to(state.layers_dtype)
                    loss, logits = self._evaluate_batch(state, x, labels, weights)
                    sums[0, i] += loss
                    sums[1, i] += loss_row(state.config.loss).hits(logits, labels).sum()
        losses, hits = sums.tolist()
        return [
            eval_metrics(state.config.loss, loss, weight, correct, count)
            for state, loss, correct in zip(states, losses, hits, strict=True)
        ]

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS

    def _on_device(self, subset: Subset) -> Subset:
        """Return ``subset`` on the engine's device, and keep it there until another is asked for,
        as every epoch ends with the same one."""
        weights = subset.spread.weights
        self._evaluated = Subset(
            resident(subset.spread.images, self.device),
            resident(subset.spread.labels, self.device),
            weights=None if weights is None else resident(weights, self.device),
        )
        return self._evaluated

    def _augmented(self, images: Tensor, flip_shifts: FlipShifts) -> Tensor:
        return flip_shifts.apply(images)


def _run_steps(
    step: Step,
    batches: Sequence[Batch],
    should_stop: Callable[[], bool] | None,
    metrics: MetricsAccumulator,
    hits: Callable[[Tensor, Tensor], Tensor],
) -> bool:
    """Take a step on each batch; return whether ``should_stop`` ended it."""
    done, stop = [], False
    for batch in batches:
        done.append(step(batch))
        stop = should_stop is not None and should_stop()
        if stop:
            break
    losses, logits = zip(*done, strict=True)
    truth = torch.cat([batch.targets for batch in batches[: len(done)]])
    metrics.add(torch.stack(losses), hits(torch.cat(logits), truth))
    return stop


def _batches(
    x: Tensor, targets: Tensor, weights: Tensor | None, size: int, first: int
) -> Iterator[Batch]:
    """Yield the batches of these rows, of the steps from ``first`` on."""
    parts = zip(torch.split(x, size), torch.split(targets, size), strict=True)
    given = None if weights is None else torch.split(weights, size)
    for i, (rows, of_rows) in enumerate(parts):
        yield Batch(rows, of_rows, None if given is None else given[i], first + i)
