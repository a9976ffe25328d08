"""Blocked SGD for a GPU without one: the chain's own source, emulated, and the engine around it on
CPU tensors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import emulation
from support.blocked import OPTIMIZERS
from support.blocked_cuda_suite import CPU, NETWORKS, EngineTests, many
from support.chain_suite import CHAINS, Block, Chain, ChainTests, draw
from support.compare import assert_within_2x
from support.marks import needs_native
from support.products_suite import (
    SHAPES,
    TILES,
    Case,
    GramTests,
    ProductsTests,
    by_reference,
    product_draws,
)
from support.products_suite import draw as draw_products
from support.tiny import stop_after, tiny_data
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization, normalization_of
from fastmlp.engines import blocked_cuda, blocked_pipeline
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.blocked_cuda import BlockedCudaEngine
from fastmlp.engines.blocked_pipeline import BlockedPipeline, PipelineShape
from fastmlp.engines.cuda_graph import SideStream
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.engines.registry import choose_engine
from fastmlp.training.callbacks import StopWhen
from fastmlp.training.config import TrainConfig
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import UserError

pytestmark = [
    needs_native,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]
ORDERS = {"ascending": 0, "descending": 1, "shuffled": 6}


def walk(block: Block, low: bool = False) -> list[Tensor]:
    """The results of the chain on copies that end (or begin) at a fence."""
    fence = emulation.fenced(low)
    fenced = block.mapped(lambda tensor: fence(tensor) if tensor.numel() else tensor)
    emulation.operators().blocked_chain_(*fenced.args())
    assert emulation.operators().release_tensors() == 0, "written outside of the workspace"
    for before, after in zip(block.args(), fenced.args(), strict=True):
        unchanged = isinstance(before, Tensor) and not any(after is t for t in fenced.results())
        assert not unchanged or torch.equal(before, after), "an input has changed"
    results = [tensor.clone() for tensor in fenced.results()]
    emulation.operators().release_fences()
    return results


@pytest.fixture(autouse=True)
def _emulated(threads: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads run in a shuffled order; the emulation is one thread, beside which idle ones of
    PyTorch would only spin."""
    threads(1)
    operators = emulation.operators()
    monkeypatch.setattr(
        blocked_pipeline, "run_kernel", lambda name, *args: getattr(operators, name)(*args)
    )
    emulation.configure(ORDERS["shuffled"])
    yield
    operators.release_tensors()
    emulation.configure()


