"""Everything that is timed on whole epochs, each in a process of its own, so that no library's
threads get in the way of another's."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
from peers import PEERS, Parameters, Peer
from peers_cuda import CUDA_PEERS, JaxModels
from timing import Timing, summarize
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.base import Engine, Epoch
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.registry import ENGINES, engine_for
from fastmlp.nn.init import initial_parameters

IMAGES, INPUTS, CLASSES = 30_000, 3072, 10
LR = 1e-3  # with more, what rounding decides in one step grows over the next ones
OURS = "fastmlp "
TURN_SECONDS = 2.0
STEPS_CHECKED = 64
PATIENCE_SECONDS = 180
"""For one answer of a contender; an epoch of the slowest one takes a tenth of it."""


@dataclass(frozen=True)
class Task:
    """What is trained: ``models`` networks INPUTS-hidden-CLASSES, each with its own initial
    parameters and order of the images, for one epoch of ``images`` images in batches."""

    batch: int = 8
    hidden: int = 256
    models: int = 1
    images: int = IMAGES

    @property
    def flop(self) -> float:
        """Floating-point operations that plain SGD needs for it: two products in the first layer,
        three in the last."""
        weights = 4 * INPUTS * self.hidden + 6 * self.hidden * CLASSES
        return float(self.models * self.images * weights)


class OurEngine:
    """fastmlp's engine on several models at once."""

    def __init__(self, kind: type[Engine], task: Task, part: Subset, device: torch.device) -> None:
        self.engine = kind(part, make_normalization("unit", part.images), device)
        config = OptimizerConfig(task.batch)
        self.states = [
            self.engine.new_state(start(task, model), config) for model in range(task.models)
        ]

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        """All models."""
        self.engine.train_epoch(self.states, [Epoch(EpochOrder(o), LR) for o in orders])

    def parameters(self) -> list[Parameters]:
        """Of each model."""
        return [state.parameters_state() for state in self.states]


class OneAfterTheOther:
    """A peer for each model."""

    def __init__(self, peer: Any, task: Task, part: Subset, device: torch.device) -> None:
        images = make_normalization("unit", part.images).apply(part.images)
        there = torch.device("cpu") if getattr(peer, "HOST", False) else device
        images, labels = images.to(there), part.labels.to(there)
        self.peers: list[Peer] = []
        for model in range(task.models):
            parameters = {name: t.to(device) for name, t in start(task, model).items()}
            self.peers.append(peer(parameters, images, labels, LR))

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        """All models."""
        for peer, order in zip(self.peers, orders, strict=True):
            peer.epoch(order, batch)

    def parameters(self) -> list[Parameters]:
        """Of each model."""
        return [peer.parameters() for peer in self.peers]


def start(task: Task, model: int) -> Parameters:
    """A model's initial parameters."""
    return initial_parameters([INPUTS, task.hidden, CLASSES], "kaiming", model)


def orders_of(task: Task, turn: int) -> list[Tensor]:
    """The models' orders in an epoch."""
    return [
        torch.randperm(task.images, generator=torch.Generator().manual_seed(1000 * turn + model))
        for model in range(task.models)
    ]


def random_part(images: int) -> Subset:
    """Random images: the time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, INPUTS), dtype=torch.uint8, generator=generator)
    return Subset(pixels, torch.randint(0, CLASSES, (images,), generator=generator))


def available(device: str = "cpu") -> list[str]:
    """The names of all that can run here."""
    where = torch.device(device)
    engines = [
        n
        for n in ENGINES
        if n != "reference" and not engine_for(n, where).unsupported_reason(where)
    ]
    packages = (
        {name: package for name, (package, _) in PEERS.items()}
        if where.type == "cpu"
        else {name: peer.package for name, peer in CUDA_PEERS.items()}
    )
    peers = [name for name, package in packages.items() if importlib.util.find_spec(package)]
    return [*(OURS + name for name in engines), *peers]


class Worker:
    """A contender where it runs."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self._device = torch.device(device)
        self._task = Task()
        self._made: OurEngine | OneAfterTheOther | JaxModels | None = None

    def make(self, task: Task) -> None:
        """Gets ready for a task."""
        part, name, device = random_part(task.images), self.name, self._device
        self._task, self._made = task, None
        if name.startswith(OURS):
            kind = engine_for(name.removeprefix(OURS), device)
            self._made = OurEngine(kind, task, part, device)
            return
        peer = PEERS[name][1] if name in PEERS else CUDA_PEERS[name].kind
        if peer is JaxModels:
            images = make_normalization("unit", part.images).apply(part.images).to(device)
            models = [start(task, model) for model in range(task.models)]
            self._made = JaxModels(models, images, part.labels, LR)
            return
        self._made = OneAfterTheOther(peer, task, part, device)

    def epoch(self, turn: int, images: int | None = None) -> float:
        """Runs an epoch, or its first ``images`` images; returns its seconds."""
        assert self._made is not None
        orders = [order[:images] for order in orders_of(self._task, turn)]
        self._wait()
        begin = time.perf_counter()
        self._made.epoch(orders, self._task.batch)
        self._wait()
        return time.perf_counter() - begin

    def parameters(self) -> list[Parameters]:
        """Of each model."""
        assert self._made is not None
        return self._made.parameters()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class ContenderError(Exception):
    """What a contender could not do, in its own words."""


