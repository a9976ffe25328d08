"""A sweep as a whole: what it computes, and what it finds.

Its folder is test_checkpoint.py's, its processes are test_distributed.py's, and the command is
cli/test_sweep.py's.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import python_environment
from support.tiny import assert_same_tensors
from support.tiny_sweep import BASE, DATA, MIXED, table

import fastmlp
from fastmlp.cli import train
from fastmlp.engines.metrics import EpochRecord
from fastmlp.sweeps import sweep as sweeping
from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.results import SweepResult, Trial, make_result, mean_sd
from fastmlp.sweeps.sweep import sweep
from fastmlp.training import api as fitting
from fastmlp.training.api import fit
from fastmlp.training.config import OPTIONS, TrainConfig
from fastmlp.training.run import RunResult
from fastmlp.training.run_directory import RunDirectory
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import UserError


@pytest.fixture(autouse=True)
def _no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than these sweeps; test_pictures.py looks at them."""
    if "draws" not in request.fixturenames:
        monkeypatch.setattr("fastmlp.plotting.sweeps.sweep_picture", lambda *args: None)
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)


@pytest.fixture
def draws() -> None:
    """For a test that wants the pictures."""


def made_run(
    config: TrainConfig, accuracies: list[float], diverged: str | None = None
) -> RunResult:
    """A run that came to these validation accuracies."""
    history = [
        EpochRecord(i + 1, 1.0, value / 2, 1.0, value, 0.1, 1.5, 60.0)
        for i, value in enumerate(accuracies)
    ]
    return RunResult(config, None, history, {}, diverged=diverged)


def trial(*accuracies: list[float], epochs: int = 3, diverged: bool = False) -> Trial:
    config = replace(BASE, epochs=epochs)
    word = "it grew" if diverged else None
    return Trial(
        config,
        [made_run(replace(config, seed=i), a, word) for i, a in enumerate(accuracies)],
    )


def test_a_trial_is_its_runs() -> None:
    both = trial([0.2, 0.5, 0.4], [0.3, 0.2, 0.1])
    assert both.status == "finished"
    assert both.best_val == pytest.approx((0.4, math.sqrt(0.02)))
    assert both.final_val == pytest.approx((0.25, math.sqrt(0.045)))
    assert both.final_train == pytest.approx((0.125, math.sqrt(0.045) / 2))
    assert both.score == pytest.approx(0.4)
    assert mean_sd([0.25]) == (0.25, 0.0)


def test_a_trial_that_has_not_finished() -> None:
    assert trial([0.2, 0.5], [0.3, 0.2, 0.1]).status == "2 epochs"
    lost = trial([0.2, 0.5], [0.3], diverged=True)
    assert (lost.status, lost.score) == ("diverged", -math.inf)
    for halfway in (trial([0.5], []), trial([], [0.5]), trial([], [])):
        assert (halfway.status, halfway.score) == ("0 epochs", -math.inf)
        assert math.isnan(halfway.best_val[0])


def test_the_best_is_one_that_went_on() -> None:
    dropped, lost, first, second = (
        Trial(replace(BASE, lr=lr), [made_run(BASE, accuracies, word)])
        for lr, accuracies, word in (
            (0.1, [0.5], None),
            (0.2, [0.9], "it grew"),
            (0.3, [0.1, 0.5], None),
            (0.4, [0.5, 0.5], None),
        )
    )
    trials = [dropped, lost, first, second]
    assert SweepResult(BASE, {}, trials).best.lr == 0.3
    with pytest.raises(UserError, match="No run of the sweep has finished an epoch; try smaller"):
        _ = SweepResult(BASE, {}, [lost]).best


def by_hand(values: dict[str, list[Any]], vary: str, seeds: int = 1) -> SweepResult:
    """A sweep of two epochs whose validation accuracies are 0.01, 0.02, ... run by run."""
    base, configs = sweeping.plan(replace(BASE, epochs=2), values, vary)
    seeded = [replace(c, seed=s) for c in configs for s in range(seeds)]
    runs = [made_run(c, [0.001, (i + 1) / 100]) for i, c in enumerate(seeded)]
    return make_result(base, values, configs, runs)


def finals(result: SweepResult, name: str) -> list[tuple[Any, list[float]]]:
    return [(p.value, [h[-1].val_acc for h in p.histories]) for p in result.points(name)]


