"""The command ``train``: its flags, its words, its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.processes import SUPPORT, python_environment
from support.tiny import assert_same_run, assert_same_tensors, rows, tensors, tiny_data

from fastmlp.cli.parser import run_command
from fastmlp.cli.train import main
from fastmlp.data.splits import DataSplits
from fastmlp.engines.registry import ENGINES
from fastmlp.ops._load import native_available
from fastmlp.training import api as fitting
from fastmlp.training.config import TrainConfig
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import UserError

QUICK = ["--hidden", "8", "--batch-size", "16", "--epochs", "2", "--threads", "1", "--device=cpu"]
STEPWISE = "eager" if native_available() else "reference"
"""An engine that can stop after any step, and is slow enough to be stopped by a test."""
TINY = SUPPORT / "tiny.py"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command trains on the tiny problem, below a folder of its own, and draws nothing."""
    monkeypatch.setattr(fitting, "load_splits", lambda *_, **__: tiny_data())
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)
    monkeypatch.chdir(tmp_path)


def read_config(run: str | Path) -> TrainConfig:
    return RunDirectory(run).read_config()


def test_what_a_person_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("data     tiny0 from given by the caller: 90 to train, 40 to val")
    assert lines[1] == "network  12-8-3, 6 batches of 16 an epoch"
    assert re.fullmatch(r"engine   (blocked|reference) on cpu \(the fastest .*\)", lines[2])
    assert lines[3] == "folder   run"
    assert re.match(r"epoch 1/2  train 1\.\d{4} .*validation .*\[MODEL SAVED\]$", lines[4])
    assert lines[5].startswith("epoch 2/2  train")
    assert re.match(r"Test accuracy \d+\.\d\d% \(loss \d\.\d{4}, 50 images\) after epoch", lines[7])
    assert lines[9].startswith("Everything is in run: best.pt")
    assert len(lines) == 10


def test_quiet_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Test accuracy ")
    assert out.count("\n") == 1


def test_json_is_all_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--json", "--out", "run"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary.pop("folder") == "run"
    assert summary == RunDirectory("run").read_summary()
    assert "epoch 2/2" in err
    assert "Test accuracy" in err


