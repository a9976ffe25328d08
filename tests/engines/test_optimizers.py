"""Adam and AdamW in the engines and in runs, against nn.Sequential under torch.optim.

What the graph engine does beyond its steps is in support/graph_suite.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.blocked import assert_blocked_refuses
from support.compare import assert_within_2x
from support.draws import Renumbering, joined, renumberings
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
from fastmlp.sweeps.sweep import sweep
from fastmlp.training.api import fit, fit_many, resume
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import EXIT_USAGE, UserError

CPU = torch.device("cpu")
IMAGES = 90  # 11 batches of 8 and one of 2
LRS = (0.01, 0.01, 0.004)
OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
KEPT = ("exp_avg", "exp_avg_sq", "step")
native = pytest.mark.skipif(not native_available(), reason="the compiled kernels are not there")
each_engine = pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=native) for name in ("graph", "eager", "native")), "reference"],
)
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
CONFIG = TrainConfig(
    **{"hidden": (16,), "batch_size": 8, "epochs": 3, "lr": 0.01, "device": "cpu", "threads": 1},
    optimizer="adamw",
)


@pytest.fixture(autouse=True)
def _one_thread(threads: Callable[[int], None]) -> None:
    """Nothing here is large enough to gain from more."""
    threads(1)


def start(hidden: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    parameters = initial_parameters([FEATURES, *hidden, CLASSES], "kaiming", seed=3)
    return {name: tensor.to(dtype) for name, tensor in parameters.items()}


def make(
    name: str,
    optimizer: str,
    hidden: tuple[int, ...] = (16,),
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> SingleNetwork:
    train = tiny_data(IMAGES).train
    return single(
        ENGINES[name],
        start(hidden, dtype),
        train,
        make_normalization("standard", train.images),
        OptimizerConfig(**{"batch_size": 8, "optimizer": optimizer, **options}),
        CPU,
    )


def train(engine: SingleNetwork) -> None:
    for epoch, lr in enumerate(LRS):
        engine.train_epoch(epoch_order(0, epoch, IMAGES), lr)


def plain_pytorch(
    optimizer: str,
    hidden: tuple[int, ...] = (16,),
    dtype: torch.dtype = torch.float64,
    weight_decay: float = 0.0,
    grad_average: bool = False,
    renumbering: Renumbering | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return what the same epochs come to, as an engine's state."""
    renumbering = renumbering or renumberings([FEATURES, *hidden])[0]
    layers: list[nn.Module] = []
    sizes = [FEATURES, *hidden, CLASSES]
    for ins, outs in itertools.pairwise(sizes):
        layers += [nn.Linear(ins, outs, dtype=dtype), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    model.load_state_dict(renumbering.parameters(start(hidden, dtype)))
    adam = OPTIMIZERS[optimizer](model.parameters(), weight_decay=weight_decay)
    part = tiny_data(IMAGES).train
    part, norm = renumbering.data((part, make_normalization("standard", part.images)))
    inputs = norm.apply(part.images).to(dtype)
    for epoch, lr in enumerate(LRS):
        adam.param_groups[0]["lr"] = lr
        for rows in torch.split(renumbering.order(epoch_order(0, epoch, IMAGES), 8), 8):
            adam.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[rows]), part.labels[rows])
            (loss / len(rows) if grad_average else loss).backward()
            adam.step()
    named = dict(model.named_parameters())
    kept = {kind: {n: adam.state[p][kind] for n, p in named.items()} for kind in KEPT}
    parameters = {n: p.detach() for n, p in named.items()}
    return renumbering.undo({"parameters": parameters, **kept})


def assert_close(engine: SingleNetwork, truth: dict[str, dict[str, Tensor]]) -> None:
    state = engine.state_dict()
    assert list(state) == list(truth)
    for kind, tensors in truth.items():
        assert list(state[kind]) == list(tensors)
        for name, tensor in tensors.items():
            torch.testing.assert_close(state[kind][name], tensor, rtol=1e-10, atol=1e-11)


@each_engine
@each_optimizer
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("hidden", [(), (16,), (31, 8, 17)], ids=str)
def test_three_epochs_agree_with_torch_optim(
    name: str, optimizer: str, weight_decay: float, hidden: tuple[int, ...]
) -> None:
    engine = make(name, optimizer, hidden, weight_decay=weight_decay)
    train(engine)
    truth = plain_pytorch(optimizer, hidden, weight_decay=weight_decay)
    assert_close(engine, truth)
    assert {float(step) for step in truth["step"].values()} == {36.0}


