"""The command ``reproduce``: what it leaves, how it goes on, what it says to mistakes."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.processes import SUPPORT, python_environment
from support.small_set import TINY, no_drawings, small_set

from fastmlp.cli import reproduce
from fastmlp.cli.reproduce import main
from fastmlp.report import figures as report_pictures
from fastmlp.report import runner
from fastmlp.report.layer_checks import check_layers
from fastmlp.training import api as fitting
from fastmlp.utils.errors import UserError

QUICK = ["--quick", "--threads", "1", "--device", "cpu", "--out", "out"]
LAYER_CHECKS = functools.lru_cache(check_layers)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a few images, in a folder of its own, without drawing."""
    data = small_set()
    monkeypatch.setattr(reproduce, "load_dataset", lambda *args, **options: data)
    monkeypatch.setattr(reproduce, "QUICK", TINY)
    monkeypatch.setattr(report_pictures, "drawings", no_drawings)
    monkeypatch.setattr(runner, "check_layers", LAYER_CHECKS)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks each call of fit_many trains."""
    found: list[int] = []
    original = fitting.fit_many

    def counted(configs: list[Any], *args: Any, **options: Any) -> Any:
        found.append(len(configs))
        return original(configs, *args, **options)

    monkeypatch.setattr(fitting, "fit_many", counted)
    return found


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/results.json").read_text())
    return found


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the clock."""
    for study in values["studies"].values():
        del study["seconds"]
        for network in study["networks"].values():
            for run in network["runs"]:
                del run["history"]["seconds"], run["history"]["images_per_s"]
    return values


def test_a_report_and_the_same_command_again(
    calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(QUICK) == 0
    assert calls == [9, 9, 9, 9, 3, 3, 8, 1, 1]  # a seed of a study at a time
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(
        r"^\s*\d+%  four sweeps with the course's recipe, seed 0: epoch 2 of 2", out, re.M
    )
    assert "The report is out/report.html" in out
    assert {path.name for path in Path("out").iterdir()} == {
        *("report.html", "results.json", "parts", ".report", ".lock"),
    }
    first = results()
    assert first["studies"]["network"]["networks"]["default"]["test_acc"]["count"] == 2
    assert first["data"]["name"] == "cifar10"
    calls.clear()
    assert main(QUICK) == 0
    assert calls == []
    assert "9 of 9 parts are there already" in capsys.readouterr().out
    assert results() == first


def test_it_goes_on_where_it_was_stopped(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK[:-1], "whole"]) == 0
    original, stopped = fitting.fit_many, []

    def interrupted(configs: list[Any], *args: Any, **options: Any) -> Any:
        if len(calls) == 3:
            stopped.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return original(configs, *args, **options)

    calls.clear()
    monkeypatch.setattr(fitting, "fit_many", interrupted)
    assert main(QUICK) == 130
    assert "Stopped; what is finished is kept in out/parts" in capsys.readouterr().out
    assert not Path("out/report.html").exists()
    assert len(list(Path("out/parts").glob("*.json"))) == 3
    monkeypatch.setattr(fitting, "fit_many", original)
    calls.clear()
    assert main(QUICK) == 0
    assert calls == [9, 3, 3, 8, 1, 1]
    whole = json.loads(Path("whole/results.json").read_text())
    assert untimed(results()) == untimed(whole)


def test_other_settings_or_data_are_not_taken_for_the_same(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*QUICK, "--seeds", "1"]) == 0
    assert calls == [9, 9, 3, 8, 1]
    calls.clear()
    assert main(QUICK) == 0
    assert calls == [9, 9, 3, 1]  # the second seeds
    calls.clear()
    other = small_set(110)
    monkeypatch.setattr(reproduce, "load_dataset", lambda *args, **options: other)
    assert main([*QUICK, "--seeds", "1"]) == 0
    assert calls == [9, 9, 3, 8, 1]


def test_a_damaged_part_is_done_again(calls: list[int]) -> None:
    assert main([*QUICK, "--seeds", "1"]) == 0
    first = untimed(results())
    for name in ("ablation", "final"):
        (path,) = Path("out/parts").glob(f"{name}-*.json")
        path.write_text(path.read_text()[:-20])
    (path,) = Path("out/parts").glob("network-*.pt")
    path.write_bytes(b"PK")
    leftover = Path("out/parts/.x.json.abc.tmp")
    leftover.write_text("half")
    calls.clear()
    assert main([*QUICK, "--seeds", "1"]) == 0
    assert calls == [3, 8, 1]
    assert untimed(results()) == first
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be a whole number from 1 to 999, got 0"),
        (["--seeds", "x"], "--seeds must be a whole number from 1 to 999, got x"),
        (["--out", ""], "--out must be a folder, got an empty name"),
        (["--out", "taken"], "taken is there already and holds no report; pass another --out"),
        (["--out", "taken/file"], "taken/file is there already and holds no report"),
        (["--device", "tpu"], "device must be auto, cpu"),
        (["--threads", "-1"], "threads must be a whole number"),
        (["--split", "1/2/3"], "sum to 100"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_done(
    arguments: list[str], message: str, calls: list[int]
) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main(["--quick", *arguments])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert calls == []
    assert sorted(path.name for path in Path().iterdir()) == ["taken"]


def test_ctrl_c_ends_it_in_the_middle_of_a_part() -> None:
    environment = python_environment(IMAGES="1000", BUDGET="9999,1,1,1,1,1,1,1")
    program = SUPPORT / "small_set.py"
    process = subprocess.Popen(
        [sys.executable, str(program), *QUICK],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of 9999" in line:
            break
    else:
        pytest.fail("it never began")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped; what is finished is kept" in rest
    assert "Traceback" not in rest