def test_points_of_one_at_a_time() -> None:
    result = by_hand({"lr": [0.5, 0.05, 5], "hidden": [(16,), (16, 5)]}, "one", seeds=2)
    assert finals(result, "lr") == [
        (0.05, [0.01, 0.02]),
        (0.5, [0.03, 0.04]),
        (5, [0.05, 0.06]),
    ]
    assert finals(result, "hidden") == [(16, [0.01, 0.02]), ("16-5", [0.07, 0.08])]


def test_points_of_a_grid_are_those_with_the_bases_values_otherwise() -> None:
    result = by_hand({"lr": [0.5, 0.05], "batch_size": [100, 8]}, "grid")
    assert finals(result, "lr") == [(0.05, [0.04]), (0.5, [0.02])]
    assert finals(result, "batch_size") == [(8, [0.04]), (100, [0.03])]


def test_points_of_random_draws_are_all_there_are() -> None:
    result = by_hand({"lr": [0.01, 1.0], "batch_size": [4, 64]}, "random:6")
    points = finals(result, "lr")
    assert [value for value, _ in points] == sorted(t.config.lr for t in result.trials)
    assert sorted(values for _, values in points) == [[(i + 1) / 100] for i in range(6)]


def test_points_where_no_momentum_turns_nesterov_off() -> None:
    values = {"momentum": [0.0, 0.9], "lr": [0.05, 0.5]}
    base = replace(BASE, momentum=0.9, nesterov=True, epochs=1)
    base, configs = sweeping.plan(base, values, "grid")
    runs = [made_run(config, [config.lr + config.momentum]) for config in configs]
    result = make_result(base, values, configs, runs)
    assert finals(result, "momentum") == [(0.0, [0.05]), (0.9, [pytest.approx(0.95)])]


def test_points_say_how_runs_ended_early() -> None:
    values = {"lr": [0.05, 0.5, 5.0, 50.0]}
    base, configs = sweeping.plan(replace(BASE, epochs=2), values)
    runs = [made_run(configs[0], [0.1, 0.2]), made_run(configs[1], [0.1])]
    runs += [made_run(configs[i], [], "it grew") for i in (2, 3)]
    runs += [made_run(replace(configs[i], seed=1), [0.1]) for i in (1, 3)]
    points = make_result(base, values, configs, runs).points("lr")
    assert [point.ended for point in points] == ["", "stopped", "diverged", "diverged or stopped"]


def test_the_rows_of_results_csv(tmp_path: Path) -> None:
    values = {"lr": [0.05, 1.0, 2.0], "hidden": [(16,), (16, 5)]}
    base, configs = sweeping.plan(replace(BASE, epochs=2), values)
    assert len(configs) == 4
    runs = [made_run(replace(configs[0], seed=1), [0.5, 0.25]), made_run(configs[0], [0.1, 0.3])]
    runs += [made_run(configs[1], [0.5], "it grew"), made_run(configs[2], [], "it grew")]
    runs += [made_run(configs[3], [0.75])]
    result = make_result(base, values, configs, runs)
    assert result.runs == [runs[1], runs[0], *runs[2:]]
    result.to_csv(tmp_path / "some" / "results.csv")
    assert (tmp_path / "some" / "results.csv").read_bytes().decode() == (
        "lr,hidden,seed,status,epochs,train_loss,train_acc,val_loss,val_acc,best_epoch,"
        "best_val_acc,seconds\n"
        "0.05,16,0,finished,2,1.0,0.15,1.0,0.3,2,0.3,3.0\n"
        "0.05,16,1,finished,2,1.0,0.125,1.0,0.25,1,0.5,3.0\n"
        "1.0,16,0,diverged,1,1.0,0.25,1.0,0.5,1,0.5,1.5\n"
        "2.0,16,0,diverged,0,,,,,,,0\n"
        "0.05,16-5,0,stopped,1,1.0,0.375,1.0,0.75,1,0.75,1.5\n"
    )


def test_results_csv_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "results.csv"
    target.write_text("as it was")
    result = by_hand({"lr": [0.5]}, "one")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fastmlp.utils.files.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            result.to_csv(target)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.csv", "as it was")]


