"""Early stopping ends the runs that get no better, each by itself, and again when it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny import assert_same_run, rows, stop_after, tiny_data

from fastmlp.training.api import fit, fit_many, resume
from fastmlp.training.callbacks import EarlyStopping
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import RunResult
from fastmlp.utils.errors import UserError

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(4,),
    batch_size=30,
    epochs=40,
    lr=0.05,
    momentum=0.9,
    nesterov=True,
    device="cpu",
    threads=1,
    engine="reference",
)


def expected_end(run: RunResult, patience: int, least: float = 0.0, what: str = "score") -> int:
    """The epoch after which a whole run would have been ended, by hand."""
    sign = -1 if what.endswith("loss") else 1
    values = [sign * getattr(record, what) for record in run.history]
    best, at = values[0], 0
    for epoch, value in enumerate(values):
        if value > best + least:
            best, at = value, epoch
        if epoch - at >= patience:
            return epoch + 1
    return len(values)


@pytest.mark.parametrize(
    ("patience", "least", "what"),
    [(1, 0.0, "score"), (4, 0.0, "val_loss"), (3, 0.02, "val_loss"), (3, 0.02, "train_loss")],
)
def test_it_ends_where_the_whole_history_says(patience: int, least: float, what: str) -> None:
    whole = fit(CONFIG, DATA)
    end = expected_end(whole, patience, least, what)
    assert 2 <= end < 40
    monitor = None if what == "score" else what
    run = fit(CONFIG, DATA, callbacks=[EarlyStopping(patience, monitor=monitor, min_delta=least)])
    assert [r.val_loss for r in run.history] == [r.val_loss for r in whole.history[:end]]
    assert run.finished
    assert not run.interrupted
    assert run.test is not None
    assert run.summary["epochs"] == end


def test_an_epoch_as_good_as_the_best_is_no_better() -> None:
    run = fit(replace(CONFIG, lr=1e-30, patience=3), DATA)
    assert len(run.history) == 4


def test_each_run_is_ended_by_itself() -> None:
    configs = [replace(CONFIG, patience=2), CONFIG, replace(CONFIG, seed=1, patience=3)]
    whole = fit_many([replace(config, patience=0) for config in configs], DATA)
    runs = fit_many(configs, DATA)
    assert [len(run.history) for run in runs] == [
        expected_end(whole[0], 2),
        40,
        expected_end(whole[2], 3),
    ]
    assert len({len(run.history) for run in runs}) == 3
    assert all(run.finished and run.test is not None for run in runs)


def test_a_resumed_run_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    config = replace(CONFIG, patience=3, save_every=7)
    fit(config, DATA, out=tmp_path / "whole")
    fit(config, DATA, out=tmp_path / "stopped", should_stop=stop_after(8))
    assert len(rows(tmp_path / "stopped")) == 2
    resume(tmp_path / "stopped", DATA)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    ended = resume(tmp_path / "whole", DATA)  # it is at its end already
    assert len(ended.history) == len(rows(tmp_path / "stopped"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"min_delta": -1}, "min_delta must be a number of at least 0, got -1"),
        ({"monitor": "val"}, "monitor must be one of epoch, train_loss"),
    ],
)
def test_mistakes(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        EarlyStopping(**options)