@each_engine
@each_optimizer
def test_grad_average_divides_the_gradient_before_all_else(name: str, optimizer: str) -> None:
    engine = make(name, optimizer, weight_decay=0.05, grad_average=True)
    train(engine)
    assert_close(engine, plain_pytorch(optimizer, weight_decay=0.05, grad_average=True))


@each_engine
@each_optimizer
def test_float32_is_as_near_as_plain_pytorch(name: str, optimizer: str) -> None:
    engine = make(name, optimizer, dtype=torch.float32, weight_decay=0.05)
    train(engine)
    theirs = [
        plain_pytorch(optimizer, dtype=torch.float32, weight_decay=0.05, renumbering=each)
        for each in renumberings([FEATURES, 16])
    ]
    ends = [engine.state_dict(), plain_pytorch(optimizer, weight_decay=0.05)]
    ours, truth = joined([end["parameters"] for end in ends])
    assert_within_2x(ours, joined([end["parameters"] for end in theirs]), truth)


@each_engine
@each_optimizer
@pytest.mark.parametrize("stop", [1, 5, 10])
def test_an_epoch_in_two_parts_is_the_same_epoch(
    name: str, optimizer: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 1)
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)
    whole, first, second = (
        make(name, optimizer, dtype=torch.float32, weight_decay=0.05) for _ in range(3)
    )
    train(whole)
    for epoch, lr in enumerate(LRS[:2]):
        first.train_epoch(
            epoch_order(0, epoch, IMAGES), lr, should_stop=stop_after(stop if epoch else None)
        )
    second.load_state_dict(first.state_dict())
    second.train_epoch(epoch_order(0, 1, IMAGES), LRS[1], start_step=stop)
    second.train_epoch(epoch_order(0, 2, IMAGES), LRS[2])
    state = second.state_dict()
    for kind, tensors in whole.state_dict().items():
        assert_same_tensors(state[kind], tensors)


@native
@each_optimizer
@pytest.mark.parametrize(
    "names", [("reference", "eager"), ("eager", "native"), ("native", "reference")], ids=str
)
def test_engines_take_over_from_each_other(optimizer: str, names: tuple[str, str]) -> None:
    first, second = (make(name, optimizer, weight_decay=0.05) for name in names)
    first.train_epoch(epoch_order(0, 0, IMAGES), LRS[0])
    second.load_state_dict(first.state_dict())
    for epoch in (1, 2):
        second.train_epoch(epoch_order(0, epoch, IMAGES), LRS[epoch])
    assert_close(second, plain_pytorch(optimizer, weight_decay=0.05))


@each_engine
def test_states_are_copies_and_a_fresh_one_starts_anew(name: str) -> None:
    engine = make(name, "adam")
    fresh = engine.state_dict()
    assert [kind for kind, tensors in fresh.items() if tensors] == ["parameters"]
    train(engine)
    once = engine.state_dict()
    kept = {kind: {n: t.clone() for n, t in part.items()} for kind, part in once.items()}
    train(engine)
    engine.load_state_dict(fresh)
    train(engine)
    for kind, tensors in kept.items():
        assert_same_tensors(engine.state_dict()[kind], tensors)
    engine.load_state_dict(once)
    train(engine)
    for kind, tensors in kept.items():
        assert_same_tensors(once[kind], tensors)


@each_engine
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    engine = make(name, "adam")
    train(engine)
    state = engine.state_dict()
    sgd = {"parameters": state["parameters"], "momentum": {}}
    with pytest.raises(ValueError, match="a state of adam must hold parameters, exp_avg, exp_avg_"):
        engine.load_state_dict(sgd)
    for kind, bad in (
        ("exp_avg_sq", {}),
        ("step", {}),
        ("step", state["exp_avg"]),
        ("exp_avg", state["step"]),
    ):
        with pytest.raises(ValueError, match=f"{kind} of 0.weight must be of shape"):
            engine.load_state_dict({**state, kind: bad})
    for kind, tensors in state.items():
        assert_same_tensors(engine.state_dict()[kind], tensors)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="optimizer must be one of sgd, adam, adamw, got 'lion'"):
        OptimizerConfig(8, optimizer="lion")
    for momentum in ({"momentum": 0.9}, {"nesterov": True}):
        with pytest.raises(ValueError, match="momentum and nesterov are for sgd, not for adam"):
            OptimizerConfig(8, optimizer="adam", **momentum)  # type: ignore[arg-type]


