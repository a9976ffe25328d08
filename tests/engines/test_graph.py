"""The graph engine on CPU tensors: its recordings as a tape that replays as a CUDA graph does.

How it runs with recordings that simply call their work is in test_engines.py, on a GPU in
tests/gpu/test_engines.py.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from support.graph_cases import GENERAL, OPTIONS, problem
from support.graph_suite import GraphTests
from support.marks import needs_native
from support.tape import TapeGraph
from support.tiny import assert_same_run, assert_same_tensors, stop_after, tiny_data

from fastmlp.engines import cuda_graph
from fastmlp.engines.blocked_pipeline import BlockedPipeline, PipelineShape
from fastmlp.engines.cuda_graph import CapturedGraph, SideStream, garbage_kept
from fastmlp.engines.graph import GraphEngine, _ChunkKey, chunk_steps
from fastmlp.engines.optimizers import OptimizerConfig, update_by_parts_
from fastmlp.engines.registry import choose_engine
from fastmlp.nn.init import initial_parameters
from fastmlp.training.api import fit, fit_many, resume
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import UserError

CPU = torch.device("cpu")


@needs_native
class TestGraph(GraphTests):
    @pytest.fixture(autouse=True)
    def device(self, monkeypatch, threads):
        threads(1)
        monkeypatch.setattr("fastmlp.engines.graph.CapturedGraph", TapeGraph)
        return CPU


@needs_native
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("options", [*OPTIONS.values(), *GENERAL[5:]], ids=str)
def test_what_is_recorded_stays_on_its_device(options, augmented, monkeypatch):
    """On meta tensors, which have no values: whoever mixes them with others, or reads one, raises.
    PyTorch's fused optimizers have no meta kernels, so their twin of several kernels runs."""
    monkeypatch.setattr("fastmlp.engines.graph.update_", update_by_parts_)
    part, norm = problem(inputs=48)
    engine = GraphEngine(part, norm, torch.device("meta"))
    parameters = initial_parameters([48, 19, 5], "kaiming", seed=3)
    state = engine.new_state(parameters, OptimizerConfig(8, **options))
    recordings = engine._recordings_of(state)
    chunk = engine._make_chunk(_ChunkKey(3, 24, (3, 4, 4) if augmented else None, 0), state.dtype)
    engine._steps(recordings, chunk)
    assert {tensor.device.type for tensor in (chunk.losses, chunk.correct, *state.tensors)} == {
        "meta"
    }


def test_a_tape_replays_operators_and_not_python():
    a, b, factor = torch.ones(3), torch.zeros(3), [2.0]

    def work():
        b.copy_(a.view(3) * factor[0] + 1)

    recording = TapeGraph(work, CPU)
    a.fill_(5)
    factor[0] = 100.0
    recording.replay(work)
    assert b.tolist() == [11.0] * 3
    with pytest.raises(RuntimeError, match="must not wait"):
        TapeGraph(lambda: a.sum().item(), CPU)


@pytest.mark.parametrize(
    ("steps", "batch", "length"),
    [
        (3750, 8, 50),  # CIFAR-10's 30,000 images: nothing is left over
        (234, 128, 13),
        (61, 8, 61),
        (131, 8, 43),
        (67, 8, 33),
        (0, 8, 64),
        (9, 5000, 1),
    ],
)
def test_how_long_a_chunk_is(steps, batch, length):
    assert chunk_steps(steps, batch) == length


def test_it_says_why_not():
    assert (
        GraphEngine.unsupported_reason(CPU) == "it is made of CUDA graphs, which cpu does not have"
    )
    with pytest.raises(UserError, match="The engine graph cannot run here: it is made of CUDA"):
        choose_engine("graph", CPU)


@needs_native
def test_it_is_chosen_on_cuda(monkeypatch):
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    engine, why = choose_engine("auto", torch.device("cuda", 0), [12, 16, 8, 3])
    assert (engine, "not blocked" in why) == (GraphEngine, True)
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu",))
    assert "no compiled kernels for cuda" in (
        GraphEngine.unsupported_reason(torch.device("cuda")) or ""
    )


