"""The folder of a sweep: whenever a sweep was stopped or killed, it goes on from there."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
from support import tiny_sweep
from support.processes import python_environment
from support.tiny import stop_after, tiny_data
from support.tiny_sweep import BASE, DATA, MIXED, assert_same_sweep, table

from fastmlp.sweeps.checkpoint import SweepDirectory, as_toml
from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.results import SweepResult
from fastmlp.sweeps.sweep import sweep
from fastmlp.training.api import fit
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.formats import read_tensors, tensor_bytes

LRS = [0.2, 0.05, 0.01, 0.002, 1e25]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, and a chance to stop after every block."""
    monkeypatch.setattr("fastmlp.plotting.sweeps.sweep_picture", lambda *args: None)
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Sweeps, with and without successive halving, that nobody stopped."""
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.plotting.sweeps.sweep_picture", lambda *args: None)
        for halving in (False, True):
            paths[halving] = tmp_path_factory.mktemp("whole")
            sweep(BASE, MIXED, data=DATA, out=paths[halving], successive_halving=halving)
    return paths


@pytest.mark.parametrize("halving", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 7, 11, 16, 25])
def test_stopped_anywhere_a_sweep_goes_on_bit_by_bit(
    calls: int, halving: bool, tmp_path: Path, whole: dict[bool, Path]
) -> None:
    def sitting(calls: int) -> SweepResult:
        stop = stop_after(calls)
        return sweep(
            *(BASE, MIXED),
            successive_halving=halving,
            data=DATA,
            out=tmp_path,
            should_stop=stop,
        )

    first = sitting(calls)
    assert first.interrupted
    assert "stopped" in [row["status"] for row in table(tmp_path / "results.csv")]
    sitting(4)  # and stopped once more, unless that is its end
    assert not sitting(10**9).interrupted
    assert_same_sweep(tmp_path, whole[halving])


def test_a_real_process_killed_after_a_save(tmp_path: Path, whole: dict[bool, Path]) -> None:
    done = subprocess.run(
        [sys.executable, str(tiny_sweep.__file__), str(tmp_path)],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")
    states = SweepDirectory(tmp_path, 0).read_states()
    assert max(len(state.history) for state in states.values()) == 3
    result = sweep(BASE, MIXED, data=DATA, out=tmp_path, successive_halving=True)
    assert not result.interrupted
    assert_same_sweep(tmp_path, whole[True])


def seconds(folder: Path) -> dict[tuple[str, ...], tuple[str, str]]:
    """How long each run trained, to see that it was not trained again."""
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(r["lr"], r["batch_size"], r["seed"]): (r["seconds"], r["val_loss"]) for r in rows}


def test_more_seeds_and_values_only_add_runs(tmp_path: Path) -> None:
    values = {"lr": [0.05, 0.01], "batch_size": [8, 16]}
    sweep(BASE, values, data=DATA, out=tmp_path)
    before = seconds(tmp_path)
    # Where it runs is not what it is.
    elsewhere = replace(BASE, save_every=3, block_steps=0, data_dir="there")
    sweep(elsewhere, {**values, "lr": [0.05, 0.01, 0.2]}, seeds=2, data=DATA, out=tmp_path)
    after = seconds(tmp_path)
    assert (len(before), len(after)) == (3, 8)
    assert {key: after[key] for key in before} == before
    # Back to the first: all are there, and none is forgotten.
    sweep(BASE, values, data=DATA, out=tmp_path)
    assert seconds(tmp_path) == before
    assert len(SweepDirectory(tmp_path, 0).read_states()) == 8
    # Other epochs are another run.
    result = sweep(replace(BASE, epochs=2), values, data=DATA, out=tmp_path)
    assert {len(run.history) for run in result.runs} == {2}


def test_a_sweep_with_one_that_diverged_can_be_run_again(tmp_path: Path) -> None:
    """In validation, in the middle of an epoch, at once and late: none is taken up as it was."""
    base = replace(BASE, batch_size=90)
    values = {"lr": [0.05, 1e25], "batch_size": [90, 8], "lr_decay": [0.95, 1e8]}
    first = sweep(base, values, data=DATA, out=tmp_path, vary="grid")
    assert [trial.status for trial in first.trials].count("diverged") == 6
    rows = table(tmp_path / "results.csv")
    again = sweep(base, values, data=DATA, out=tmp_path, vary="grid", seeds=2)
    assert [run.diverged for run in again.runs[::2]] == [run.diverged for run in first.runs]
    assert table(tmp_path / "results.csv")[::2] == rows


def test_what_was_dropped_does_not_come_back(tmp_path: Path) -> None:
    values = {"lr": LRS}
    first = sweep(BASE, values, data=DATA, out=tmp_path, successive_halving=True)
    lengths = [len(run.history) for run in first.runs]
    assert sorted(lengths) == [0, 1, 2, 4, 8]
    files = [table(tmp_path / name) for name in ("results.csv", "epochs.csv")]
    again = sweep(BASE, values, data=DATA, out=tmp_path, successive_halving=True)
    assert [len(run.history) for run in again.runs] == lengths
    assert [table(tmp_path / name) for name in ("results.csv", "epochs.csv")] == files
    # Without successive halving they all go on.
    whole = sweep(BASE, values, data=DATA, out=tmp_path)
    assert sorted(len(run.history) for run in whole.runs) == [0, 8, 8, 8, 8]


def test_values_added_later_are_judged_by_the_same_epochs(tmp_path: Path) -> None:
    """As if all had been there from the first."""
    sweep(BASE, {"lr": LRS[1:]}, data=DATA, out=tmp_path / "more", successive_halving=True)
    for name in ("more", "whole"):
        sweep(BASE, {"lr": LRS}, data=DATA, out=tmp_path / name, successive_halving=True)
    more, whole = (
        {row["lr"]: row for row in table(tmp_path / n / "results.csv")} for n in ("more", "whole")
    )
    assert {lr for lr, row in whole.items() if row["status"] == "finished"} <= {
        lr for lr, row in more.items() if row["status"] == "finished"
    }
    assert all(int(more[lr]["epochs"]) >= int(row["epochs"]) for lr, row in whole.items())


def refused(words: str, code: int = 1, **arguments: Any) -> None:
    options: dict[str, Any] = {"base": BASE, "values": {"lr": [0.05, 0.5]}, "data": DATA}
    with pytest.raises(UserError) as info:
        sweep(**{**options, **arguments})
    assert words in str(info.value)
    assert "\n" not in str(info.value)
    assert info.value.exit_code == code


def test_what_is_refused(tmp_path: Path) -> None:
    refused("seeds must be at least 1, got 0", EXIT_USAGE, seeds=0, out=tmp_path / "new")
    refused("vary must be one, grid or random:N", EXIT_USAGE, vary="grd", out=tmp_path / "new")
    wrong = replace(BASE, engine="reference", block_steps=2)
    refused("block_steps is for the engine blocked", EXIT_USAGE, base=wrong, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused("full holds something else than a sweep; pass another --out", out=tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    refused("is a file; pass --out another folder", out=tmp_path / "full" / "mine.txt")
    refused("is a file, not a folder", out=tmp_path / "full" / "mine.txt" / "sweep")
    fit(replace(BASE, epochs=1), DATA, out=tmp_path / "run")
    refused("run holds something else than a sweep", out=tmp_path / "run")


def test_a_folder_that_is_not_as_it_was(tmp_path: Path) -> None:
    sweep(BASE, {"lr": [0.05, 0.5]}, data=DATA, out=tmp_path, should_stop=stop_after(4))
    refused("The run was trained on other data (tiny0:", out=tmp_path, data=tiny_data(seed=1))
    with SweepDirectory.at(tmp_path, ProcessGroup()):
        refused("another process is using", out=tmp_path)
    right = (tmp_path / "resume-0.pt").read_bytes()
    for damaged in (right[:-100], b"", b"a text"):
        (tmp_path / "resume-0.pt").write_bytes(damaged)
        (tmp_path / "resume-0.previous.pt").write_bytes(damaged)
        refused(", so the sweep cannot go on; remove it", out=tmp_path)
    for odd in ([1], {"a": 3}, {"a": {}}):
        torch.save(odd, tmp_path / "resume-0.pt")
        refused("resume-0.pt is damaged", out=tmp_path)
    (tmp_path / "resume-0.pt").write_bytes(right)
    states = read_tensors(tmp_path / "resume-0.pt")
    for state in states.values():  # which those of longer runs would be
        last = state["history"][-1]
        state["history"] += [
            last | {"epoch": last["epoch"] + more} for more in range(1, BASE.epochs + 1)
        ]
    (tmp_path / "resume-0.pt").write_bytes(tensor_bytes(states))
    refused(f"a run of {BASE.epochs} epochs has ", out=tmp_path)
    (tmp_path / "resume-0.pt").write_bytes(right)
    assert not sweep(BASE, {"lr": [0.05, 0.5]}, data=DATA, out=tmp_path).interrupted


def test_a_sweep_from_before_a_field_was_there(tmp_path: Path, whole: dict[bool, Path]) -> None:
    """Its runs are found although their keys do not name the field."""
    sweep(BASE, MIXED, data=DATA, out=tmp_path, should_stop=stop_after(11))
    file, early = tmp_path / "resume-0.pt", {}
    for key, run in torch.load(file, weights_only=True).items():
        values = json.loads(key)
        assert values.pop("optimizer") == "sgd"
        early[json.dumps(values, sort_keys=True)] = run
    assert any(run["history"] for run in early.values())
    torch.save(early, file)
    fitted: list[int] = []
    sweep(
        *(BASE, MIXED),
        data=DATA,
        out=tmp_path,
        on_epoch=lambda result, epoch: fitted.append(epoch),
    )
    assert fitted[0] > 1
    assert_same_sweep(tmp_path, whole[False])


def test_a_full_disk_is_told_and_what_was_saved_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[bool, Path]
) -> None:
    monkeypatch.setattr("fastmlp.sweeps.checkpoint.SAVE_SECONDS", 0.0)
    os_fsync, left = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        os_fsync(handle)

    for name, writes in (("early", 2), ("late", 9)):
        left = writes
        with monkeypatch.context() as patch:
            patch.setattr("fastmlp.utils.files.os.fsync", fsync)
            with pytest.raises(UserError, match=r"The disk is full while writing"):
                sweep(BASE, MIXED, data=DATA, out=tmp_path / name)
        assert not list((tmp_path / name).glob(".*.tmp"))
        sweep(BASE, MIXED, data=DATA, out=tmp_path / name)
        assert_same_sweep(tmp_path / name, whole[False])


@pytest.mark.parametrize("name", ["\U0001f600", 'a\x7f\t"b\\', "\u00fc"])
def test_toml_of_any_name(name: str) -> None:
    text = as_toml(replace(BASE, dataset=name))
    assert tomllib.loads(text)["dataset"] == name
