"""What is asked of the engine for GPUs, on one (tests/gpu/test_blocked.py) and on CPU tensors with
an emulated kernel (tests/engines/test_blocked_cuda.py)."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from support.blocked import (
    ENDS,
    OPTIMIZER,
    OPTIMIZERS,
    Network,
    assert_same_state,
    flat,
    new_state,
    problem,
)
from support.chain_suite import DTYPE
from support.compare import assert_within_2x
from support.draws import by_name, training_draws
from support.single import SingleNetwork
from support.tiny import stop_after

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization, RandomFlipShift
from fastmlp.engines import blocked_cuda
from fastmlp.engines.base import Engine, Epoch, TrainState
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.blocked_cuda import BlockedCudaEngine
from fastmlp.engines.blocked_pipeline import BlockedPipeline, PipelineShape
from fastmlp.engines.metrics import EpochMetrics, NonFiniteLossError
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.ops.matmul_precision import TF32_ALLOWED
from fastmlp.utils.errors import UserError

CPU = torch.device("cpu")


def make(
    engine: type[Engine],
    data: tuple[Subset, Normalization],
    options: dict[str, Any],
    device: torch.device = CPU,
    *,
    hidden: int = 19,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    seed: int = 3,
) -> SingleNetwork:
    made, inputs = engine(*data, device), data[0].images.shape[1]
    state = new_state(made, inputs, options, (hidden,), dtype, classes, steps, seed)
    return SingleNetwork(made, state)


def assert_close_states(
    one: SingleNetwork | TrainState, other: SingleNetwork | TrainState, rtol: float = 1e-10
) -> None:
    ours, theirs = flat(one), flat(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=rtol, atol=rtol / 100)


def many(
    device: torch.device,
    dtype: torch.dtype,
    networks: Sequence[Network] | None = None,
    inputs: int = 37,
) -> tuple[Engine, list[TrainState], list[Epoch]]:
    """An engine, the networks' states and epochs: the same at each call. Images of 48 pixels are
    what our own products take, of 37 they are not."""
    engine = BlockedCudaEngine(*data_of_many(inputs), device)
    orders = {name: EpochOrder(torch.randperm(150)) for name in ("first", "second", "third")}
    orders["short"] = EpochOrder(orders["third"].indices[:77].clone())
    states, epochs = [], []
    for network in networks or NETWORKS:
        options = {"batch_size": 8, **network.options}
        shape = {**network.shape, "hidden": (network.shape.get("hidden", 19),)}
        states.append(new_state(engine, inputs, options, dtype=dtype, **shape))
        epochs.append(Epoch(orders[network.order], network.lr, network.start_step))
    return engine, states, epochs


def data_of_many(inputs: int = 37) -> tuple[Subset, Normalization]:
    """What they train on."""
    torch.manual_seed(7)
    return problem(images=150, inputs=inputs, planes=3 if inputs == 48 else None)


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


PIXELS = pytest.mark.parametrize(
    "pixels", [{}, {"inputs": 48, "planes": 3}], ids=["PyTorch's products", "our products"]
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
        limits = blocked_cuda.gpu_limits(device)
        plan = torch.ops.fastmlp.blocked_plan_cuda(
            batch, hidden, classes, steps or 0, True, *limits
        )
        if steps and plan[1]:  # on a GPU with less shared memory
            refused = make(BlockedCudaEngine, data, options, device, steps=steps, **how)
            with pytest.raises(
                UserError, match=f"block_steps {steps} is too long for this network"
            ):
                refused.train_epoch(order, 0.05)
            steps = None
        ours = make(BlockedCudaEngine, data, options, device, steps=steps, **how)
        theirs = make(ReferenceEngine, data, options, **how)
        for lr in (0.05, 0.02):
            mine, his = (engine.train_epoch(order, lr) for engine in (ours, theirs))
            assert mine.loss_sum == pytest.approx(his.loss_sum, rel=1e-6)  # kept in float32
            assert (mine.correct, mine.steps, mine.finished) == (his.correct, his.steps, True)
        assert_close_states(ours, theirs)

    @ENDS
    @PIXELS
    @pytest.mark.parametrize(("batch", "hidden"), [(1, 40), (8, 64), (100, 31)])
    def test_float32_is_as_close_to_the_truth_as_pytorch(
        self, device, options, batch, hidden, pixels
    ):
        data, order = problem(**pixels), torch.randperm(211)
        options = {"batch_size": batch, **options}
        ours = make(BlockedCudaEngine, data, options, device, hidden=hidden)
        truth = make(ReferenceEngine, data, options, hidden=hidden, dtype=torch.float64)
        for engine in (ours, truth):
            engine.train_epoch(order, 0.05)
        plain = partial(make, ReferenceEngine, options=options, hidden=hidden)
        theirs, mine = by_name(training_draws(plain, data, [(order, 0.05)], batch)), flat(ours)
        for name, true in flat(truth).items():
            assert_within_2x(mine[name], theirs[name], true)

    @DTYPE
    @pytest.mark.parametrize("chunk_bytes", [1 << 28, 1], ids=["together", "one by one"])
    @pytest.mark.parametrize("inputs", [37, 48])
    def test_each_of_many_is_what_it_is_alone(
        self, device, dtype, chunk_bytes, inputs, monkeypatch
    ):
        monkeypatch.setattr(blocked_cuda, "CHUNK_BYTES", chunk_bytes)
        engine, together, epochs = many(device, dtype, inputs=inputs)
        (one, alone, _), (rerun, again, _) = (many(device, dtype, inputs=inputs) for _ in range(2))
        for _ in range(2):
            results = engine.train_epoch(together, epochs)
            assert rerun.train_epoch(again, epochs) == results
            for mine, other, epoch, stats in zip(together, alone, epochs, results, strict=True):
                (his,) = one.train_epoch([other], [epoch])
                assert (stats.steps, stats.finished) == (his.steps, True)
                assert stats.loss_sum == pytest.approx(his.loss_sum, rel=1e-5)
                assert_close_states(mine, other, 1e-10 if dtype == torch.float64 else 1e-4)
        for mine, twin in zip(together, again, strict=True):
            assert_same_state(mine, twin)

    def test_weight_decay_does_not_round_all_weights_alike(self, device):
        data, order = problem(images=397, inputs=200), torch.randperm(397)
        options = {"batch_size": 8, **OPTIMIZERS["all"]}
        truth = make(ReferenceEngine, data, options, device, dtype=torch.float64)
        theirs = make(ReferenceEngine, data, options, device)
        ours = make(BlockedCudaEngine, data, options, device, steps=1)
        for engine in (truth, theirs, ours):
            engine.train_epoch(order, 0.05)
        true, his, mine = (e.parameters_state()["0.weight"].double() for e in (truth, theirs, ours))
        assert (mine - true).norm() < 2 * (his - true).norm()

    @ENDS
    @PIXELS
    @pytest.mark.parametrize("stops", [1, 3])
    def test_an_epoch_in_parts_is_the_same_epoch(self, device, options, stops, pixels, monkeypatch):
        monkeypatch.setattr(blocked_cuda, "CHUNK_BLOCKS", 2)
        data, order = problem(**pixels), torch.randperm(211)
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
        monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)
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
        engine, states, epochs = many(device, dtype, networks)
        results = engine.train_epoch(states, epochs)
        other, twins, fine = many(device, dtype, healthy)
        theirs = other.train_epoch(twins, fine)
        for i in (0, 2):
            assert_same_state(states[i], twins[i])
            assert results[i] == theirs[i]
        for i in (1, 3):
            error = results[i]
            assert isinstance(error, NonFiniteLossError)
            assert 0 < error.step < 19
            assert not math.isfinite(error.loss)
        engine, alone, epochs = many(device, dtype, networks[1:2])
        assert isinstance(engine.train_epoch(alone, epochs)[0], NonFiniteLossError)

    def test_the_first_bad_step_is_named(self, device):
        (part, _), order = problem(images=90), torch.randperm(90)
        images = torch.zeros_like(part.images)
        images[order[4 * 8 + 3]] = 255  # the only one that is not black overflows
        norm = Normalization("unit", torch.full((37,), 3e36), torch.zeros(37))
        engine = make(
            BlockedCudaEngine, (Subset(images, part.labels), norm), {"batch_size": 8}, device
        )
        with pytest.raises(NonFiniteLossError) as caught:
            engine.train_epoch(order, 0.05)
        assert caught.value.step == 4

    def test_padding_touches_no_other_images(self, device):
        """Image 0 overflows, and is none of those to train on."""
        (part, norm), order = problem(), 1 + torch.randperm(210)
        images = part.images.clone()
        images[:, 5] = 0
        images[0, 5] = 255
        norm = replace(norm, scale=torch.where(torch.arange(37) == 5, 3e38, norm.scale))
        data = Subset(images, part.labels), norm
        how = {"dtype": torch.float64}
        ours = make(BlockedCudaEngine, data, {"batch_size": 8}, device, **how)
        theirs = make(ReferenceEngine, data, {"batch_size": 8}, **how)
        for engine in (ours, theirs):
            engine.train_epoch(order, 0.05)
        assert_close_states(ours, theirs)

    @ENDS
    def test_moved_images(self, device, options):
        data, order = problem(inputs=75), torch.randint(0, 20, (211,))
        moves = RandomFlipShift(True, 3).draw(211, (3, 5, 5), torch.Generator())
        options = {"batch_size": 8, **options}
        ours = make(BlockedCudaEngine, data, options, device, dtype=torch.float64)
        theirs = make(ReferenceEngine, data, options, dtype=torch.float64)
        for start in (0, 3):
            for engine in (ours, theirs):
                engine.train_epoch(order, 0.01, flip_shifts=moves, start_step=start)
        assert_close_states(ours, theirs)

    def test_evaluation(self, device, monkeypatch):
        part = problem(images=150)[0]
        engine, states, _ = many(device, torch.float32, NETWORKS[:3])
        whole = engine.evaluate(states, part)
        monkeypatch.setattr(blocked_cuda, "EVALUATION_ROWS", 40)
        for state, stats in zip(states, whole, strict=True):
            (parts,) = engine.evaluate([state], part)
            assert (
                (parts.accuracy, parts.count)
                == (stats.accuracy, stats.count)
                == (
                    stats.accuracy,
                    150,
                )
            )
            assert parts.loss == pytest.approx(stats.loss, rel=1e-6)
            twin = make(ReferenceEngine, data_of_many(), {"batch_size": 8})
            twin.load_parameters(state.parameters_state())
            his = twin.evaluate(part)
            assert stats.loss == pytest.approx(his.loss, rel=1e-5)
            assert stats.accuracy == his.accuracy
        assert engine.evaluate([], part) == []
        double = make(BlockedCudaEngine, data_of_many(), {"batch_size": 8}, dtype=torch.float64)
        with pytest.raises(ValueError, match="must have one dtype"):
            engine.evaluate([states[0], double.state], part)

    def test_progress_counts_up(self, device, monkeypatch):
        monkeypatch.setattr(blocked_cuda, "REPORT_SECONDS", 0.0)
        monkeypatch.setattr(blocked_cuda, "CHUNK_BLOCKS", 1)
        seen: list[EpochMetrics] = []
        engine = make(BlockedCudaEngine, problem(), {"batch_size": 8}, device, steps=4)
        end = engine.train_epoch(torch.randperm(211), 0.05, on_progress=seen.append)
        assert [stats.steps for stats in seen] == [*range(4, 27, 4), 27]
        assert seen[-1] == end

    def test_one_recording_serves_all_epochs_of_a_shape(self, device, monkeypatch, request):
        made: list[PipelineShape] = []
        alive: weakref.WeakSet[BlockedPipeline] = weakref.WeakSet()

        class Counted(BlockedPipeline):
            def __init__(self, shape: PipelineShape, *args: Any) -> None:
                made.append(shape)
                alive.add(self)
                super().__init__(shape, *args)

        monkeypatch.setattr(blocked_cuda, "BlockedPipeline", Counted)
        engine, states, epochs = many(device, torch.float32, NETWORKS[:-1])
        gc.disable()  # which does not see the memory of a GPU
        request.addfinalizer(gc.enable)
        for _ in range(3):
            engine.train_epoch(states, epochs)
        groups = sorted((shape.groups, shape.networks) for shape in made)
        assert groups == [(1, 1), (1, 1), (1, 2), (1, 3), (2, 1)]
        engine.train_epoch(states[:2], epochs[:2])
        assert len(made) == 5  # it is the shape of the two that follow "second"
        assert len(alive) == 1  # the others are gone
        engine.train_epoch(states[1::-1], epochs[1::-1])
        assert len(made) == 5  # nor does it matter which of them comes first
        monkeypatch.setattr(blocked_cuda, "matmul_precision_of", lambda _: TF32_ALLOWED)
        engine.train_epoch(states[:2], epochs[:2])
        assert len(made) == 6  # as TF32 is part of what is recorded
        del engine
        assert not alive  # at once

    @OPTIMIZER
    def test_networks_of_about_one_width_share_a_launch(self, device, options, monkeypatch):
        made: list[PipelineShape] = []
        monkeypatch.setattr(
            blocked_cuda, "BlockedPipeline", lambda *a: made.append(a[0]) or BlockedPipeline(*a)
        )
        widths = (19, 70, 33, 60, 1)
        networks = [Network(options=options, shape={"hidden": hidden}) for hidden in widths]
        engine, states, epochs = many(device, torch.float64, networks)
        engine.train_epoch(states, epochs)
        engine.train_epoch(states[::-1], epochs[::-1])  # in each other's places
        assert [(shape.hidden, shape.networks) for shape in made] == [(60, 4), (70, 1)]
        for state, epoch, hidden in zip(states, epochs, widths, strict=True):
            how = {"hidden": hidden, "dtype": torch.float64}
            twin = make(ReferenceEngine, data_of_many(), {"batch_size": 8, **options}, **how)
            for _ in range(2):
                twin.train_epoch(epoch.order.indices, epoch.lr)
            assert_close_states(state, twin)

    def test_what_does_not_fit_is_refused(self, device):
        engine = make(BlockedCudaEngine, problem(), {"batch_size": 8}, device)
        with pytest.raises(ValueError, match="start_step must be from 0 to 26, got 27"):
            engine.train_epoch(torch.randperm(211), 0.05, start_step=27)
        with pytest.raises(ValueError, match=r"an order must be in \[0, 211\)"):
            engine.train_epoch(torch.tensor([3, 211]), 0.05)
        engine.state.block_steps = 400
        with pytest.raises(UserError, match="block_steps 400 is too long"):
            engine.train_epoch(torch.randint(0, 211, (4000,)), 0.05)
