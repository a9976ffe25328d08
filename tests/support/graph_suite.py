"""What the graph engine must do on any device; a test class takes them over and says ``device``."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.compare import assert_within_2x
from support.draws import joined, training_draws
from support.pairwise import pairwise
from support.single import SingleNetwork, single
from support.tiny import stop_after
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization, RandomFlipShift, make_normalization
from fastmlp.engines import graph
from fastmlp.engines.base import Engine, Epoch
from fastmlp.engines.cuda_graph import garbage_kept
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.graph import GraphEngine, aligned_batches
from fastmlp.engines.metrics import EpochMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.nn.init import initial_parameters
from fastmlp.ops.matmul_precision import FLOAT32, TF32_ALLOWED

IMAGES, CLASSES = 203, 5  # 25 batches of 8: six chunks of four and one over, and a rest of 3
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "decay": {"weight_decay": 0.05},
    "averaged": {"grad_average": True},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "grad_average": True},
    "adam": {"optimizer": "adam", "weight_decay": 0.02},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.5, "grad_average": True},
}
EACH_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
ENDS = pytest.mark.parametrize(
    "options", [{}, OPTIONS["all"], OPTIONS["adamw"]], ids=["plain", "all", "adamw"]
)
BITS = pytest.mark.parametrize(
    "options",
    [
        *(OPTIONS[name] for name in ("plain", "all", "adamw")),
        {"precision": "bfloat16"},
        {"activation": "gelu", "dropout": 0.3, "clip_norm": 0.5, "seed": 5},
    ],
    ids=["plain", "all", "adamw", "bfloat16", "general"],
)
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error", "huber", "poisson")
ACTIVATIONS = ("none", "leaky_relu", "tanh", "sigmoid", "gelu", "silu")
GENERAL = [
    *({"loss": loss} for loss in LOSSES),
    *({"activation": name} for name in ACTIVATIONS),
    {"label_smoothing": 0.2},
    {"dropout": 0.4, "seed": 2**40 + 3},
    {"clip_norm": 0.05, "optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    {"optimizer": "adamw", "weight_decay": 0.1, "grad_average": True, "clip_norm": 0.01},
]
KINDS = (GraphEngine, ReferenceEngine)
DEPTHS = pytest.mark.parametrize("hidden", [(), (19,), (12, 7), (31, 8, 17)], ids=str)


def problem(inputs: int = 37) -> tuple[Subset, Normalization]:
    random = torch.Generator().manual_seed(8)
    images = torch.randint(0, 256, (IMAGES, inputs), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=random)
    scale = 0.02 * torch.rand(inputs, generator=random) + 0.01
    shift = -torch.rand(inputs, generator=random)
    return Subset(images, labels), Normalization("standard", scale, shift)


def rows_of_numbers(loss: str, weighted: bool) -> tuple[Subset, Normalization]:
    """Rows with targets for the loss, some of them of weight 0, a whole batch among them."""
    random = torch.Generator().manual_seed(5)
    x = torch.randn(IMAGES, 7, generator=random)
    targets = torch.randint(0, CLASSES, (IMAGES,), generator=random)
    if loss != "cross_entropy":
        targets = torch.randint(0, 2, (IMAGES, CLASSES), generator=random).float()
    weights = torch.randint(0, 4, (IMAGES,), generator=random).float()
    weights[order_of()[16:24]] = 0
    return Subset(x, targets, weights=weights if weighted else None), make_normalization("none", x)


def make(
    kind: type[Engine],
    device: torch.device,
    options: dict[str, Any],
    hidden: tuple[int, ...] = (19,),
    dtype: torch.dtype = torch.float32,
    data: tuple[Subset, Normalization] | None = None,
) -> SingleNetwork:
    part, norm = data or problem()
    sizes = [part.images.shape[1], *hidden, CLASSES]
    parameters = initial_parameters(sizes, "kaiming", seed=3)
    parameters = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    config = OptimizerConfig(**{"batch_size": 8, **options})
    return single(kind, parameters, part, norm, config, device)


def flat(engine: SingleNetwork) -> dict[str, Tensor]:
    state = engine.state_dict()
    return {f"{kind}.{k}": t for kind, part in state.items() for k, t in part.items()}


def assert_same_bits(one: SingleNetwork, other: SingleNetwork) -> None:
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name


def assert_close(one: SingleNetwork, other: SingleNetwork) -> None:
    """In float64: equal up to rounding."""
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-10, atol=1e-12)


def assert_as_close_as_pytorch(
    device: torch.device, options: dict[str, Any], hidden: tuple[int, ...], order: Tensor
) -> None:
    """Assert that an epoch in float32 ends no further from the truth than twice plain PyTorch."""

    def plain(data: tuple[Subset, Normalization], dtype: torch.dtype = torch.float32) -> Any:
        return make(ReferenceEngine, device, options, hidden, dtype, data)

    ours, truth = make(GraphEngine, device, options, hidden), plain(problem(), torch.float64)
    for engine in (ours, truth):
        engine.train_epoch(order, 0.05)
    draws = joined(training_draws(plain, problem(), [(order, 0.05)], options.get("batch_size", 8)))
    assert_within_2x(*joined([flat(ours)]), draws, *joined([flat(truth)]))


def order_of(count: int = IMAGES, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, IMAGES, (count,), generator=random)


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
        ours, theirs, float32 = ends
        assert (ours - theirs).norm() < 0.5 * (float32 - theirs).norm()

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
        ours, theirs, float32 = ends
        assert (ours - theirs).norm() < 0.5 * (float32 - theirs).norm()

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