@needs_native
def test_the_trainer_runs_it(tmp_path, monkeypatch, threads):
    threads(1)
    monkeypatch.setattr(GraphEngine, "unsupported_reason", staticmethod(lambda *args: None))
    monkeypatch.setattr("fastmlp.engines.graph.CapturedGraph", TapeGraph)
    monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 4)
    config = TrainConfig(
        **{"hidden": (16, 8), "epochs": 4, "momentum": 0.9, "lr_schedule": "cosine"},
        **{"batch_size": 8, "threads": 1, "device": "cpu", "engine": "graph"},
    )
    data = tiny_data()
    whole = fit(config, data, out=tmp_path / "whole")
    stopped = fit(config, data, out=tmp_path / "half", should_stop=stop_after(5))
    assert stopped.interrupted
    rest = resume(tmp_path / "half", data)
    assert rest.config.engine == "graph"
    assert_same_run(tmp_path / "half", tmp_path / "whole")
    other = fit(replace(config, engine="reference"), data)
    for name, tensor in other.best_parameters.items():
        torch.testing.assert_close(whole.best_parameters[name], tensor)
    both = fit_many([config, replace(config, seed=1)], data)
    assert_same_tensors(both[0].best_parameters, whole.best_parameters)


def test_how_a_recording_is_made(monkeypatch) -> None:
    """With workspaces of its own, on the one stream for it, whatever other threads do meanwhile."""
    events: list[str] = []

    class Stream:
        def __init__(self, device: torch.device, priority: int = 0) -> None:
            events.append(f"a stream of priority {priority}")

        def wait_stream(self, other: object) -> None:
            pass

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextlib.contextmanager
    def capture(graph: object, **how: object):
        events.append(f"begin {how['capture_error_mode']}")
        yield
        events.append("end")

    clear = lambda: events.append("clear")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", clear, raising=False)
    for name, value in {"Stream": Stream, "CUDAGraph": Graph, "graph": capture}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.__new__(Stream))
    for cached in (cuda_graph._recording_stream, cuda_graph._side_stream):
        cached.cache_clear()
    try:
        device = torch.device("cuda", 0)
        work = lambda: events.append("work")  # noqa: E731
        recording = CapturedGraph(work, device)
        made = ["work", "clear", "begin thread_local", "work", "end", "clear"]
        assert events == ["a stream of priority -2", *made]
        events.clear()
        CapturedGraph(work, device)
        assert events == made
        events.clear()
        recording.replay(work)
        assert events == ["replay"]
        events.clear()
        for _ in range(2):
            SideStream(device), SideStream(device, priority=0)
        assert events == ["a stream of priority -1", "a stream of priority 0"]
    finally:
        for cached in (cuda_graph._recording_stream, cuda_graph._side_stream):
            cached.cache_clear()


@pytest.mark.parametrize("allowed", ["fp32_precision", "allow_tf32"])
def test_products_of_images_do_without_tf32(allowed, monkeypatch):
    matmul, seen = torch.backends.cuda.matmul, []
    bmm = torch.bmm

    def watched(*args, **kwargs):
        seen.append(matmul.fp32_precision)
        return bmm(*args, **kwargs)

    monkeypatch.setattr(torch, "bmm", watched)
    before = matmul.fp32_precision
    setattr(matmul, allowed, "tf32" if allowed == "fp32_precision" else True)
    try:
        shape = PipelineShape(1, 1, 5, 4, 3, 2, 3, 2, False, False, torch.float32, None, False)
        assert shape.overlapped
        part, normalization = problem(5)
        pipeline = BlockedPipeline(shape, part.images, part.labels, normalization)
        assert set(seen) == {"ieee", "tf32"}
        seen.clear()
        pipeline.start(torch.zeros(2, 1, 6, dtype=torch.int64), torch.full((2, 1), 6), None)
        assert seen == ["ieee"] * 2
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_no_garbage_is_collected_while_a_graph_is_captured() -> None:
    """To destroy a CUDA graph then invalidates the capture, as one on a GPU has shown."""

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with garbage_kept():
            within = weakref.ref(Cycle())
            allocations = [[] for _ in range(2000)]  # each of which may collect
            assert len(allocations) == 2000
            assert within() is not None
            assert not gc.isenabled()
        assert gc.isenabled()
        gc.collect()
        assert within() is None
    finally:
        gc.set_threshold(*before)
