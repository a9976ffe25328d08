"""Steps of :mod:`fastmlp.ops.train_steps`, with all their options, as CUDA graphs on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmlp.engines.cuda_graph import CapturedGraph, ReplayThrottle, values_kept
from fastmlp.engines.general_step import chunk_factors
from fastmlp.engines.graph import chunk_steps
from fastmlp.ops.matmul_precision import matmul_precision_of
from fastmlp.ops.rows import Rows
from fastmlp.ops.step_config import Network
from fastmlp.ops.train_steps import (
    StepMetrics,
    check_steps,
    decay_loss,
    gradients_ref,
    update_ref,
)


@dataclass
class _Chunk:
    """Steps and their recording, filled with ``rows`` (steps * batch,) and read in the others."""

    steps: int
    rows: Tensor
    losses: Tensor
    correct: Tensor
    graph: CapturedGraph | None = None


class RecordedSteps:
    """:class:`fastmlp.ops.train_steps.RepeatedSteps` on a GPU, for dense rows.

    Some steps are recorded once as a CUDA graph, in PyTorch's operators, and replayed with other
    rows. The network's parameters and state, the rows and all that belongs to them lie on one
    device; its order is on the CPU. Between calls order, lr and epoch may change. Unlike there, a
    loss that is not finite does not end the steps. Raises what ``RepeatedSteps`` raises. On other
    devices, where tests build it, a replay simply runs the steps.
    """

    def __init__(self, network: Network, rows: Rows) -> None:
        check_steps(network, rows)
        if rows.is_sparse:
            raise ValueError("rows must be dense to be trained on a GPU, got a sparse tensor")
        self.network, self._rows = network, rows
        first = network.parameters[0]
        self._device = first.device
        self._lr = torch.zeros((), dtype=first.dtype, device=self._device)
        # What dropout's random numbers depend on: the epoch, and a chunk's first step.
        self._epoch, self._first = (
            torch.zeros((), dtype=torch.int64, device=self._device) for _ in range(2)
        )
        self._chunks: dict[tuple[int, int, int], _Chunk] = {}

    def take(self) -> StepMetrics:
        """Train for the steps that the network asks for now."""
        network, batch = self.network, self.network.config.batch_size
        if network.epochs != 1:
            raise ValueError(f"epochs must be 1 where steps are recorded, got {network.epochs}")
        self._lr.fill_(network.lr)
        self._epoch.fill_(network.epoch)
        order = network.order.to(self._device)
        first, end = network.start_step, network.start_step + network.steps
        whole, throttle = len(order) // batch, ReplayThrottle(self._device)
        length = chunk_steps(whole, batch)
        losses, correct = [], []
        while first < end:
            steps = length if first + length <= min(whole, end) else 1
            chunk = self._run(order[first * batch : (first + steps) * batch], steps, first)
            losses.append(chunk.losses.clone())
            correct.append(chunk.correct.clone())
            throttle.keep()
            first += steps
        if not losses:
            return StepMetrics(torch.empty(0).double(), torch.empty(0).long())
        return StepMetrics(torch.cat(losses).cpu(), torch.cat(correct).cpu())

    def _run(self, rows: Tensor, steps: int, first: int) -> _Chunk:
        """Take steps on these rows; return what holds their losses and hits until it runs again."""
        key = steps, len(rows), matmul_precision_of(self._lr)
        if key not in self._chunks:
            self._chunks[key] = self._new_chunk(steps, len(rows))
        chunk = self._chunks[key]

        def work() -> None:
            self._steps(chunk)

        chunk.rows.copy_(rows)
        self._first.fill_(first)
        if chunk.graph is None:
            kept = [tensor for kind in self.network.state.values() for tensor in kind]
            with values_kept([*self.network.parameters, *kept]):
                chunk.graph = CapturedGraph(work, self._device)
        chunk.graph.replay(work)
        return chunk

    def _new_chunk(self, steps: int, rows: int) -> _Chunk:
        return _Chunk(
            steps,
            torch.zeros(rows, dtype=torch.int64, device=self._device),
            torch.empty(steps, dtype=torch.float64, device=self._device),
            torch.empty(steps, dtype=torch.int64, device=self._device),
        )

    def _steps(self, chunk: _Chunk) -> None:
        """Take the steps of a chunk; nothing in here waits for the device."""
        network, batch = self.network, len(chunk.rows) // chunk.steps
        factors = chunk_factors(
            *(network.parameters, chunk.steps, batch, self._first, self._epoch),
            dropout=network.config.dropout,
            seed=network.seed,
        )
        for number, rows in enumerate(torch.split(chunk.rows, batch)):
            loss, hits, gradients, denominator = gradients_ref(
                network, self._rows, rows, factors[number]
            )
            chunk.losses[number] = loss + decay_loss(network, denominator)
            chunk.correct[number] = hits
            for k, gradient in enumerate(gradients):
                update_ref(network, k, gradient, denominator, self._lr)
