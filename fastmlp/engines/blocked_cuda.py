"""The engine ``blocked`` on a GPU: blocked look-ahead SGD for networks with one hidden layer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.engines.base import Epoch
from fastmlp.engines.blocked import (
    BlockedEngine,
    blocked_unsupported_reason,
    check_alike,
    check_shared,
)
from fastmlp.engines.blocked_pipeline import (
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    Runner,
    Schedule,
    Shape,
    block_bytes,
)
from fastmlp.engines.cuda_graph import ReplayThrottle
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
from fastmlp.ops.blocked_sgd import recurrence
from fastmlp.utils.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

EVALUATION_ROWS = 10_000
"""Images per batch of an evaluation."""

_ops: Any = torch.ops.fastmlp


class BlockedCudaEngine(BlockedEngine):
    """Blocked look-ahead SGD for networks with one hidden layer, on a GPU.

    Its steps are those of the engine on the CPU up to rounding. Networks of one batch size and
    about one width train in one launch, the narrower ones with hidden units of zeros, which no step
    moves; what each gives differs from what it gives alone by no more than rounding, and reruns of
    the same networks do not differ. An epoch can be stopped between two chunks of blocks; blocks
    end at the same steps wherever it is taken up.
    """

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: OptimizerConfig | None = None,
    ) -> str | None:
        if not native_available(device.type):
            return EagerEngine.unsupported_reason(device)
        if options is not None and (why := blocked_unsupported_reason(options)):
            return why
        if sizes is None:
            return None
        if len(sizes) != 3:
            return "on a GPU it wants exactly one hidden layer"
        _, why = _ops.blocked_plan_cuda(1, sizes[1], sizes[2], 1, False)
        return f"on a GPU {why}" if why else None

    @classmethod
    def train_together(
        cls,
        engines: Sequence[Self],
        epochs: Sequence[Epoch],
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """Those of one shape side by side, the shapes one after the other; networks whose epochs
        have the very same ``order`` and ``moves`` share their images and Gram matrices."""
        if not engines:
            return []
        check_alike(engines)
        check_shared(engines, epochs)
        runs = [_Run(engine, epoch) for engine, epoch in zip(engines, epochs, strict=True)]
        watch = _Watch(runs, should_stop, on_progress)
        used: dict[Shape, Runner] = {}
        kept = engines[0]._runners
        for engine in engines:
            engine._runners = kept  # of all who have ever trained together
        with torch.no_grad():
            for groups in _stacks(runs):
                shape = _shape_of(groups)
                runner = kept.get(shape) or _make_runner(groups, shape)
                used[shape] = kept[shape] = runner
                _Pass(runner, groups).run(watch)
                if watch.stopped:
                    break
        kept.clear()  # the others would only take memory
        kept.update(used)
        return [run.error or run.tally.read() for run in runs]

    def _set_up(self) -> None:
        super()._set_up()
        self._runners: dict[Shape, Runner] = {}

    @classmethod
    def evaluate_together(cls, engines: Sequence[Self], part: Subset) -> list[EvalMetrics]:
        if not engines:
            return []
        check_alike(engines)
        count, there = part.total, engines[0]._on_device(part)
        sums = torch.zeros(2, len(engines), dtype=torch.float64, device=engines[0].device)
        with torch.no_grad():
            for start in range(0, count, EVALUATION_ROWS):
                rows = slice(start, start + EVALUATION_ROWS)
                x, labels = engines[0]._inputs(there.images[rows]), there.labels[rows]
                for i, engine in enumerate(engines):
                    loss, logits = engine._evaluate(x, labels)
                    sums[0, i] += loss
                    sums[1, i] += (logits.argmax(1) == labels).sum()
        losses, hits = sums.tolist()
        return [
            EvalMetrics(loss / count, correct / count, count)
            for loss, correct in zip(losses, hits, strict=True)
        ]


class _Run:
    """One network's epoch under way."""

    def __init__(self, engine: BlockedCudaEngine, epoch: Epoch) -> None:
        options, images = engine.options, len(engine._labels)
        self.engine, self.epoch = engine, epoch
        # On the CPU: what it counts is read from the device for all networks at once.
        self.tally = MetricsAccumulator(
            len(epoch.order), options.batch_size, epoch.start_step, torch.device("cpu")
        )
        self.error: NonFiniteLossError | None = None
        self.batch = min(options.batch_size, len(epoch.order))
        self.hidden, self.classes = len(engine._tensors[1]), len(engine._tensors[3])
        self.steps, self.compiled = self._plan()
        self.width = self._width()
        if epoch.order.min() < 0 or epoch.order.max() >= images:
            raise ValueError(f"an order must be in [0, {images})")

    def _plan(self) -> tuple[int, bool]:
        """Steps in a block, and whether the kernel takes them."""
        forced = self.engine.block_steps
        for wanted in (forced,) if forced else (0, 1):
            steps, why = self._ask(self.hidden, wanted)
            if not why:
                return steps, True
        if forced and forced > 1:
            raise UserError(f"block_steps {forced} is too long for this network on a GPU: {why}")
        return 1, False

    def _width(self) -> int:
        """Up to so many hidden units it can be made wider, to train beside wider networks: to the
        next power of two, from 64 on, where the kernel takes that in blocks of the same length."""
        widest = max(64, 1 << (self.hidden - 1).bit_length())
        _, why = self._ask(widest, self.steps)
        return widest if self.compiled and not why else self.hidden

    def _ask(self, hidden: int, steps: int) -> tuple[int, str]:
        """Steps in a block of so many hidden units, and why the kernel does not take them."""
        doubles = self.engine._tensors[0].dtype == torch.float64
        plan: tuple[int, str] = _ops.blocked_plan_cuda(
            self.batch, hidden, self.classes, steps, doubles
        )
        return plan

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """The same for runs that one recording can serve."""
        moves = self.epoch.moves
        return (
            *(self.width, self.classes, self.batch, self.steps, self.compiled),
            *(self.engine.options.momentum > 0, None if moves is None else moves.shape),
        )

    @property
    def images_key(self) -> tuple[int, ...]:
        """The same for runs that go through the same images together."""
        return id(self.epoch.order), id(self.epoch.moves), self.epoch.start_step

    def take(self, losses: Tensor, correct: Tensor) -> None:
        """Notes the steps that were done."""
        if self.error is not None:
            return
        self.tally.add(losses, correct)
        if not losses.float().isfinite().all():  # as the tally keeps them
            try:
                self.tally.read()
            except NonFiniteLossError as error:
                self.error = error


