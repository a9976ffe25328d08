"""The check of operators and engines: what it runs, what it finds, and what follows on a GPU."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.marks import needs_native
from support.native_calls import FOR_A_GPU
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlp
from fastmlp.cli import info
from fastmlp.engines import gpu_check
from fastmlp.engines.registry import (
    ENGINES,
    choose_engine,
    engines_on,
    resolve_device,
)
from fastmlp.engines.self_check import Check, checks, tell
from fastmlp.ops import _load as backend
from fastmlp.ops import activations, linear
from fastmlp.utils.errors import UserError

pytestmark = needs_native

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def named(part: str) -> list[Check]:
    return [check for check in checks(CPU, engines_on(CPU)) if part in check.name]


def test_all_of_it_is_right_here_and_it_runs_every_operator_on_the_cpu():
    called = set()

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            called.add(func.name())
            return func(*args, **(kwargs or {}))

    names = [check.name for check in checks(CPU, engines_on(CPU))]
    assert len(set(names)) == len(names)
    for engine in ("blocked", "native", "eager", "reference"):
        assert any(name.startswith(f"engine {engine}, ") for name in names)
    with Note():
        assert {check.name: check.run() for check in checks(CPU, engines_on(CPU))} == dict.fromkeys(
            names, ""
        )
    defined = {
        schema.name
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastmlp::")
    }
    for_a_gpu = {f"fastmlp::{name}" for name in FOR_A_GPU}
    plans = {name for name in defined if "plan" in name} | {"fastmlp::cpu_isa"}
    called = {name.split(".")[0] for name in called}
    assert defined - for_a_gpu - plans <= called


@pytest.mark.parametrize(
    ("module", "operator", "part"),
    [
        (linear, "_linear_op", "operator linear, float64"),
        (linear, "_linear_backward_op", "operator linear_backward, float32"),
        (activations, "_activation_op", "operator activation, float16"),
        (activations, "_activation_backward_op", "operator activation_backward, bfloat16"),
        (linear, "_linear_op", "engine eager, 48-24-10, float64"),
    ],
)
def test_an_operator_that_is_a_little_wrong_is_found(module, operator, part, monkeypatch):
    right = getattr(module, operator)

    def wrong(*args: Any) -> Any:
        result = right(*args)
        first = result if isinstance(result, Tensor) else result[0]
        if first.numel():
            first.view(-1)[-1] += 0.2
        return result

    (check,) = named(part)
    assert check.run() == ""
    monkeypatch.setattr(module, operator, wrong)
    assert "of its largest number off" in check.run()


def test_an_operator_that_fails_gives_nan_or_another_shape_is_found(monkeypatch):
    (check,) = named("operator linear, float32")

    def raising(*args: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal instruction\nmore of it")

    for operator, said in (
        (raising, "RuntimeError: CUDA error: an illegal instruction"),
        (lambda x, w, *_: x.new_full((len(x), len(w)), torch.nan), "is nan of its"),
        (lambda x, w, *_: x.new_zeros(len(x), 1), "has the shape"),
    ):
        monkeypatch.setattr(linear, "_linear_op", operator)
        assert said in check.run()
        assert "more of it" not in check.run()


def test_the_command_says_what_is_right_and_names_what_is_not(monkeypatch, capsys):
    monkeypatch.setattr(info, "checks", lambda *_: named("operator linear"))
    assert info.main(["--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.endswith("ok") for line in lines[:-1])
    assert lines[-1].startswith("all 8 are right (")
    monkeypatch.setattr(linear, "_linear_op", lambda x, w, *_: x.new_zeros(len(x), len(w)))
    assert info.main(["--check"]) == 1
    out, err = capsys.readouterr()
    assert "operator linear, float32" in out
    assert err.startswith("fastmlp: error: 4 of 8 differ: operator linear, float32 on cpu; ")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A GPU that this build has not met, as far as choosing an engine looks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend, "NATIVE_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(backend, "CUDA_ERROR", None)
    monkeypatch.setattr(torch.ops.fastmlp, "cuda_archs", lambda: "", raising=False)
    monkeypatch.setattr(torch.ops.fastmlp, "cuda_driver_version", lambda: 13000, raising=False)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=0: "Tesla T4",
        "get_device_capability": lambda device=0: (7, 5),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(backend, "_distrust", None)
    forget()
    yield
    forget()


def forget() -> None:
    """As a new process does."""
    backend._distrust = None
    backend._warned.clear()
    backend._look_at_gpus.cache_clear()
    gpu_check._problems_of.cache_clear()


def test_a_gpu_is_checked_once_and_then_known(gpu, monkeypatch, capsys):
    asked = []

    def check(device: torch.device) -> dict[str, str]:
        asked.append(device)
        return {"operator linear, float32": "", "engine graph": ""}

    monkeypatch.setattr(gpu_check, "_check_apart", check)
    for _ in range(2):
        for _ in range(2):
            assert choose_engine("graph", GPU)[0] is ENGINES["graph"]
        forget()
    assert asked == [GPU]
    assert capsys.readouterr().err.count("the first run of this build on Tesla T4") == 1
    monkeypatch.setattr(gpu_check, "_build_digest", lambda: "another build")
    choose_engine("graph", GPU)
    forget()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: "Tesla P4")
    choose_engine("graph", GPU)
    assert asked == [GPU] * 3
    choose_engine("auto", CPU)
    assert asked == [GPU] * 3


def test_wrong_kernels_are_not_used_and_every_process_is_told(gpu, monkeypatch):
    found = {"operator linear, float32": "nan", "operator linear, float64": "", "engine graph": "x"}
    monkeypatch.setattr(gpu_check, "_check_apart", lambda device: found)
    for _ in range(2):
        assert resolve_device("auto") == GPU
        message = (
            r"THE CUDA KERNELS ARE NOT USED: they failed their check on this Tesla T4: "
            r"operator linear, float32: nan and 1 more"
        )
        with pytest.warns(UserWarning, match=message):
            engine, why = choose_engine("auto", resolve_device("auto"))
        assert engine is ENGINES["reference"]
        assert "operator linear, float32: nan" in why
        with warnings.catch_warnings():  # once a process
            warnings.simplefilter("error")
            assert choose_engine("auto", resolve_device("auto"))[0] is ENGINES["reference"]
            with pytest.raises(UserError, match=r"graph cannot run here: .*failed their check"):
                choose_engine("graph", GPU)
        assert not fastmlp.native_available("cuda")
        assert "failed their check" in str(backend.load_error("cuda"))
        forget()
        monkeypatch.setattr(gpu_check, "_check_apart", lambda device: pytest.fail("known"))


def test_where_no_second_process_can_have_the_gpu_this_one_checks(gpu, monkeypatch):
    monkeypatch.setattr(gpu_check, "_check_apart", lambda device: None)
    broken = Check("operator linear, float32", lambda: "it is wrong")
    monkeypatch.setattr(gpu_check, "checks", lambda *_: [broken])
    with pytest.warns(UserWarning, match="linear, float32: it is wrong"):
        assert choose_engine("auto", GPU)[0] is ENGINES["reference"]


def test_a_cache_that_cannot_be_written_or_is_damaged_costs_a_check_alone(
    gpu, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    gpu_check.remember(GPU, {})
    assert gpu_check.recall(GPU) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu_check.remember(GPU, {"engine graph": "x"})
    assert gpu_check.recall(GPU) == {"engine graph": "x"}
    (file,) = tmp_path.rglob("checks/*.json")
    for content in ("", "[]", '{"problems": 3}', "\x00"):
        file.write_text(content)
        assert gpu_check.recall(GPU) is None


def test_the_check_in_another_process(monkeypatch):
    """On the CPU, in the very way in which a GPU is checked."""
    monkeypatch.setattr(gpu_check, "_CODE", gpu_check._CODE + "print('{} and noise\\n[3]')")
    found = gpu_check._check_apart(CPU)
    assert found == {check.name: "" for check in checks(CPU, engines_on(CPU))}
    assert gpu_check._check_apart(torch.device("cuda", 99)) is None  # it could not begin


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the process ended with code -11"),
        ("import time; time.sleep(60)", "it did not end in 8 s"),
    ],
)
def test_a_process_that_dies_or_hangs_names_the_check(end, said, monkeypatch):
    begin = 'import json; print(json.dumps({"begun": True}))\n'
    begin += 'print(json.dumps({"check": "a", "problem": ""}))\n'
    begin += 'print(json.dumps({"check": "operator linear"}), flush=True)\n'
    monkeypatch.setattr(gpu_check, "_CODE", begin + end)
    monkeypatch.setattr(gpu_check, "SECONDS", 8)
    assert gpu_check._check_apart(GPU) == {"a": "", "operator linear": said}


def test_what_it_tells_while_it_runs(capsys):
    tell(CPU, [ENGINES["reference"]])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"begun": True}
    assert [line["check"] for line in lines[1::2]] == [line["check"] for line in lines[2::2]]
    assert len(lines) == 1 + 2 * len(list(checks(CPU, [ENGINES["reference"]])))
    assert all("problem" in line for line in lines[2::2])


def test_without_python_to_start_there_is_no_other_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    assert gpu_check._check_apart(CPU) is None
