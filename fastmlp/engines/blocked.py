"""Blocked look-ahead SGD: exact mini-batch SGD with the matrix products of a large batch.

The inputs of the next S steps are known ahead, and SGD moves the first layer by sums of their
outer products. So one product X W^T for all S steps, the Gram matrix X X^T and a chain of small
steps give what S steps one by one would: the same numbers, summed in another order.
docs/blocked-sgd.md derives it. It holds wherever the first layer's inputs do not depend on the
parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.engines.base import Epoch
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.metrics import (
    EpochMetrics,
    EvalMetrics,
    MetricsAccumulator,
    NonFiniteLossError,
)
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.stepwise import REPORT_SECONDS
from fastmlp.ops._load import native_available
from fastmlp.ops.blocked_sgd import block_steps, recurrence

if TYPE_CHECKING:
    from typing_extensions import Self

CALL_SECONDS = 0.05
"""How long a call of the operator should take, about: what a person who wants to stop waits for."""

_ops: Any = torch.ops.fastmlp


def fresh_images(epoch: Epoch, batch_size: int) -> int:
    """How many images a step of this epoch adds to those of the steps just before it, rounded up,
    as its first steps show it: a whole batch where no image comes again soon in the same way."""
    rows = epoch.order[: 16 * batch_size]
    if epoch.moves is not None or len(rows) <= batch_size:
        return batch_size
    distinct = len(torch.unique(rows))
    if distinct == len(rows):
        return batch_size
    return -(-max(distinct - batch_size, 0) // (-(-len(rows) // batch_size) - 1))


def blocked_unsupported_reason(options: OptimizerConfig) -> str | None:
    """Why blocks of such steps cannot be computed, or None where they can."""
    if options.optimizer != "sgd":
        return f"its sums hold for sgd, and {options.optimizer} is not linear in the gradients"
    if options.precision != "float32":
        return f"it computes in the parameters' own dtype alone, not in {options.precision}"
    return None


class BlockedEngine(EagerEngine):
    """Blocked look-ahead SGD for networks with hidden layers, on the CPU.

    Its steps are the eager engine's up to rounding; the same whatever the number of threads and
    whichever networks are trained beside it. An epoch can be stopped between two blocks.
    """

    name = "blocked"
    block_steps: int | None = None
    """Forces the length of a block; None leaves it to :func:`block_steps`."""
    _blocks_a_call = 1

    def _set_up(self) -> None:
        if why := blocked_unsupported_reason(self.options):
            raise ValueError(f"the engine blocked cannot make these steps: {why}")
        super()._set_up()

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: OptimizerConfig | None = None,
    ) -> str | None:
        if not native_available(device.type):
            return EagerEngine.unsupported_reason(device)
        if device.type != "cpu":
            return f"this form of it is for the CPU, not for {device.type}"
        if options is not None and (why := blocked_unsupported_reason(options)):
            return why
        if sizes is not None and len(sizes) < 3:
            return "it wants at least one hidden layer"
        return None

    @classmethod
    def train_together(
        cls,
        engines: Sequence[Self],
        epochs: Sequence[Epoch],
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """All at once; networks whose epochs have the very same ``order`` and ``moves``, batch size
        and block length share their images and Gram matrices."""
        if not engines:
            return []
        check_alike(engines)
        check_shared(engines, epochs)
        runs = [_Run(engine, epoch) for engine, epoch in zip(engines, epochs, strict=True)]
        blocks = engines[0]._blocks_a_call
        report_at = time.perf_counter() + REPORT_SECONDS
        while running := [run for run in runs if run.running]:
            begin = time.perf_counter()
            _run_blocks(running, blocks)
            now = time.perf_counter()
            if not CALL_SECONDS / 2 <= now - begin <= 2 * CALL_SECONDS:
                blocks = max(1, 2 * blocks if now - begin < CALL_SECONDS else blocks // 2)
            if should_stop is not None and should_stop():
                break
            if on_progress is not None and now >= report_at:
                on_progress(
                    [run.tally.read() if run.error is None else EpochMetrics() for run in runs]
                )
                report_at = now + REPORT_SECONDS
        engines[0]._blocks_a_call = blocks
        return [run.error or run.tally.read() for run in runs]

    @classmethod
    def evaluate_together(cls, engines: Sequence[Self], part: Subset) -> list[EvalMetrics]:
        if not engines:
            return []
        check_alike(engines)
        norm = engines[0]._normalization
        losses, hits = _ops.evaluate.default(
            *(part.images.contiguous(), part.labels.contiguous(), norm.scale, norm.shift),
            *(
                part.counts,
                [len(engine._tensors) // 2 for engine in engines],
                _flat(e._tensors for e in engines),
            ),
        )
        count = part.total
        return [
            EvalMetrics(loss / count, correct / count, count)
            for loss, correct in zip(losses.tolist(), hits.tolist(), strict=True)
        ]

    def evaluate(self, part: Subset) -> EvalMetrics:
        return self.evaluate_together([self], part)[0]


class _Run:
    """One network's epoch under way."""

    def __init__(self, engine: BlockedEngine, epoch: Epoch) -> None:
        options = engine.options
        self.engine, self.epoch = engine, epoch
        self.tally = MetricsAccumulator(
            len(epoch.order), options.batch_size, epoch.start_step, engine.device
        )
        self.error: NonFiniteLossError | None = None
        self.steps = engine.block_steps or block_steps(
            options.batch_size,
            len(engine._tensors[1]),
            options.momentum > 0,
            fresh_images(epoch, options.batch_size),
        )
        self.table = recurrence(
            self.steps, epoch.lr, options.momentum, options.weight_decay, options.nesterov
        )
        engine._begin()

    @property
    def running(self) -> bool:
        return self.error is None and self.tally.next_step < self.tally.total

    def next_rows(self, blocks: int) -> slice:
        """The rows of the epoch in the next so many blocks, or in the rest of a block where it was
        taken up in the middle: blocks end at the same steps wherever it was."""
        first, batch = self.tally.next_step, self.engine.options.batch_size
        if first % self.steps:
            blocks = 1
        end = (first // self.steps + blocks) * self.steps
        return slice(first * batch, end * batch)

    @property
    def group_key(self) -> tuple[int, ...]:
        """The same for runs that go through the same images together."""
        order, moves = self.epoch.order, self.epoch.moves
        batch = self.engine.options.batch_size
        return id(order), id(moves), batch, self.steps, self.tally.next_step

    def take(self, losses: Tensor, correct: Tensor) -> None:
        """Notes the steps that were done."""
        self.tally.add(losses, correct)
        if not losses.float().isfinite().all():  # as the tally keeps them
            try:
                self.tally.read()
            except NonFiniteLossError as error:
                self.error = error


def _run_blocks(runs: Sequence[_Run], blocks: int) -> None:
    """Runs the next blocks of all these epochs."""
    groups: dict[tuple[int, ...], list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.group_key, []).append(run)
    leaders = [members[0] for members in groups.values()]
    runs = _flat(groups.values())
    first = runs[0].engine
    no_moves = torch.empty(0, 3, dtype=torch.int8)
    orders, moves = [], []
    shape: list[int] = []
    for run in leaders:
        rows = run.next_rows(blocks)
        orders.append(run.epoch.order[rows].contiguous())
        moves.append(
            no_moves if run.epoch.moves is None else run.epoch.moves.values[rows].contiguous()
        )
        shape = shape if run.epoch.moves is None else list(run.epoch.moves.shape)
    options = [run.engine.options for run in runs]
    norm = first._normalization
    losses, correct = _ops.blocked_train_.default(
        *(first._images, first._labels, norm.scale, norm.shift, shape, orders, moves),
        *([run.engine.options.batch_size for run in leaders], [run.steps for run in leaders]),
        [group for group, members in enumerate(groups.values()) for _ in members],
        [len(run.engine._tensors) // 2 for run in runs],
        _flat(run.engine._tensors for run in runs),
        _flat(run.engine._kept.get("momentum", []) for run in runs),
        [run.table for run in runs],
        torch.tensor(
            [
                (run.epoch.lr, o.momentum, o.weight_decay, o.nesterov, o.grad_average)
                for run, o in zip(runs, options, strict=True)
            ],
            dtype=torch.float64,
        ),
    )
    steps = [
        -(-len(order) // run.engine.options.batch_size)
        for order, members in zip(orders, groups.values(), strict=True)
        for run in members
    ]
    for run, mine, hits in zip(runs, losses.split(steps), correct.split(steps), strict=True):
        run.take(mine, hits)


def _flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


def check_shared(engines: Sequence[BlockedEngine], epochs: Sequence[Epoch]) -> None:
    """Raises ValueError unless the engines can train together."""
    first = engines[0]
    for engine in engines[1:]:
        if (
            engine._images.data_ptr() != first._images.data_ptr()
            or engine._labels.data_ptr() != first._labels.data_ptr()
        ):
            raise ValueError("engines that train together must share their training images")
    shapes = {epoch.moves.shape for epoch in epochs if epoch.moves is not None}
    if len(shapes) > 1:
        raise ValueError(f"moves must be for images of one shape, got {shapes}")


def check_alike(engines: Sequence[BlockedEngine]) -> None:
    """Raises ValueError unless the engines have the same inputs for an image."""
    norm, dtype = engines[0]._normalization, engines[0]._tensors[0].dtype
    for engine in engines[1:]:
        same = all(
            ours is theirs or torch.equal(ours, theirs)  # which on a GPU waits for it
            for ours, theirs in (
                (norm.scale, engine._normalization.scale),
                (norm.shift, engine._normalization.shift),
            )
        )
        if not same or engine._tensors[0].dtype != dtype:
            raise ValueError("engines that run together must have one normalisation and dtype")
