"""The engines on a GPU; support/graph_suite.py says what the graph engine must do."""

from __future__ import annotations

import math
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts

from dataclasses import replace

import pytest
import torch
from support.graph_cases import ENDS, assert_close, assert_same_bits, make, order_of, problem
from support.graph_suite import GraphTests
from support.single import SingleNetwork
from support.tiny import assert_same_tensors, stop_after, tiny_data

from fastmlp import native_available
from fastmlp.data.splits import Subset
from fastmlp.engines.blocked_cuda import BlockedCudaEngine
from fastmlp.engines.cuda_graph import garbage_kept
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.graph import GraphEngine
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.engines.registry import choose_engine
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not native_available("cuda"), reason="fastmlp._cuda is not built"),
]

GPU = torch.device("cuda", 0)


class TestGraph(GraphTests):
    @pytest.fixture
    def device(self):
        return GPU


@pytest.mark.parametrize("kind", [EagerEngine, ReferenceEngine])
@ENDS
def test_the_other_engines_train_as_on_the_cpu(kind, options):
    engines = [
        make(which, device, options, (19, 6), torch.float64)
        for which, device in ((kind, GPU), (ReferenceEngine, torch.device("cpu")))
    ]
    for engine in engines:
        engine.train_epoch(order_of(), 0.05)
    assert_close(*engines)


def large() -> SingleNetwork:
    """Batches for which our own kernels split their sums, and chunks with a rest."""
    part, norm = problem(3072)
    norm = replace(norm, scale=norm.scale / 10)
    options = {"batch_size": 8, "momentum": 0.9}
    return make(GraphEngine, GPU, options, (256, 64), data=(part, norm))


def test_thirty_runs_give_the_same_bits():
    engine, order = large(), order_of(1203)
    start = engine.state_dict()
    ends = []
    for _ in range(31):
        engine.load_state_dict(start)
        stats = engine.train_epoch(order, 0.002)
        ends.append((engine.parameters_state(), stats))
    for parameters, stats in ends[1:]:
        assert_same_tensors(parameters, ends[0][0])
        assert stats == ends[0][1]


@pytest.mark.parametrize("kind", [GraphEngine, BlockedCudaEngine])
def test_a_recording_keeps_its_workspaces(kind):
    """When PyTorch clears those of all streams, and when another graph is destroyed."""
    part, norm = problem(3072)
    norm, order = replace(norm, scale=norm.scale / 10), order_of(1203)
    network = make(kind, GPU, {"batch_size": 8}, (256,), data=(part, norm))
    start = network.state_dict()
    network.train_epoch(order, 0.002)
    want = network.parameters_state()
    other = make(kind, GPU, {"batch_size": 8}, (128,), data=(part, norm))
    other.train_epoch(order, 0.002)
    del other
    torch._C._cuda_clearCublasWorkspaces()
    taken = [torch.full((1 << 22,), math.nan, device=GPU) for _ in range(64)]
    network.load_state_dict(start)
    network.train_epoch(order, 0.002)
    assert_same_tensors(network.parameters_state(), want)
    assert len(taken) == 64


def test_the_memory_of_a_dropped_engine_is_there_at_once():
    part, norm = problem(3072)
    make(GraphEngine, GPU, {}, (256,), data=(part, norm)).train_epoch(order_of(1203), 0.002)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with garbage_kept():
        for _ in range(3):
            network = make(GraphEngine, GPU, {}, (256,), data=(part, norm))
            network.train_epoch(order_of(1203), 0.002)
            del network
            torch.cuda.empty_cache()
            assert torch.cuda.memory_reserved() <= before


def test_wide_layers_of_the_blas():
    """More rows than our own kernels take: the recording holds a library's products."""
    part, norm = problem(3072)
    norm = replace(norm, scale=norm.scale / 10)
    ends = []
    for _ in range(2):
        pair = [
            make(kind, GPU, {"batch_size": 300}, (512,), torch.float64, (part, norm))
            for kind in (GraphEngine, ReferenceEngine)
        ]
        for engine in pair:
            for epoch in range(3):
                engine.train_epoch(order_of(1500, epoch), 0.01)
        assert_close(*pair)
        ends.append(pair[0])
    assert_same_bits(*ends)


def test_on_a_side_stream_behind_a_slow_producer():
    """Whoever replays on another stream than the present one trains other parameters. All that is
    needed is on the GPU and recorded before, so that nothing waits for the producer."""
    want, engine, order = large(), large(), order_of().to(GPU)
    start = {name: tensor.clone() for name, tensor in want.state.parameters.items()}
    want.train_epoch(order, 0.002)
    engine.train_epoch(order, 0.003)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        engine.load_state_dict({"parameters": start, "momentum": {}})
        engine.train_epoch(order, 0.002)
        ours = engine.parameters_state()
    assert_same_tensors(ours, want.parameters_state())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_second_gpu_while_the_first_is_the_present_one():
    torch.cuda.set_device(0)
    engines = [
        make(GraphEngine, torch.device("cuda", index), {"momentum": 0.9}) for index in range(2)
    ]
    for engine in engines:
        for epoch in range(2):
            engine.train_epoch(order_of(seed=epoch), 0.05)
        engine.evaluate(problem()[0])
    assert torch.cuda.current_device() == 0
    assert_same_bits(*engines)


def test_engines_share_their_images():
    images = torch.zeros(20_000, 3072, dtype=torch.uint8)
    data = Subset(images, torch.zeros(20_000, dtype=torch.int64)), problem(3072)[1]
    before = torch.cuda.memory_allocated()
    engines = [GraphEngine(*data, GPU)]
    one = torch.cuda.memory_allocated() - before
    engines.append(EagerEngine(*data, GPU))
    both = torch.cuda.memory_allocated() - before
    assert images.numel() <= one == both


def test_a_run_is_trained_stopped_and_resumed(tmp_path):
    engine, _ = choose_engine("auto", GPU, [12, 16, 8, 3])
    config = TrainConfig(
        hidden=(16, 8), epochs=4, momentum=0.9, lr_schedule="cosine", device="cuda:0"
    )
    config = replace(config, engine=engine.name)
    whole = fit(config, tiny_data(1003), out=tmp_path / "whole")
    stopped = fit(config, tiny_data(1003), out=tmp_path / "half", should_stop=stop_after(5))
    assert stopped.interrupted
    rest = resume(tmp_path / "half", tiny_data(1003))
    assert_same_tensors(rest.best_parameters, whole.best_parameters)
    assert rest.test == whole.test