def test_each_run_is_what_fit_makes_of_it(tmp_path: Path) -> None:
    result = fastmlp.sweep(BASE, MIXED, seeds=2, data=DATA, out=tmp_path)
    assert not result.interrupted
    assert len(result.trials) == 7
    assert [trial.status for trial in result.trials].count("diverged") == 1
    for trial in result.trials:
        assert [run.config for run in trial.runs] == [
            replace(trial.config, seed=seed) for seed in (0, 1)
        ]
    for run in result.runs:
        if run.diverged is None:
            alone = fit(run.config, DATA)
            assert [r.val_loss for r in run.history] == [r.val_loss for r in alone.history]
            assert_same_tensors(run.best_parameters, alone.best_parameters)
        else:
            with pytest.raises(UserError) as info:
                fit(run.config, DATA)
            assert str(info.value) == run.diverged
    best = max(result.trials, key=lambda trial: trial.score)
    assert result.best == best.config
    assert result.values == MIXED
    rows = table(tmp_path / "results.csv")
    assert [row["status"] for row in rows].count("diverged") == 2
    assert [row["hidden"] for row in rows].count("16-5") == 2
    assert len(table(tmp_path / "epochs.csv")) == 8 * 12


def test_the_pictures_and_files_of_a_sweep(tmp_path: Path, draws: None) -> None:
    values = {"lr": [0.05, 1e25], "lr_decay": [0.95, 0.5]}
    result = sweep(replace(BASE, epochs=2), values, data=DATA, out=tmp_path / "a" / "sweep")
    assert {path.name for path in (tmp_path / "a" / "sweep").iterdir()} == {
        *("results.csv", "epochs.csv", "best.toml", "resume-0.pt", ".lock"),
        *("sweep-lr.png", "sweep-lr-decay.png"),
    }
    assert result.plot(tmp_path) == [tmp_path / "sweep-lr.png", tmp_path / "sweep-lr-decay.png"]
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_sweep_in_which_all_diverged(tmp_path: Path, draws: None) -> None:
    result = sweep(replace(BASE, lr=1e25), {"momentum": [0.0, 0.5]}, data=DATA, out=tmp_path)
    assert [trial.status for trial in result.trials] == ["diverged"] * 2
    assert (tmp_path / "sweep-momentum.png").exists()
    assert not (tmp_path / "best.toml").exists()
    with pytest.raises(UserError, match="No run of the sweep has finished an epoch"):
        _ = result.best


def test_best_toml_is_what_train_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(BASE, momentum=0.9, nesterov=True, seed=5, augment="flip,shift:1", lr=1e-5)
    base = replace(base, weight_decay=1e-7, init="normal:0.3", loader="sliding")
    values = {"momentum": [0.0, 0.9], "hidden": [(16,), (16, 5)]}
    result = sweep(base, values, data=DATA, out=tmp_path / "sweep")
    monkeypatch.setattr(fitting, "load_splits", lambda *_, **__: DATA)
    argv = ["--config", str(tmp_path / "sweep" / "best.toml"), "--quiet", "--device", "cpu"]
    assert train.main([*argv, "--threads=1", "--out", str(tmp_path / "run")]) == 0
    config = RunDirectory(tmp_path / "run").read_config()
    names = [name for name, option in OPTIONS.items() if option.machine]
    machine = {name: getattr(config, name) for name in (*names, "dataset")}
    assert config == replace(result.best, **machine)
    best = RunDirectory(tmp_path / "run").read_state().best
    (run,) = (trial.runs[0] for trial in result.trials if trial.config == result.best)
    assert_same_tensors(best, run.best_parameters)


