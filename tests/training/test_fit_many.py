"""Many runs side by side: each is what it is alone."""

from __future__ import annotations

import itertools
from dataclasses import astuple, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.marks import needs_native
from support.tiny import assert_same_tensors, stop_after, tiny_data

import fastmlp
from fastmlp.ops._load import native_available
from fastmlp.training import api as fitting
from fastmlp.training.api import fit, fit_many
from fastmlp.training.callbacks import Callback, StopWhen
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import RunResult
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import UserError

DATA = tiny_data()
CONFIG = TrainConfig(hidden=(16,), batch_size=8, epochs=3, lr=0.05, device="cpu", threads=1)
ENGINES = ("blocked", "native", "eager", "reference") if native_available() else ("reference",)


def numbers(run: RunResult) -> list[tuple[Any, ...]]:
    """Its epochs without what the clock says."""
    return [astuple(replace(r, seconds=0.0, images_per_s=0.0)) for r in run.history]


def assert_same(ours: RunResult, theirs: RunResult) -> None:
    assert numbers(ours) == numbers(theirs)
    assert ours.test == theirs.test
    assert ours.test is not None
    assert_same_tensors(ours.best_parameters, theirs.best_parameters)


CHANGES: list[dict[str, Any]] = [
    {},
    {"lr": 0.01},
    {"batch_size": 16, "lr": 0.1},
    {"hidden": (16, 5), "momentum": 0.0, "nesterov": False},
    {"hidden": (7,), "weight_decay": 0.0},
    {"seed": 1, "lr_schedule": "constant", "lr_decay": 0.5},
    {"epochs": 1},
    {"epochs": 5, "init": "normal:0.3"},
    {"normalize": "unit"},
    {"loader": "sliding", "grad_average": True},
    {"loader": "sliding", "batch_size": 4},
    {"augment": "flip,shift:1"},
    {"batch_size": 200},
]


@pytest.mark.parametrize("engine", ENGINES)
def test_each_is_what_it_is_alone(engine: str) -> None:
    configs = [replace(CONFIG, engine=engine, **change) for change in CHANGES]
    together = fit_many(configs, DATA)
    assert len(together) == len(configs)
    for config, run in zip(configs, together, strict=True):
        assert run.config == config
        assert len(run.history) == config.epochs
        assert_same(run, fit(config, DATA))
        assert (run.interrupted, run.diverged, run.folder, run.summary) == (False, None, None, {})


