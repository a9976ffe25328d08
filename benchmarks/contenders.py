"""Everything that is timed on whole epochs, each in a process of its own, so that no library's
threads get in the way of another's."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
from peers import PEERS, Parameters, Peer
from timing import Timing, summarize
from torch import Tensor

from fastmlp.data import Part, make_normalization
from fastmlp.engine_base import Engine, Epoch, SgdOptions
from fastmlp.engines import ENGINES
from fastmlp.epochs import initial_parameters

IMAGES, INPUTS, CLASSES = 30_000, 3072, 10
LR = 0.01
OURS = "fastmlp "
TURN_SECONDS = 2.0


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


class OurEngines:
    """fastmlp's engine on several models at once."""

    def __init__(self, kind: type[Engine], task: Task, part: Part) -> None:
        norm, options = make_normalization("unit", part.images), SgdOptions(task.batch)
        self.engines = [
            kind(start(task, model), part, norm, options, torch.device("cpu"))
            for model in range(task.models)
        ]

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        """All models."""
        type(self.engines[0]).train_together(self.engines, [Epoch(o, LR) for o in orders])

    def parameters(self) -> list[Parameters]:
        """Of each model."""
        return [engine.parameters_state() for engine in self.engines]


class OneAfterTheOther:
    """A peer for each model."""

    def __init__(self, peer: Any, task: Task, part: Part) -> None:
        images = make_normalization("unit", part.images).apply(part.images)
        self.peers: list[Peer] = [
            peer(start(task, model), images, part.labels, LR) for model in range(task.models)
        ]

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


def random_part(images: int) -> Part:
    """Random images: the time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, INPUTS), dtype=torch.uint8, generator=generator)
    return Part(pixels, torch.randint(0, CLASSES, (images,), generator=generator))


def available() -> list[str]:
    """The names of all that can run here."""
    engines = [
        n for n, e in ENGINES.items() if n != "reference" and not e.why_not(torch.device("cpu"))
    ]
    peers = [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package)]
    return [*(OURS + name for name in engines), *peers]


def _make(name: str, task: Task) -> OurEngines | OneAfterTheOther:
    part = random_part(task.images)
    if name.startswith(OURS):
        return OurEngines(ENGINES[name.removeprefix(OURS)], task, part)
    return OneAfterTheOther(PEERS[name][1], task, part)


def _serve(name: str, threads: int, pipe: Connection) -> None:
    """A contender's process: makes what it is told to and runs the epochs it is asked for."""
    torch.set_num_threads(threads)
    contender, task = None, Task()
    while True:
        what, value = pipe.recv()
        if what == "make":
            task = value
            contender = _make(name, task)
            pipe.send(None)
        elif what == "epoch":
            assert contender is not None
            orders = orders_of(task, value)
            begin = time.perf_counter()
            contender.epoch(orders, task.batch)
            pipe.send(time.perf_counter() - begin)
        elif what == "parameters":
            assert contender is not None
            pipe.send([{k: v.numpy() for k, v in p.items()} for p in contender.parameters()])
        else:
            return


class Contender:
    """One of :func:`available` in its process."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(name, torch.get_num_threads(), theirs), daemon=True
        )
        self._process.start()

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.is_alive():
            self._pipe.send(("stop", None))
            self._process.join()

    def make(self, task: Task) -> None:
        """Gets ready for a task."""
        self._ask("make", task)

    def epoch(self, turn: int) -> float:
        """Runs an epoch; returns its seconds."""
        return float(self._ask("epoch", turn))

    def parameters(self) -> list[Parameters]:
        """Of each model."""
        return [
            {k: torch.from_numpy(v.copy()) for k, v in p.items()}
            for p in self._ask("parameters", None)
        ]

    def _ask(self, what: str, value: object) -> Any:
        self._pipe.send((what, value))
        return self._pipe.recv()


def check_same(contenders: Sequence[Contender], task: Task) -> None:
    """Raises AssertionError unless after 64 steps all contenders differ by less than three
    hundredths of the way that the parameters have gone. Rounding makes up to one of them, where
    large batches of random labels go nowhere much."""
    short = replace(task, images=64 * task.batch)
    found = {}
    for contender in contenders:
        contender.make(short)
        contender.epoch(0)
        found[contender.name] = contender.parameters()
    truth = found[next(name for name in found if not name.startswith(OURS))]
    for name, models in found.items():
        for model, (mine, theirs) in enumerate(zip(models, truth, strict=True)):
            for key, begin in start(task, model).items():
                way = (theirs[key] - begin).norm()
                apart = (mine[key] - theirs[key]).norm()
                assert apart < 0.03 * way, f"{name}: {key} is {apart} off on a way of {way}"


def time_epochs(contenders: Sequence[Contender], task: Task, rounds: int) -> dict[str, Timing]:
    """Times whole epochs, the contenders in turn, after one that warms up. A turn is as many epochs
    as take TURN_SECONDS, which count by their mean: a shared machine takes a while to speed up."""
    for contender in contenders:
        contender.make(task)
        contender.epoch(0)
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for contender in contenders:
            epochs: list[float] = []
            while sum(epochs) < TURN_SECONDS:
                epochs.append(contender.epoch(100 * turn + len(epochs)))
            seconds[contender.name].append(sum(epochs) / len(epochs))
    return {name: summarize([s * 1e6 for s in values]) for name, values in seconds.items()}
