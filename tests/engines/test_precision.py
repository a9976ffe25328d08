"""Layers in bfloat16, against plain PyTorch under torch.autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.blocked import assert_blocked_refuses
from support.single import SingleNetwork, single
from support.tiny import (
    CLASSES,
    FEATURES,
    assert_same_run,
    assert_same_tensors,
    stop_after,
    tiny_data,
)
from torch import Tensor, nn

from fastmlp.data.sampling import epoch_order
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.registry import ENGINES
from fastmlp.nn.init import initial_parameters
from fastmlp.ops._load import native_available
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig

CPU = torch.device("cpu")
IMAGES = 90
native = pytest.mark.skipif(not native_available(), reason="the compiled kernels are not there")
each_engine = pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=native) for name in ("graph", "eager")), "reference"]
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "grad_average": True},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.5},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
CONFIG = TrainConfig(
    **{"hidden": (16,), "batch_size": 8, "epochs": 3, "lr": 0.05, "device": "cpu", "threads": 1},
    precision="bfloat16",
)


@pytest.fixture(autouse=True)
def _one_thread(threads: Callable[[int], None]) -> None:
    """Nothing here is large enough to gain from more."""
    threads(1)


def start(hidden: tuple[int, ...] = (31, 8)) -> dict[str, Tensor]:
    return initial_parameters([FEATURES, *hidden, CLASSES], "kaiming", seed=3)


def make(name: str, options: dict[str, Any], precision: str = "bfloat16") -> SingleNetwork:
    train = tiny_data(IMAGES).train
    norm = make_normalization("standard", train.images)
    asked = OptimizerConfig(**{"batch_size": 8, "precision": precision, **options})
    return single(ENGINES[name], start(), train, norm, asked, CPU)


def plain_pytorch(options: dict[str, Any], steps: int, autocast: bool = True) -> Tensor:
    """How far nn.Sequential has moved under torch.autocast, all its parameters in one vector."""
    sizes = [FEATURES, 31, 8, CLASSES]
    layers = [nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(sizes[2], sizes[3]))
    model.load_state_dict(start())
    kept = {k: v for k, v in options.items() if k not in ("optimizer", "grad_average")}
    kind = torch.optim.AdamW if "optimizer" in options else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.01, **kept)
    part = tiny_data(IMAGES).train
    inputs = make_normalization("standard", part.images).apply(part.images)
    for rows in torch.split(epoch_order(0, 0, IMAGES), 8)[:steps]:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(inputs[rows])
        loss = nn.functional.cross_entropy(logits.float(), part.labels[rows])
        (loss / len(rows) if "grad_average" in options else loss).backward()
        optimizer.step()
    return moved(model.state_dict())


def moved(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([(t - start()[name]).flatten() for name, t in parameters.items()])


@each_engine
@each_option
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_steps_are_those_of_autocast(
    name: str, options: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearer to it than float32 is, which differs by the rounding of all factors."""
    monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 1)
    engine = make(name, options)
    engine.train_epoch(epoch_order(0, 0, IMAGES), 0.01, should_stop=stop_after(steps))
    theirs, float32 = (plain_pytorch(options, steps, autocast) for autocast in (True, False))
    assert (float32 - theirs).norm() > 0.005 * float32.norm()
    assert (moved(engine.parameters_state()) - theirs).norm() < 0.25 * (float32 - theirs).norm()
    assert {t.dtype for part in engine.state_dict().values() for t in part.values()} == {
        torch.float32
    }


@each_engine
def test_an_evaluation_is_that_of_autocast(name: str) -> None:
    part = tiny_data(IMAGES).val
    norm = make_normalization("standard", tiny_data(IMAGES).train.images)
    weights = list(start().values())
    losses = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            x = norm.apply(part.images)
            for weight, bias in zip(weights[0:4:2], weights[1:4:2], strict=True):
                x = nn.functional.relu(nn.functional.linear(x, weight, bias))
            logits = nn.functional.linear(x, weights[4], weights[5])
        losses.append(nn.functional.cross_entropy(logits.float(), part.labels).item())
    theirs, float32 = losses
    loss = make(name, {}).evaluate(part).loss
    assert abs(loss - theirs) < 0.25 * abs(float32 - theirs)
    assert make(name, {}, "float32").evaluate(part).loss == pytest.approx(float32, rel=1e-6)


@each_engine
@each_option
def test_an_epoch_in_two_parts_is_the_same_epoch(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 1)
    order = epoch_order(0, 0, IMAGES)
    whole, first, second = (make(name, options) for _ in range(3))
    whole.train_epoch(order, 0.01)
    first.train_epoch(order, 0.01, should_stop=stop_after(5))
    second.load_state_dict(first.state_dict())
    second.train_epoch(order, 0.01, start_step=5)
    for kind, tensors in whole.state_dict().items():
        assert_same_tensors(second.state_dict()[kind], tensors)


def test_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'half'"):
        OptimizerConfig(8, precision="half")
    train = tiny_data(IMAGES).train
    norm = make_normalization("standard", train.images)
    doubles = {name: tensor.double() for name, tensor in start().items()}
    config = OptimizerConfig(8, precision="bfloat16")
    with pytest.raises(ValueError, match=r"precision bfloat16 wants float32 .*, got torch.float64"):
        single(ENGINES["reference"], doubles, train, norm, config, CPU)


def test_the_engine_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    why = "it computes in the parameters' own dtype alone, not in bfloat16"
    assert_blocked_refuses(OptimizerConfig(8, precision="bfloat16"), why)
    with pytest.raises(ValueError, match=why):
        make("blocked", {})


@pytest.mark.parametrize("engine", [pytest.param("auto", marks=native), "reference"])
def test_a_run_learns_what_it_learns_in_float32_and_is_resumed(engine: str, tmp_path: Path) -> None:
    config = replace(CONFIG, engine=engine)
    whole = fit(config, tiny_data(), out=tmp_path / "whole")
    stopped = fit(config, tiny_data(), out=tmp_path / "half", should_stop=stop_after(18))
    assert stopped.interrupted
    assert resume(tmp_path / "half", tiny_data()).config == whole.config
    assert_same_run(tmp_path / "half", tmp_path / "whole")
    plain = fit(replace(config, precision="float32", engine="reference"), tiny_data())
    assert whole.history[-1].train_loss < 0.9 * whole.history[0].train_loss
    for record, other in zip(whole.history, plain.history, strict=True):
        assert record.train_loss == pytest.approx(other.train_loss, rel=0.02)
        assert record.train_loss != other.train_loss