class _Watch:
    """What the caller wants to know, and to say, while networks train."""

    def __init__(
        self,
        runs: Sequence[_Run],
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[list[EpochMetrics]], None] | None,
    ) -> None:
        self._runs, self._should_stop, self._on_progress = runs, should_stop, on_progress
        self._report_at = time.perf_counter() + REPORT_SECONDS
        self.stopped = False

    def ask(self) -> bool:
        """Whether to stop here."""
        self.stopped = self._should_stop is not None and self._should_stop()
        return self.stopped

    @property
    def due(self) -> bool:
        """Whether it is time to look at the losses."""
        return time.perf_counter() >= self._report_at

    def report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                [r.tally.read() if r.error is None else EpochMetrics() for r in self._runs]
            )
        self._report_at = time.perf_counter() + REPORT_SECONDS


class _Pass:
    """Networks of one shape, in groups that share their images, on their way through an epoch."""

    def __init__(self, runner: Runner, groups: Sequence[Sequence[_Run]]) -> None:
        self._runner, self._groups = runner, groups
        self._runs = [run for group in groups for run in group]
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # first block, losses, hits
        self._pace = ReplayThrottle(runner.losses.device)
        self._schedule()

    def _schedule(self) -> None:
        """The images of all blocks, on the device, in whole chunks."""
        shape, device = self._runner.shape, self._runner.parameters[0].device
        epochs = [group[0].epoch for group in self._groups]
        schedules = [Schedule.of(len(e.order), e.start_step, shape) for e in epochs]
        longest = max(len(schedule.rows) for schedule in schedules)
        self._chunks = -(-longest // shape.blocks)
        schedules = [schedule.padded(self._chunks * shape.blocks) for schedule in schedules]
        self._host_rows = torch.stack([schedule.rows for schedule in schedules], 1)
        index, moves = [], []
        for epoch, schedule in zip(epochs, schedules, strict=True):
            index.append(epoch.order[schedule.index])
            if epoch.moves is not None:
                moves.append(epoch.moves.values[schedule.index])
        self._index = torch.stack(index, 1).to(device)
        self._rows = self._host_rows.to(device)
        self._moves = torch.stack(moves, 1).to(device) if moves else None

    def run(self, watch: _Watch) -> None:
        """Goes through the epoch, or as much of it as ``watch`` and the losses allow."""
        self._load()
        for chunk in range(self._chunks):
            self._run_chunk(chunk * self._runner.shape.blocks)
            if watch.ask():
                break
            if watch.due:
                self._read()
                watch.report()
                if all(run.error for run in self._runs):
                    break
        self._read()
        self._unload()

    def _run_chunk(self, first: int) -> None:
        runner = self._runner
        blocks = slice(first, first + runner.shape.blocks)
        moves = None if self._moves is None else self._moves[blocks]
        runner.replay(self._index[blocks], self._rows[blocks], moves)
        self._unread.append((first, runner.losses.clone(), runner.correct.clone()))
        self._pace.keep()

    def _read(self) -> None:
        """Gives every network the losses of the steps that were done; waits for the device."""
        if not self._unread:
            return
        shape = self._runner.shape
        first = self._unread[0][0]
        losses = torch.cat([losses for _, losses, _ in self._unread]).cpu()
        correct = torch.cat([correct for _, _, correct in self._unread]).cpu()
        rows = self._host_rows[first : first + len(losses)]
        self._unread.clear()
        there = torch.arange(shape.steps) * shape.batch < rows[..., None]  # (blocks, G, S)
        for m, run in enumerate(self._runs):
            steps = there[:, m // shape.networks]
            if steps.any():
                run.take(losses[:, m][steps], correct[:, m][steps])

    def _load(self) -> None:
        """Parameters, momenta and options of all networks, into the runner's buffers."""
        runner = self._runner
        if any(run.hidden < runner.shape.hidden for run in self._runs):
            torch._foreach_zero_([*runner.parameters, *runner.momentum])
        for stacked, mine in self._places():
            torch._foreach_copy_(stacked, mine)
        tables, options = [], []
        for run in self._runs:
            o, lr = run.engine.options, run.epoch.lr
            tables.append(recurrence(run.steps, lr, o.momentum, o.weight_decay, o.nesterov))
            options.append((lr, o.momentum, o.weight_decay, o.nesterov, o.grad_average))
        recurrences = torch.stack(tables)
        recurrences[..., 0] -= 1  # in float64: see blocked_chain_ref
        runner.recurrence.copy_(recurrences)
        runner.options.copy_(torch.tensor(options, dtype=torch.float64))

    def _unload(self) -> None:
        for stacked, mine in self._places():
            torch._foreach_copy_(mine, stacked)

    def _places(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Where each parameter of the networks lies in the runner, and where in the engines; then
        the same of each momentum."""
        runner, engines = self._runner, [run.engine for run in self._runs]
        theirs = list(zip(*(engine._tensors for engine in engines), strict=True))
        if runner.momentum:
            theirs += zip(*map(_momentum_of, engines), strict=True)
        for stacked, mine in zip([*runner.parameters, *runner.momentum], theirs, strict=True):
            yield [_corner(one, of) for one, of in zip(stacked, mine, strict=True)], list(mine)


def _corner(wide: Tensor, tensor: Tensor) -> Tensor:
    """The part of ``wide`` that is as large as ``tensor``."""
    return wide[tuple(slice(size) for size in tensor.shape)]


def _momentum_of(engine: BlockedCudaEngine) -> list[Tensor]:
    """Its buffers; zeros are the same as none yet."""
    engine._begin()
    return engine._kept["momentum"]


def _stacks(runs: Sequence[_Run]) -> Iterator[list[list[_Run]]]:
    """The runs as one recording each serves them: groups of equal size that share their images."""
    shapes: defaultdict[tuple[Any, ...], dict[tuple[int, ...], list[_Run]]] = defaultdict(dict)
    for run in runs:
        shapes[run.shape_key].setdefault(run.images_key, []).append(run)
    for sharing in shapes.values():
        sizes: defaultdict[int, list[list[_Run]]] = defaultdict(list)
        for group in sharing.values():
            sizes[len(group)].append(group)
        for groups in sizes.values():
            first = groups[0][0]
            most = max(1, CHUNK_BYTES // _block_bytes(first))
            for i in range(0, len(groups), most):
                yield groups[i : i + most]


def _block_bytes(run: _Run) -> int:
    weight = run.engine._tensors[0]
    return block_bytes(run.batch * run.steps, weight.shape[1], run.steps, weight.dtype)


def _shape_of(groups: Sequence[Sequence[_Run]]) -> Shape:
    first = groups[0][0]
    weight, moves = first.engine._tensors[0], first.epoch.moves
    # Chunks of equal length, as few as there may be; the same wherever an epoch is taken up.
    most = max(1, min(CHUNK_BLOCKS, CHUNK_BYTES // (len(groups) * _block_bytes(first))))
    hidden = max(run.hidden for group in groups for run in group)
    blocks = max(-(-len(group[0].epoch.order) // (first.batch * first.steps)) for group in groups)
    chunks = -(-blocks // most)
    return Shape(
        *(len(groups), len(groups[0]), weight.shape[1], hidden, first.classes),
        *(first.batch, first.steps, -(-blocks // chunks)),
        momentum=first.engine.options.momentum > 0,
        decay=any(run.engine.options.weight_decay for group in groups for run in group),
        dtype=weight.dtype,
        moved=None if moves is None else moves.shape,
        compiled=first.compiled,
    )


def _make_runner(groups: Sequence[Sequence[_Run]], shape: Shape) -> Runner:
    engine = groups[0][0].engine
    return Runner(shape, engine._images, engine._labels, engine._normalization)
