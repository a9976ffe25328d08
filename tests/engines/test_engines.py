"""Every engine against the plain PyTorch trainer, with float64 as the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from support.compare import assert_within_2x
from support.draws import Renumbering, renumberings
from support.single import SingleNetwork, single
from support.tiny import CLASSES, FEATURES, stop_after, tiny_data
from torch import Tensor, nn

from fastmlp.data.sampling import EpochOrder, epoch_order
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization, make_normalization
from fastmlp.engines.base import Epoch
from fastmlp.engines.metrics import EpochMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import mlp_ref, train_epoch_ref
from fastmlp.engines.registry import (
    ENGINES,
)
from fastmlp.nn.init import initial_parameters
from fastmlp.ops._load import native_available

CPU = torch.device("cpu")
IMAGES = 90
native = pytest.mark.skipif(not native_available(), reason="the compiled kernels are not there")
STEP_ENGINES = [pytest.param("eager", marks=native), "reference"]
each_step_engine = pytest.mark.parametrize("name", STEP_ENGINES)
each_engine = pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=native) for name in ("blocked", "native", "graph")), *STEP_ENGINES],
)

OPTIONS = [
    pytest.param(OptimizerConfig(8), (16,), id="ragged last batch"),
    pytest.param(OptimizerConfig(9), (16,), id="batches without remainder"),
    pytest.param(OptimizerConfig(1), (16,), id="batch of one"),
    pytest.param(OptimizerConfig(100), (16,), id="batch beyond the data"),
    pytest.param(OptimizerConfig(8, momentum=0.9), (16,), id="momentum"),
    pytest.param(OptimizerConfig(8, momentum=0.9, nesterov=True), (16,), id="nesterov"),
    pytest.param(OptimizerConfig(8, weight_decay=0.05), (16,), id="weight decay"),
    pytest.param(OptimizerConfig(8, grad_average=True), (16,), id="grad average"),
    pytest.param(OptimizerConfig(7, 0.5, True, 0.01, True), (16, 5), id="all at once, two layers"),
    pytest.param(OptimizerConfig(16), (31, 8, 17), id="three layers"),
    pytest.param(OptimizerConfig(16), (1,), id="one hidden unit"),
]


@pytest.fixture(autouse=True)
def _one_thread(threads: Callable[[int], None]) -> None:
    """Nothing here is large enough to gain from more."""
    threads(1)


def make_engine(
    name: str, options: OptimizerConfig, hidden: tuple[int, ...] = (16,), kind: str = "standard"
) -> SingleNetwork:
    data = tiny_data(IMAGES)
    return single(ENGINES[name], start(hidden), data.train, normalization(kind), options, CPU)


def start(hidden: tuple[int, ...]) -> dict[str, Tensor]:
    return initial_parameters([FEATURES, *hidden, CLASSES], "kaiming", seed=3)


def normalization(kind: str = "standard") -> Normalization:
    return make_normalization(kind, tiny_data(IMAGES).train.images)


def reference(
    options: OptimizerConfig,
    hidden: tuple[int, ...],
    steps: int | None,
    dtype: torch.dtype,
    renumbering: Renumbering | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Return all parameters in one vector, the losses and the hits of plain PyTorch."""
    renumbering = renumbering or renumberings([FEATURES, *hidden])[0]
    named = renumbering.parameters(start(hidden))
    parameters = [tensor.to(dtype, copy=True) for tensor in named.values()]
    train, norm = renumbering.data((tiny_data(IMAGES).train, normalization()))
    losses, correct = train_epoch_ref(
        parameters,
        train.images,
        train.labels,
        renumbering.order(epoch_order(0, 0, IMAGES), options.batch_size),
        options.batch_size,
        0.05,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        grad_average=options.grad_average,
        normalize=norm.apply,
        max_steps=steps,
    )
    state = {"parameters": dict(zip(named, (p.detach() for p in parameters), strict=True))}
    return flat(renumbering.undo(state)["parameters"]), losses, correct


@cache
def parameters_draws(
    options: OptimizerConfig, hidden: tuple[int, ...], steps: int | None
) -> list[Tensor]:
    """Return draws of plain PyTorch's parameters in float32, the same for every engine."""
    numbers = renumberings([FEATURES, *hidden])
    return [reference(options, hidden, steps, torch.float32, each)[0] for each in numbers]


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


