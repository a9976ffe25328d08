"""The command ``sweep``: its flags, its words, its exit codes."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.live import Live
from support.processes import python_environment
from support.tiny_sweep import BASE, DATA, assert_same_sweep

import fastmlp
from fastmlp.cli import main as __main__
from fastmlp.cli.parser import run_command
from fastmlp.cli.sweep import main
from fastmlp.sweeps import sweep as sweeping
from fastmlp.sweeps.results import SweepResult
from fastmlp.sweeps.sweep import sweep
from fastmlp.training.config import TrainConfig, load_config_file
from fastmlp.training.presets import resolve_config
from fastmlp.training.trainer import Trainer

QUICK = ["--hidden=8", "--epochs=2", "--threads=1", "--device=cpu"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command trains on the tiny problem, below a folder of its own, and draws nothing."""
    monkeypatch.setattr(sweeping, "load_splits", lambda *_, **__: DATA)
    monkeypatch.setattr("fastmlp.plotting.sweeps.sweep_picture", lambda *args: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command asks of ``sweep``, which is not done."""
    calls: list[dict[str, Any]] = []

    def note(base: TrainConfig, values: Any, **options: Any) -> SweepResult:
        calls.append({"base": base, "values": values, **options})
        return SweepResult(base, {}, [], interrupted=True)

    monkeypatch.setattr("fastmlp.cli.sweep.sweep", note)
    return calls


def results(folder: str | Path) -> list[dict[str, str]]:
    with open(Path(folder) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_person_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--lr", "0.05,1e-3,1e25", "--seeds", "2", "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].strip() == "Validation accuracy, best first"
    assert re.search(r"lr .* best .* last .* training .* state", lines[2])
    for line, lr in zip(lines[4:6], (0.05, 0.001), strict=True):
        number = r"\d+\.\d\d% \+- \d+\.\d\d"
        assert re.search(rf" {lr} .* {number} .* {number} .* {number} .* finished ", line), line
    assert re.search(r" 1e\+25 .* - .* - .* - .* diverged ", lines[6])
    assert re.fullmatch(
        r"Best in validation: \d+\.\d\d% \+- \d+\.\d\d with lr 0\.05\. Train it with: "
        r"python -m fastmlp\.train --config out/best\.toml",
        lines[-2],
    )
    assert lines[-1].startswith("Everything is in out: results.csv,")
    assert len(lines) == 10


def test_the_command_it_names_finds_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--epochs=1", "--data-dir", "my data", "--out", "out", "--quiet"]) == 0
    said = "python -m fastmlp.train --config out/best.toml --data-dir 'my data'\n"
    assert capsys.readouterr().out.endswith(said)


def test_quiet_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--lr", "0.05,0.01", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.fullmatch(r"Best in validation: \d+\.\d\d% with lr 0\.05\. Train it .*\n", out)
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"sweep-\d{8}-\d{6}", folder.name)
    assert str(folder / "best.toml") in out


def test_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmlp.cli.sweep.REPORT_SECONDS", 0.0)
    assert main([*QUICK, "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    told = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line[:9] for line in told] == ["epoch 1/2", "epoch 2/2"]
    assert re.fullmatch(r"epoch 2/2  best in validation so far \d+\.\d\d%", told[1])
    assert re.search(r"Best in validation: \d+\.\d\d%\. Train it with", out)


class Terminal(io.StringIO):
    """What says that a person is looking."""

    def isatty(self) -> bool:
        return True


def test_a_live_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    update = Live.update  # draws now and then; here each time
    monkeypatch.setattr(Live, "update", lambda self, content: update(self, content, refresh=True))
    argv = [*QUICK, "--epochs=3", "--lr", "0.05,1e25", "--out", "out"]
    assert main(argv) == 0
    assert main([*argv, "--seeds=3"]) == 0  # new seeds beside one that is done
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for words in ("epoch 1/3", "epoch 2/3", "Validation accuracy, best first", " 1 epochs "):
        assert words in text
    assert text.rstrip().endswith("pictures, ...")
    hidden, shown = (screen.getvalue().count(f"\x1b[?25{c}") for c in "lh")
    assert hidden == shown == 2  # the cursor


def test_only_the_best_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmlp.cli.sweep.ROWS", 3)
    assert main([*QUICK, "--lr=1e-3,1e-1", "--vary=random:5", "--epochs=1", "--out=out"]) == 0
    out = capsys.readouterr().out
    assert out.count("finished") == 3
    assert "and 2 more" in out
    assert len(results("out")) == 5


def test_a_wide_table_is_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--lr=0.05,0.01", "--batch-size=8,16", "--hidden=8,16-8", "--lr-decay=0.95,0.9"]
    argv += ["--momentum=0,0.5", "--weight-decay=0,0.01", "--seeds=2", "--epochs=1"]
    assert main([*argv, "--threads=1", "--device=cpu", "--out", "a b"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert out.count(" finished ") == 7
    assert out.count(" +- ") == 22
    assert "--config 'a b/best.toml'" in out


def test_lists_are_varied_and_single_values_change_the_base(asked: list[dict[str, Any]]) -> None:
    argv = ["--lr", "1e-2,1e-3", "--batch-size=8,100", "--hidden", "64,512-256", "--vary", "grid"]
    argv += ["--lr-decay", "0.5", "--momentum", "0.9", "--weight-decay=0,1e-4", "--seeds", "4"]
    argv += ["--normalize", "unit", "--augment", "flip,shift:1", "--successive-halving"]
    assert main([*argv, "--out", "x"]) == 130
    (call,) = asked
    assert call["values"] == {
        "lr": [1e-2, 1e-3],
        "batch_size": [8, 100],
        "hidden": [(64,), (512, 256)],
        "weight_decay": [0.0, 1e-4],
    }
    given = {"lr_decay": 0.5, "momentum": 0.9, "normalize": "unit", "augment": "flip,shift:1"}
    assert call["base"] == resolve_config(given, preset="sweep")
    assert (call["vary"], call["seeds"], call["successive_halving"]) == ("grid", 4, True)
    assert call["out"] == Path("x")


def test_the_defaults_are_the_courses(asked: list[dict[str, Any]]) -> None:
    main([])
    base = asked[0]["base"]
    assert (base.hidden, base.batch_size, base.epochs) == ((64,), 16, 80)
    assert (base.lr, base.lr_decay, base.momentum) == (1e-3, 0.95, 0.0)
    assert (asked[0]["vary"], asked[0]["seeds"], asked[0]["successive_halving"]) == (
        *("one", 1, False),
    )
    main(["--hidden", "512-256", "--batch-size", "8"])
    assert asked[1]["values"] == {}
    assert (asked[1]["base"].hidden, asked[1]["base"].batch_size) == ((512, 256), 8)


def test_flags_file_and_preset(asked: list[dict[str, Any]]) -> None:
    Path("a.toml").write_text('preset = "course"\nlr = 0.5\nepochs = 3\nhidden = [9, 8]\n')
    main(["--config", "a.toml", "--epochs", "1", "--lr-decay", "1,0.9"])
    expected = {"lr": 0.5, "epochs": 1, "hidden": (9, 8)}
    assert asked[0]["base"] == resolve_config(expected, preset="course")
    assert asked[0]["values"] == {"lr_decay": [1.0, 0.9]}
    main(["--config", "a.toml", "--preset", "default"])
    assert asked[1]["base"] == resolve_config({**expected, "epochs": 3}, preset="default")
    main(["--preset", "default", "--momentum", "0"])
    assert asked[2]["base"].nesterov is False


def test_nesterov_with_several_momenta(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--nesterov", "--momentum", "0,0.5,0.9", "--out", "out"]) == 0
    capsys.readouterr()
    assert [row["momentum"] for row in results("out")] == ["0.9", "0.0", "0.5"]
    assert {row["status"] for row in results("out")} == {"finished"}


MISTAKES: list[Any] = [
    (["--bogus"], 2, "unrecognized arguments: --bogus"),
    (["--lr", "1,x"], 2, "argument --lr: invalid list of float values value: '1,x'"),
    (["--lr", ""], 2, "argument --lr: invalid list of float values value: ''"),
    (["--lr", "1,"], 2, "argument --lr: invalid list of float values value: '1,'"),
    (["--lr", "0.1,-1"], 2, "lr must be a number above 0, got -1.0"),
    (["--lr", "nan"], 2, "lr must be a number above 0, got nan"),
    (["--batch-size", "8,1.5"], 2, "argument --batch-size: invalid list of int values value"),
    (["--hidden", "64,a"], 2, "argument --hidden: invalid list of widths value: '64,a'"),
    (["--hidden", "64,0"], 2, "hidden must be layer widths"),
    (["--hidden", "64--32"], 2, "argument --hidden: invalid list of widths value: '64--32'"),
    (["--vary", "grd"], 2, "vary must be one, grid or random:N, N from 1 to 100000, got 'grd'"),
    (["--vary", "random:x", "--lr", "1,2"], 2, "vary must be one, grid or random:N"),
    (["--seeds", "0"], 2, "seeds must be at least 1, got 0"),
    (
        ["--lr", "1,2", "--seeds", "50001"],
        2,
        "A sweep has at most 100,000 runs, and this one would",
    ),
    (["--seeds", "two"], 2, "argument --seeds: invalid int value: 'two'"),
    (["--epochs", "1,2"], 2, "argument --epochs: invalid int value: '1,2'"),
    (["--augment", "spin"], 2, "augment must be none, flip, shift:N or flip,shift:N"),
    (["--engine", "reference", "--block-steps", "2"], 2, "--block-steps is for the engine blocked"),
    (["--config", "no.toml"], 2, "Cannot read the config file no.toml"),
    (["--config", "wrong.toml"], 2, "unknown key 'epoch'; did you mean 'epochs'?"),
    (["--config", "list.toml"], 2, "lr must be a number above 0, got [0.1, 0.2]"),
    (["--nesterov"], 2, "nesterov needs a momentum above 0"),
    (
        ["--optimizer", "adam", "--momentum", "0,0.9"],
        2,
        "--momentum and --nesterov are for the opt",
    ),
    (["--optimizer", "sgd,adam"], 2, "argument --optimizer: invalid choice: 'sgd,adam'"),
    (["--out", ""], 2, "--out must be a folder, got an empty name"),
    (["--out", "full"], 1, "full holds something else than a sweep; pass another --out"),
    (["--out", "full/mine"], 1, "full/mine is a file; pass --out another folder"),
    (["--lr", "1e25,1e24", "--epochs=1"], 1, "All runs diverged; try smaller values of --lr"),
]


@pytest.mark.parametrize(("argv", "code", "words"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence(
    argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    Path("wrong.toml").write_text("epoch = 3\n")
    Path("list.toml").write_text("lr = [0.1, 0.2]\n")
    with pytest.raises(SystemExit) as info:
        run_command(main, ["--quiet", *argv])
    out, err = capsys.readouterr()
    assert info.value.code == code
    assert err.startswith("fastmlp: error: ")
    assert words in err
    assert err.count("\n") == 1
    assert out == ""
    assert not list(Path("runs").glob("*")) or code == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_the_same_command_goes_on(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*QUICK, "--epochs=3", "--lr", "0.05,0.01", "--quiet"]
    assert main([*argv, "--out", "whole"]) == 0
    capsys.readouterr()
    train_epoch, calls = Trainer.train_epoch, 0

    def with_signal(self: Trainer) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), number)
        train_epoch(self)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", with_signal)
        with pytest.raises(SystemExit) as info:
            run_command(main, [*argv, "--out", "a sweep"])
    assert info.value.code == 130
    assert signal.getsignal(number) is before
    assert capsys.readouterr() == (
        "Stopped, and everything is saved. The same command with --out 'a sweep' goes on.\n",
        "",
    )
    assert {row["status"] for row in results("a sweep")} == {"stopped"}
    assert main([*argv, "--out", "a sweep"]) == 0
    assert_same_sweep(Path("a sweep"), Path("whole"))


def test_interrupted_while_the_data_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(config: TrainConfig, progress: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "load_splits", load)
    with pytest.raises(SystemExit) as info:
        run_command(main, QUICK)
    assert info.value.code == 130
    assert capsys.readouterr() == ("", "\nfastmlp: interrupted\n")
    assert not Path("runs").exists()


def test_help_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--vary one|grid|random:N",
        "--hidden H[-H...][,...]",
        "--lr X[,X...] learning rate (default: 0.001)",
        "--batch-size N[,N...] images a step (default: 16)",
        "(default: runs/sweep-DATE-TIME)",
        "--epochs N passes over the data (default: 80)",
    ):
        assert words in text, words
    assert "None" not in text


def test_the_best_configuration_can_be_trained() -> None:
    assert main([*QUICK, "--lr", "0.05,1e-3", "--seed", "7", "--quiet", "--out", "out"]) == 0
    values = load_config_file("out/best.toml")
    best = max(results("out"), key=lambda row: float(row["best_val_acc"]))
    assert (values["lr"], values["hidden"]) == (float(best["lr"]), [8])
    assert (values["seed"], values["epochs"]) == (7, 2)
    assert not {"device", "threads", "engine"} & set(values)


def test_the_console_script_and_the_function_of_the_same_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as info:
        __main__.main(["sweep", *QUICK, "--out", "out"])
    assert info.value.code == 0
    assert "Best in validation" in capsys.readouterr().out
    base = replace(BASE, epochs=1)
    called = fastmlp.sweep(base, {"lr": [0.05, 0.5]}, data=DATA)
    direct = sweep(base, {"lr": [0.05, 0.5]}, data=DATA)
    assert [r.history[0].val_loss for r in called.runs] == [
        r.history[0].val_loss for r in direct.runs
    ]


IMPORTS = """
import sys
import fastmlp
heavy = ("matplotlib", "rich", "torch._dynamo", "fastmlp.training.api")
loaded = [name for name in heavy if name in sys.modules]
assert not loaded, loaded
assert fastmlp.sweep.__module__ == "fastmlp.sweeps.sweep", fastmlp.sweep
assert fastmlp.fit.__module__ == "fastmlp.training.own_data"
assert fastmlp.fit_many.__module__ == "fastmlp.training.api"
assert fastmlp.TrainConfig().hidden == (256,)
assert "matplotlib" not in sys.modules and "rich" not in sys.modules
assert all(hasattr(fastmlp, name) for name in dir(fastmlp))
try:
    fastmlp.nothing
except AttributeError as error:
    assert str(error) == "module 'fastmlp' has no attribute 'nothing'"
"""


def test_importing_fastmlp_is_light() -> None:
    subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env=python_environment(),
        check=True,
        timeout=60,
    )
