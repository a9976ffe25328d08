"""Which engine and which device a run gets, and why."""

from __future__ import annotations

import pytest
import torch
from support.tiny import CLASSES, FEATURES, tiny_data

from fastmlp.data.transforms import Normalization, make_normalization
from fastmlp.engines import registry
from fastmlp.engines.registry import (
    ENGINES,
    EnginePool,
    choose_engine,
    passed_over_gpu,
    resolve_device,
)
from fastmlp.utils.errors import UserError

CPU = torch.device("cpu")
IMAGES = 90


def normalization(kind: str = "standard") -> Normalization:
    return make_normalization(kind, tiny_data(IMAGES).train.images)


def test_runs_on_the_same_data_share_an_engine() -> None:
    train, device = tiny_data(IMAGES).train, torch.device("cpu")
    pool, kind = EnginePool(train), ENGINES["reference"]
    engine = pool.get(kind, normalization(), CPU)
    assert pool.get(kind, normalization(), device) is engine
    assert pool.get(kind, normalization("unit"), CPU) is not engine
    assert pool.get(ENGINES["eager"], normalization(), CPU) is not engine
    assert EnginePool(train).get(kind, normalization(), CPU) is not engine


def test_engines_are_chosen_by_name_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, why = choose_engine("reference", CPU)
    assert (engine.name, why) == ("reference", "asked for by name")
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    engine, why = choose_engine("auto", CPU, [FEATURES, 16, CLASSES])
    assert (engine.name, why) == ("blocked", "the fastest that runs here")
    engine, why = choose_engine("auto", CPU, [FEATURES, 16, 5, CLASSES])
    assert (engine.name, why) == ("blocked", "the fastest that runs here")
    engine, why = choose_engine("auto", CPU, [FEATURES, CLASSES])
    assert engine.name == "native"
    assert "not blocked, because it wants at least one hidden layer" in why
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ())
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_ERROR", "ImportError: no _C")
    engine, why = choose_engine("auto", CPU)
    assert engine.name == "reference"
    assert "not eager, because" in why
    assert "no _C" in why
    with pytest.raises(UserError, match=r"eager cannot run here: .*no _C"):
        choose_engine("eager", CPU)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(UserError, match="PyTorch sees no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    kernels = {"cpu", "cuda"}
    monkeypatch.setattr(registry, "native_available", lambda device="cpu": device in kernels)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert passed_over_gpu("auto") == ""
    kernels.remove("cuda")
    monkeypatch.setattr(registry, "load_error", lambda device: "it is a T4")
    assert resolve_device("auto") == CPU
    assert passed_over_gpu("auto") == "; not the GPU, because it is a T4"
    assert passed_over_gpu("cpu") == ""
    kernels.remove("cpu")
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="the last GPU is cuda:1"):
        resolve_device("cuda:2")
