"""What is asked of the chain's kernel and of the engine around it, on a GPU (test_cuda_blocked.py)
and on an emulated one (test_blocked_cuda.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from compare import assert_within_2x
from test_blocked import OPTIMIZERS, assert_same_state, flat, problem
from tiny import stop_after
from torch import Tensor

from fastmlp import blocked_cuda
from fastmlp.augment import Augmentation
from fastmlp.blocked import BlockedEngine, recurrence
from fastmlp.blocked_cuda import BlockedCudaEngine
from fastmlp.blocked_runner import Runner, Shape
from fastmlp.data import Normalization, Part
from fastmlp.engine_base import Engine, Epoch, EpochStats, NonFiniteLossError, SgdOptions
from fastmlp.engines import ReferenceEngine
from fastmlp.epochs import initial_parameters
from fastmlp.errors import UserError
from fastmlp.reference import blocked_chain_ref

CPU = torch.device("cpu")
OPTIMIZER = pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
ENDS = pytest.mark.parametrize("options", [{}, OPTIMIZERS["all"]], ids=["plain", "all"])
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])

# ---- the operator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A block's sizes; ``rows`` of each group are there, all of them for None."""

    batch: int
    steps: int
    hidden: int
    classes: int
    groups: int = 1
    networks: int = 1
    rows: tuple[int, ...] | None = None

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.steps}-{self.hidden}-{self.classes}"
        return f"{sizes}-{self.groups}x{self.networks}" + ("-short" if self.rows else "")


CHAINS = (
    Chain(8, 16, 256, 10),  # what it is for: tiles of 8 rows, two units a thread
    Chain(8, 3, 100, 10, 2, 3, (24, 13)),  # groups, one of them with a ragged second step
    Chain(1, 20, 8, 2),  # tiles of 2 rows, half of them empty
    Chain(1, 1, 1, 2),
    Chain(4, 7, 129, 33, rows=(26,)),  # whole warps share a row of logits
    Chain(3, 5, 31, 16),
    Chain(20, 5, 64, 17, rows=(77,)),  # several tiles, the last not full, in a short last step
    Chain(16, 2, 40, 5, 1, 2, (16,)),  # a step that is all padding
    Chain(3, 4, 600, 7, 2, 1, (0, 12)),  # a group that is all padding; four units a thread
    Chain(100, 1, 64, 37),
    Chain(128, 1, 1024, 128),  # the largest of all: the last weight is not kept
    Chain(5, 6, 1000, 100, rows=(29,)),
)


@dataclass
class Block:
    """The arguments of ``blocked_chain_``, in its order."""

    p: Tensor
    q: Tensor | None
    gram: Tensor
    labels: Tensor
    rows: Tensor
    recurrence: Tensor
    options: Tensor
    batch: int
    parameters: list[Tensor]
    momentum: list[Tensor]
    to_w: Tensor
    to_v: Tensor | None
    ends: Tensor
    losses: Tensor
    correct: Tensor

    def args(self) -> list[Any]:
        return list(self.__dict__.values())

    def results(self) -> list[Tensor]:
        changed = [*self.parameters, *self.momentum, self.to_w, self.ends, self.losses]
        return [*changed, self.correct, *([] if self.to_v is None else [self.to_v])]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Block:
        def apply(value: Any) -> Any:
            if isinstance(value, list):
                return [change(tensor) for tensor in value]
            return change(value) if isinstance(value, Tensor) else value

        return Block(*map(apply, self.args()))

    def to(self, dtype: torch.dtype) -> Block:
        return self.mapped(lambda t: t.to(dtype, copy=True) if t.is_floating_point() else t.clone())