class TestChain(ChainTests):
    @pytest.fixture
    def machine(self):
        return SimpleNamespace(walk=walk, reruns=2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("case", CHAINS[:8], ids=str)
    def test_the_order_of_threads_does_not_change_a_bit(self, case, dtype):
        block = draw(case, **OPTIMIZERS["all"]).to(dtype)
        results = []
        for order in ORDERS.values():
            emulation.configure(order)
            results.append(walk(block, low=True))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def walk_or_be_refused(block: Block) -> list[Tensor]:
    """On a T4; on a GPU with more shared memory what does not fit there, as its plan says."""
    doubles, steps = block.p.dtype == torch.float64, block.recurrence.shape[1] - 1
    sizes = block.batch, block.p.shape[3], block.parameters[1].shape[1], steps, doubles
    if "shared memory" in torch.ops.fastmlp.blocked_plan_cuda(*sizes, 75, 64 << 10)[1]:
        with pytest.raises(RuntimeError, match="does not fit into a GPU's shared memory"):
            walk(block)
        emulation.configure(ORDERS["shuffled"], capability=86)
    return walk(block)


class TestChainWithoutTf32(ChainTests):
    """On a GPU for which the pipelined kernel is not."""

    @pytest.fixture
    def machine(self):
        emulation.configure(ORDERS["shuffled"], processors=40, capability=75)
        return SimpleNamespace(walk=walk_or_be_refused, reruns=2)


class TestChainOnOneMultiprocessor(ChainTests):
    """On a GPU for whose multiprocessors a cluster is too large."""

    @pytest.fixture
    def machine(self):
        emulation.configure(ORDERS["shuffled"], processors=7)
        return SimpleNamespace(walk=walk, reruns=2)


def test_few_networks_have_clusters_where_there_are_any():
    def blocks_of_a_cluster(case: Chain, options: str = "plain", **gpu: int) -> int:
        emulation.configure(ORDERS["shuffled"], **gpu)
        walk(draw(case, **OPTIMIZERS[options]).to(torch.float32))
        return emulation.operators().last_cluster()

    few, more = Chain(8, 2, 70, 10, 2, 1), Chain(8, 2, 70, 10, 1, 3)
    assert blocks_of_a_cluster(few) == 8
    assert blocks_of_a_cluster(few, "decay") == 8
    assert blocks_of_a_cluster(few, "momentum") == 1
    assert blocks_of_a_cluster(few, processors=16) == 8
    assert blocks_of_a_cluster(more, processors=23) == 1
    assert blocks_of_a_cluster(few, capability=89) == 1
    assert blocks_of_a_cluster(few, processors=16, clusters=1) == 1  # of the 2 that it takes


def products(case: Case, low: bool = False) -> tuple[Tensor, Tensor]:
    """The results of both operators on copies that end (or begin) at a fence."""
    operators = emulation.operators()
    fenced = case.mapped(emulation.fenced(low))
    operators.blocked_products_(*fenced.products())
    if fenced.parts is not None:
        operators.blocked_product_sum_(*fenced.sum())
    results = fenced.weight.clone(), fenced.p.clone()
    operators.release_fences()
    return results


class TestProducts(ProductsTests):
    @pytest.fixture
    def products(self):
        return products

    @pytest.mark.parametrize(("processors", "slices"), [(3, 3), (1, 1)])
    def test_slices_of_several_tiles(self, processors, slices):
        gpu = processors, 90, 227 << 10
        emulation.configure(ORDERS["shuffled"], processors=processors)
        case = draw_products(TILES, gpu)
        assert len(case.parts) == slices
        truth, peers = by_reference(case.to(torch.float64)), product_draws(case)
        for mine, draws, true in zip(products(case), peers, truth, strict=True):
            assert_within_2x(mine, draws, true)

    @pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
    def test_the_order_of_threads_does_not_change_a_bit(self, shape):
        case, results = draw_products(shape), []
        for order in ORDERS.values():
            emulation.configure(order)
            results.append(products(case, low=True))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class TestGram(GramTests):
    @pytest.fixture
    def grams(self):
        def run(*arguments: Any) -> tuple[Tensor | None, ...]:
            fence = emulation.fenced()
            fenced = [fence(a) if isinstance(a, Tensor) else a for a in arguments]
            emulation.operators().blocked_gram_(*fenced)
            results = tuple(None if t is None else t.clone() for t in fenced[:2])
            emulation.operators().release_fences()
            return results

        return run


class TestEngine(EngineTests):
    @pytest.fixture
    def device(self):
        return CPU


class TestEngineOnTuring(EngineTests):
    """As on a T4: another kernel, and less shared memory."""

    @pytest.fixture
    def device(self, monkeypatch):
        emulation.configure(ORDERS["shuffled"], processors=40, capability=75)
        monkeypatch.setattr(blocked_cuda, "gpu_limits", lambda device: (75, 64 << 10))
        return CPU


@pytest.mark.parametrize("inputs", [37, 48])
@pytest.mark.parametrize("networks", [1, 3])
def test_what_runs_beside_the_chain_needs_nothing_of_it(networks, inputs, monkeypatch):
    """On a GPU neither waits for the other, so either may come first."""

    class Late(SideStream):
        def run(self, work):
            self.work = work

        def join(self):
            self.work()

    shapes: list[PipelineShape] = []

    def note(shape: PipelineShape, *args: Any) -> BlockedPipeline:
        shapes.append(shape)
        return BlockedPipeline(shape, *args)

    def train() -> list[dict[str, Tensor]]:
        engine, states, epochs = many(CPU, torch.float32, NETWORKS[:networks], inputs)
        for state in states:
            state.block_steps = 4
        engine.train_epoch(states, epochs)
        return [state.parameters_state() for state in states]

    monkeypatch.setattr(blocked_cuda, "BlockedPipeline", note)
    first = train()
    assert shapes
    assert all(shape.overlapped for shape in shapes)
    assert all((shape.slices > 0) == (inputs == 48) for shape in shapes)
    monkeypatch.setattr(blocked_pipeline, "SideStream", Late)
    for ours, theirs in zip(train(), first, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_cohort_of_runs_is_what_plain_pytorch_makes_of_it(monkeypatch):
    """Through all that stands above an engine: two epochs, a stop in the second, a divergence."""
    base = TrainConfig(hidden=(16,), batch_size=8, epochs=2, lr=0.05, device="cpu", threads=1)
    changes = [{}, {"lr": 0.01}, {"seed": 4, "momentum": 0.9}, {"loader": "sliding"}]
    changes += [{"augment": "flip,shift:1"}, {"batch_size": 32}, {"lr": 1e30}]
    monkeypatch.setattr(blocked_cuda, "CHUNK_BLOCKS", 1)
    trainers = []
    for engine in (BlockedCudaEngine, ReferenceEngine):
        choice = (engine, "a test wants it")
        monkeypatch.setattr("fastmlp.training.trainer.choose_engine", lambda *args, c=choice: c)
        trainer = Trainer([replace(base, **change) for change in changes], tiny_data())
        trainer.train_epoch()
        while trainer.active:
            trainer.callbacks = [StopWhen(stop_after(3))]
            trainer.train_epoch()
        trainers.append(trainer)
    ours, theirs = (trainer.runs for trainer in trainers)
    assert [run.error is not None for run in ours] == [False] * 6 + [True]
    assert [run.error is not None for run in theirs] == [False] * 6 + [True]
    for mine, other in zip(ours[:6], theirs[:6], strict=True):
        assert len(mine.checkpoint.history) == 2
        for record, twin in zip(mine.checkpoint.history, other.checkpoint.history, strict=True):
            assert record.val_loss == pytest.approx(twin.val_loss, rel=1e-4)
            assert record.train_loss == pytest.approx(twin.train_loss, rel=1e-4)
            assert record.train_acc == pytest.approx(twin.train_acc, abs=0.02)


def test_the_chain_on_fake_tensors():
    """As torch.compile sees it: nothing is returned."""
    block = draw(CHAINS[1], momentum=0.9)
    with FakeTensorMode() as mode:
        fake = block.mapped(mode.from_tensor)
        assert torch.ops.fastmlp.blocked_chain_(*fake.args()) is None


@pytest.mark.parametrize("doubles", [False, True])
def test_the_operator_hands_out_the_plan(doubles):
    """Which blocks the plan takes, and how long they are, tests/native/test_plan.py says."""

    def plan(*args):
        return torch.ops.fastmlp.blocked_plan_cuda(*args, doubles, 90, 227 << 10)

    assert plan(8, 256, 10, 0) == (16, "")
    assert plan(8, 256, 10, 3) == (3, "")
    assert "1 to 128 images" in plan(129, 256, 10, 0)[1]
    with pytest.raises(RuntimeError, match="must be above 0"):
        plan(0, 256, 10, 0)


def test_images_in_planes_have_products_of_our_own():
    """So have those that are read in units, whose scale is the same throughout."""

    def planes(normalization: Normalization) -> int:
        part = Subset(torch.zeros(4, 48, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
        return BlockedCudaEngine(part, normalization, CPU)._planes

    assert planes(normalization_of("unit", 48, [], [])) == 1
    assert planes(normalization_of("standard", 48, [1, 2, 3], [4, 5, 6])) == 3
    assert planes(normalization_of("standard", 48, [7], [8])) == 1
    ramp = torch.arange(48) + 1.0
    assert planes(Normalization("standard", ramp, ramp)) == 0
    assert planes(Normalization("standard", torch.ones(48), ramp)) == 0


def test_auto_takes_it_on_a_gpu_and_says_why_not(monkeypatch):
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    gpu = torch.device("cuda", 0)
    kind, why = choose_engine("auto", gpu, [3072, 256, 10])
    assert (kind, why) == (BlockedCudaEngine, "the fastest that runs here")
    assert kind.name == BlockedEngine.name
    assert choose_engine("blocked", CPU, [3072, 256, 10])[0] is BlockedEngine
    for sizes, reason in (
        ([3072, 64, 64, 10], "on a GPU it wants exactly one hidden layer"),
        ([3072, 10], "on a GPU it wants exactly one hidden layer"),
        ([3072, 2000, 10], "on a GPU its kernel takes up to 1024 hidden units"),
        ([3072, 200, 1000], "on a GPU its kernel takes up to 128 classes"),
    ):
        assert f"not blocked, because {reason}" in choose_engine("auto", gpu, sizes)[1]
        with pytest.raises(UserError, match=f"blocked cannot run here: {reason}"):
            choose_engine("blocked", gpu, sizes)
    assert "for the CPU, not for cuda" in (BlockedEngine.unsupported_reason(gpu) or "")
