"""Whole training steps recorded as one CUDA graph: what a GPU runs without waiting for Python.

A step of a small network is a dozen kernels of a few microseconds, which Python launches more
slowly than the GPU runs them. So a *chunk* of steps is recorded once - images gathered, moved and
normalised, then forward, backward and update of each step - and replayed with other rows. What
changes from chunk to chunk, or from epoch to epoch as the learning rate does, lies in tensors that
keep their addresses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.data.transforms import FlipShifts
from fastmlp.engines.base import Epoch
from fastmlp.engines.cuda_graph import CapturedGraph, ReplayThrottle
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.metrics import EpochMetrics, MetricsAccumulator
from fastmlp.engines.optimizers import OPTIMIZERS, OptimizerConfig, update_, update_by_parts_
from fastmlp.engines.stepwise import REPORT_SECONDS

CHUNK_STEPS = 64
"""Steps in a chunk at most: a chunk is also what a person who wants to stop waits for."""
CHUNK_ROWS = 2048
"""Images in a chunk at most, where there are several batches of them: as floats of CIFAR-10's size
they fit into a GPU's level-2 cache."""
EVALUATION_ROWS = 10_000
"""Images per batch of an evaluation."""
ALIGNMENT = 256
"""Bytes that the address of every batch is a multiple of: all that a library of matrix products
asks about an address when it chooses how to sum."""


def chunk_steps(steps: int, batch: int) -> int:
    """How long a chunk is in an epoch of so many whole batches: of the longer half of what is
    allowed, the length that leaves the fewest steps over; those are run one by one."""
    longest = max(1, min(CHUNK_STEPS, CHUNK_ROWS // batch))
    if 0 < steps <= longest:
        return steps
    return max(
        range((longest + 1) // 2, longest + 1), key=lambda length: (-(steps % length), length)
    )


class GraphEngine(EagerEngine):
    """fastmlp's operators, many steps in one CUDA graph; any depth and width.

    Its steps are the eager engine's. What a step computes does not depend on the chunk it is in, so
    an epoch that was stopped between two chunks goes on bit by bit. Elsewhere than on CUDA, where
    tests build it, a chunk's replay simply runs its steps.
    """

    name = "graph"

    def _set_up(self) -> None:
        super()._set_up()
        self._begin()  # recordings hold the addresses
        self._begun = False
        self._lr = torch.zeros((), dtype=self._tensors[0].dtype, device=self.device)
        self._chunks: dict[tuple[int, int, tuple[int, int, int] | None], _Chunk] = {}

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: OptimizerConfig | None = None,
    ) -> str | None:
        if device.type != "cuda":
            return f"it is made of CUDA graphs, which {device.type} does not have"
        return EagerEngine.unsupported_reason(device, sizes, options)

    def _train_epoch(
        self,
        epoch: Epoch,
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[EpochMetrics], None],
    ) -> EpochMetrics:
        batch, moves = self.options.batch_size, epoch.moves
        tally = MetricsAccumulator(len(epoch.order), batch, epoch.start_step, self.device)
        order = epoch.order.to(self.device)
        if moves is not None:
            moves = FlipShifts(moves.values.to(self.device), moves.shape)
        self._lr.fill_(epoch.lr)
        self._begun = True
        whole = len(order) // batch
        length, pace = chunk_steps(whole, batch), ReplayThrottle(self.device)
        report_at = time.perf_counter() + REPORT_SECONDS
        while tally.next_step < tally.total:
            first = tally.next_step
            steps = length if first + length <= whole else 1
            rows = slice(first * batch, (first + steps) * batch)
            chunk = self._chunk(order[rows], steps, moves[rows] if moves is not None else None)
            tally.add(chunk.losses, chunk.correct)
            pace.keep()
            if should_stop is not None and should_stop():
                break
            if time.perf_counter() >= report_at:
                on_progress(tally.read())
                report_at = time.perf_counter() + REPORT_SECONDS
        return tally.read()

    def _chunk(self, rows: Tensor, steps: int, moves: FlipShifts | None) -> _Chunk:
        """Runs so many steps on the images ``rows``, moved by ``moves``; returns what holds their
        losses and hits until it runs again."""
        shape = moves.shape if moves is not None else None
        key = steps, len(rows), shape
        if key not in self._chunks:
            changing = [*self._tensors, *chain(*self._kept.values())]
            before = [tensor.clone() for tensor in changing]
            self._chunks[key] = _Chunk(self, *key)
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
        chunk = self._chunks[key]
        chunk.rows.copy_(rows)
        if moves is not None and chunk.moves is not None:
            chunk.moves.values.copy_(moves.values)
        chunk.recording.replay()
        return chunk

    def _batches(self, rows: Tensor, steps: int, moves: FlipShifts | None) -> list[Tensor]:
        """The inputs of so many steps, each (N, I) at an address as round as any other's."""
        images = self._images.index_select(0, rows)
        if moves is not None:
            images = self._moved(images, moves)
        x = self._inputs(images).reshape(steps, -1)
        size = x.shape[1]
        missing = -size % (ALIGNMENT // x.element_size())
        if missing:
            x = F.pad(x, (0, missing))
        return [batch[:size].view(-1, images.shape[1]) for batch in x]

    def _update(self, gradients: list[Tensor]) -> None:
        """One step of the optimiser with the learning rate that is in ``self._lr``."""
        # On CUDA the fused kernels read a learning rate in float32 alone, too coarse for float64.
        fused = self._lr.dtype == torch.float32
        update = update_ if fused else update_by_parts_
        update(self._tensors, gradients, self._kept, self._lr, self.options)

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        if self._begun:
            return super().optimizer_state()
        return {kind: {} for kind in OPTIMIZERS[self.options.optimizer]}

    def _load_optimizer(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._begun = any(state.values())
        if self._begun:
            self._fill(state)
        else:
            for tensor in chain(*self._kept.values()):
                tensor.zero_()


class _Chunk:
    """``steps`` steps on ``images`` images, moved where ``shape`` is given, recorded; the images'
    numbers and moves are to be filled in before a replay."""

    def __init__(
        self, engine: GraphEngine, steps: int, images: int, shape: tuple[int, int, int] | None
    ) -> None:
        device, dtype = engine.device, engine._tensors[0].dtype
        self.rows = torch.zeros(images, dtype=torch.int64, device=device)
        self.moves = (
            FlipShifts(torch.zeros(images, 3, dtype=torch.int8, device=device), shape)
            if shape is not None
            else None
        )
        self.losses = torch.empty(steps, dtype=dtype, device=device)
        self.correct = torch.empty((), dtype=torch.int64, device=device)

        def work() -> None:
            labels = engine._labels.index_select(0, self.rows)
            batches = engine._batches(self.rows, steps, self.moves)
            losses, logits = [], []
            for x, y in zip(batches, torch.split(labels, images // steps), strict=True):
                loss, outputs, gradients = engine._gradients(x, y)
                engine._update(gradients)
                losses.append(loss)
                logits.append(outputs)
            torch.stack(losses, out=self.losses)
            self.correct.copy_((torch.cat(logits).argmax(1) == labels).sum())

        self.recording = CapturedGraph(work, device)