def _serve(name: str, device: str, threads: int, pipe: Connection) -> None:
    """A contender's process, which does what it is told to until that is None."""
    torch.set_num_threads(threads)
    worker = Worker(name, device)
    while (call := pipe.recv()) is not None:
        method, *args = call
        try:
            result = getattr(worker, method)(*args)
            if method == "parameters":
                result = [{k: v.cpu().numpy() for k, v in p.items()} for p in result]
            pipe.send((result, None))
        except Exception as error:  # whatever it is, the others go on
            pipe.send((None, f"{type(error).__name__}: {error}"))


class Contender:
    """One of :func:`available` in a process of its own. Raises :class:`ContenderError`."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(name, device, torch.get_num_threads(), theirs), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is noticed here

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.is_alive():
            self._pipe.send(None)
            self._process.join(10)
            self._process.kill()

    def make(self, task: Task) -> None:
        """Gets ready for a task."""
        self._ask("make", task)

    def epoch(self, turn: int, images: int | None = None) -> float:
        """Runs an epoch, or its first ``images`` images; returns its seconds."""
        return float(self._ask("epoch", turn, images))

    def parameters(self) -> list[Parameters]:
        """Of each model."""
        return [
            {k: torch.from_numpy(v.copy()) for k, v in p.items()} for p in self._ask("parameters")
        ]

    def _ask(self, method: str, *args: object) -> Any:
        try:
            self._pipe.send((method, *args))
            if not self._pipe.poll(PATIENCE_SECONDS):
                self._process.kill()
                raise ContenderError(f"{self.name} took more than {PATIENCE_SECONDS} s")
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            raise ContenderError(f"{self.name} has died") from None
        if error is not None:
            raise ContenderError(f"{self.name}: {error}")
        return result


def prepare(contender: Contender | Worker, task: Task) -> list[Parameters]:
    """Makes it, and returns what its parameters are after STEPS_CHECKED steps."""
    contender.make(task)
    contender.epoch(0, STEPS_CHECKED * task.batch)
    return [{k: t.cpu() for k, t in p.items()} for p in contender.parameters()]


def check_same(name: str, mine: list[Parameters], theirs: list[Parameters], task: Task) -> None:
    """Raises AssertionError unless after STEPS_CHECKED steps a contender and another differ by less
    than three hundredths of the way that the parameters have gone. Rounding makes up to one of
    them, where it decides whether a hidden unit is just above zero."""
    for model, (ours, truth) in enumerate(zip(mine, theirs, strict=True)):
        for key, begin in start(task, model).items():
            way, apart = (truth[key] - begin).norm(), (ours[key] - truth[key]).norm()
            assert apart < 0.03 * way, f"{name}: {key} is {apart} off on a way of {way}"


def check_all(contenders: Sequence[Contender], task: Task) -> None:
    """Makes all contenders and raises AssertionError unless they do the same steps."""
    found = {contender.name: prepare(contender, task) for contender in contenders}
    truth = found[next(name for name in found if not name.startswith(OURS))]
    for name, models in found.items():
        check_same(name, models, truth, task)


def time_epochs(contenders: Sequence[Contender], task: Task, rounds: int) -> dict[str, Timing]:
    """Times whole epochs, the contenders, which are made, in turn, after one that warms up. A turn
    is as many epochs as take TURN_SECONDS, which count by their mean: a shared machine takes a
    while to speed up."""
    for contender in contenders:
        contender.epoch(0)
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for contender in contenders:
            epochs: list[float] = []
            while sum(epochs) < TURN_SECONDS:
                epochs.append(contender.epoch(100 * turn + len(epochs)))
            seconds[contender.name].append(sum(epochs) / len(epochs))
    return {name: summarize([s * 1e6 for s in values]) for name, values in seconds.items()}