def expected_survivors(runs: list[list[list[float]]], rungs: tuple[int, ...]) -> list[int]:
    """How many epochs each configuration gets, from all its runs' validation accuracies."""
    alive, epochs = list(range(len(runs))), [0] * len(runs)
    for rung in rungs:
        scores = {i: sum(max(run[:rung], default=0.0) for run in runs[i]) for i in alive}
        for i in alive:
            epochs[i] = rung
        alive = sorted(alive, key=lambda i: -scores[i])[: -(-len(alive) // 2)]
    for i in alive:
        epochs[i] = len(runs[0][0])
    return epochs


def test_progress_goes_on_within_an_epoch() -> None:
    told: list[float] = []
    sweep(BASE, {"lr": [0.05, 0.01]}, seeds=2, data=DATA, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == BASE.epochs
    assert {1.0, 2.0} <= set(told)
    several = replace(BASE, engine="reference")  # one run after the other, each with its report
    sweep(several, {"lr": [0.05, 0.01]}, data=DATA, on_progress=told.append)
    assert told[-1] == BASE.epochs


@pytest.mark.parametrize(("epochs", "rungs"), [(8, (1, 2, 4)), (21, (2, 5, 10)), (3, (1,))])
def test_successive_halving(epochs: int, rungs: tuple[int, ...], tmp_path: Path) -> None:
    base = replace(BASE, epochs=epochs, lr=0.002)
    values = {"lr": [0.002, 0.2, 0.05, 0.01, 0.0001, 0.02, 0.5], "hidden": [(2,), (3,), (16,)]}
    whole = sweep(base, values, seeds=2, data=DATA)
    accuracies = [[[r.val_acc for r in run.history] for run in t.runs] for t in whole.trials]
    expected = expected_survivors(accuracies, rungs)
    told: list[int] = []
    result = sweep(
        *(base, values),
        seeds=2,
        data=DATA,
        out=tmp_path,
        successive_halving=True,
        on_epoch=lambda result, epoch: told.append(epoch),
    )
    assert [[len(run.history) for run in t.runs] for t in result.trials] == [
        [n, n] for n in expected
    ]
    counts = [sum(n > rung for n in expected) for rung in rungs]
    assert counts == [5, 3, 2][: len(rungs)]
    for ours, theirs in zip(result.trials, whole.trials, strict=True):
        for run, alone in zip(ours.runs, theirs.runs, strict=True):
            same = alone.history[: len(run.history)]
            assert [r.val_loss for r in run.history] == [r.val_loss for r in same]
    assert result.best_trial.status == "finished"
    assert told == list(range(1, epochs + 1))
    assert not result.interrupted


def test_progress_is_told_after_each_epoch() -> None:
    told: list[tuple[int, list[int]]] = []

    def note(result: SweepResult, epoch: int) -> None:
        told.append((epoch, [len(run.history) for run in result.runs]))

    sweep(replace(BASE, epochs=3), {"lr": [0.05, 1e25]}, data=DATA, on_epoch=note)
    assert told == [(1, [1, 0]), (2, [2, 0]), (3, [3, 0])]


def test_data_is_loaded_as_the_base_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(config: TrainConfig, progress: bool) -> Any:
        asked.append((config, progress))
        return DATA

    monkeypatch.setattr(sweeping, "load_splits", load)
    base = replace(BASE, epochs=1, dataset="here")
    assert sweep(base, {"lr": [0.05, 0.5]}).base == base
    assert asked == [(base, True)]


def test_a_place_of_its_own_does_not_change_what_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where every process has its own GPU."""
    used: list[int] = []

    class Noting(Trainer):
        def __init__(self, configs: Any, *args: Any) -> None:
            used.extend(config.save_every for config in configs)
            super().__init__(configs, *args)

    monkeypatch.setattr(sweeping, "Trainer", Noting)
    monkeypatch.setattr(ProcessGroup, "placed", lambda self, config: replace(config, save_every=7))
    result = sweep(replace(BASE, epochs=1), {"lr": [0.05, 0.5]}, data=DATA)
    assert used == [7, 7]
    assert result.best.save_every == BASE.save_every
    assert all(run.config.save_every == BASE.save_every for run in result.runs)


def test_threads_are_those_of_the_sweep_only_while_it_runs(threads: Any) -> None:
    threads(2)
    seen: list[int] = []
    base = replace(BASE, epochs=2)
    sweep(base, {}, data=DATA, on_epoch=lambda *args: seen.append(torch.get_num_threads()))
    assert seen == [1, 1]
    assert torch.get_num_threads() == 2


def test_a_signal_while_the_results_are_written_loses_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str, points: object, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        target.touch()

    monkeypatch.setattr("fastmlp.plotting.sweeps.sweep_picture", interrupted)
    result = sweep(replace(BASE, epochs=1), {"lr": [0.05, 0.5]}, data=DATA, out=tmp_path)
    assert not result.interrupted
    assert {"sweep-lr.png", "results.csv", "best.toml"} <= {p.name for p in tmp_path.iterdir()}


def test_the_command_of_that_name_does_not_take_the_functions_place() -> None:
    code = (
        "import fastmlp\n"
        "try: import fastmlp.sweep\n"
        "except ImportError as error: print(error)\n"
        "print(fastmlp.sweep.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=python_environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "fastmlp.sweep is a function, and a command; import fastmlp and call it",
        "fastmlp.sweeps.sweep",
    ], done.stderr
