"""The files of a run: whole or not there, and refused with a sentence where they are damaged."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import tiny_data

from fastmlp.engines.metrics import EpochMetrics, EpochRecord
from fastmlp.training.api import fit, resume
from fastmlp.training.checkpoint import Checkpoint, state_from_dict, state_to_dict
from fastmlp.training.config import TrainConfig
from fastmlp.training.run_directory import RunDirectory
from fastmlp.training.run_reader import read_run
from fastmlp.utils.errors import UserError


def record(epoch: int, val_acc: float = 0.5) -> EpochRecord:
    return EpochRecord(epoch, 1.5, 0.25, 1.25, val_acc, 0.1, 2.0, 1500.0)


def state() -> Checkpoint:
    parameters = {"0.weight": torch.randn(3, 4), "0.bias": torch.randn(3)}
    return Checkpoint(
        fingerprint="tiny:0123",
        engine_reason="asked for by name",
        engine={"parameters": parameters, "momentum": {"0.weight": torch.ones(3, 4)}},
        history=[record(1), record(2, 0.75), record(3, 0.75)],
        partial=EpochMetrics(2, 16, 3.5, 4),
        partial_seconds=0.25,
        best={"0.weight": torch.zeros(3, 4), "0.bias": torch.ones(3)},
        seconds=7.5,
    )


def test_a_state_survives_the_disk_bit_by_bit(tmp_path: Path) -> None:
    folder, saved = RunDirectory(tmp_path / "new" / "run"), state()
    folder.save(saved)
    loaded = folder.read_state()
    for kind in ("parameters", "momentum"):
        for name, tensor in saved.engine[kind].items():
            assert torch.equal(loaded.engine[kind][name], tensor)
    assert torch.equal(loaded.best["0.weight"], saved.best["0.weight"])
    loaded.engine, loaded.best = saved.engine, saved.best
    assert loaded == saved
    assert loaded.best_record.epoch == 2  # the first of equals
    last = torch.load(folder.path / "last.pt", weights_only=True)
    assert torch.equal(last["0.bias"], saved.engine["parameters"]["0.bias"])
    assert (folder.path / "metrics.csv").read_text() == (
        "epoch,train_loss,train_acc,val_loss,val_acc,lr,seconds,images_per_s\n"
        "1,1.5,0.25,1.25,0.5,0.1,2.0,1500.0\n"
        "2,1.5,0.25,1.25,0.75,0.1,2.0,1500.0\n"
        "3,1.5,0.25,1.25,0.75,0.1,2.0,1500.0\n"
    )


def test_resume_pt_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    os_replace = os.replace

    def note(source: Any, target: Any) -> None:
        written.append(Path(target).name)
        os_replace(source, target)

    monkeypatch.setattr("fastmlp.utils.files.os.replace", note)
    RunDirectory(tmp_path).save(state())
    assert sorted(written[:-1]) == ["best.pt", "last.pt", "metrics.csv"]
    assert written[-1] == "resume.pt"


def test_configuration_and_summary(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    config = TrainConfig(hidden=(5, 4), seed=7)
    folder.write_config(config)
    assert folder.read_config() == config
    assert not folder.finished
    best = {"epoch": 2, "val_acc": 0.5, "val_loss": 1.0}
    summary = {"epochs": 3, "test_accuracy": 0.5, "test_loss": 1.0, "source": "s", "best": best}
    folder.write_summary(summary)
    assert folder.finished
    assert folder.read_summary() == summary
    for damage in ({}, {"epochs": 3}, {**summary, "epochs": "3"}, {**summary, "test_accuracy": []}):
        folder.write_summary(damage)
        with pytest.raises(UserError, match=r"summary.json is damaged: .* cannot be"):
            folder.read_summary()
    folder.reopen()
    assert not folder.finished
    (tmp_path / ".best.pt.12.tmp").write_text("half")
    with RunDirectory.existing(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.json"}


def test_a_learning_rate_may_be_as_small_as_it_gets(tmp_path: Path) -> None:
    config = TrainConfig(
        hidden=(3,), epochs=120, lr_decay=1e-2, lr_schedule="constant", engine="reference"
    )
    run = fit(config, tiny_data(), out=tmp_path)
    assert run.history[-1].lr < 1e-200
    assert read_run(tmp_path).history == run.history
    assert len(resume(tmp_path, tiny_data(), epochs=121).history) == 121


def test_a_new_folder_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "new"):
        with RunDirectory.new(path) as folder:
            assert folder.path == path
            folder.write_config(TrainConfig())
            folder.save(state())
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path, tmp_path / "file", tmp_path / "empty"):
        with (
            pytest.raises(UserError, match=r"not an empty folder; pass another --out, or --resu"),
            RunDirectory.new(path),
        ):
            pass
    assert sorted(tmp_path.rglob("*")) == before


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def intrude(claim: Any) -> None:
        with pytest.raises(UserError, match=f"another process is using {path}; wait"), claim(path):
            pass

    path = tmp_path / "run"
    with RunDirectory.new(path) as folder:
        intrude(RunDirectory.new)
        folder.write_config(TrainConfig())
        folder.save(state())
        intrude(RunDirectory.existing)
    with RunDirectory.existing(path) as folder:
        assert folder.path == path
        intrude(RunDirectory.existing)

    def flock(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with RunDirectory.existing(path):  # as well as the file system allows
        pass


def test_a_folder_into_which_nothing_was_written_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(UserError, match="no data"), RunDirectory.new(tmp_path / name):
            raise UserError("no data")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_home_and_files_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/run").path == tmp_path / "run"
    (tmp_path / "resume.pt").write_text("")
    with pytest.raises(UserError, match="is not the folder of a run; pass the folder that holds"):
        RunDirectory(tmp_path / "resume.pt").read_config()


def shorten(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[-9:]


@pytest.mark.parametrize("damage", [shorten, flip, lambda data: b"", lambda data: b"not a zip"])
def test_a_damaged_resume_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = RunDirectory(tmp_path)
    folder.save(state())
    path = tmp_path / "resume.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"resume.pt is damaged.*, so the run cannot be resumed"):
        folder.read_state()


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"format": 2},
        {"format": 1, "history": [{"epoch": 1}], "partial": {}},
        {"format": 1, "history": 3, "partial": {}},
        {"format": 1, "history": [], "partial": {}, "unknown": 1},
    ],
)
def test_a_resume_file_of_another_kind(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "resume.pt")
    with pytest.raises(UserError, match=r"resume.pt is damaged"):
        RunDirectory(tmp_path).read_state()


def test_a_resume_file_cut_short(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.arange(3000)}, whole)
    for size in range(0, len(whole.getvalue()), 997):
        (tmp_path / "resume.pt").write_bytes(whole.getvalue()[:size])
        with pytest.raises(UserError, match=r"resume.pt is damaged"):
            RunDirectory(tmp_path).read_state()


@pytest.mark.parametrize("error", [IndexError("pop"), AssertionError(), OverflowError("int")])
def test_whatever_the_unpickler_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("fastmlp.utils.formats.torch.load", load)
    (tmp_path / "resume.pt").touch()
    with pytest.raises(UserError, match=r"resume.pt is damaged"):
        RunDirectory(tmp_path).read_state()


class Evil:
    """What unpickling without care would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_a_resume_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "engine": Evil()}, tmp_path / "resume.pt")
    with pytest.raises(UserError, match=r"resume.pt is damaged"):
        RunDirectory(tmp_path).read_state()
    assert not (tmp_path / "evil").exists()


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=r"was stopped before its first save; start it again"):
        folder.read_state()
    (tmp_path / "best.pt").touch()
    with pytest.raises(UserError, match=r"resume.pt is missing, so the run cannot be resumed"):
        folder.read_state()
    for text, words in (
        ("{", r"config.json is damaged: Expecting"),
        ("[" * 100_000, r"config.json is damaged: maximum recursion"),
        ("[]", r"config.json is damaged: it does not hold a JSON object"),
        ('{"learning": 1}', r"config.json has an unknown key 'learning'"),
        ('{"lr": -1}', "config.json is damaged: lr must be a number above 0, got -1"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            folder.read_config()
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        folder.read_config()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"The disk is full while writing .*last.pt; free some space"),
        (errno.EACCES, r"No permission to use .*last.pt; "),
        (errno.EROFS, r"The file system of .*last.pt is read-only"),
        (errno.EIO, r"The disk failed while using .*last.pt"),
    ],
)
def test_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    folder = RunDirectory(tmp_path)
    folder.save(state())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(source: Any, target: Any) -> None:
        if Path(target).name == "last.pt":
            raise OSError(number, os.strerror(number), source)

    monkeypatch.setattr("fastmlp.utils.files.os.replace", fail)
    with pytest.raises(UserError, match=words):
        folder.save(state())
    monkeypatch.undo()
    left = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".tmp"}
    assert left == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UserError, match=r"Part of the path .* is a file, not a folder"),
        RunDirectory.new(tmp_path / "file" / "run"),
    ):
        pass


def test_a_run_from_before_the_synthetic_set_had_its_name() -> None:
    values = state_to_dict(Checkpoint("offline:1a2b", "why", {}))
    assert state_from_dict(values).fingerprint == "synthetic:1a2b"
    values = state_to_dict(Checkpoint("cifar10:1a2b", "why", {}))
    assert state_from_dict(values).fingerprint == "cifar10:1a2b"