def test_the_synthetic_set_is_named_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    data = replace(tiny_data(), name="synthetic", synthetic=True)
    monkeypatch.setattr(fitting, "load_splits", lambda *_, **__: data)
    assert main([*QUICK, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "on the built-in set and not CIFAR-10" in out
    assert out.splitlines()[-1].startswith("Warning: this run used the built-in synthetic set")
    assert RunDirectory("run").read_summary()["synthetic"] is True
    assert read_config("run").dataset == "synthetic"
    assert main([*QUICK, "--quiet"]) == 0
    assert "on the built-in set and not CIFAR-10" in capsys.readouterr().out


def test_flags_file_and_preset() -> None:
    Path("a.toml").write_text('preset = "course"\nlr = 0.5\nepochs = 3\nbatch-size = 16\n')
    assert main(["--config", "a.toml", "--epochs", "1", "--hidden", "8,4", "--out", "one"]) == 0
    config = read_config("one")
    assert (config.epochs, config.hidden) == (1, (8, 4))  # flags
    assert (config.lr, config.batch_size) == (0.5, 16)  # file
    assert (config.grad_average, config.lr_schedule) == (True, "constant")  # its preset
    assert main([*QUICK, "--config", "a.toml", "--preset", "default", "--out", "two"]) == 0
    config = read_config("two")
    assert (config.epochs, config.lr, config.lr_schedule) == (2, 0.5, "cosine")
    flags = ["--momentum", "0.9", "--nesterov", "--grad-average"]
    assert main([*QUICK, *flags, "--out", "three"]) == 0
    config = read_config("three")
    assert (config.nesterov, config.grad_average, config.momentum) == (True, True, 0.9)


def test_another_optimizer_and_precision() -> None:
    assert main([*QUICK, "--optimizer", "adamw", "--lr", "1e-3", "--out", "one"]) == 0
    config = read_config("one")
    assert (config.optimizer, config.momentum, config.nesterov) == ("adamw", 0.0, False)
    assert config.engine in ("native", "reference")
    Path("a.toml").write_text('optimizer = "adam"\n')
    assert main([*QUICK, "--config", "a.toml", "--out", "two"]) == 0
    assert read_config("two").optimizer == "adam"
    assert main([*QUICK, "--precision", "bfloat16", "--out", "three"]) == 0
    config = read_config("three")
    assert (config.precision, config.engine) in [("bfloat16", "eager"), ("bfloat16", "reference")]


def test_a_flag_that_repeats_a_default_still_beats_the_file() -> None:
    Path("a.toml").write_text("seed = 5\n")
    assert main([*QUICK, "--config", "a.toml", "--seed", "0", "--out", "one"]) == 0
    assert read_config("one").seed == 0


def test_folders_are_named_by_preset_and_time() -> None:
    for _ in range(3):
        assert main([*QUICK, "--preset", "course", "--quiet"]) == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert len(names) == 3
    assert all(re.fullmatch(r"course-\d{8}-\d{6}(-\d)?", name) for name in names)


def test_two_runs_in_one_second_have_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second starts while the first still loads its data."""
    monkeypatch.setattr("fastmlp.cli.train.time.strftime", lambda form: "now")

    def load(config: TrainConfig, progress: bool) -> DataSplits:
        monkeypatch.setattr(fitting, "load_splits", lambda *_, **__: tiny_data())
        assert main([*QUICK, "--quiet"]) == 0
        return tiny_data()

    monkeypatch.setattr(fitting, "load_splits", load)
    assert main([*QUICK, "--quiet"]) == 0
    for name in ("default-now", "default-now-2"):
        assert RunDirectory(Path("runs", name)).finished


def test_no_folder_is_left_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(config: TrainConfig, progress: bool) -> DataSplits:
        raise UserError("no data")

    monkeypatch.setattr(fitting, "load_splits", load)
    for argv in ([], ["--out", "run"]):
        with pytest.raises(UserError, match="no data"):
            main([*QUICK, *argv])
    assert [str(path) for path in Path().rglob("*")] == ["runs"]


def test_the_data_folder_is_kept_as_an_absolute_path() -> None:
    """So that a run can be resumed from another folder."""
    assert main([*QUICK, "--quiet", "--data-dir", "data", "--out", "one"]) == 0
    assert read_config("one").data_dir == str(Path("data").absolute())
    assert main([*QUICK, "--quiet", "--data-dir", "~/data", "--out", "two"]) == 0
    assert read_config("two").data_dir == str(Path.home() / "data")


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = TrainConfig()
    for flag, default in (
        ("--hidden", "256"),
        ("--batch-size", defaults.batch_size),
        ("--lr", defaults.lr),
        ("--epochs", defaults.epochs),
        ("--split", defaults.split),
        ("--out", "runs/PRESET-DATE-TIME"),
    ):
        assert re.search(rf"{flag} [^-]+.*?\(default: {default}\)", text), flag
    assert "None" not in text
    assert "data: --dataset" in text


MISTAKES: list[Any] = [
    (["--bogus"], 2, "unrecognized arguments: --bogus"),
    (["--epochs", "many"], 2, "argument --epochs: invalid int value: 'many'"),
    (["--epochs", "0"], 2, "epochs must be a whole number of at least 1, got 0"),
    (["--lr", "nan"], 2, "lr must be a number above 0, got nan"),
    (["--hidden", "256;64"], 2, "hidden must be layer widths"),
    (["--init", "ones"], 2, "init must be kaiming, torch, xavier or normal:STD"),
    (["--momentum", "1"], 2, "momentum must be a number from 0"),
    (["--optimizer", "lion"], 2, "argument --optimizer: invalid choice: 'lion'"),
    (["--optimizer", "adamw", "--momentum", "0.9"], 2, "--momentum and --nesterov are for the opt"),
    (["--optimizer", "adam", "--nesterov"], 2, "are for the optimizer sgd, not adam; leave them"),
    (["--optimizer", "adam", "--engine", "blocked"], 1, "adam is not linear in the gradients; try"),
    (["--optimizer", "adam", "--block-steps", "4"], 2, "--block-steps is for the engine blocked"),
    (["--resume", "full", "--optimizer", "adam"], 2, "--optimizer cannot be given with --resume"),
    (["--precision", "tf32"], 2, "argument --precision: invalid choice: 'tf32'"),
    (["--precision", "bfloat16", "--engine", "blocked"], 1, "own dtype alone, not in bfloat16; tr"),
    (["--preset", "fast"], 2, "argument --preset: invalid choice: 'fast'"),
    (["--engine", "warp"], 2, "argument --engine: invalid choice: 'warp'"),
    (["--device", "tpu"], 2, "device must be auto, cpu, cuda or cuda:<number>, got 'tpu'"),
    (["--config", "no.toml"], 2, "Cannot read the config file no.toml"),
    (["--config", "wrong.toml"], 2, "unknown key 'epoch'; did you mean 'epochs'?"),
    (["--split", "50/50"], 2, "--split"),
    (["--out", "file"], 1, "file is there already and is not an empty folder"),
    (["--out", "full"], 1, "full is there already and is not an empty folder"),
    (["--out", "file/run"], 1, "Part of the path file/run"),
    (["--resume", "no"], 1, "no does not exist; pass the folder of a run"),
    (["--resume", "full"], 1, "full is not the folder of a run"),
    (["--resume", "damaged"], 1, "damaged/config.json is damaged"),
    (["--resume", "stateless"], 1, "stateless/resume.pt is missing"),
    (["--resume", "full", "--lr", "1"], 2, "--lr cannot be given with --resume, which allows"),
    (["--resume", "full", "--out", "x"], 2, "--out cannot be given with --resume"),
    (["--resume", "full/mine"], 1, "is not the folder of a run; pass the folder that holds it"),
    (
        ["--resume", "summary"],
        1,
        "summary/summary.json is damaged: epochs of the",
    ),
    (["--resume", ""], 2, "--resume must be a folder, got an empty name"),
    (["--out", ""], 2, "--out must be a folder, got an empty name"),
    (["--config", "deep.toml"], 2, "The config file deep.toml is not valid TOML: maximum recurs"),
    (["--threads", "4294967296"], 2, "threads must be a whole number from 0 to 4096"),
    (["--device", "cuda:01"], 2, "device must be auto, cpu, cuda or cuda:<number>"),
    (["--lr-decay", "1e300"], 2, "grows beyond all numbers in 40 epochs"),
    (["--lr", "1e30", "--out", "new"], 1, "try a smaller --lr"),
    (["--hidden", "9000000000000"], 1, "Not enough memory; try a smaller --hidden"),
    (["--hidden", "4000000000000000000"], 1, "Not enough memory; try a smaller --hidden"),
]


@pytest.mark.parametrize(("argv", "code", "words"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence(
    argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    Path("wrong.toml").write_text("epoch = 3\n")
    for name, text in (("damaged", "{"), ("stateless", json.dumps(TrainConfig().to_dict()))):
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
    Path("deep.toml").write_text("lr = " + "[" * 100_000)
    Path("summary").mkdir()
    for name, text in (("config", json.dumps(TrainConfig().to_dict())), ("summary", "{}")):
        Path("summary", f"{name}.json").write_text(text)
    with pytest.raises(SystemExit) as info:
        run_command(main, ["--quiet", *argv])
    out, err = capsys.readouterr()
    assert info.value.code == code
    assert err.startswith("fastmlp: error: ")
    assert words in err
    assert err.count("\n") == 1
    assert out == ""


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fastmlp.cli.train.fit", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(QUICK)


def test_resuming_a_finished_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--quiet", "--lr-schedule", "constant", "--out", "run"]) == 0
    files = {path: path.read_bytes() for path in Path("run").iterdir()}
    capsys.readouterr()
    assert main(["--resume", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"folder": "run", **RunDirectory("run").read_summary()}
    assert err.startswith("The run in run is finished: 2 epochs, test accuracy ")
    assert err.endswith("%; a larger --epochs trains it longer\n")
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == files
    assert main(["--resume", "run", "--epochs", "3"]) == 0
    assert "resumed  after 2 epochs and 0 steps" in capsys.readouterr().out
    assert len(rows(Path("run"))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, so that the step at which the signal comes is known."""
    quick = [*QUICK, "--quiet", "--engine", STEPWISE]
    assert main([*quick, "--out", "whole"]) == 0
    engine = ENGINES[STEPWISE]
    train_epoch, steps = engine.train_epoch, 0

    def with_signal(self: Any, states: Any, epochs: Any, *, should_stop: Any, **how: Any) -> Any:
        def stop() -> bool:
            nonlocal steps
            steps += 1
            if steps == 9:
                os.kill(os.getpid(), number)
            return bool(should_stop())

        return train_epoch(self, states, epochs, should_stop=stop, **how)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_epoch", with_signal)
        assert main([*quick, "--out", "a run"]) == 130
    assert signal.getsignal(number) is before
    command = "python -m fastmlp.train --resume 'a run'"
    assert f"Go on with: {command}\n" in capsys.readouterr().out
    state = RunDirectory("a run").read_state()
    assert (len(state.history), state.partial.steps) == (1, 3)
    assert main(["--resume", "a run", "--quiet"]) == 0
    assert_same_run(Path("a run"), Path("whole"))


LONG = ["--hidden=8", "--batch-size=2", "--epochs=6", "--threads=1", f"--engine={STEPWISE}"]


def start(argv: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own, on a larger problem; returns after its first epoch."""
    environment = python_environment(TINY_IMAGES="4000")
    process = subprocess.Popen(
        [sys.executable, str(TINY), *argv],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            return process
    raise AssertionError(process.stderr.read() if process.stderr else "no epoch was trained")


@pytest.mark.slow
def test_a_real_process_interrupted_killed_and_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    process = start([*LONG, "--out", "run"])
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1].endswith("python -m fastmlp.train --resume run")
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 130)):  # SIGHUP: test_signals.py
        process = start(["--resume", "run"])
        time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
        for name in ("best.pt", "last.pt"):
            tensors(Path("run") / name)
        RunDirectory("run").read_state()
    monkeypatch.setattr(fitting, "load_splits", lambda *_, **__: tiny_data(4000))
    assert len(RunDirectory("run").read_state().history) < 6
    assert main(["--resume", "run", "--quiet"]) == 0
    assert main([*LONG, "--out", "whole", "--quiet"]) == 0
    for name in ("best.pt", "last.pt"):
        assert_same_tensors(tensors(Path("run") / name), tensors(Path("whole") / name))
    assert [row["val_loss"] for row in rows(Path("run"))] == [
        row["val_loss"] for row in rows(Path("whole"))
    ]


@pytest.mark.skipif(not native_available(), reason="the compiled kernels are not there")
def test_the_engine_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ("blocked", "eager", "reference"):
        assert main([*QUICK, "--engine", engine, "--out", engine]) == 0
        assert f"engine   {engine} on cpu (asked for by name)" in capsys.readouterr().out
        assert RunDirectory(engine).read_summary()["engine"] == engine
    truth = RunDirectory("reference").read_summary()["last"]["val_loss"]
    for name in ("blocked", "eager"):
        loss = RunDirectory(name).read_summary()["last"]["val_loss"]
        assert loss == pytest.approx(truth, rel=1e-4)
    with pytest.raises(UserError, match="--engine cannot be given with --resume"):
        main(["--resume", "eager", "--engine", "reference", "--epochs", "5"])
