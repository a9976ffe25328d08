"""Blocked SGD on a GPU: the cases of support/blocked_cuda_suite.py, streams, graphs, devices."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts

from typing import Any

import pytest
import torch
from support.blocked import OPTIMIZERS, assert_same_state, problem
from support.blocked_cuda_suite import EngineTests, assert_close_states, make
from support.chain_suite import DTYPE, Block, Chain, ChainTests, by_reference, draw
from support.gpu import Gpu
from support.products_suite import Case, GramTests, ProductsTests
from torch import Tensor

from fastmlp import native_available
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.blocked_cuda import BlockedCudaEngine, gpu_limits, multiprocessors
from fastmlp.engines.cuda_graph import CapturedGraph

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not native_available("cuda"), reason="fastmlp._cuda is not built"),
]
GPU = torch.device("cuda", 0)


class Walker:
    """Runs the chain on a GPU, on copies between bands of sentinels."""

    reruns = 30

    def walk(self, block: Block) -> list[Tensor]:
        gpu = Gpu()
        there = block.mapped(lambda tensor: gpu.place(tensor.contiguous()))
        torch.ops.fastmlp.blocked_chain_(*there.args())
        changed = [tensor.data_ptr() for tensor in there.results()]
        for before, after in gpu._inputs:  # nothing changed but the results, between their bands
            now = after.cpu()
            inside = torch.zeros(len(now), dtype=torch.bool)
            for result in there.results():
                begin = result.data_ptr() - after.data_ptr()
                if 0 <= begin < len(now):
                    inside[begin : begin + result.numel() * result.element_size()] = True
            assert torch.equal(now[~inside], before[~inside])
        assert len(changed) == len(set(changed))
        return [tensor.cpu() for tensor in there.results()]


class TestChain(ChainTests):
    @pytest.fixture
    def machine(self):
        return Walker()

    @DTYPE
    def test_a_captured_graph_replays_with_changed_inputs(self, dtype):
        static = draw(Chain(8, 4, 70, 10, 2, 2), **OPTIMIZERS["all"]).to(dtype)
        static = static.mapped(lambda tensor: tensor.to(GPU))

        def work() -> None:
            torch.ops.fastmlp.blocked_chain_(*static.args())

        recording = CapturedGraph(work, GPU)
        for _ in range(3):
            fresh = draw(Chain(8, 4, 70, 10, 2, 2, (32, 19)), **OPTIMIZERS["all"]).to(dtype)
            for place, value in zip(_tensors(static), _tensors(fresh), strict=True):
                place.copy_(value)
            recording.replay(work)
            want = by_reference(fresh)
            for ours, theirs in zip(static.results(), want, strict=True):
                torch.testing.assert_close(ours.cpu(), theirs)

    def test_a_side_stream_behind_a_slow_producer(self):
        """Whoever launches on another stream than the present one reads p before it is there."""
        block = draw(Chain(8, 4, 70, 10)).to(torch.float32)
        want = by_reference(block.to(torch.float32))
        there = block.mapped(lambda tensor: tensor.to(GPU))
        p, there.p = there.p, torch.zeros_like(there.p)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            there.p.copy_(p)
            torch.ops.fastmlp.blocked_chain_(*there.args())
        torch.cuda.current_stream().wait_stream(stream)
        for ours, theirs in zip(there.results(), want, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs)

    def test_tensors_of_cpu_and_gpu_are_refused(self):
        block = draw(Chain(8, 4, 70, 10)).to(torch.float32).mapped(lambda tensor: tensor.to(GPU))
        block.options = block.options.cpu()
        with pytest.raises(RuntimeError, match="options must be on the GPU"):
            torch.ops.fastmlp.blocked_chain_(*block.args())


def _tensors(block: Block) -> list[Tensor]:
    values = [v if isinstance(v, list) else [v] for v in block.args()]
    return [tensor for value in values for tensor in value if isinstance(tensor, Tensor)]


class TestProducts(ProductsTests):
    @pytest.fixture
    def products(self):
        limits = 132, *gpu_limits(GPU)
        if multiprocessors(GPU) != limits[0]:
            pytest.skip("cases are cut as for an H100")

        def run(case: Case) -> tuple[Tensor, Tensor]:
            there = case.mapped(lambda tensor: tensor.to(GPU))
            torch.ops.fastmlp.blocked_products_(*there.products())
            if there.parts is not None:
                torch.ops.fastmlp.blocked_product_sum_(*there.sum())
            return there.weight.cpu(), there.p.cpu()

        return run


class TestGram(GramTests):
    @pytest.fixture
    def grams(self):
        def run(*arguments: Any) -> tuple[Tensor | None, ...]:
            there = [a.to(GPU) if isinstance(a, Tensor) else a for a in arguments]
            torch.ops.fastmlp.blocked_gram_(*there)
            return tuple(None if t is None else t.cpu() for t in there[:2])

        return run


class TestEngine(EngineTests):
    @pytest.fixture
    def device(self):
        return GPU


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_gpu_agrees_with_the_cpu(options):
    data, order = problem(images=1000, inputs=300), torch.randperm(1000)
    options = {"batch_size": 8, **options}
    how = {"hidden": 256, "dtype": torch.float64}
    cpu = make(BlockedEngine, data, options, **how)
    gpu = make(BlockedCudaEngine, data, options, GPU, **how)
    for engine in (cpu, gpu):
        engine.train_epoch(order, 0.01)
    assert_close_states(gpu, cpu)


@pytest.mark.parametrize("pixels", [{"inputs": 300}, {"inputs": 432, "planes": 3}], ids=str)
@pytest.mark.parametrize("name", ["momentum", "plain"])
def test_thirty_epochs_give_the_same_bits(pixels, name):
    data, order = problem(images=1000, **pixels), torch.randperm(1000)
    options = {"batch_size": 8, **OPTIMIZERS[name]}
    first = make(BlockedCudaEngine, data, options, GPU, hidden=256)
    stats = first.train_epoch(order, 0.01)
    for _ in range(30):
        again = make(BlockedCudaEngine, data, options, GPU, hidden=256)
        assert again.train_epoch(order, 0.01) == stats
        assert_same_state(first, again)


def test_on_a_side_stream():
    data, order = problem(), torch.randperm(211)
    engines = [make(BlockedCudaEngine, data, {"batch_size": 8}, GPU) for _ in range(2)]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        stats = engines[0].train_epoch(order, 0.05)
        state = engines[0].parameters_state()
    assert engines[1].train_epoch(order, 0.05) == stats
    for name, tensor in engines[1].parameters_state().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_second_gpu_while_the_first_is_the_present_one():
    torch.cuda.set_device(0)
    data, order = problem(), torch.randperm(211)
    engines = [
        make(BlockedCudaEngine, data, {"batch_size": 8}, torch.device("cuda", i)) for i in (0, 1)
    ]
    for engine in engines:
        engine.train_epoch(order, 0.05)
    assert torch.cuda.current_device() == 0
    assert_close_states(*engines, rtol=1e-5)
