"""Whole training steps recorded as one CUDA graph: what a GPU runs without waiting for Python.

A step of a small network is a dozen kernels of a few microseconds, which Python launches more
slowly than the GPU runs them. So a *chunk* of steps is recorded once - images gathered, moved and
normalised, then forward, backward and update of each step - and replayed with other rows. What
changes from chunk to chunk, or from epoch to epoch as the learning rate does, lies in tensors that
keep their addresses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, Normalization
from fastmlp.engines.base import Epoch, TrainState
from fastmlp.engines.cuda_graph import CapturedGraph, ReplayThrottle, values_kept
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.general_step import chunk_factors, step_gradients, summed_loss
from fastmlp.engines.metrics import EpochMetrics, MetricsAccumulator, batch_weights
from fastmlp.engines.optimizers import OptimizerConfig, update_, update_by_parts_
from fastmlp.engines.stepwise import REPORT_SECONDS
from fastmlp.ops.losses import loss_row
from fastmlp.ops.matmul_precision import matmul_precision_of

CHUNK_STEPS = 64
"""Steps in a chunk at most: an epoch can only be stopped between two chunks."""
CHUNK_ROWS = 2048
"""Images in a chunk at most, where there are several batches of them: as floats of CIFAR-10's size
they fit into a GPU's level-2 cache."""
EVALUATION_ROWS = 10_000
"""Images per batch of an evaluation."""
ALIGNMENT = 256
"""Bytes that the address of every batch is a multiple of: all that a library of matrix products
asks about an address when it chooses how to sum."""


