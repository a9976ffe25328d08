"""Run everything that is timed on epochs, each contender in a process of its own.

So no library's threads get in the way of another's.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

import torch
from peers import PEERS, Parameters, Peer
from peers_cuda import CUDA_PEERS, JaxModels
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
PATIENCE_SECONDS = 180
"""Time given to a contender for one answer; an epoch of the slowest one takes a tenth of it."""
INSTALL = {"sklearn": "scikit-learn"}
"""Names of packages on PyPI where they differ from the module's."""


@dataclass(frozen=True)
class Task:
    """An epoch of ``models`` networks INPUTS-hidden-CLASSES on ``images`` images, each network with
    its own initial parameters and order of the images."""

    batch: int = 8
    hidden: int = 256
    models: int = 1
    images: int = IMAGES

    @property
    def steps(self) -> int:
        """Steps of SGD in the epoch, of all models together."""
        return -(-self.images // self.batch) * self.models

    @property
    def config(self) -> OptimizerConfig:
        """The settings of a step."""
        return OptimizerConfig(self.batch)

    def start(self, model: int) -> Parameters:
        """Return a model's initial parameters."""
        return initial_parameters([INPUTS, self.hidden, CLASSES], "kaiming", model)

    @property
    def flop(self) -> float:
        """Floating-point operations of plain SGD: two products in the first layer, three in the
        last."""
        weights = 4 * INPUTS * self.hidden + 6 * self.hidden * CLASSES
        return float(self.models * self.images * weights)


class AnyTask(Protocol):
    """An epoch: what the timing of contenders asks of it, of these images or of other data."""

    @property
    def batch(self) -> int: ...
    @property
    def models(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def config(self) -> OptimizerConfig: ...
    def start(self, model: int) -> Parameters: ...


class Made(Protocol):
    """A contender made for a task."""

    def epoch(self, orders: Sequence[Tensor], batch: int) -> object: ...
    def parameters(self) -> list[Parameters]: ...


class OurEngine:
    """One of fastmlp's engines, training several models at once."""

    def __init__(
        self, kind: type[Engine], task: AnyTask, part: Subset, device: torch.device
    ) -> None:
        name = "none" if part.images.is_floating_point() else "unit"
        self.engine = kind(part, make_normalization(name, part.images), device)
        self.states = [
            self.engine.new_state(task.start(model), task.config) for model in range(task.models)
        ]

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        """Train all models on their orders."""
        self.engine.train_epoch(self.states, [Epoch(EpochOrder(o), LR) for o in orders])

    def parameters(self) -> list[Parameters]:
        """Return the parameters of each model."""
        return [state.parameters_state() for state in self.states]


class OneAfterTheOther:
    """One peer for each model, trained one after the other."""

    def __init__(self, peer: Any, task: Task, part: Subset, device: torch.device) -> None:
        there = torch.device("cpu") if getattr(peer, "HOST", False) else device
        images, labels = normalized_images(task.images).to(there), part.labels.to(there)
        self.peers: list[Peer] = []
        for model in range(task.models):
            parameters = {name: t.to(device) for name, t in task.start(model).items()}
            self.peers.append(peer(parameters, images, labels, LR))

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        """Train all models on their orders."""
        for peer, order in zip(self.peers, orders, strict=True):
            peer.epoch(order, batch)

    def parameters(self) -> list[Parameters]:
        """Return the parameters of each model."""
        return [peer.parameters() for peer in self.peers]


def orders_of(task: AnyTask, turn: int) -> list[Tensor]:
    """Return the models' orders of the images in an epoch."""
    return [
        torch.randperm(task.images, generator=torch.Generator().manual_seed(1000 * turn + model))
        for model in range(task.models)
    ]


def random_part(images: int) -> Subset:
    """Return random images and labels: the time does not depend on what the images show."""
    return _random_part(images, INPUTS)


def normalized_images(images: int) -> Tensor:
    """Return the images of :func:`random_part` as float32, normalised; not to be written to."""
    return _normalized_images(images, INPUTS)


@functools.lru_cache(maxsize=1)
def _random_part(images: int, inputs: int) -> Subset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, inputs), dtype=torch.uint8, generator=generator)
    return Subset(pixels, torch.randint(0, CLASSES, (images,), generator=generator))


