"""Train any small MLP with Adam or momentum on rows of numbers, written otherwise.

Every peer is built with ``peer(task, parameters, x, y)`` from a plain ``state_dict``, rows (n, I)
float32 and labels (n,) int64, and trains as those of peers.py do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import contenders
import peers
import torch
from contenders import LR, OURS, ContenderError, OurEngine, Worker
from peers import JaxScan, ModuleAndOptimizer, Parameters, Peer
from torch import Tensor, nn

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.registry import engine_for
from fastmlp.nn.init import initial_parameters

MOMENTUM, DECAY = 0.9, 1e-3
"""Of SGD; Adam has neither."""


@dataclass(frozen=True)
class TabularTask:
    """An epoch of ``models`` networks of these layer sizes on random rows: numbers, or ``pixels``,
    uint8, which the peers get as float32, normalised."""

    rows: int
    sizes: tuple[int, ...]
    batch: int
    optimizer: str = "adam"
    pixels: bool = False
    models: int = 1

    def __str__(self) -> str:
        what = "adam" if self.optimizer == "adam" else "sgd with momentum and decay"
        shape = "-".join(map(str, self.sizes))
        return f"{self.rows:,} rows, {shape}, batch {self.batch}, {what}"

    @property
    def images(self) -> int:
        """The rows, as those who time epochs call them."""
        return self.rows

    @property
    def config(self) -> OptimizerConfig:
        """The settings of a step."""
        if self.optimizer == "adam":
            return OptimizerConfig(self.batch, optimizer="adam")
        return OptimizerConfig(self.batch, momentum=MOMENTUM, weight_decay=DECAY)

    def start(self, model: int) -> Parameters:
        """Return a model's initial parameters."""
        return initial_parameters(list(self.sizes), "kaiming", model)

    def part(self) -> Subset:
        """Return the rows and their labels."""
        random = torch.Generator().manual_seed(0)
        shape = self.rows, self.sizes[0]
        x = torch.randn(shape, generator=random)
        if self.pixels:
            x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        return Subset(x, torch.randint(0, self.sizes[-1], (self.rows,), generator=random))


class Module(ModuleAndOptimizer):
    """nn.Sequential, autograd and a fused optimizer of torch.optim."""

    def __init__(self, task: TabularTask, parameters: Parameters, x: Tensor, y: Tensor) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(task.sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.model.load_state_dict(parameters)
        tensors = self.model.parameters()
        if task.optimizer == "adam":
            self.optimizer = torch.optim.Adam(tensors, lr=LR, fused=True)
        else:
            self.optimizer = torch.optim.SGD(
                tensors, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=True
            )
        self.images, self.labels = x, y


class CompiledModule(Module):
    """The same, its forward and backward pass compiled."""

    OPTIONS: dict[str, Any] = {"fullgraph": True, "dynamic": False}  # noqa: RUF012

    def __init__(self, task: TabularTask, parameters: Parameters, x: Tensor, y: Tensor) -> None:
        super().__init__(task, parameters, x, y)
        torch._dynamo.reset()  # earlier tasks count against its limit of compilations
        self._loss_of = torch.compile(super().loss_of, **self.OPTIONS)

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self._loss_of(x, y)
        return loss


class JaxOptax(JaxScan):
    """The same, updates by optax."""

    def __init__(self, task: TabularTask, parameters: Parameters, x: Tensor, y: Tensor) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        decayed = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(LR, MOMENTUM))
        optimizer = optax.adam(LR) if task.optimizer == "adam" else decayed

        def loss(p: Any, x: Any, y: Any) -> Any:
            for layer in range(0, len(p) - 2, 2):
                x = jnp.maximum(x @ p[layer].T + p[layer + 1], 0)
            return optax.softmax_cross_entropy_with_integer_labels(x @ p[-2].T + p[-1], y).mean()

        def step(carried: Any, rows: Any) -> Any:
            p, state = carried
            value, gradients = jax.value_and_grad(loss)(p, self.images[rows], self.labels[rows])
            updates, state = optimizer.update(gradients, state, p)
            return (optax.apply_updates(p, updates), state), value

        self.start(parameters, x, y, step, optimizer.init)


class ScikitLearn(peers.ScikitLearn):
    """scikit-learn's MLPClassifier, one partial_fit an epoch. It decays the weights alone, by a
    decay divided by the batch."""

    def __init__(self, task: TabularTask, parameters: Parameters, x: Tensor, y: Tensor) -> None:
        from sklearn.neural_network import MLPClassifier

        if task.sizes[-1] == 2:
            raise ContenderError("it has one output for two classes, which is another network")
        adam = task.optimizer == "adam"
        model = MLPClassifier(
            task.sizes[1:-1],
            solver="adam" if adam else "sgd",
            alpha=0.0 if adam else DECAY * task.batch,
            learning_rate_init=LR,
            momentum=MOMENTUM,
            nesterovs_momentum=False,
            shuffle=False,
        )
        self.start(model, parameters, x, y)


PEERS: dict[str, tuple[tuple[str, ...], Any]] = {
    "scikit-learn": (("sklearn",), ScikitLearn),
    "nn.Module, fused optimizer": (("torch",), Module),
    "torch.compile": (("torch",), CompiledModule),
    "JAX jit(scan), optax": (("jax", "optax"), JaxOptax),
}
"""By name, with the packages that each needs."""


def missing() -> dict[str, list[str]]:
    """Return the peers that cannot run here, by name, with the packages to install for each."""
    absent = {
        name: [contenders.INSTALL.get(p, p) for p in packages if not contenders.installed(p)]
        for name, (packages, _) in PEERS.items()
    }
    return {name: packages for name, packages in absent.items() if packages}


class _Alone:
    """A peer, which trains one model."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        self.peer.epoch(orders[0], batch)

    def parameters(self) -> list[Parameters]:
        return [self.peer.parameters()]


class TabularWorker(Worker):
    """A contender in the process that it runs in, for a :class:`TabularTask`."""

    def make(self, task: TabularTask) -> None:
        """Get ready for a task."""
        part, device = task.part(), self._device
        self._task, self._made = task, None
        if self.name.startswith(OURS):
            kind = engine_for(self.name.removeprefix(OURS), device)
            reason = kind.unsupported_reason(device, task.sizes, task.config)
            reason = reason or kind.unsupported_data(part)
            if reason is not None:
                raise ContenderError(reason)
            self._made = OurEngine(kind, task, part, device)
            return
        x = make_normalization("unit", part.images).apply(part.images) if task.pixels else None
        peer = PEERS[self.name][1]
        self._made = _Alone(peer(task, task.start(0), part.images if x is None else x, part.labels))
