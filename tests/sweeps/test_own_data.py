"""Sweeps over rows of a user's own: a regression is compared by its losses."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.cli import sweep as command
from fastmlp.cli import train
from fastmlp.plotting import sweeps as pictures
from fastmlp.utils.errors import UserError

pd = pytest.importorskip("pandas")
QUICK = {"epochs": 4, "hidden": (8,), "threads": 1, "device": "cpu", "batch_size": 16}


def rows(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 3))
    return x, x @ [1.0, 2.0, 3.0] + 0.1 * random.normal(size=count)


def test_the_best_of_a_regression_has_the_least_loss(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "finish", lambda figure, target: drawn.append(figure))
    result = fastmlp.sweep(QUICK, {"lr": [1e-5, 0.03, 1e-4]}, data=rows(), seeds=2, out=tmp_path)
    losses = {
        trial.config.lr: np.mean([min(r.val_loss for r in run.history) for run in trial.runs])
        for trial in result.trials
    }
    assert result.best_values == {"lr": min(losses, key=losses.get)} == {"lr": 0.03}
    assert result.best_trial.best_val[0] == pytest.approx(losses[0.03])
    assert result.best_trial.score == pytest.approx(-losses[0.03])
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert labels == ["loss after the last epoch", "loss"]
    with open(tmp_path / "results.csv") as file:
        best = [(row["lr"], row["best_epoch"], row["val_acc"]) for row in csv.DictReader(file)]
    assert ("0.03", "4", "nan") in best
    alone = fastmlp.fit(*rows(), **QUICK, lr=0.03)
    assert alone.history[-1].val_loss == result.best_trial.runs[0].history[-1].val_loss


def test_halving_keeps_the_least_loss():
    result = fastmlp.sweep(
        {**QUICK, "epochs": 8},
        {"lr": [1e-5, 3e-5, 1e-4, 0.03]},
        data=rows(),
        successive_halving=True,
    )
    assert max(result.trials, key=lambda trial: len(trial.runs[0].history)).config.lr == 0.03


def test_classes_are_compared_by_accuracy():
    x, y = rows()
    result = fastmlp.sweep(QUICK, {"lr": [1e-5, 0.03]}, data=(x, y > 0))
    assert not result.regression
    assert result.best.lr == 0.03
    assert 0.8 < result.best_trial.best_val[0] <= 1


@pytest.mark.parametrize(
    ("base", "data", "words"),
    [
        (fastmlp.TrainConfig(), rows(), "base must be a dict of the options of fit"),
        (QUICK, None, "base must be a TrainConfig"),
        ({**QUICK, "colour": 1}, rows(), "fit has no option 'colour'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(base, data, words):
    with pytest.raises(UserError, match=words):
        fastmlp.sweep(base, {"lr": [0.1, 0.2]}, data=data)


def test_the_command_and_the_command_that_it_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "sweep_picture", lambda *args: None)
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)
    x, y = rows()
    frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(town="Ulm", y=y, z=-y)
    frame.loc[::2, "town"] = "Bad Aibling"
    frame.to_csv("my rows.csv", index=False)
    flags = ["--data=my rows.csv", "--target=y", "--target=z", "--categories=town"]
    flags += ["--lr=1e-5,0.03"]
    quick = ["--epochs=4", "--hidden=8", "--threads=1", "--device=cpu", "--batch-size=16"]
    assert command.main([*flags, *quick, "--out=s"]) == 0
    out = capsys.readouterr().out
    assert "Validation loss, best first" in out
    (line,) = (line for line in out.splitlines() if line.startswith("Best in validation: "))
    assert " with lr 0.03. Train it with: " in line
    named = shlex.split(line.split("Train it with: ")[1])
    assert named[:3] == ["python", "-m", "fastmlp.train"]
    assert train.main([*named[3:], "--out=r", "--threads=1"]) == 0
    assert "Validation loss" in capsys.readouterr().out
    assert Path("r", "encoding.json").exists()
    with pytest.raises(UserError, match="--preset is for the known data sets"):
        command.main([*flags, "--preset=sweep"])