def draw(case: Chain, momentum: float = 0.0, **options: Any) -> Block:
    """A block with drawn numbers in float64; outputs are poisoned."""
    rows, networks = case.batch * case.steps, case.groups * case.networks
    options = {"weight_decay": 0.0, "nesterov": False, "grad_average": False, **options}

    def randn(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64)

    def sgd(network: int) -> dict[str, Any]:
        return {"lr": 0.1 + 0.02 * network, "momentum": momentum, **options}

    x = 0.3 * randn(case.groups, rows, 9)
    products = (case.groups, rows, case.networks, case.hidden)
    layers = ((networks, case.hidden), (networks, case.classes, case.hidden))
    layers += ((networks, case.classes),)
    kept = ("lr", "momentum", "weight_decay", "nesterov")
    tables = [
        recurrence(case.steps, **{k: v for k, v in sgd(m).items() if k in kept})
        for m in range(networks)
    ]
    bad = float("nan")
    return Block(
        p=randn(*products),
        q=0.1 * randn(*products) if momentum and case.steps > 1 else None,
        gram=x @ x.transpose(1, 2) + 1 if case.steps > 1 else x.new_empty(case.groups, rows, 0),
        labels=torch.randint(case.classes, (case.groups, rows)),
        rows=torch.tensor(case.rows or [rows] * case.groups),
        recurrence=torch.stack(tables),
        options=torch.tensor(
            [
                [float(v) for k in (*kept, "grad_average") for v in [sgd(m)[k]]]
                for m in range(networks)
            ],
            dtype=torch.float64,
        ),
        batch=case.batch,
        parameters=[0.3 * randn(*sizes) for sizes in layers],
        momentum=[0.1 * randn(*sizes) for sizes in layers] if momentum else [],
        to_w=torch.full(products, bad, dtype=torch.float64),
        to_v=torch.full(products, bad, dtype=torch.float64) if momentum else None,
        ends=torch.full((networks, 4), bad, dtype=torch.float64),
        losses=torch.full((networks, case.steps), bad, dtype=torch.float64),
        correct=torch.full((networks, case.steps), -1),
    )


def by_reference(block: Block) -> list[Tensor]:
    blocked_chain_ref(*block.args())
    return block.results()


class ChainTests:
    """``machine.walk(block)`` runs the kernel on copies and returns the results on the CPU."""

    @OPTIMIZER
    @pytest.mark.parametrize("case", CHAINS, ids=str)
    def test_every_shape_and_optimizer(self, machine, case, options):
        block = draw(case, **options)
        truth = by_reference(block.to(torch.float64))
        if case != CHAINS[10]:  # too large in float64
            for ours, true in zip(machine.walk(block), truth, strict=True):
                torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)
        peers = by_reference(block.to(torch.float32))
        ours = machine.walk(block.to(torch.float32))
        for mine, peer, true in zip(ours, peers, truth, strict=True):
            if mine.dtype == torch.int64:
                assert torch.equal(mine, peer)
            else:
                assert_within_2x(mine, peer, true)

    @DTYPE
    @pytest.mark.parametrize("label", [-1, 10, 1 << 40])
    def test_a_label_that_is_no_class_makes_its_network_nan(self, machine, label, dtype):
        block = draw(Chain(8, 2, 40, 10, groups=2)).to(dtype)
        block.labels[0, 3] = label
        parameters, ours = len(block.parameters), machine.walk(block)
        good = by_reference(block.to(dtype))
        for mine, true in zip(ours, good, strict=True):
            torch.testing.assert_close(mine[1], true[1])
        for changed in ours[1:parameters]:
            assert changed[0].isnan().any()
        losses = ours[5 if block.to_v is not None else parameters + 2]
        assert losses[0].isnan().all()

    @DTYPE
    def test_a_network_of_infinities_leaves_the_others_alone(self, machine, dtype):
        block = draw(Chain(8, 4, 40, 10, networks=3), **OPTIMIZERS["all"]).to(dtype)
        before = machine.walk(block)
        block.parameters[1][1] = 1e30
        block.p[:, :, 1] = float("inf")
        after = machine.walk(block)
        for mine, old in zip(after, before, strict=True):
            if mine.dim() == 4:
                mine, old = mine.transpose(1, 2).flatten(0, 1), old.transpose(1, 2).flatten(0, 1)
            assert torch.equal(mine[[0, 2]], old[[0, 2]])
        assert not after[-3][1].isfinite().any()

    @DTYPE
    @pytest.mark.parametrize("case", [CHAINS[1], CHAINS[6]], ids=str)
    def test_reruns_give_the_same_bits(self, machine, case, dtype):
        block = draw(case, **OPTIMIZERS["all"]).to(dtype)
        first = machine.walk(block)
        for _ in range(machine.reruns):
            again = machine.walk(block)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_what_does_not_fit_is_refused(self, machine):
        block = draw(CHAINS[5]).to(torch.float32)
        block.gram = block.gram[:, :, :-1].contiguous()
        with pytest.raises(RuntimeError, match="gram must have size 15 in dimension 2"):
            machine.walk(block)
        with pytest.raises(RuntimeError, match="takes batches of 1 to 128 images"):
            machine.walk(draw(Chain(129, 1, 8, 3)).to(torch.float32))
        with pytest.raises(RuntimeError, match="does not fit into a GPU's shared memory"):
            machine.walk(draw(Chain(128, 1, 1024, 128)))