@functools.lru_cache(maxsize=1)
def _normalized_images(images: int, inputs: int) -> Tensor:
    pixels = _random_part(images, inputs).images
    return make_normalization("unit", pixels).apply(pixels)


def peer_packages(device: str = "cpu") -> dict[str, str]:
    """Return the peers that exist for a device, by name, with the package that each needs."""
    if torch.device(device).type == "cpu":
        return {name: package for name, (package, _) in PEERS.items()}
    return {name: peer.package for name, peer in CUDA_PEERS.items()}


def available(device: str = "cpu") -> list[str]:
    """Return the names of all contenders that can run here, fastmlp's engines first."""
    where = torch.device(device)
    engines = [
        n
        for n in ENGINES
        if n != "reference" and not engine_for(n, where).unsupported_reason(where)
    ]
    peers = [n for n, package in peer_packages(device).items() if installed(package)]
    return [*(OURS + name for name in engines), *peers]


def missing(device: str = "cpu") -> dict[str, str]:
    """Return the peers that are not installed, by name, with the package to install for each."""
    return {
        name: INSTALL.get(package, package)
        for name, package in peer_packages(device).items()
        if not installed(package)
    }


def installed(package: str) -> bool:
    """Return whether a package can be imported here."""
    return importlib.util.find_spec(package) is not None


class Worker:
    """A contender in the process that it runs in."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self._device = torch.device(device)
        self._task: AnyTask = Task()
        self._made: Made | None = None

    def make(self, task: Any) -> None:
        """Get ready for a :class:`Task`."""
        part, name, device = random_part(task.images), self.name, self._device
        self._task, self._made = task, None
        if name.startswith(OURS):
            kind = engine_for(name.removeprefix(OURS), device)
            self._made = OurEngine(kind, task, part, device)
            return
        peer = PEERS[name][1] if name in PEERS else CUDA_PEERS[name].kind
        if peer is JaxModels:
            images = normalized_images(task.images).to(device)
            models = [task.start(model) for model in range(task.models)]
            self._made = JaxModels(models, images, part.labels, LR)
            return
        self._made = OneAfterTheOther(peer, task, part, device)

    def epoch(self, turn: int, images: int | None = None) -> float:
        """Run an epoch, or its first ``images`` images; return its seconds."""
        assert self._made is not None
        orders = [order[:images] for order in orders_of(self._task, turn)]
        self._wait()
        begin = time.perf_counter()
        self._made.epoch(orders, self._task.batch)
        self._wait()
        return time.perf_counter() - begin

    def parameters(self) -> list[Parameters]:
        """Return the parameters of each model."""
        assert self._made is not None
        return self._made.parameters()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class ContenderError(Exception):
    """A contender failed; the message is its own."""


def _serve(kind: type[Worker], name: str, device: str, threads: int, pipe: Connection) -> None:
    """Serve calls from a pipe in a contender's process until one is None."""
    torch.set_num_threads(threads)
    worker = kind(name, device)
    while (call := pipe.recv()) is not None:
        method, *args = call
        try:
            result = getattr(worker, method)(*args)
            if method == "parameters":
                result = [{k: v.cpu().numpy() for k, v in p.items()} for p in result]
            pipe.send((result, None))
        except Exception as error:  # the other contenders are still worth timing
            pipe.send((None, f"{type(error).__name__}: {error}"))


class Contender:
    """One of :func:`available`, or a worker of another ``kind``, in a process of its own. Methods
    raise :class:`ContenderError`."""

    def __init__(self, name: str, device: str = "cpu", kind: type[Worker] = Worker) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(kind, name, device, torch.get_num_threads(), theirs), daemon=True
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

    def make(self, task: AnyTask) -> None:
        """Get ready for a task."""
        self._ask("make", task)

    def epoch(self, turn: int, images: int | None = None) -> float:
        """Run an epoch, or its first ``images`` images; return its seconds."""
        return float(self._ask("epoch", turn, images))

    def parameters(self) -> list[Parameters]:
        """Return the parameters of each model."""
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