@each_engine
@pytest.mark.parametrize(("options", "hidden"), OPTIONS)
@pytest.mark.parametrize("steps", [1, 2, 50, None])
def test_an_epoch_agrees_with_plain_pytorch(
    name: str,
    options: OptimizerConfig,
    hidden: tuple[int, ...],
    steps: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)
    engine = make_engine(name, options, hidden)
    if name == "blocked" and steps is not None:
        engine.state.block_steps = 1  # it stops between blocks
    elif steps is not None:
        monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 1)
    stats = engine.train_epoch(epoch_order(0, 0, IMAGES), 0.05, should_stop=stop_after(steps))
    theirs = parameters_draws(options, hidden, steps)
    truth, true_losses, correct = reference(options, hidden, steps, torch.float64)
    assert_within_2x(flat(engine.parameters_state()), theirs, truth)
    sizes = torch.full((len(true_losses),), float(options.batch_size))
    sizes[-1] = stats.samples - options.batch_size * (len(true_losses) - 1)
    assert stats.steps == len(true_losses)
    assert stats.samples == min(IMAGES, options.batch_size * len(true_losses))
    assert stats.finished == (stats.samples == IMAGES)
    assert stats.correct == correct
    assert stats.loss_sum == pytest.approx(float((true_losses * sizes).sum()), rel=1e-5)


@each_engine
@pytest.mark.parametrize("stop", [1, 3, 4, 31, 32, 33, 40])
def test_an_epoch_in_two_parts_is_the_same_epoch(
    name: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)
    monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 4)
    between = {"blocked": 4, "graph": 3}.get(name, 1)  # steps between two chances to stop
    options = OptimizerConfig(2, momentum=0.9, nesterov=True, weight_decay=0.01)
    order = epoch_order(0, 0, IMAGES)
    whole, first, second = (make_engine(name, options) for _ in range(3))
    for engine in (whole, first, second):
        engine.state.block_steps = 4
    stats = whole.train_epoch(order, 0.05)
    before = first.train_epoch(order, 0.05, should_stop=stop_after(stop))
    assert before.steps == min(stop * between, 45)
    if before.finished:  # some stops are beyond the last block
        return
    second.load_state_dict(first.state_dict())
    after = second.train_epoch(order, 0.05, start_step=before.steps)
    assert torch.equal(flat(second.parameters_state()), flat(whole.parameters_state()))
    assert torch.equal(flat(second.state_dict()["momentum"]), flat(whole.state_dict()["momentum"]))
    both = before + after
    assert replace(both, loss_sum=0) == replace(stats, loss_sum=0)
    assert both.loss_sum == pytest.approx(stats.loss_sum, rel=1e-12)


@native
def test_engines_take_over_from_each_other() -> None:
    options = OptimizerConfig(8, momentum=0.9)
    order = epoch_order(0, 0, IMAGES)
    ends = []
    for names in (("eager", "reference"), ("reference", "eager")):
        first, second = (make_engine(name, options) for name in names)
        done = first.train_epoch(order, 0.05, should_stop=stop_after(5)).steps
        second.load_state_dict(first.state_dict())
        second.train_epoch(order, 0.05, start_step=done)
        ends.append(flat(second.parameters_state()))
    truth = reference(options, (16,), None, torch.float64)[0]
    for end in ends:
        torch.testing.assert_close(end.double(), truth, rtol=1e-4, atol=1e-6)


@native
@pytest.mark.parametrize(
    "config", [OptimizerConfig(8, momentum=0.9), OptimizerConfig(8, optimizer="adam")], ids=str
)
def test_engines_train_one_state_by_turns(config: OptimizerConfig) -> None:
    """A state belongs to no engine: each goes on with what the one before it left in it."""
    parameters = {name: tensor.double() for name, tensor in start((16,)).items()}
    train = tiny_data(IMAGES).train
    engines = {name: kind(train, normalization(), CPU) for name, kind in ENGINES.items()}
    if config.optimizer != "sgd":
        del engines["blocked"]
    state, truth = (engines["reference"].new_state(parameters, config) for _ in range(2))
    turns = [*engines, *engines]  # each after some other, and once more with what it recorded
    for turn, name in enumerate(turns):
        epoch = Epoch(EpochOrder(epoch_order(0, turn, IMAGES)), 0.01)
        engines[name].train_epoch([state], [epoch])
        engines["reference"].train_epoch([truth], [epoch])
    ours, theirs = state.state_dict(), truth.state_dict()
    assert ours.keys() == theirs.keys()
    for kind, tensors in theirs.items():
        assert list(ours[kind]) == list(tensors)
        torch.testing.assert_close(flat(ours[kind]), flat(tensors), rtol=1e-9, atol=1e-11)
    assert not any(tensor.requires_grad for tensor in state.tensors)


