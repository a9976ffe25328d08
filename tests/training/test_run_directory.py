"""The folder of a run that was damaged, removed or edited."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import assert_same_run, stop_after, tiny_data

from fastmlp.training.api import fit, resume
from fastmlp.training.callbacks import Callback
from fastmlp.training.config import TrainConfig
from fastmlp.training.run_directory import RunDirectory
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import UserError

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(8,), batch_size=16, epochs=3, engine="reference", threads=1, lr_schedule="constant"
)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which one epoch and two steps are done."""
    path = tmp_path_factory.mktemp("stopped")
    fit(CONFIG, DATA, out=path, should_stop=stop_after(9))
    (path / "curves.png").unlink()
    return path


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_the_older_state_serves_where_the_newer_does_not(
    damage: bytes | None, stopped: Path, tmp_path: Path
) -> None:
    fit(CONFIG, DATA, out=tmp_path / "whole")
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    if damage is None:
        (run / "resume.pt").unlink()
        words = r"resume.pt is missing; the run goes on from the save before it, after 1 epochs"
    else:
        (run / "resume.pt").write_bytes(damage)
        words = r"resume.pt is damaged; the run goes on from the save before it, after 1 epochs"
    with pytest.warns(UserWarning, match=words):
        resume(run, DATA, should_stop=stop_after(0))
    for name in ("resume.pt", "resume.previous.pt"):  # the damaged one is in nobody's way
        if (run / name).exists():
            torch.load(run / name, weights_only=True)
    resume(run, DATA)
    assert_same_run(run, tmp_path / "whole")


def test_killed_in_the_first_save_after_damage(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rename = tmp_path / "run", os.replace

    def renamed(source: Path, target: Path) -> None:
        if target.name == "resume.pt":
            raise SystemExit
        rename(source, target)

    shutil.copytree(stopped, run)
    (run / "resume.pt").write_bytes(b"no zip")
    with monkeypatch.context() as patch:
        patch.setattr("fastmlp.utils.files.os.replace", renamed)
        with pytest.warns(UserWarning, match="is damaged"), pytest.raises(SystemExit):
            resume(run, DATA)
    with pytest.warns(UserWarning, match="is missing"):
        assert len(RunDirectory(run).read_state().history) == 1


class RemoveFolder(Callback):
    """Removes the folder of the run after the first epoch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_epoch_end(self, trainer: Trainer) -> None:
        if trainer.runs[0].epoch == 1:
            shutil.rmtree(self._folder)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_folder_that_is_removed_while_the_run_trains(
    resumed: bool, stopped: Path, tmp_path: Path
) -> None:
    fit(CONFIG, DATA, out=tmp_path / "whole")
    run, callbacks = tmp_path / "run", [RemoveFolder(tmp_path / "run")]
    encoding = {"how": "it was"}
    if resumed:
        fit(CONFIG, DATA, out=run, should_stop=stop_after(3), encoding=encoding)
        train = partial(resume, run, DATA, callbacks=callbacks)
    else:
        train = partial(fit, CONFIG, DATA, out=run, callbacks=callbacks, encoding=encoding)
    with pytest.warns(UserWarning, match="was removed while the run trained; it is made again"):
        train()
    assert RunDirectory(run).read_encoding() == encoding
    (run / "encoding.json").unlink()
    assert (run / ".lock").is_file()
    assert_same_run(run, tmp_path / "whole")


def change(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return apply


WRONG = [
    *((key,) for key in ("fingerprint", "engine_reason", "engine", "history", "partial", "best")),
    *((key,) for key in ("seconds", "partial_seconds")),
    *(("history", 0, key) for key in ("epoch", "train_loss", "val_loss", "val_acc", "lr")),
    *(("history", 0, key) for key in ("train_acc", "seconds", "images_per_s")),
    *(("partial", key) for key in ("steps", "samples", "loss_sum", "correct", "finished")),
    *(("engine", key) for key in ("parameters", "momentum")),
    *(("engine", "parameters", key) for key in ("0.weight", "2.bias")),
    ("engine", "momentum", "0.weight"),
    ("best", "0.weight"),
]


@pytest.mark.parametrize("path", WRONG, ids=lambda path: ".".join(map(str, path)))
def test_values_that_cannot_be(path: tuple[Any, ...], stopped: Path, tmp_path: Path) -> None:
    """They are refused before anything is trained, or they are what they were."""
    wrong: list[Any] = [None, "text", -1, 10**30, float("inf"), [], {}, {"a": 1}, True]
    wrong += [torch.zeros(2), torch.full((8, 12), float("nan")), torch.zeros(8, 12).double()]
    shutil.copytree(stopped, tmp_path / "run")
    taken = 0
    for value in wrong:
        (tmp_path / "run" / "resume.previous.pt").unlink(missing_ok=True)
        content = torch.load(stopped / "resume.pt", weights_only=True)
        change(path, value)(content)
        torch.save(content, tmp_path / "run" / "resume.pt")
        with contextlib.suppress(UserError):
            resume(tmp_path / "run", DATA, should_stop=stop_after(0))
            taken += 1
    assert taken <= 4


def test_more_steps_than_an_epoch_has(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "resume.previous.pt").unlink()
    content = torch.load(stopped / "resume.pt", weights_only=True)
    steps = -(-len(DATA.train.labels) // CONFIG.batch_size)
    content["partial"] |= {"steps": steps, "samples": steps * CONFIG.batch_size}
    torch.save(content, tmp_path / "run" / "resume.pt")
    with pytest.raises(UserError, match=f"{steps} steps of {steps} are done"):
        resume(tmp_path / "run", DATA)


def test_a_folder_in_which_a_run_never_began(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    folder.write_config(CONFIG)
    with pytest.raises(UserError, match="was stopped before its first save; start it again"):
        resume(tmp_path, DATA)
    fit(replace(CONFIG, seed=3), DATA, out=tmp_path)
    assert folder.read_config().seed == 3
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")  # somebody else's
    with pytest.raises(UserError, match="is not an empty folder"):
        fit(CONFIG, DATA, out=other)
    assert (other / "config.json").read_text() == "{}"


def test_a_password_is_in_no_file(tmp_path: Path) -> None:
    config = replace(CONFIG, data_url="https://me:s3cret@host/cifar-10-binary.tar.gz?key=s3cret")
    run = fit(config, DATA, out=tmp_path)
    assert run.summary["config"]["data_url"] == "https://host/cifar-10-binary.tar.gz"
    assert all(b"s3cret" not in path.read_bytes() for path in tmp_path.iterdir())


class EnterFolder(RemoveFolder):
    """Tries, after the epoch in which the folder was made again, to take it as another process
    does."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        if not self._folder.exists():
            return
        with (
            pytest.raises(UserError, match="another process is using"),
            RunDirectory.existing(self._folder),
        ):
            pass


def test_a_folder_that_was_made_again_is_locked_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    callbacks = [RemoveFolder(run), EnterFolder(run)]
    with pytest.warns(UserWarning, match="it is made again"):
        fit(CONFIG, DATA, out=run, callbacks=callbacks)


def test_a_run_that_came_to_nothing_leaves_its_place(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="try a smaller lr"):
        fit(replace(CONFIG, lr=1e30), DATA, out=run)
    assert not run.exists()
    fit(CONFIG, DATA, out=run)