# ---- the engine ---------------------------------------------------------------------------------


def make(
    engine: type[Engine],
    data: tuple[Part, Normalization],
    options: dict[str, Any],
    device: torch.device = CPU,
    *,
    hidden: int = 19,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    seed: int = 3,
) -> Any:
    part, norm = data
    sizes = [part.images.shape[1], hidden, classes]
    start = initial_parameters(sizes, "kaiming", seed=seed)
    start = {name: tensor.to(dtype) for name, tensor in start.items()}
    made: Any = engine(start, part, norm, SgdOptions(**options), device)
    made.block_steps = steps
    return made


def assert_close_states(one: Engine, other: Engine, rtol: float = 1e-10) -> None:
    ours, theirs = flat(one), flat(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=rtol, atol=rtol / 100)


@dataclass(frozen=True)
class Network:
    """One of several networks, and which order it follows."""

    order: str = "first"
    lr: float = 0.05
    start_step: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)


def many(
    device: torch.device, dtype: torch.dtype, networks: Sequence[Network] | None = None
) -> tuple[list[Any], list[Epoch]]:
    """The same engines and epochs at each call."""
    torch.manual_seed(7)
    data = problem(images=150)
    orders = {name: torch.randperm(150) for name in ("first", "second", "third")}
    orders["short"] = orders["third"][:77].clone()
    engines, epochs = [], []
    for network in networks or NETWORKS:
        options = {"batch_size": 8, **network.options}
        engines.append(make(BlockedCudaEngine, data, options, device, dtype=dtype, **network.shape))
        epochs.append(Epoch(orders[network.order], network.lr, None, network.start_step))
    return engines, epochs


NETWORKS = (
    Network(),
    Network(lr=0.003, shape={"seed": 8}),  # shares the first one's images
    Network("second", shape={"seed": 9}),
    Network("second", lr=0.02),
    Network("short"),  # alone with its order
    Network("third", start_step=9),  # another one, in the same launch, taken up within a block
    Network(options=OPTIMIZERS["all"]),
    Network(options=OPTIMIZERS["decay"], shape={"seed": 4}),
    Network("second", options={"batch_size": 20}),
    Network(shape={"hidden": 40}),
)