def test_block_steps_are_for_the_engine_that_has_blocks() -> None:
    for name, kind in ENGINES.items():
        engine = kind(tiny_data(IMAGES).train, normalization(), CPU)
        if name == "blocked":
            state = engine.new_state(start((16,)), OptimizerConfig(8), block_steps=3)
            assert state.block_steps == 3
            continue
        with pytest.raises(ValueError, match=f"block_steps is for the engine blocked, not {name};"):
            engine.new_state(start((16,)), OptimizerConfig(8), block_steps=3)


@each_engine
def test_states_are_copies_and_reruns_are_bitwise_equal(name: str) -> None:
    order = epoch_order(0, 0, IMAGES)
    engine = make_engine(name, OptimizerConfig(8, momentum=0.9))
    engine.train_epoch(order, 0.05)
    state = engine.state_dict()
    kept = {key: {n: t.clone() for n, t in part.items()} for key, part in state.items()}
    engine.train_epoch(order, 0.05)
    once = flat(engine.parameters_state())
    for key, part in state.items():
        for tensor_name, tensor in part.items():
            assert torch.equal(tensor, kept[key][tensor_name])
    engine.load_state_dict(state)
    engine.train_epoch(order, 0.05)
    assert torch.equal(flat(engine.parameters_state()), once)


@each_engine
def test_plain_torch_nn_takes_the_parameters(name: str) -> None:
    engine = make_engine(name, OptimizerConfig(8), (16, 5))
    engine.train_epoch(epoch_order(0, 0, IMAGES), 0.05)
    model = nn.Sequential(
        nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, CLASSES)
    )
    model.load_state_dict(engine.parameters_state())
    part = tiny_data(IMAGES).val
    logits = model(normalization().apply(part.images))
    stats = engine.evaluate(part)
    loss = nn.functional.cross_entropy(logits, part.labels).item()
    assert stats.loss == pytest.approx(loss, rel=1e-5)
    assert stats.accuracy == pytest.approx(float((logits.argmax(1) == part.labels).float().mean()))
    assert stats.count == len(part.labels)


@each_engine
def test_an_evaluation_in_several_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, part = make_engine(name, OptimizerConfig(8)), tiny_data(IMAGES).test
    whole = engine.evaluate(part)
    for module in ("stepwise", "graph"):
        monkeypatch.setattr(f"fastmlp.engines.{module}.EVALUATION_ROWS", 7)
    parts = engine.evaluate(part)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (parts.accuracy, parts.count) == (whole.accuracy, whole.count)


