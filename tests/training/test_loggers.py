"""What the callbacks write is the history of the runs."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import assert_same_tensors, tensors, tiny_data

import fastmlp
from fastmlp.callbacks import CSVLogger, JSONLogger, ModelCheckpoint, PrintEpochs, TensorBoard
from fastmlp.training.api import fit, fit_many, resume
from fastmlp.training.callbacks import Callback
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import TrainingRun
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import UserError

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(4,), batch_size=30, epochs=6, lr=0.05, device="cpu", threads=1, engine="reference"
)


def test_the_tables_hold_every_epoch_of_every_run(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "a" / "log.csv"), JSONLogger(tmp_path / "log.jsonl")]
    runs = fit_many([CONFIG, replace(CONFIG, epochs=3, lr=0.1)], DATA, callbacks=loggers)
    wanted = [{"run": i, **asdict(r)} for i, run in enumerate(runs) for r in run.history]
    assert len(wanted) == 9
    with open(tmp_path / "a" / "log.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [{name: str(value) for name, value in row.items()} for row in wanted]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == wanted


def test_verbose_prints_a_line_for_each_epoch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=2, lr_schedule="constant")
    run = fit(config, DATA, out=tmp_path, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    for record, line in zip(run.history, lines, strict=True):
        start = f"epoch {record.epoch}/2  train {record.train_loss:.4f} {record.train_acc:6.2%}"
        assert line.startswith(start)
        assert " images/s" in line
    resume(tmp_path, DATA, epochs=3, verbose=True)
    assert capsys.readouterr().out.startswith("epoch 3/3  train ")
    fit(CONFIG, DATA)
    assert capsys.readouterr().out == ""
    x = np.random.default_rng(0).normal(size=(40, 3))
    fastmlp.fit(x, x[:, 0] * 1.5, epochs=1, verbose=True, engine="reference")
    (line,) = capsys.readouterr().out.splitlines()
    assert "%" not in line
    assert " rows/s" in line
    fit_many([CONFIG, CONFIG], DATA, callbacks=[PrintEpochs()])
    lines = capsys.readouterr().out.splitlines()
    assert sorted({line[:7] for line in lines}) == ["run 0  ", "run 1  "]


def test_a_regression_has_no_accuracies_to_write(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    log = tmp_path / "log.jsonl"
    fastmlp.fit(x, x[:, 0] * 1.5, epochs=2, callbacks=[JSONLogger(log)], engine="reference")
    row = json.loads(log.read_text().splitlines()[-1])
    assert row["val_acc"] is None
    assert math.isfinite(row["val_loss"])


def test_a_path_that_cannot_be_written_is_known_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder where a file was wanted"):
        fit(CONFIG, DATA, callbacks=[CSVLogger(tmp_path)])


def test_a_folder_for_tensorboard_that_cannot_be_made(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        fit(CONFIG, DATA, callbacks=[TensorBoard(tmp_path / "file")])


def test_tensorboard_reads_what_was_measured(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    runs = fit_many([CONFIG, replace(CONFIG, epochs=2)], DATA, callbacks=[TensorBoard(tmp_path)])
    for number, run in enumerate(runs):
        events = accumulator.EventAccumulator(str(tmp_path / f"run-{number}")).Reload()
        found = [(e.step, e.value) for e in events.Scalars("accuracy/validation")]
        assert found == [(r.epoch, pytest.approx(r.val_acc)) for r in run.history]
        assert len(events.Scalars("learning rate")) == len(run.history)


def test_without_tensorboard_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


class Keep(Callback):
    """Keeps the parameters after each epoch."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, torch.Tensor]] = []

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        self.parameters.append(run.state.parameters_state())


def test_the_best_epochs_are_kept(tmp_path: Path) -> None:
    keep = Keep()
    run = fit(CONFIG, DATA, callbacks=[ModelCheckpoint(tmp_path, 3), keep])
    ranked = sorted(run.history, key=lambda record: (-record.score, record.epoch))[:3]
    names = {f"epoch-{record.epoch:04}.pt": record.epoch for record in ranked}
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for name, epoch in names.items():
        assert_same_tensors(tensors(tmp_path / name), keep.parameters[epoch - 1])
    assert_same_tensors(
        run.best_parameters,
        tensors(tmp_path / min(names, key=lambda n: (-run.history[names[n] - 1].score, names[n]))),
    )
    fit_many([CONFIG, CONFIG], DATA, callbacks=[ModelCheckpoint(tmp_path / "many", 1)])
    assert len(list((tmp_path / "many").glob("run-[01]-epoch-*.pt"))) == 2