class EngineTests:
    """``device`` is where the engine runs."""

    @OPTIMIZER
    @pytest.mark.parametrize(
        ("batch", "hidden", "classes", "steps"),
        [
            *[(1, 8, 2, None), (1, 31, 10, 2), (3, 64, 10, None), (3, 1, 37, 16)],
            *[
                (8, 256, 10, None),
                (8, 31, 37, 1),
                (8, 19, 5, 2),
                (16, 64, 2, 16),
                (16, 8, 10, None),
            ],
            *[(100, 31, 10, None), (100, 64, 5, 2), (150, 19, 5, None), (500, 19, 5, None)],
        ],
    )
    def test_float64_is_sgd(self, device, options, batch, hidden, classes, steps):
        data, order = problem(classes=classes), torch.randperm(211)
        options = {"batch_size": batch, **options}
        how = {"hidden": hidden, "classes": classes, "dtype": torch.float64}
        ours = make(BlockedCudaEngine, data, options, device, steps=steps, **how)
        theirs = make(ReferenceEngine, data, options, **how)
        for lr in (0.05, 0.02):
            mine, his = (engine.train_epoch(order, lr) for engine in (ours, theirs))
            assert mine.loss_sum == pytest.approx(his.loss_sum, rel=1e-6)  # kept in float32
            assert (mine.correct, mine.steps, mine.finished) == (his.correct, his.steps, True)
        assert_close_states(ours, theirs)

    @OPTIMIZER
    @pytest.mark.parametrize(("batch", "hidden"), [(1, 40), (8, 64), (100, 31)])
    def test_float32_is_as_close_to_the_truth_as_pytorch(self, device, options, batch, hidden):
        data, order = problem(), torch.randperm(211)
        options = {"batch_size": batch, **options}
        ours = make(BlockedCudaEngine, data, options, device, hidden=hidden)
        theirs = make(ReferenceEngine, data, options, hidden=hidden)
        truth = make(ReferenceEngine, data, options, hidden=hidden, dtype=torch.float64)
        for engine in (ours, theirs, truth):
            engine.train_epoch(order, 0.05)
        for name, true in flat(truth).items():
            assert_within_2x(flat(ours)[name], flat(theirs)[name], true)

    @DTYPE
    @pytest.mark.parametrize("chunk_bytes", [1 << 28, 1], ids=["together", "one by one"])
    def test_each_of_many_is_what_it_is_alone(self, device, dtype, chunk_bytes, monkeypatch):
        monkeypatch.setattr(blocked_cuda, "CHUNK_BYTES", chunk_bytes)
        (together, epochs), (alone, _), (again, _) = (many(device, dtype) for _ in range(3))
        for _ in range(2):
            results = BlockedCudaEngine.train_together(together, epochs)
            assert BlockedCudaEngine.train_together(again, epochs) == results
            for mine, other, epoch, stats in zip(together, alone, epochs, results, strict=True):
                (his,) = BlockedCudaEngine.train_together([other], [epoch])
                assert (stats.steps, stats.finished) == (his.steps, True)
                assert stats.loss_sum == pytest.approx(his.loss_sum, rel=1e-5)
                assert_close_states(mine, other, 1e-10 if dtype == torch.float64 else 1e-4)
        for mine, twin in zip(together, again, strict=True):
            assert_same_state(mine, twin)

    @ENDS
    @pytest.mark.parametrize("stops", [1, 3])
    def test_an_epoch_in_parts_is_the_same_epoch(self, device, options, stops, monkeypatch):
        monkeypatch.setattr(blocked_cuda, "CHUNK_BLOCKS", 2)
        data, order = problem(), torch.randperm(211)
        options = {"batch_size": 3, **options}
        whole, first, second = (
            make(BlockedCudaEngine, data, options, device, steps=5) for _ in range(3)
        )
        want = whole.train_epoch(order, 0.05)
        before = first.train_epoch(order, 0.05, should_stop=stop_after(stops))
        assert (before.steps, before.finished) == (10 * stops, False)
        second.load_state_dict(first.state_dict())
        after = second.train_epoch(order, 0.05, start_step=before.steps)
        assert_same_state(whole, second)
        both = before + after
        assert (both.samples, both.correct, both.finished) == (211, want.correct, True)
        assert both.loss_sum == pytest.approx(want.loss_sum)

    @pytest.mark.parametrize("steps_before", [1, 8, 11])
    def test_takes_over_from_the_cpu_in_the_middle_of_a_block(
        self, device, steps_before, monkeypatch
    ):
        monkeypatch.setattr("fastmlp.blocked.CALL_SECONDS", 0.0)
        data, order = problem(), torch.randperm(211)
        options = {"batch_size": 8, **OPTIMIZERS["all"]}
        cpu = make(BlockedEngine, data, options, dtype=torch.float64, steps=1)
        gpu = make(BlockedCudaEngine, data, options, device, dtype=torch.float64)
        done = cpu.train_epoch(order, 0.05, should_stop=stop_after(steps_before)).steps
        gpu.load_state_dict(cpu.state_dict())
        gpu.train_epoch(order, 0.05, start_step=done)
        cpu.train_epoch(order, 0.05, start_step=done)
        assert_close_states(gpu, cpu)
        cpu.load_state_dict(gpu.state_dict())
        assert_same_state(cpu, gpu)

    @DTYPE
    @pytest.mark.parametrize("report", [0.0, 1e6], ids=["looked at often", "looked at once"])
    def test_one_that_diverges_leaves_the_others_alone(self, device, dtype, report, monkeypatch):
        monkeypatch.setattr(blocked_cuda, "REPORT_SECONDS", report)
        monkeypatch.setattr(blocked_cuda, "CHUNK_BLOCKS", 1)
        networks = [Network(), Network("second", lr=1e20), Network("third"), Network(lr=1e20)]
        healthy = [replace(network, lr=0.05) for network in networks]
        (engines, epochs), (twins, fine) = (many(device, dtype, n) for n in (networks, healthy))
        results = BlockedCudaEngine.train_together(engines, epochs)
        theirs = BlockedCudaEngine.train_together(twins, fine)
        for i in (0, 2):
            assert_same_state(engines[i], twins[i])
            assert results[i] == theirs[i]
        for i in (1, 3):
            error = results[i]
            assert isinstance(error, NonFiniteLossError)
            assert 0 < error.step < 19
            assert not math.isfinite(error.loss)
        (alone,), (epoch,) = many(device, dtype, networks[1:2])
        with pytest.raises(NonFiniteLossError):
            alone.train_epoch(epoch.order, epoch.lr)

    def test_the_first_bad_step_is_named(self, device):
        (part, _), order = problem(images=90), torch.randperm(90)
        images = torch.zeros_like(part.images)
        images[order[4 * 8 + 3]] = 255  # the only one that is not black overflows
        norm = Normalization("unit", torch.full((37,), 3e36), torch.zeros(37))
        engine = make(
            BlockedCudaEngine, (Part(images, part.labels), norm), {"batch_size": 8}, device
        )
        with pytest.raises(NonFiniteLossError) as caught:
            engine.train_epoch(order, 0.05)
        assert caught.value.step == 4

    @ENDS
    def test_moved_images(self, device, options):
        data, order = problem(inputs=75), torch.randint(0, 20, (211,))
        moves = Augmentation(True, 3).draw(211, (3, 5, 5), torch.Generator())
        options = {"batch_size": 8, **options}
        ours = make(BlockedCudaEngine, data, options, device, dtype=torch.float64)
        theirs = make(ReferenceEngine, data, options, dtype=torch.float64)
        for start in (0, 3):
            for engine in (ours, theirs):
                engine.train_epoch(order, 0.01, moves=moves, start_step=start)
        assert_close_states(ours, theirs)

    def test_evaluation(self, device, monkeypatch):
        part = problem(images=150)[0]
        engines, _ = many(device, torch.float32, NETWORKS[:3])
        whole = BlockedCudaEngine.evaluate_together(engines, part)
        monkeypatch.setattr(blocked_cuda, "EVALUATION_ROWS", 40)
        for engine, stats in zip(engines, whole, strict=True):
            parts = engine.evaluate(part)
            assert (
                (parts.accuracy, parts.count)
                == (stats.accuracy, stats.count)
                == (
                    stats.accuracy,
                    150,
                )
            )
            assert parts.loss == pytest.approx(stats.loss, rel=1e-6)
            twin = make(ReferenceEngine, problem(), {"batch_size": 8})
            twin.load_parameters(engine.parameters_state())
            norm = engine._normalization
            twin._normalization = replace(norm, scale=norm.scale.cpu(), shift=norm.shift.cpu())
            his = twin.evaluate(part)
            assert stats.loss == pytest.approx(his.loss, rel=1e-5)
            assert stats.accuracy == his.accuracy
        assert BlockedCudaEngine.evaluate_together([], part) == []

    def test_progress_counts_up(self, device, monkeypatch):
        monkeypatch.setattr(blocked_cuda, "REPORT_SECONDS", 0.0)
        monkeypatch.setattr(blocked_cuda, "CHUNK_BLOCKS", 1)
        seen: list[EpochStats] = []
        engine = make(BlockedCudaEngine, problem(), {"batch_size": 8}, device, steps=4)
        end = engine.train_epoch(torch.randperm(211), 0.05, on_progress=seen.append)
        assert [stats.steps for stats in seen] == [*range(4, 27, 4), 27]
        assert seen[-1] == end

    def test_one_recording_serves_all_epochs_of_a_shape(self, device, monkeypatch):
        made: list[Shape] = []

        class Counted(Runner):
            def __init__(self, shape: Shape, *args: Any) -> None:
                made.append(shape)
                super().__init__(shape, *args)

        monkeypatch.setattr(blocked_cuda, "Runner", Counted)
        engines, epochs = many(device, torch.float32)
        for _ in range(3):
            BlockedCudaEngine.train_together(engines, epochs)
        groups = sorted((shape.groups, shape.networks) for shape in made)
        assert groups == [(1, 1), (1, 1), (1, 1), (1, 2), (1, 3), (2, 1)]
        BlockedCudaEngine.train_together(engines[:2], epochs[:2])
        assert len(made) == 6  # it is the shape of the two that follow "second"
        assert len(engines[0]._runners) == 1  # the others would only take memory

    def test_what_does_not_fit_is_refused(self, device):
        engine = make(BlockedCudaEngine, problem(), {"batch_size": 8}, device)
        with pytest.raises(ValueError, match="start_step must be from 0 to 26, got 27"):
            engine.train_epoch(torch.randperm(211), 0.05, start_step=27)
        with pytest.raises(ValueError, match=r"an order must be in \[0, 211\)"):
            engine.train_epoch(torch.tensor([3, 211]), 0.05)
        engine.block_steps = 400
        with pytest.raises(UserError, match="block_steps 400 is too long"):
            engine.train_epoch(torch.randint(0, 211, (4000,)), 0.05)