@each_optimizer
def test_the_engine_that_is_chosen(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    why = f"it trains with sgd alone, and {optimizer} is not linear in the gradients"
    assert_blocked_refuses(OptimizerConfig(8, optimizer=optimizer), why)
    with pytest.raises(ValueError, match=why):
        make("blocked", optimizer)


@pytest.mark.parametrize("engine", [pytest.param("auto", marks=native), "reference"])
def test_a_run_is_stopped_and_resumed(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)  # one step a call
    config = replace(CONFIG, engine=engine)
    whole = fit(config, tiny_data(), out=tmp_path / "whole")
    assert whole.config.engine == ("native" if engine == "auto" else engine)
    stopped = fit(config, tiny_data(), out=tmp_path / "half", should_stop=stop_after(18))
    assert stopped.interrupted
    partial = torch.load(tmp_path / "half" / "resume.pt", weights_only=True)["partial"]
    assert 0 < partial["steps"] < 12
    rest = resume(tmp_path / "half", tiny_data())
    assert (rest.config, rest.test) == (whole.config, whole.test)
    assert_same_run(tmp_path / "half", tmp_path / "whole")
    assert whole.history[-1].train_loss < 0.9 * whole.history[0].train_loss
    saved = torch.load(tmp_path / "whole" / "resume.pt", weights_only=True)["engine"]
    assert list(saved) == ["parameters", *KEPT]


def test_a_run_from_before_there_was_an_optimizer_to_choose(tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="sgd", momentum=0.9, nesterov=True)
    fit(config, tiny_data(), out=tmp_path / "whole")
    fit(config, tiny_data(), out=tmp_path / "half", should_stop=stop_after(2))
    file = tmp_path / "half" / "config.json"
    values = json.loads(file.read_text())
    assert values.pop("optimizer") == "sgd"
    del values["sha256"]
    file.write_text(json.dumps(values))
    saved = torch.load(tmp_path / "half" / "resume.pt", weights_only=True)["engine"]
    assert list(saved) == ["parameters", "momentum"]
    resume(tmp_path / "half", tiny_data())
    assert_same_run(tmp_path / "half", tmp_path / "whole")


def test_the_optimizer_of_a_run_cannot_change(tmp_path: Path) -> None:
    fit(CONFIG, tiny_data(), out=tmp_path / "run", should_stop=stop_after(2))
    config = replace(CONFIG, optimizer="sgd").to_dict()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its configuration: a state of sgd must"):
        resume(tmp_path / "run", tiny_data())


def test_runs_with_other_optimizers_side_by_side() -> None:
    configs = [
        CONFIG,
        replace(CONFIG, optimizer="sgd", momentum=0.9),
        replace(CONFIG, optimizer="adam", weight_decay=0.0),
    ]
    together = fit_many(configs, tiny_data())
    for config, run in zip(configs, together, strict=True):
        alone = fit(config, tiny_data())
        assert_same_tensors(run.best_parameters, alone.best_parameters)
        assert run.test == alone.test


def test_a_sweep_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.plotting.sweeps.sweep_picture", lambda *args: None)
    lrs = {"lr": [0.01, 0.001]}
    result = sweep(CONFIG, lrs, data=tiny_data(), out=tmp_path / "whole")
    assert [trial.status for trial in result.trials] == ["finished"] * 2
    assert {trial.config.optimizer for trial in result.trials} == {"adamw"}
    alone = fit(replace(CONFIG, lr=0.001), tiny_data())
    assert [r.val_acc for r in result.runs[1].history] == [r.val_acc for r in alone.history]
    assert 'optimizer = "adamw"' in (tmp_path / "whole" / "best.toml").read_text()
    sweep(CONFIG, lrs, data=tiny_data(), out=tmp_path / "half", should_stop=stop_after(20))
    rest = sweep(CONFIG, lrs, data=tiny_data(), out=tmp_path / "half")
    for run, other in zip(rest.runs, result.runs, strict=True):
        assert_same_tensors(run.best_parameters, other.best_parameters)
    with pytest.raises(UserError, match="momentum and nesterov are for the optimizer sgd") as info:
        sweep(CONFIG, {"momentum": [0.0, 0.9]}, data=tiny_data())
    assert info.value.exit_code == EXIT_USAGE
