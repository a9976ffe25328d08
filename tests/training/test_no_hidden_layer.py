"""A network without hidden layers, which is softmax or linear regression, from end to end."""

import csv
import shlex

import numpy as np
import pytest
import torch
from support.tiny import tiny_data

import fastmlp
from fastmlp.cli import compare, predict, show, sweep, train
from fastmlp.training.config import load_config_file

pd = pytest.importorskip("pandas")
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(150, 3))
Y = X @ [1.0, -2.0, 0.5] + 3
QUICK = ["--epochs=30", "--lr=0.05", "--batch-size=16", "--threads=1", "--device=cpu"]


def test_linear_regression_finds_the_line():
    run = fastmlp.fit(X, Y, hidden=(), epochs=60, lr=0.05, batch_size=16, device="cpu", threads=1)
    assert run.config.hidden == ()
    assert len(run.model) == 1
    np.testing.assert_allclose(
        run.predict(np.eye(3)) - run.predict(np.zeros((3, 3))), [1, -2, 0.5], atol=0.02
    )
    assert run.predict(np.zeros((1, 3))) == pytest.approx(3, abs=0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_softmax_regression_is_the_same_in_every_engine(optimizer):
    runs = [
        fastmlp.fit(
            fastmlp.TrainConfig(
                hidden="none",
                epochs=3,
                optimizer=optimizer,
                batch_size=8,
                lr=1e-2,
                device="cpu",
                threads=1,
                engine=engine,
            ),
            tiny_data(),
        )
        for engine in ("auto", "native", "eager", "reference")
    ]
    assert runs[0].config.engine == "native"
    for run in runs[1:]:
        for name, tensor in run.best_parameters.items():
            torch.testing.assert_close(tensor, runs[0].best_parameters[name], rtol=1e-4, atol=1e-5)
        assert run.test.loss == pytest.approx(runs[0].test.loss, rel=1e-4)
        assert run.test.accuracy == runs[0].test.accuracy


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)
    pd.DataFrame(X, columns=["a", "b", "c"]).assign(y=Y).to_csv("rows.csv", index=False)
    data = ["--data=rows.csv", "--target=y", *QUICK]
    assert train.main([*data, "--hidden=none", "--out=run"]) == 0
    assert "3-1" in capsys.readouterr().out
    assert show.main(["run"]) == 0
    assert "hidden none" in capsys.readouterr().out
    assert train.main([*data, "--hidden=4", "--out=other"]) == 0
    assert compare.main(["run", "other", "--out=c.png"]) == 0
    assert "none" in capsys.readouterr().out
    assert predict.main(["run", "--data=rows.csv", "--out=out.npy"]) == 0
    assert np.corrcoef(np.load("out.npy"), Y)[0, 1] > 0.999
    capsys.readouterr()
    assert sweep.main([*data, "--hidden=none,8,4-4", "--out=s"]) == 0
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith("Best in valid"))
    with open("s/results.csv") as file:
        assert {row["hidden"] for row in csv.DictReader(file)} == {"none", "8", "4-4"}
    assert " with hidden none. " in line
    assert load_config_file("s/best.toml")["hidden"] == []
    named = shlex.split(line.split("Train it with: ")[1])[3:]
    assert train.main([*named, "--out=again", "--threads=1"]) == 0
    assert fastmlp.training.run_directory.RunDirectory("again").read_config().hidden == ()
