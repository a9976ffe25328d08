"""Engines whose steps, many at a time and of all networks, are one call of a compiled operator."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.base import Engine, Epoch, TrainState
from fastmlp.engines.metrics import (
    EpochMetrics,
    EvalMetrics,
    MetricsAccumulator,
    NonFiniteLossError,
    batch_weights,
)
from fastmlp.engines.stepwise import REPORT_SECONDS

CALL_SECONDS = 0.05
"""How long a call of the operator should take, about: an epoch can only be stopped between two."""


class NetworkEpoch:
    """A network's epoch in progress: what is done of it, and the error if the network diverged."""

    def __init__(
        self,
        state: TrainState,
        epoch: Epoch,
        device: torch.device,
        weights: Tensor | None = None,
    ) -> None:
        self.state, self.epoch = state, epoch
        batch = state.config.batch_size
        self.metrics = MetricsAccumulator(
            len(epoch.order),
            batch,
            epoch.start_step,
            device,
            batch_weights(weights, epoch.order.indices, batch),
        )
        self.error: NonFiniteLossError | None = None

    @property
    def running(self) -> bool:
        """Whether there are steps left to take."""
        return self.error is None and self.metrics.next_step < self.metrics.total

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Add the losses (steps,) and hits of the next steps; note a loss that is not finite."""
        if self.error is not None:
            return
        self.metrics.add(losses, correct)
        if not losses.float().isfinite().all():  # as the metrics keep them
            try:
                self.metrics.read()
            except NonFiniteLossError as error:
                self.error = error

    @property
    def progress(self) -> EpochMetrics:
        """The metrics so far; empty where the network diverged."""
        return self.metrics.read() if self.error is None else EpochMetrics()

    @property
    def result(self) -> EpochMetrics | NonFiniteLossError:
        """The metrics, or the error where the network diverged."""
        return self.error or self.metrics.read()


class CompiledEngine(Engine):
    """An engine on the CPU that runs some ``_stretch`` of all networks' epochs in a call, which
    takes ``call_length`` times :data:`CALL_SECONDS`, about."""

    call_length: ClassVar[float] = 1.0

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        super().__init__(train, normalization, device)
        self._stretch = 1

    @abstractmethod
    def _begin(self, state: TrainState, epoch: Epoch) -> NetworkEpoch:
        """Return a network's epoch in progress."""

    @abstractmethod
    def _run(self, networks: Sequence[Any]) -> None:
        """Run the next ``_stretch`` of these epochs, which :meth:`_begin` returned."""

    def train_epoch(
        self,
        states: Sequence[TrainState],
        epochs: Sequence[Epoch],
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """Run all epochs side by side; see :meth:`Engine.train_epoch`."""
        check_trains_together(states, epochs)
        pairs = zip(states, epochs, strict=True)
        networks = [self._begin(state, epoch) for state, epoch in pairs]
        report_at = time.perf_counter() + REPORT_SECONDS
        while running := [network for network in networks if network.running]:
            begin = time.perf_counter()
            self._run(running)
            now = time.perf_counter()
            seconds = CALL_SECONDS * self.call_length
            if not seconds / 2 <= now - begin <= 2 * seconds:
                longer = now - begin < seconds
                self._stretch = max(1, 2 * self._stretch if longer else self._stretch // 2)
            if should_stop is not None and should_stop():
                break
            if on_progress is not None and now >= report_at:
                on_progress([network.progress for network in networks])
                report_at = now + REPORT_SECONDS
        return [network.result for network in networks]

    def evaluate(self, states: Sequence[TrainState], subset: Subset) -> list[EvalMetrics]:
        """Return each network's loss and accuracy on ``subset``, in one pass over it."""
        if not states:
            return []
        check_one_dtype(states)
        tensors = [state.tensors for state in states]
        losses, hits = torch.ops.fastmlp.evaluate.default(
            *(subset.images.contiguous(), subset.labels.contiguous()),
            *(self._normalization.scale, self._normalization.shift, subset.counts),
            *([len(each) // 2 for each in tensors], flat(tensors)),
        )
        count = subset.total
        return [
            EvalMetrics(loss / count, correct / count, count)
            for loss, correct in zip(losses.tolist(), hits.tolist(), strict=True)
        ]


def flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the items of all lists."""
    return [item for items in lists for item in items]


def check_trains_together(states: Sequence[TrainState], epochs: Sequence[Epoch]) -> None:
    """Raise ValueError unless the networks can train side by side on their epochs."""
    check_one_dtype(states)
    orders = [epoch.order for epoch in epochs]
    shapes = {order.flip_shifts.shape for order in orders if order.flip_shifts is not None}
    if len(shapes) > 1:
        raise ValueError(f"flips and shifts must be for images of one shape, got {shapes}")


def check_one_dtype(states: Sequence[TrainState]) -> None:
    """Raise ValueError unless all networks have the same dtype."""
    dtypes = {str(state.dtype) for state in states}
    if len(dtypes) > 1:
        raise ValueError(f"networks side by side must have one dtype, got {sorted(dtypes)}")
