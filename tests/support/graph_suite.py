"""What the graph engine must do on any device; a test class takes them over and says ``device``."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.graph_cases import (
    BITS,
    DEPTHS,
    EACH_OPTION,
    ENDS,
    GENERAL,
    IMAGES,
    KINDS,
    OPTIONS,
    assert_as_close_as_pytorch,
    assert_close,
    assert_same_bits,
    flat,
    make,
    order_of,
    problem,
    rows_of_numbers,
)
from support.pairwise import pairwise
from support.single import SingleNetwork
from support.tiny import stop_after

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization, RandomFlipShift
from fastmlp.engines import graph
from fastmlp.engines.base import Epoch
from fastmlp.engines.cuda_graph import garbage_kept
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.graph import GraphEngine, aligned_batches
from fastmlp.engines.metrics import EpochMetrics, NonFiniteLossError
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.ops.matmul_precision import FLOAT32, TF32_ALLOWED


class GraphTests:
    @pytest.fixture(autouse=True)
    def _chunks_of_four(self, monkeypatch):
        monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 4)

    @pytest.fixture
    def recorded(self, device, monkeypatch) -> list[weakref.ref[Any]]:
        """Weak references to all recordings that are made."""
        made: list[weakref.ref[Any]] = []
        kind = graph.CapturedGraph

        def record(work: Callable[[], None], where: torch.device) -> Any:
            recording = kind(work, where)
            made.append(weakref.ref(recording))
            return recording

        monkeypatch.setattr(graph, "CapturedGraph", record)
        return made

    @EACH_OPTION
    @DEPTHS
    def test_three_epochs(self, device, options, hidden):
        ours, truth = (
            make(kind, where, options, hidden, torch.float64)
            for kind, where in ((GraphEngine, device), (ReferenceEngine, torch.device("cpu")))
        )
        for epoch, lr in enumerate((0.05, 0.05, 0.02)):
            order = order_of(seed=epoch)
            mine, theirs = (engine.train_epoch(order, lr) for engine in (ours, truth))
            assert mine.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-6)  # kept in float32
            assert (mine.correct, mine.steps) == (theirs.correct, theirs.steps)
            assert mine.finished
        assert_close(ours, truth)

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("options", GENERAL, ids=str)
    def test_every_option_on_rows_of_numbers(self, device, options, weighted):
        options = {"optimizer": "adam", **options}
        data = rows_of_numbers(options.get("loss", "cross_entropy"), weighted)
        ours, truth = (
            make(kind, where, options, (19, 6), torch.float64, data)
            for kind, where in ((GraphEngine, device), (ReferenceEngine, torch.device("cpu")))
        )
        for number in range(2):
            epoch = Epoch(EpochOrder(order_of(seed=number)), 0.02, 0, number)
            mine, theirs = (e.engine.train_epoch([e.state], [epoch])[0] for e in (ours, truth))
            assert mine.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-6)  # kept in float32
            assert (mine.correct, mine.weight) == (theirs.correct, theirs.weight)
        assert_close(ours, truth)
        mine, theirs = (each.evaluate(data[0]) for each in (ours, truth))
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-9)
        assert mine.accuracy == pytest.approx(theirs.accuracy, nan_ok=True)
        if "loss" not in options:  # the option does something
            plain = make(GraphEngine, device, {"optimizer": "adam"}, (19, 6), torch.float64, data)
            for number in range(2):
                plain.train_epoch(order_of(seed=number), 0.02)
            apart = [
                (tensor - plain.parameters_state()[name]).abs().max()
                for name, tensor in ours.parameters_state().items()
            ]
            assert max(apart) > 1e-4

    @pytest.mark.parametrize("weighted", [False, True])
    def test_weights_of_samples_in_bfloat16_on_moved_images(self, device, weighted):
        part, norm = problem(75)
        weights = torch.arange(IMAGES) % 3
        part = replace(part, weights=weights.float() if weighted else None)
        moves = RandomFlipShift(True, 2).draw(IMAGES, (3, 5, 5), torch.Generator().manual_seed(4))
        ends = []
        for kind, precision in (
            (GraphEngine, "bfloat16"),
            (ReferenceEngine, "bfloat16"),
            (ReferenceEngine, "float32"),
        ):
            options = {"precision": precision, "activation": "tanh", "dropout": 0.2, "seed": 7}
            engine = make(kind, device, options, (19, 6), data=(part, norm))
            engine.train_epoch(order_of(), 0.01, flip_shifts=moves)
            ends.append(torch.cat([t.flatten() for t in engine.parameters_state().values()]))
        # What bfloat16 rounds differently, where sums come out on the other side of a tie, is no
        # more than what it rounds; other samples, moves or dropout would be far more.
        ours, theirs, float32 = ends
        rounding = (float32 - theirs).norm()
        assert 0 < (ours - float32).norm() < 2 * rounding
        assert (ours - theirs).norm() < 1.5 * rounding

    @EACH_OPTION
    def test_float32_is_as_near_as_plain_pytorch(self, device, options):
        assert_as_close_as_pytorch(device, options, (19, 6), order_of())

    @pairwise(
        count=[1, 5, 8, 24, 41, 96],
        batch=[1, 7, 8, 300],
        options={name: OPTIONS[name] for name in ("plain", "all", "adamw")},
    )
    def test_any_number_of_images(self, device, options, batch, count):
        """Fewer than a batch, fewer steps than a chunk, chunks alone, with a rest, with both."""
        options = {**options, "batch_size": batch}
        ours, truth = (
            make(kind, device, options, dtype=torch.float64)
            for kind in (GraphEngine, ReferenceEngine)
        )
        for epoch in range(2):
            stats = [e.train_epoch(order_of(count, epoch), 0.02) for e in (ours, truth)]
            assert (stats[0].steps, stats[0].samples, stats[0].correct) == (
                *(stats[1].steps, stats[1].samples, stats[1].correct),
            )
        assert_close(ours, truth)

    @BITS
    @pytest.mark.parametrize("inputs", [37, 64])
    def test_the_length_of_a_chunk_does_not_change_a_bit(
        self, device, options, inputs, monkeypatch
    ):
        engines = []
        for length in (1, 3, 5, 64):
            monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", length)
            engine = make(GraphEngine, device, options, data=problem(inputs))
            engine.train_epoch(order_of(), 0.05)
            engine.train_epoch(order_of(seed=1), 0.03)
            engines.append(engine)
        for engine in engines[1:]:
            assert_same_bits(engine, engines[0])

    @ENDS
    def test_bfloat16_is_nearer_to_autocast_than_float32_is(self, device, options):
        ends = []
        for kind, precision in (
            (GraphEngine, "bfloat16"),
            (ReferenceEngine, "bfloat16"),
            (ReferenceEngine, "float32"),
        ):
            engine = make(kind, device, {**options, "precision": precision}, (19, 6))
            engine.train_epoch(order_of(), 0.01)
            ends.append(torch.cat([t.flatten() for t in engine.parameters_state().values()]))
        # What bfloat16 rounds differently, where sums come out on the other side of a tie, is no
        # more than what it rounds; other samples, moves or dropout would be far more.
        ours, theirs, float32 = ends
        rounding = (float32 - theirs).norm()
        assert 0 < (ours - float32).norm() < 2 * rounding
        assert (ours - theirs).norm() < 1.5 * rounding

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("inputs", [37, 64])
    def test_batches_lie_at_addresses_equally_round(self, device, inputs, precision):
        """How a library sums may depend on them."""
        part, norm = problem(inputs)
        x = norm.apply(part.images[:40].to(device)).to(getattr(torch, precision))
        batches = aligned_batches(x, 5)
        assert {(b.data_ptr() - batches[0].data_ptr()) % 256 for b in batches} == {0}
        assert [len(batch) for batch in batches] == [8] * 5
        assert torch.equal(torch.cat(batches), x)

    @BITS
    @pytest.mark.parametrize("start", [1, 4, 13, 24, 25])
    def test_an_epoch_goes_on_where_it_was_stopped(self, device, options, start):
        order = order_of()
        whole, first, second = (make(GraphEngine, device, options) for _ in range(3))
        stats = whole.train_epoch(order, 0.05)
        first.train_epoch(order[: 8 * start], 0.05)
        second.load_state_dict(first.state_dict())
        rest = second.train_epoch(order, 0.05, start_step=start)
        assert_same_bits(second, whole)
        assert (rest.steps, rest.finished) == (26 - start, True)
        assert rest.correct < stats.correct

    def test_it_stops_between_chunks(self, device):
        engine = make(GraphEngine, device, {})
        seen: list[EpochMetrics] = []
        stats = engine.train_epoch(
            order_of(96 * 8), 0.05, should_stop=stop_after(3), on_progress=seen.append
        )
        assert (stats.steps, stats.finished) == (12, False)
        truth = make(ReferenceEngine, device, {})
        truth.train_epoch(order_of(96 * 8), 0.05, should_stop=stop_after(12))
        for name, tensor in flat(truth).items():
            torch.testing.assert_close(flat(engine)[name], tensor)

    def test_progress_counts_up(self, device, monkeypatch):
        monkeypatch.setattr("fastmlp.engines.graph.REPORT_SECONDS", 0.0)
        seen: list[EpochMetrics] = []
        engine = make(GraphEngine, device, {})
        end = engine.train_epoch(order_of(16 * 8), 0.05, on_progress=seen.append)
        assert [stats.steps for stats in seen] == [4, 8, 12, 16]
        assert seen[-1] == end

    @ENDS
    def test_moved_images(self, device, options):
        data, random = problem(75), torch.Generator().manual_seed(4)
        engines = [
            make(kind, where, options, dtype=torch.float64, data=data)
            for kind, where in ((GraphEngine, device), (ReferenceEngine, torch.device("cpu")))
        ]
        for epoch in range(3):
            moves = RandomFlipShift(True, 2).draw(IMAGES, (3, 5, 5), random) if epoch < 2 else None
            for engine in engines:
                engine.train_epoch(order_of(seed=epoch), 0.02, flip_shifts=moves)
        assert_close(*engines)

    @pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, OPTIONS["adam"]], ids=str)
    @pytest.mark.parametrize("kind", [EagerEngine, ReferenceEngine])
    def test_it_takes_over_and_hands_over(self, device, options, kind):
        order = order_of()
        truth = make(ReferenceEngine, device, options, dtype=torch.float64)
        truth.train_epoch(order, 0.05)
        for kinds in ((GraphEngine, kind), (kind, GraphEngine)):
            first, second = (make(k, device, options, dtype=torch.float64) for k in kinds)
            first.train_epoch(order[:96], 0.05)
            second.train_epoch(order_of(seed=1), 0.05)  # it has recorded: addresses must stay
            second.load_state_dict(first.state_dict())
            second.train_epoch(order, 0.05, start_step=12)
            assert_close(second, truth)

    @pytest.mark.parametrize("options", [{"momentum": 0.9}, {"optimizer": "adam"}], ids=str)
    def test_back_to_the_start(self, device, options, recorded):
        """A fresh start has no momentum, also where the engine had some."""
        engine = make(GraphEngine, device, options)
        fresh = engine.state_dict()
        kept = [kind for kind in fresh if kind != "parameters"]
        assert kept
        assert not any(fresh[kind] for kind in kept)
        engine.train_epoch(order_of(), 0.05)
        once, count = engine.state_dict(), len(recorded)
        assert all(list(once[kind]) == list(once["parameters"]) for kind in kept)
        engine.load_state_dict(fresh)
        assert not any(engine.state_dict()[kind] for kind in kept)
        engine.train_epoch(order_of(), 0.05)
        for kind, tensors in once.items():
            for name, tensor in tensors.items():
                assert torch.equal(engine.state_dict()[kind][name], tensor)
        assert len(recorded) == count == 3  # nothing was recorded again

    def test_a_learning_rate_needs_no_new_recording(self, device, recorded):
        engine = make(GraphEngine, device, {})
        engine.train_epoch(order_of(), 0.05)
        before = engine.parameters_state()
        engine.train_epoch(order_of(), 0.0)
        for name, tensor in engine.parameters_state().items():
            assert torch.equal(tensor, before[name])
        assert len(recorded) == 3  # of chunks, of single steps, of the last batch

    def test_the_first_bad_step_is_named(self, device):
        part, norm = problem()
        order = torch.arange(IMAGES)
        images = torch.zeros_like(part.images)
        images[6 * 8 + 3] = 255  # the only image that is not black is in step 6 and overflows
        norm = Normalization("unit", torch.full_like(norm.scale, 3e36), 0 * norm.shift)
        engine = make(GraphEngine, device, {}, data=(Subset(images, part.labels), norm))
        with pytest.raises(NonFiniteLossError) as info:
            engine.train_epoch(order, 0.05)
        assert info.value.step == 6
        assert not math.isfinite(info.value.loss)

    def test_an_evaluation_in_one_batch_or_many(self, device, monkeypatch):
        data = problem()
        engine, truth = (make(k, device, {}, data=data) for k in (GraphEngine, ReferenceEngine))
        want = truth.evaluate(data[0])
        for rows in (10_000, 100):
            monkeypatch.setattr("fastmlp.engines.graph.EVALUATION_ROWS", rows)
            stats = engine.evaluate(data[0])
            assert stats.loss == pytest.approx(want.loss, rel=1e-5)
            assert (stats.accuracy, stats.count) == (want.accuracy, IMAGES)

    def test_several_networks(self, device):
        options = [{}, {"momentum": 0.9}, {"batch_size": 16}, {"optimizer": "adam"}]
        alone = [make(GraphEngine, device, each) for each in options]
        together = [make(GraphEngine, device, each).state for each in options]
        engine = GraphEngine(*problem(), device)
        for epoch in range(2):
            orders = [order_of(seed=10 * epoch + i) for i in range(4)]
            stats = [e.train_epoch(o, 0.05) for e, o in zip(alone, orders, strict=True)]
            epochs = [Epoch(EpochOrder(order), 0.05) for order in orders]
            assert engine.train_epoch(together, epochs) == stats
        for one, other in zip(together, alone, strict=True):
            assert_same_bits(SingleNetwork(engine, one), other)

    def test_a_state_may_change_under_its_recordings(self, device, recorded):
        """Other tensors in its place, and another optimizer: neither is overlooked."""
        engine, truth = (make(k, device, {"momentum": 0.9}, dtype=torch.float64) for k in KINDS)
        for network in (engine, truth):
            network.train_epoch(order_of(), 0.05)
            state = network.state
            state.parameters = {n: t.clone().mul_(0.5) for n, t in state.parameters.items()}
            state.optimizer_state["momentum"] = {
                name: tensor.clone().mul_(2)
                for name, tensor in state.optimizer_state["momentum"].items()
            }
            network.train_epoch(order_of(seed=1), 0.05)
        assert len(recorded) == 3
        assert_close(engine, truth)
        for network in (engine, truth):
            network.state.config = replace(network.state.config, momentum=0.5, weight_decay=0.1)
            network.train_epoch(order_of(seed=2), 0.05)
        assert len(recorded) == 6
        assert_close(engine, truth)

    def test_the_recordings_of_a_state_end_with_it(self, device, recorded):
        engine = GraphEngine(*problem(), device)
        network = SingleNetwork(engine, make(GraphEngine, device, {}).state)
        network.train_epoch(order_of(), 0.05)
        assert len(recorded) == 3
        assert all(recording() is not None for recording in recorded)
        with garbage_kept():  # at once: the collector does not see the memory of a GPU
            del network
            assert all(recording() is None for recording in recorded)

    def test_an_engine_ends_with_its_recordings(self, device, recorded):
        network = make(GraphEngine, device, {"momentum": 0.9})
        network.train_epoch(order_of(), 0.05)
        engine = weakref.ref(network.engine)
        with garbage_kept():
            del network
            assert engine() is None
            assert all(recording() is None for recording in recorded)

    def test_a_recording_keeps_the_precision_that_it_was_made_with(
        self, device, recorded, monkeypatch
    ):
        network = make(GraphEngine, device, {})
        for allowed, count in ((FLOAT32, 3), (TF32_ALLOWED, 6), (FLOAT32, 6), (TF32_ALLOWED, 6)):
            monkeypatch.setattr(graph, "matmul_precision_of", lambda _, by=allowed: by)
            network.train_epoch(order_of(), 0.05)
            assert len(recorded) == count