@needs_native
def test_engines_mixed() -> None:
    engines = ("reference", "blocked", "eager", "auto", "blocked")
    configs = [replace(CONFIG, engine=e, seed=i // 2) for i, e in enumerate(engines)]
    for config, run in zip(configs, fit_many(configs, DATA), strict=True):
        assert_same(run, fit(config, DATA))
        assert run.config.engine == config.engine.replace("auto", "blocked")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_that_diverges_says_so_and_disturbs_no_other(engine: str) -> None:
    config = replace(CONFIG, engine=engine, lr_schedule="constant")
    # At once; in the middle of the second epoch; in validation, for want of a second step.
    bad = [{"lr": 1e20}, {"lr_decay": 1e30}, {"lr": 1e25, "batch_size": 90}]
    changes = [{}, bad[0], {"lr": 0.01}, bad[1], bad[2], {"batch_size": 16}]
    configs = [replace(config, **change) for change in changes]
    runs = fit_many(configs, DATA)
    for config, change, run in zip(configs, changes, runs, strict=True):
        if change not in bad:
            assert_same(run, fit(config, DATA))
            continue
        assert run.diverged is not None
        with pytest.raises(UserError) as info:
            fit(config, DATA)
        assert run.diverged == str(info.value)
        assert run.test is None
        assert not run.interrupted
        assert len(run.history) == (1 if change is bad[1] else 0)
    assert str(runs[4].diverged).startswith("The validation loss became")


def test_a_stop_ends_all_of_them() -> None:
    configs = [replace(CONFIG, engine="reference", seed=seed) for seed in range(2)]
    runs = fit_many(configs, DATA, should_stop=stop_after(1))
    assert [len(run.history) for run in runs] == [0, 0]
    assert all(run.interrupted and run.test is None for run in runs)
    # Twelve steps each, one question before them and one after each run: then the second epoch.
    runs = fit_many(configs, DATA, should_stop=stop_after(30))
    assert [len(run.history) for run in runs] == [1, 1]
    assert numbers(runs[1]) == numbers(fit(configs[1], DATA))[:1]


def test_the_time_of_runs_side_by_side_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("fastmlp.training.trainer.time", clock)  # a second between two looks at it
    runs = fit_many([replace(CONFIG, engine=ENGINES[0], seed=seed) for seed in range(4)], DATA)
    assert [record.seconds for run in runs for record in run.history] == [0.25] * 12


def test_epochs_are_counted_to_the_longest_run() -> None:
    told: list[tuple[int, int]] = []
    configs = [replace(CONFIG, epochs=n, engine="reference") for n in (2, 4, 1)]
    fit_many(configs, DATA, on_epoch=lambda done, of: told.append((done, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_none_at_all() -> None:
    assert fit_many([]) == []
    assert fit_many([], DATA) == []


def test_data_is_loaded_once_as_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[TrainConfig] = []

    def load(config: TrainConfig) -> Any:
        loaded.append(config)
        return DATA

    monkeypatch.setattr(fitting, "load_splits", load)
    configs = [replace(CONFIG, epochs=1, seed=seed) for seed in (3, 4)]
    fastmlp.fit_many(configs)
    assert loaded == configs[:1]


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(UserError, match="block_steps is for the engine blocked, not reference"):
        fit_many([CONFIG, replace(CONFIG, engine="reference", block_steps=2)], DATA)


def test_threads_are_those_of_the_runs_only_while_they_run(threads: Any) -> None:
    threads(2)
    seen: list[int] = []
    fit_many([CONFIG], DATA, on_epoch=lambda *counts: seen.append(torch.get_num_threads()))
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == 2
    (run,) = fit_many([replace(CONFIG, threads=0, epochs=1)], DATA)
    assert run.config.threads == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_resume_from_their_states_bit_by_bit(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)
    changes = [{}, {"batch_size": 40}, {"seed": 1}, {"normalize": "unit"}, {"epochs": 1}]
    configs = [replace(CONFIG, engine=engine, **change) for change in changes]
    alone = [fit(config, DATA) for config in configs]
    states: list[Any] = [None] * len(configs)
    for calls in (1, 3, 1, 2, 40, 1000):
        trainer = Trainer(configs, DATA, states, [StopWhen(stop_after(calls))])
        trainer.fit(test=True)
        states = [run.save_point() for run in trainer.runs]
    assert trainer.active == []
    for ours, theirs in zip(trainer.runs, alone, strict=True):
        assert_same(ours.result(), theirs)


def test_goals_end_runs_early() -> None:
    config = replace(CONFIG, engine="reference")
    totals: list[int] = []

    class Goals(Callback):
        def on_train_begin(self, trainer: Trainer) -> None:
            for run, goal in zip(trainer.runs, (1, 3, 0), strict=True):
                run.goal = goal

        def on_progress(self, trainer: Trainer) -> None:
            self.images = sum(run.under_way.samples for run in trainer.runs)

        def on_epoch_end(self, trainer: Trainer) -> None:
            totals.append(self.images)

    trainer = Trainer([config, replace(config, normalize="unit"), config], DATA, None, [Goals()])
    trainer.fit(test=True)
    assert [run.epoch for run in trainer.runs] == [1, 3, 0]
    assert totals == [180, 90, 90]
    assert [run.test is not None for run in trainer.runs] == [False, True, False]
