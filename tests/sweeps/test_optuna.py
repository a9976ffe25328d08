"""Optuna asks, a batch trains side by side, and each trial is told what ``fit`` makes of it."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import stop_after, tiny_data

from fastmlp.training.api import fit
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import UserError

optuna = pytest.importorskip("optuna")
ours = pytest.importorskip("fastmlp.sweeps.optuna")
State = optuna.trial.TrialState
DATA = tiny_data()
BASE = TrainConfig(
    hidden=(4,), batch_size=30, epochs=4, device="cpu", threads=1, engine="reference"
)


def suggest(trial: Any) -> Mapping[str, Any]:
    return {"lr": trial.suggest_float("lr", 1e-4, 0.2, log=True)}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def study(direction: str = "maximize", **options: Any) -> Any:
    sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True)
    return optuna.create_study(direction=direction, sampler=sampler, **options)


def test_each_trial_is_told_what_fit_makes_of_it() -> None:
    found = study(pruner=optuna.pruners.NopPruner())
    ours.optimize(found, suggest, BASE, DATA, n_trials=5, batch=3)
    assert [trial.state for trial in found.trials] == [State.COMPLETE] * 5
    assert len({trial.params["lr"] for trial in found.trials}) == 5
    for trial in found.trials:
        run = fit(TrainConfig(**{**BASE.to_dict(), "lr": trial.params["lr"]}), DATA)
        assert trial.value == max(record.val_acc for record in run.history)
        assert trial.intermediate_values == {r.epoch: r.val_acc for r in run.history}
    best = ours.best_config(found)
    assert best.lr == found.best_params["lr"]
    assert best.epochs == 4


class FromSecond(optuna.pruners.BasePruner):
    """Gives up every other trial after its second epoch."""

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number % 2 == 1 and trial.last_step >= 2


def test_what_the_pruner_gives_up_is_stopped_and_what_diverges_fails() -> None:
    found = study(pruner=FromSecond())
    lrs = iter([0.01, 0.01, 1e30])
    ours.optimize(
        found,
        lambda trial: {"lr": next(lrs), "lr_schedule": "constant"},
        BASE,
        DATA,
        n_trials=3,
    )
    assert [t.state for t in found.trials] == [State.COMPLETE, State.PRUNED, State.FAIL]
    assert [len(t.intermediate_values) for t in found.trials[:2]] == [4, 2]


def test_a_stop_leaves_no_trial_running() -> None:
    found = study()
    ours.optimize(found, suggest, BASE, DATA, n_trials=9, batch=3, should_stop=stop_after(4))
    assert [trial.state for trial in found.trials] == [State.FAIL] * 3


def test_an_error_leaves_no_trial_running() -> None:
    found = study()
    with pytest.raises(UserError, match="lr must be a number above 0"):
        ours.optimize(found, lambda trial: {"lr": -1}, BASE, DATA, n_trials=2)
    assert [trial.state for trial in found.trials] == [State.FAIL] * 2


def test_a_regression_of_ones_own_and_a_shared_storage(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    storage = f"sqlite:///{tmp_path}/study.db"
    for _ in range(2):
        found = study("minimize", storage=storage, study_name="a", load_if_exists=True)
        ours.optimize(found, suggest, {"epochs": 2, "hidden": 4}, (x, x[:, 0]), n_trials=2)
    assert len(found.trials) == 4
    assert found.best_value == min(trial.value for trial in found.trials)
    with pytest.raises(
        UserError, match=r"must minimize the validation loss .*direction=\"minimize"
    ):
        ours.optimize(study(), suggest, {"epochs": 2}, (x, x[:, 0]), n_trials=2)


def test_the_example_runs() -> None:
    test = doctest.DocTestFinder().find(ours.optimize, "optimize", ours)[0]
    test.globs = {"optimize": ours.optimize, "best_config": ours.best_config}
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_without_optuna_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "fastmlp.sweeps.optuna")
    with pytest.raises(ImportError, match="needs the package optuna; pip install optuna"):
        __import__("fastmlp.sweeps.optuna")
