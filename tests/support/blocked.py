"""Problems for the blocked engine, and what it must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from support.compare import assert_within_2x
from support.draws import by_name, training_draws
from support.single import SingleNetwork
from support.tiny import CLASSES, FEATURES

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.base import Engine, TrainState
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.engines.registry import choose_engine
from fastmlp.nn.init import initial_parameters
from fastmlp.utils.errors import UserError

CPU = torch.device("cpu")


OPTIMIZERS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "decay": {"weight_decay": 0.05},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "grad_average": True},
}


OPTIMIZER = pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)


ENDS = pytest.mark.parametrize("options", [{}, OPTIMIZERS["all"]], ids=["plain", "all"])


def problem(images=211, inputs=37, classes=5, planes=None):
    """Each feature with its own scale and shift, or so many planes of about the same size."""
    part = Subset(
        torch.randint(0, 256, (images, inputs), dtype=torch.uint8),
        torch.randint(0, classes, (images,)),
    )
    of = torch.arange(inputs) if planes is None else torch.arange(inputs) * planes // inputs
    scale, shift = 0.02 * torch.rand(inputs) + 0.01, -torch.rand(inputs)
    return part, Normalization("standard", scale[of], shift[of])


def make(
    engine, data, options, hidden=(19,), dtype=torch.float32, classes=5, steps=None, seed=3
):  # fmt: skip
    """A network on a new engine of this kind."""
    made = engine(*data, CPU)
    inputs = data[0].images.shape[1]
    state = new_state(made, inputs, options, hidden, dtype, classes, steps, seed)
    return SingleNetwork(made, state)


def new_state(
    engine: Engine,
    inputs: int,
    options: dict[str, Any],
    hidden: Sequence[int] = (19,),
    dtype: torch.dtype = torch.float32,
    classes: int = 5,
    steps: int | None = None,
    seed: int = 3,
) -> TrainState:
    """A network for an engine; ``steps`` forces the length of its blocks."""
    parameters = initial_parameters([inputs, *hidden, classes], "kaiming", seed=seed)
    parameters = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    # Only the blocked engines know blocks.
    forced = steps if engine.name == "blocked" else None
    return engine.new_state(parameters, OptimizerConfig(**options), block_steps=forced)


def flat(network):
    """All tensors of a network, or of its state."""
    state = network.state_dict()
    return {f"{kind}.{k}": t for kind, part in state.items() for k, t in part.items()}


def assert_same_state(one, other):
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def assert_is_sgd(data, options, order, lr=0.05, flip_shifts=None, **shape):
    """Two epochs in float64: what plain PyTorch has, up to rounding."""
    engines = [
        make(engine, data, options, dtype=torch.float64, **shape)
        for engine in (BlockedEngine, ReferenceEngine)
    ]
    for _ in range(2):
        mine, theirs = [
            engine.train_epoch(order, lr, flip_shifts=flip_shifts) for engine in engines
        ]
        assert mine.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-6)  # kept in float32
        assert (mine.correct, mine.steps, mine.finished) == (theirs.correct, theirs.steps, True)
    ours, reference = flat(engines[0]), flat(engines[1])
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-12)


def assert_as_close_as_pytorch(data, options, order, lr, lengths=(None,)):
    """Assert that an epoch in float32, in blocks of any of these lengths, ends no further from the
    truth than twice plain PyTorch."""
    truth = make(ReferenceEngine, data, options, dtype=torch.float64)
    truth.train_epoch(order, lr)
    plain = partial(make, ReferenceEngine, options=options)
    theirs = by_name(training_draws(plain, data, [(order, lr)], options["batch_size"]))
    for steps in lengths:
        engine = make(BlockedEngine, data, options, steps=steps)
        engine.train_epoch(order, lr)
        ours = flat(engine)
        for name, true in flat(truth).items():
            assert_within_2x(ours[name], theirs[name], true)


def assert_threads_change_nothing(threads, data, options, order, flip_shifts=None, **shape):
    """Of a network large enough that csrc/plan.h gives its blocks several threads."""
    runs = []
    for count in (1, 2, 3, 1):
        threads(count)
        engine = make(BlockedEngine, data, options, **shape)
        runs.append((engine, engine.train_epoch(order, 0.05, flip_shifts=flip_shifts)))
    for engine, stats in runs[1:]:
        assert_same_state(runs[0][0], engine)
        assert stats == runs[0][1]


@dataclass(frozen=True)
class Network:
    """One of several networks: what it is made of, and which of the orders it follows."""

    order: str = "first"
    lr: float = 0.05
    start_step: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)


def assert_blocked_refuses(options: OptimizerConfig, why: str) -> None:
    """And that another engine is found, where all of them could run."""
    sizes = [FEATURES, 16, CLASSES]
    other = "native" if options.precision == "float32" else "eager"
    for device, name in ((CPU, other), (torch.device("cuda", 0), "graph")):
        engine, reason = choose_engine("auto", device, sizes, options)
        assert engine.name == name
        assert f"not blocked, because {why}" in reason
        with pytest.raises(UserError, match=f"The engine blocked cannot run here: {why}; try"):
            choose_engine("blocked", device, sizes, options)