@each_step_engine
@pytest.mark.parametrize("start_step", [0, 1, 4, 7])
def test_chunks_begin_at_the_same_steps_wherever_an_epoch_is_taken_up(
    name: str, start_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch keeps its alignment in memory, on which the rounding of a product may depend."""
    monkeypatch.setattr("fastmlp.engines.stepwise.CHUNK_ROWS", 32)
    gathered: list[Tensor] = []

    class Noted(Normalization):
        def apply(self, images: Tensor) -> Tensor:
            gathered.append(images)
            return super().apply(images)

    norm = normalization()
    noted = Noted(norm.name, norm.scale, norm.shift)
    train, config = tiny_data(IMAGES).train, OptimizerConfig(8)
    engine = single(ENGINES[name], start((16,)), train, noted, config, CPU)
    order = epoch_order(0, 0, IMAGES)
    engine.train_epoch(order, 0.05, start_step=start_step)
    chunks = torch.split(tiny_data(IMAGES).train.images[order], 32)[start_step // 4 :]
    assert len(gathered) == len(chunks)
    for images, chunk in zip(gathered, chunks, strict=True):
        assert torch.equal(images, chunk)


@each_step_engine
def test_progress_counts_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.engines.stepwise.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("fastmlp.engines.stepwise.CHUNK_ROWS", 16)
    seen: list[EpochMetrics] = []
    engine = make_engine(name, OptimizerConfig(8))
    end = engine.train_epoch(epoch_order(0, 0, IMAGES), 0.05, on_progress=seen.append)
    assert [stats.steps for stats in seen] == [2, 4, 6, 8, 10, 12]
    assert seen[0].samples == 16
    assert 0 < seen[0].loss_sum < seen[-1].loss_sum <= end.loss_sum
    assert seen[-1] == end


@each_engine
def test_the_first_bad_step_is_named(name: str) -> None:
    train, order = tiny_data(IMAGES).train, epoch_order(0, 0, IMAGES)
    images = torch.zeros_like(train.images)
    images[order[4 * 8 + 3]] = 255  # the only image that is not black is in step 4 and overflows
    scale = torch.full((FEATURES,), 3e36)
    engine = single(
        ENGINES[name],
        start((16,)),
        Subset(images, train.labels),
        Normalization("unit", scale, torch.zeros(FEATURES)),
        OptimizerConfig(8),
        CPU,
    )
    with pytest.raises(NonFiniteLossError) as info:
        engine.train_epoch(order, 0.05)
    assert info.value.step == 4
    assert not math.isfinite(info.value.loss)


@each_engine
def test_what_does_not_fit_is_refused(name: str) -> None:
    engine = make_engine(name, OptimizerConfig(8, momentum=0.9))
    with pytest.raises(ValueError, match="start_step must be from 0 to 11, got 12"):
        engine.train_epoch(epoch_order(0, 0, IMAGES), 0.05, start_step=12)
    other = make_engine(name, OptimizerConfig(8, momentum=0.9), (17,))
    other.train_epoch(epoch_order(0, 0, IMAGES), 0.05)
    theirs = other.state_dict()
    for kind, state in (
        ("parameters", theirs),
        ("momentum", {**engine.state_dict(), "momentum": theirs["momentum"]}),
    ):
        before = flat(engine.parameters_state())
        with pytest.raises(ValueError, match=rf"{kind} of 0.weight .*\(16, 12\), not .*\(17, 12\)"):
            engine.load_state_dict(state)
        assert torch.equal(flat(engine.parameters_state()), before)


def test_the_reference_is_the_network_of_torch_nn() -> None:
    """The truth itself: train_epoch_ref is nn.Sequential under torch.optim.SGD."""
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES)).double()
    model.load_state_dict(start((16,)))
    train, apply = tiny_data(IMAGES).train, normalization().apply
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    hits = 0
    for rows in torch.split(epoch_order(0, 0, IMAGES), 8):
        logits = model(apply(train.images[rows]).double())
        hits += int((logits.argmax(1) == train.labels[rows]).sum())
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, train.labels[rows]).backward()
        optimizer.step()
    options = OptimizerConfig(8, momentum=0.9, nesterov=True)
    ours, _, correct = reference(options, (16,), None, torch.float64)
    torch.testing.assert_close(ours, flat(model.state_dict()), rtol=0, atol=1e-14)
    assert correct == hits


def test_grad_average_divides_the_step_by_the_batch_size() -> None:
    weight = torch.zeros(3, 2, dtype=torch.float64)
    moved = []
    for grad_average in (False, True):
        parameters = [weight.clone(), torch.zeros(3, dtype=torch.float64)]
        images, labels = torch.eye(2, dtype=torch.float64).repeat(2, 1), torch.tensor([0, 1, 2, 0])
        order = torch.arange(4)
        train_epoch_ref(parameters, images, labels, order, 4, 1.0, grad_average=grad_average)
        moved.append(parameters[0].detach())
    torch.testing.assert_close(moved[0], 4 * moved[1])
    assert moved[0].abs().max() > 0


def test_mlp_ref_without_steps() -> None:
    train = tiny_data(IMAGES).train
    parameters = list(start((16,)).values())
    order = torch.arange(IMAGES)
    losses, correct = train_epoch_ref(
        parameters, train.images, train.labels, order, 8, 0.1, max_steps=0
    )
    assert (losses.shape, correct) == ((0,), 0)
    assert mlp_ref(parameters, normalization().apply(train.images)).shape == (IMAGES, CLASSES)