def chunk_steps(steps: int, batch: int) -> int:
    """Return the length of a chunk in an epoch of ``steps`` whole batches.

    It is the length, from half of what is allowed upwards, that leaves the fewest steps over;
    those run one by one.
    """
    longest = max(1, min(CHUNK_STEPS, CHUNK_ROWS // batch))
    if 0 < steps <= longest:
        return steps
    return max(
        range((longest + 1) // 2, longest + 1), key=lambda length: (-(steps % length), length)
    )


def aligned_batches(x: Tensor, steps: int) -> list[Tensor]:
    """Return the batches of ``steps`` steps on x (N, I), each (N / steps, I) at an address that is
    a multiple of ALIGNMENT bytes from the first one's."""
    inputs, x = x.shape[1], x.reshape(steps, -1)
    size = x.shape[1]
    missing = -size % (ALIGNMENT // x.element_size())
    if missing:
        x = F.pad(x, (0, missing))
    return [batch[:size].view(-1, inputs) for batch in x]


class _ChunkKey(NamedTuple):
    """What a recording depends on: ``matmul_precision`` is what was allowed while it was made."""

    steps: int
    images: int
    shape: tuple[int, int, int] | None
    """The images' (planes, height, width) where they are flipped and shifted."""
    matmul_precision: int


@dataclass
class _Chunk:
    """Some steps and, once they were recorded, their ``graph``: filled with ``indices`` and
    ``flip_shifts``, replayed, and read in ``losses`` and ``correct``."""

    steps: int
    indices: Tensor
    flip_shifts: FlipShifts | None
    losses: Tensor
    correct: Tensor
    graph: CapturedGraph | None = None


class _Recordings:
    """The recordings of one state, with the tensors whose addresses they hold."""

    def __init__(self, state: TrainState) -> None:
        state.ensure_optimizer_state()
        self.config = state.config
        self.parameters = dict(state.parameters)
        self.optimizer_state = {kind: dict(t) for kind, t in state.optimizer_state.items()}
        self.lr = torch.zeros((), dtype=state.dtype, device=state.tensors[0].device)
        # Where dropout's random numbers are used: the epoch, and the first step of a chunk.
        self.epoch, self.first_step = (
            torch.zeros((), dtype=torch.int64, device=self.lr.device) for _ in range(2)
        )
        self.layers_dtype = state.layers_dtype
        self.chunks: dict[_ChunkKey, _Chunk] = {}

    def bind(self, state: TrainState) -> None:
        """Make ``state`` hold the recorded tensors, with its own values in them; missing optimizer
        tensors become zeros."""
        state.parameters = _rebound(self.parameters, state.parameters)
        state.optimizer_state = {
            kind: _rebound(tensors, state.optimizer_state[kind])
            for kind, tensors in self.optimizer_state.items()
        }

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters in the order of the layers."""
        return list(self.parameters.values())

    def update(self, gradients: list[Tensor]) -> None:
        """Take one step of the optimizer with the learning rate that is in ``lr``."""
        # On CUDA the fused kernels read a learning rate in float32 alone, too coarse for float64.
        update = update_ if self.lr.dtype == torch.float32 else update_by_parts_
        optimizer_state = {kind: list(t.values()) for kind, t in self.optimizer_state.items()}
        update(self.tensors, gradients, optimizer_state, self.lr, self.config)

    @property
    def changing(self) -> list[Tensor]:
        """All tensors that a step changes."""
        kept = (t for kind in self.optimizer_state.values() for t in kind.values())
        return [*self.tensors, *kept]


def _rebound(recorded: dict[str, Tensor], current: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the current values into the recorded tensors, zeros where there are none, and return
    these."""
    for name, tensor in recorded.items():
        if name not in current:
            tensor.zero_()
        elif current[name] is not tensor:
            tensor.copy_(current[name])
    return dict(recorded)


class GraphEngine(EagerEngine):
    """fastmlp's operators, many steps in one CUDA graph; any depth and width.

    Plain steps are the eager engine's, others those of :mod:`fastmlp.engines.general_step`. What a
    step computes does not depend on its chunk, so an epoch that was stopped between two chunks
    resumes bit by bit. On other devices than CUDA, where tests build it, a chunk's replay simply
    runs its steps.
    """

    name = "graph"
    general = True

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        super().__init__(train, normalization, device)
        self._recordings: WeakKeyDictionary[TrainState, _Recordings] = WeakKeyDictionary()

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return why there are no CUDA graphs or no kernels, None where there are."""
        if device.type != "cuda":
            return f"it is made of CUDA graphs, which {device.type} does not have"
        return EagerEngine.unsupported_reason(device)  # without the settings, which it lacks

    def _train_network(
        self,
        state: TrainState,
        epoch: Epoch,
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[EpochMetrics], None],
    ) -> EpochMetrics:
        batch, flip_shifts = state.config.batch_size, epoch.order.flip_shifts
        weights = batch_weights(self._weights, epoch.order.indices, batch)
        metrics = MetricsAccumulator(
            len(epoch.order), batch, epoch.start_step, self.device, weights
        )
        indices = epoch.order.indices.to(self.device)
        if flip_shifts is not None:
            flip_shifts = FlipShifts(flip_shifts.values.to(self.device), flip_shifts.shape)
        recordings = self._recordings_of(state)
        recordings.lr.fill_(epoch.lr)
        recordings.epoch.fill_(epoch.number)
        whole = len(indices) // batch
        length, throttle = chunk_steps(whole, batch), ReplayThrottle(self.device)
        report_at = time.perf_counter() + REPORT_SECONDS
        while metrics.next_step < metrics.total:
            first = metrics.next_step
            steps = length if first + length <= whole else 1
            rows = slice(first * batch, (first + steps) * batch)
            moved = flip_shifts[rows] if flip_shifts is not None else None
            recordings.first_step.fill_(first)
            chunk = self._run_chunk(recordings, indices[rows], steps, moved)
            metrics.add(chunk.losses, chunk.correct)
            throttle.keep()
            if should_stop is not None and should_stop():
                break
            if time.perf_counter() >= report_at:
                on_progress(metrics.read())
                report_at = time.perf_counter() + REPORT_SECONDS
        return metrics.read()

    def _recordings_of(self, state: TrainState) -> _Recordings:
        """Return the recordings of ``state``, whose tensors it then holds."""
        recordings = self._recordings.get(state)
        if recordings is None or recordings.config != state.config:
            recordings = self._recordings[state] = _Recordings(state)
        recordings.bind(state)
        return recordings

    def _run_chunk(
        self, recordings: _Recordings, indices: Tensor, steps: int, flip_shifts: FlipShifts | None
    ) -> _Chunk:
        """Run ``steps`` steps on these images; return what holds their losses and hits until it
        runs again."""
        shape = flip_shifts.shape if flip_shifts is not None else None
        key = _ChunkKey(steps, len(indices), shape, matmul_precision_of(recordings.lr))
        if key not in recordings.chunks:
            recordings.chunks[key] = self._make_chunk(key, recordings.lr.dtype)
        chunk = recordings.chunks[key]
        work = partial(self._steps, recordings, chunk)
        if chunk.graph is None:
            with values_kept(recordings.changing):
                chunk.graph = CapturedGraph(work, self.device)
        chunk.indices.copy_(indices)
        if flip_shifts is not None and chunk.flip_shifts is not None:
            chunk.flip_shifts.values.copy_(flip_shifts.values)
        chunk.graph.replay(work)
        return chunk

    def _make_chunk(self, key: _ChunkKey, dtype: torch.dtype) -> _Chunk:
        """Return a chunk, to be filled with images; its losses are of ``dtype``."""
        flip_shifts = None
        if key.shape is not None:
            values = torch.zeros(key.images, 3, dtype=torch.int8, device=self.device)
            flip_shifts = FlipShifts(values, key.shape)
        return _Chunk(
            key.steps,
            torch.zeros(key.images, dtype=torch.int64, device=self.device),
            flip_shifts,
            torch.empty(key.steps, dtype=dtype, device=self.device),
            torch.empty((), dtype=torch.int64, device=self.device),
        )

    def _steps(self, recordings: _Recordings, chunk: _Chunk) -> None:
        """Take the steps of a chunk."""
        pixels = self._images.index_select(0, chunk.indices)
        if chunk.flip_shifts is not None:
            pixels = self._augmented(pixels, chunk.flip_shifts)
        labels = self._labels.index_select(0, chunk.indices)
        inputs = self._normalization.apply(pixels).to(recordings.layers_dtype)
        step = self._step_of(recordings, chunk)
        done, logits = [], []
        batches = zip(
            aligned_batches(inputs, chunk.steps),
            torch.split(labels, len(labels) // chunk.steps),
            strict=True,
        )
        for number, (x, y) in enumerate(batches):
            loss, outputs, gradients = step(number, x, y)
            recordings.update(gradients)
            done.append(loss)
            logits.append(outputs)
        torch.stack(done, out=chunk.losses)
        hits = loss_row(recordings.config.loss).hits(torch.cat(logits), labels)
        chunk.correct.copy_(hits.sum())

    def _step_of(
        self, recordings: _Recordings, chunk: _Chunk
    ) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor, list[Tensor]]]:
        """Return what gives the mean loss, the outputs and the gradients of a step of a chunk, for
        its number, its inputs and its targets."""
        tensors, config = recordings.tensors, recordings.config
        batch = len(chunk.indices) // chunk.steps
        if self._is_plain(config):
            return lambda _, x, y: self._gradients(tensors, x, y, config.grad_average)
        factors = chunk_factors(
            *(tensors, chunk.steps, batch, recordings.first_step, recordings.epoch),
            dropout=config.dropout,
            seed=config.seed,
        )
        weights: Sequence[Tensor | None] = [None] * chunk.steps
        if self._weights is not None:
            weights = torch.split(self._weights.index_select(0, chunk.indices), batch)
        return lambda number, x, y: step_gradients(
            tensors, x, y, weights[number], factors[number], config
        )

    def _is_plain(self, config: OptimizerConfig) -> bool:
        """Return whether steps are of what the eager engine has: no more than plain cross entropy
        of labels, without weights."""
        labels = not self._labels.is_floating_point()
        return not config.beyond_plain and self._weights is None and labels

    def _evaluate_batch(
        self, state: TrainState, x: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self._is_plain(state.config) and weights is None:
            return super()._evaluate_batch(state, x, labels, weights)
        return summed_loss(state.tensors, x, labels, weights, state.config)

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS
