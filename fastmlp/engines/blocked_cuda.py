"""The engine ``blocked`` on a GPU: blocked look-ahead SGD for networks with one hidden layer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.base import Epoch, TrainState
from fastmlp.engines.blocked import blocked_unsupported_reason, check_blocked, kernel_options
from fastmlp.engines.blocked_pipeline import (
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    BlockedPipeline,
    PipelineShape,
    Schedule,
    block_bytes,
)
from fastmlp.engines.compiled import NetworkEpoch, check_one_dtype, check_trains_together
from fastmlp.engines.cuda_graph import ReplayThrottle
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.stepwise import REPORT_SECONDS
from fastmlp.ops._load import native_available
from fastmlp.ops.blocked_sgd import recurrence
from fastmlp.ops.matmul_precision import matmul_precision_of
from fastmlp.utils.errors import UserError

EVALUATION_ROWS = 10_000
"""Images per batch of an evaluation."""

_ops: Any = torch.ops.fastmlp


def _properties(device: torch.device) -> Any:
    """Return what PyTorch knows of a GPU; None for the tests' emulated one, an H100, which works on
    CPU tensors."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(device)


def gpu_limits(device: torch.device) -> tuple[int, int]:
    """Return what a plan has to know of a GPU: its compute capability, 90 for 9.0, and the bytes of
    shared memory that a thread block may ask for."""
    gpu = _properties(device)
    if gpu is None:
        return 90, 227 << 10
    return 10 * gpu.major + gpu.minor, gpu.shared_memory_per_block_optin


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has."""
    gpu = _properties(device)
    return 132 if gpu is None else int(gpu.multi_processor_count)


class BlockedCudaEngine(EagerEngine):
    """Blocked look-ahead SGD for networks with one hidden layer, on a GPU.

    Its steps are those of the engine on the CPU up to rounding. Networks of one batch size and
    about one width train in one launch, the narrower ones with hidden units of zeros, which no step
    moves; what each gives differs from what it gives alone by no more than rounding, and reruns of
    the same networks do not differ. An epoch can be stopped between two chunks of blocks; blocks
    end at the same steps wherever it resumes. Evaluation is the eager engine's.
    """

    name = "blocked"

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        super().__init__(train, normalization, device)
        self._pipelines: dict[PipelineShape, BlockedPipeline] = {}
        self._planes = _planes_of(self._normalization)

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return why there are no blocks on this device, of this network or with this optimizer;
        None where there are."""
        if not native_available(device.type):
            return EagerEngine.unsupported_reason(device)
        if config is not None and (why := blocked_unsupported_reason(config)):
            return why
        if sizes is None:
            return None
        if len(sizes) != 3:
            return "on a GPU it wants exactly one hidden layer"
        _, why = _ops.blocked_plan_cuda(1, sizes[1], sizes[2], 1, False, *gpu_limits(device))
        return f"on a GPU {why}" if why else None

    def _check_config(self, config: OptimizerConfig, block_steps: int | None) -> None:
        check_blocked(config)

    def train_epoch(
        self,
        states: Sequence[TrainState],
        epochs: Sequence[Epoch],
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """Run the epochs of networks of one shape side by side, the shapes one after the other;
        networks whose epochs have the very same order share its images and Gram matrices."""
        check_trains_together(states, epochs)
        images = len(self._labels)
        networks = [
            _PlannedEpoch(state, epoch, images) for state, epoch in zip(states, epochs, strict=True)
        ]
        monitor = _Monitor(networks, should_stop, on_progress)
        used: dict[PipelineShape, BlockedPipeline] = {}
        with torch.no_grad():
            for groups in _stacks(networks):
                shape = _shape_of(groups, self._planes)
                used[shape] = self._pipeline(shape)
                _PipelineEpoch(used[shape], groups).run(monitor)
                if monitor.stopped:
                    break
        self._pipelines = used  # the others would only take memory
        return [network.result for network in networks]

    def _pipeline(self, shape: PipelineShape) -> BlockedPipeline:
        """Return the pipeline of a shape, made where none is left of the last epoch."""
        if shape not in self._pipelines:
            self._pipelines[shape] = BlockedPipeline(
                shape, self._images, self._labels, self._normalization
            )
        return self._pipelines[shape]

    def evaluate(self, states: Sequence[TrainState], subset: Subset) -> list[EvalMetrics]:
        """Return each network's loss and accuracy on ``subset``, all on the same inputs."""
        check_one_dtype(states)
        return super().evaluate(states, subset)

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS


class _PlannedEpoch(NetworkEpoch):
    """A network's epoch, with its plan: ``steps`` steps in a block, and ``compiled``, whether the
    kernel takes them."""

    def __init__(self, state: TrainState, epoch: Epoch, images: int) -> None:
        # Metrics on the CPU: what they count is read from the device for all networks at once.
        super().__init__(state, epoch, torch.device("cpu"))
        indices = epoch.order.indices
        self.tensors = state.tensors
        self.batch = min(state.config.batch_size, len(indices))
        self.hidden, self.classes = len(self.tensors[1]), len(self.tensors[3])
        self.steps, self.compiled = self._plan()
        self.width = self._width()
        if indices.min() < 0 or indices.max() >= images:
            raise ValueError(f"an order must be in [0, {images})")

    def _plan(self) -> tuple[int, bool]:
        """Return the steps in a block, and whether the kernel takes them."""
        forced = self.state.block_steps
        for wanted in (forced,) if forced else (0, 1):
            steps, why = self._ask(self.hidden, wanted)
            if not why:
                return steps, True
        if forced and forced > 1:
            raise UserError(f"block_steps {forced} is too long for this network on a GPU: {why}")
        return 1, False

    def _width(self) -> int:
        """Return the width that it may be padded to, to train beside wider networks: the next power
        of two, at least 64, if the kernel takes that in blocks of the same length."""
        widest = max(64, 1 << (self.hidden - 1).bit_length())
        _, why = self._ask(widest, self.steps)
        return widest if self.compiled and not why else self.hidden

    def _ask(self, hidden: int, steps: int) -> tuple[int, str]:
        """Return the steps in a block of ``hidden`` units, and why the kernel refuses them."""
        doubles = self.state.dtype == torch.float64
        plan: tuple[int, str] = _ops.blocked_plan_cuda(
            *(self.batch, hidden, self.classes, steps, doubles),
            *gpu_limits(self.tensors[0].device),
        )
        return plan

    @property
    def block_bytes(self) -> int:
        """The bytes that the inputs of a block take."""
        weight = self.tensors[0]
        return block_bytes(self.batch * self.steps, weight.shape[1], self.steps, weight.dtype)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(planes, height, width) where the images are flipped and shifted."""
        flip_shifts = self.epoch.order.flip_shifts
        return None if flip_shifts is None else flip_shifts.shape

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """A key, equal for networks that one recording can serve."""
        return (
            *(self.width, self.classes, self.batch, self.steps, self.compiled),
            *(self.state.config.momentum > 0, self.image_shape),
        )

    @property
    def images_key(self) -> tuple[EpochOrder, int]:
        """A key, equal for networks that use the same images together."""
        return self.epoch.order, self.epoch.start_step

    def momentum(self) -> list[Tensor]:
        """Return the momentum buffers, creating zeros on first use."""
        return self.state.ensure_optimizer_state()["momentum"]


class _Monitor:
    """Asks ``should_stop`` and calls ``on_progress`` during an epoch."""

    def __init__(
        self,
        networks: Sequence[NetworkEpoch],
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[list[EpochMetrics]], None] | None,
    ) -> None:
        self._networks, self._should_stop, self._on_progress = networks, should_stop, on_progress
        self._report_at = time.perf_counter() + REPORT_SECONDS
        self.stopped = False

    def ask(self) -> bool:
        """Ask whether to stop here; the answer stays in ``stopped``."""
        self.stopped = self._should_stop is not None and self._should_stop()
        return self.stopped

    @property
    def due(self) -> bool:
        """Whether it is time to look at the losses."""
        return time.perf_counter() >= self._report_at

    def report(self) -> None:
        """Report the progress of all networks."""
        if self._on_progress is not None:
            self._on_progress([network.progress for network in self._networks])
        self._report_at = time.perf_counter() + REPORT_SECONDS


class _PipelineEpoch:
    """The epochs in progress of networks of one shape, in groups that share their images."""

    def __init__(
        self, pipeline: BlockedPipeline, groups: Sequence[Sequence[_PlannedEpoch]]
    ) -> None:
        self._pipeline, self._groups = pipeline, groups
        self._networks = [network for group in groups for network in group]
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # first block, losses, hits
        self._throttle = ReplayThrottle(pipeline.losses.device)
        self._schedule()

    def _schedule(self) -> None:
        """Lay out the images of all blocks, on the device, in whole chunks."""
        shape, device = self._pipeline.shape, self._pipeline.parameters[0].device
        epochs = [group[0].epoch for group in self._groups]
        schedules = [Schedule.of(len(e.order), e.start_step, shape) for e in epochs]
        longest = max(len(schedule.rows) for schedule in schedules)
        self._chunks = -(-longest // shape.blocks)
        schedules = [schedule.padded(self._chunks * shape.blocks) for schedule in schedules]
        self._host_rows = torch.stack([schedule.rows for schedule in schedules], 1)
        index, flip_shifts = [], []
        for epoch, schedule in zip(epochs, schedules, strict=True):
            order = epoch.order
            index.append(order.indices[schedule.index])
            if order.flip_shifts is not None:
                flip_shifts.append(order.flip_shifts.values[schedule.index])
        self._index = torch.stack(index, 1).to(device)
        self._rows = self._host_rows.to(device)
        self._flip_shifts = torch.stack(flip_shifts, 1).to(device) if flip_shifts else None

    def run(self, monitor: _Monitor) -> None:
        """Run the epochs, or as much of them as ``monitor`` and the losses allow."""
        self._load()
        self._pipeline.start(*self._inputs(0))
        for chunk in range(self._chunks):
            self._run_chunk(chunk)
            if monitor.ask():
                break
            if monitor.due:
                self._read()
                monitor.report()
                if all(network.error for network in self._networks):
                    break
        self._read()
        self._unload()

    def _inputs(self, chunk: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the pipeline has to know of a chunk."""
        size = self._pipeline.shape.blocks
        blocks = slice(chunk * size, (chunk + 1) * size)
        flip_shifts = None if self._flip_shifts is None else self._flip_shifts[blocks]
        return self._index[blocks], self._rows[blocks], flip_shifts

    def _run_chunk(self, chunk: int) -> None:
        pipeline = self._pipeline
        pipeline.replay(self._inputs(chunk + 1) if chunk + 1 < self._chunks else None)
        first = chunk * pipeline.shape.blocks
        self._unread.append((first, pipeline.losses.clone(), pipeline.correct.clone()))
        self._throttle.keep()

    def _read(self) -> None:
        """Give every network the losses of the steps that are done; this syncs with the device."""
        if not self._unread:
            return
        shape = self._pipeline.shape
        first = self._unread[0][0]
        losses = torch.cat([losses for _, losses, _ in self._unread]).cpu()
        correct = torch.cat([correct for _, _, correct in self._unread]).cpu()
        rows = self._host_rows[first : first + len(losses)]
        self._unread.clear()
        taken = torch.arange(shape.steps) * shape.batch < rows[..., None]  # (blocks, G, S)
        for m, network in enumerate(self._networks):
            steps = taken[:, m // shape.networks]
            if steps.any():
                network.add(losses[:, m][steps], correct[:, m][steps])

    def _load(self) -> None:
        """Copy parameters, momentum and settings of all networks into the pipeline's buffers."""
        pipeline = self._pipeline
        if any(network.hidden < pipeline.shape.hidden for network in self._networks):
            torch._foreach_zero_([*pipeline.parameters, *pipeline.momentum])
        for stacked, mine in self._places():
            torch._foreach_copy_(stacked, mine)
        tables, options = [], []
        for network in self._networks:
            c, lr = network.state.config, network.epoch.lr
            tables.append(recurrence(network.steps, lr, c.momentum, c.weight_decay, c.nesterov))
            options.append(kernel_options(c, lr))
        recurrences = torch.stack(tables)
        recurrences[..., 0] -= 1  # in float64: see blocked_chain_ref
        pipeline.recurrence.copy_(recurrences)
        pipeline.options.copy_(torch.tensor(options, dtype=torch.float64))

    def _unload(self) -> None:
        """Copy parameters and momentum back."""
        for stacked, mine in self._places():
            torch._foreach_copy_(mine, stacked)

    def _places(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yield views of the pipeline and the networks' own tensors, for each parameter and then
        for each momentum buffer."""
        pipeline, networks = self._pipeline, self._networks
        theirs = list(zip(*(network.tensors for network in networks), strict=True))
        if pipeline.momentum:
            theirs += zip(*(network.momentum() for network in networks), strict=True)
        places = [*pipeline.parameters, *pipeline.momentum]
        for stacked, mine in zip(places, theirs, strict=True):
            yield [_corner(one, of) for one, of in zip(stacked, mine, strict=True)], list(mine)


def _corner(wide: Tensor, tensor: Tensor) -> Tensor:
    """Return the part of ``wide`` that has the size of ``tensor``."""
    return wide[tuple(slice(size) for size in tensor.shape)]


def _stacks(networks: Sequence[_PlannedEpoch]) -> Iterator[list[list[_PlannedEpoch]]]:
    """Split the networks into sets that one recording serves: groups of equal size that share their
    images."""
    shapes: defaultdict[tuple[Any, ...], dict[tuple[EpochOrder, int], list[_PlannedEpoch]]]
    shapes = defaultdict(dict)
    for network in networks:
        shapes[network.shape_key].setdefault(network.images_key, []).append(network)
    for sharing in shapes.values():
        sizes: defaultdict[int, list[list[_PlannedEpoch]]] = defaultdict(list)
        for group in sharing.values():
            sizes[len(group)].append(group)
        for groups in sizes.values():
            most = max(1, CHUNK_BYTES // groups[0][0].block_bytes)
            for i in range(0, len(groups), most):
                yield groups[i : i + most]


def _planes_of(normalization: Normalization) -> int:
    """Return into how many planes of pixels, each with one scale and one shift, an image falls; 0
    if it is neither one nor three."""
    columns = torch.stack([normalization.scale, normalization.shift]).cpu()
    for planes in (1, 3):
        if columns.shape[1] % planes == 0:
            each = columns.view(2, planes, -1)
            if torch.equal(each, each[..., :1].expand_as(each)):
                return planes
    return 0


def _shape_of(groups: Sequence[Sequence[_PlannedEpoch]], planes: int) -> PipelineShape:
    """Return the shape of the recording that serves these groups."""
    first = groups[0][0]
    weight, networks = first.tensors[0], [network for group in groups for network in group]
    blocks = max(-(-len(group[0].epoch.order) // (first.batch * first.steps)) for group in groups)
    shape = PipelineShape(
        *(len(groups), len(groups[0]), weight.shape[1]),
        *(max(network.hidden for network in networks), first.classes),
        *(first.batch, first.steps, blocks),
        momentum=first.state.config.momentum > 0,
        decay=any(network.state.config.weight_decay for network in networks),
        dtype=weight.dtype,
        augmented=first.image_shape,
        compiled=first.compiled,
        matmul_precision=matmul_precision_of(weight),
        planes=planes,
    )
    slices = _slices_of(shape, weight.device)
    # Chunks of equal length, as few as there may be; the same wherever an epoch resumes.
    each = block_bytes(shape.rows, shape.inputs, shape.steps, shape.dtype, as_bytes=slices > 0)
    chunks = -(-blocks // max(1, min(CHUNK_BLOCKS, CHUNK_BYTES // (shape.groups * each))))
    shape = replace(shape, blocks=-(-blocks // chunks))
    return replace(shape, slices=slices if shape.overlapped else 0)


def _slices_of(shape: PipelineShape, device: torch.device) -> int:
    """Return into how many parts our kernel cuts the products of a shape; 0 where it has none."""
    if not (shape.compiled and shape.planes and shape.overlapped):
        return 0
    doubles = shape.dtype == torch.float64
    slices, _ = _ops.blocked_products_plan_cuda(
        *(shape.rows, shape.inputs, shape.planes, shape.hidden, shape.all, doubles),
        *(multiprocessors(device), *gpu_limits(device)),
    )
    return int(slices)
