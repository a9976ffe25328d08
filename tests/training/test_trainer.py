"""A run as such: what it refuses, what it validates on, the variants of a recipe, how it ends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.marks import needs_native
from support.tiny import FEATURES, assert_same_run, assert_same_tensors, tiny_data

from fastmlp.data.sampling import sliding_part
from fastmlp.data.splits import DataSplits, Subset
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics, NonFiniteLossError
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig
from fastmlp.training.presets import resolve_config
from fastmlp.training.run import DivergedError
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import EXIT_USAGE, UserError

DATA = tiny_data()
CONFIG = TrainConfig(hidden=(16,), batch_size=8, epochs=3, lr=0.05, device="cpu", threads=1)
# Everything at once: repeated images, flipped and shifted, two hidden layers, short blocks.
RICH = replace(CONFIG, hidden=(16, 5), augment="flip,shift:1", loader="sliding")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)


def narrow(features: int) -> DataSplits:
    """The tiny problem with fewer pixels, which no longer make a square."""

    def cut(part: Subset) -> Subset:
        return Subset(part.images[:, :features].contiguous(), part.labels)

    return DataSplits(cut(DATA.train), cut(DATA.val), cut(DATA.test), DATA.classes)


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        (
            {"augment": "flip"},
            narrow(11),
            "augment needs square images in one plane or three, not rows of 11 numbers; use "
            "augment none",
        ),
        (
            {"augment": "shift:2"},
            DATA,
            "augment shift:2: images of 2 x 2 cannot be shifted by 2 pixels",
        ),
        (
            {"engine": "reference", "block_steps": 4},
            DATA,
            "block_steps is for the engine blocked, not reference; leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    changes: dict[str, Any], data: DataSplits, words: str
) -> None:
    with pytest.raises(UserError) as info:
        Trainer([replace(CONFIG, **changes)], data)
    assert (str(info.value), info.value.exit_code) == (words, EXIT_USAGE)


@needs_native
@pytest.mark.parametrize(("steps", "blocks"), [(0, 2), (1, 12), (4, 3)])
def test_block_steps_reach_the_engine(
    steps: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of 12 steps ends a block, and asks whether to stop, so many times."""
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)  # every call is one block
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return False

    fit(replace(CONFIG, engine="blocked", block_steps=steps, epochs=1), DATA, should_stop=stop)
    assert len(asked) == 1 + blocks  # the first before the epoch


def test_validation_under_the_sliding_loader() -> None:
    sliding = replace(CONFIG, loader="sliding", epochs=1)
    shuffled, run = Trainer([CONFIG, sliding], DATA).runs
    assert shuffled.validation is DATA.val
    expected = sliding_part(DATA.val, 8)
    assert expected.total == 40
    assert torch.equal(run.validation.images, expected.images)
    assert (run.images, run.steps) == (88, 11)
    for part, same in ((expected, True), (DATA.val, False)):
        result = fit(sliding, replace(DATA, test=part))
        assert result.test is not None
        assert (result.history[0].val_loss == round(result.test.loss, 6)) == same


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_diverged(loss: float) -> None:
    (run,) = Trainer([CONFIG], DATA).runs
    run.add(EpochMetrics(12, 90, 45.0, 45, finished=True), 1.0)
    assert not run.end_epoch(EvalMetrics(loss, 0.0, 40))
    assert isinstance(run.error, DivergedError)
    assert str(run.error) == (
        f"The validation loss became {loss} in epoch 1 at step 12 of 12 with a learning rate of "
        "0.05; try a smaller lr"
    )
    assert (run.error.epoch, run.error.step) == (1, 12)
    assert run.checkpoint.history == []
    assert not run.active


def test_a_run_notes_its_parts_and_keeps_the_first_best() -> None:
    (run,) = Trainer([CONFIG], DATA).runs
    run.add(EpochMetrics(5, 40, 44.0, 20), 2.0)
    assert run.next_epoch().start_step == 5
    run.add(EpochMetrics(7, 50, 46.0, 16, finished=True), 1.0)
    improved = run.end_epoch(EvalMetrics(1.5, 0.25, 40))
    record = run.checkpoint.history[-1]
    assert improved
    assert (record.train_loss, record.train_acc) == (1.0, 0.4)
    assert (record.val_loss, record.val_acc, record.epoch) == (1.5, 0.25, 1)
    assert (record.lr, record.seconds, record.images_per_s) == (0.05, 3.0, 30.0)
    assert (run.epoch, run.next_epoch().start_step) == (1, 0)
    best = run.checkpoint.best
    run.add(EpochMetrics(12, 90, 45.0, 45, finished=True), 4.0)
    improved = run.end_epoch(EvalMetrics(1.0, 0.25, 40))
    record = run.checkpoint.history[-1]
    assert (record.epoch, record.train_loss, record.seconds, improved) == (2, 0.5, 4.0, False)
    assert run.checkpoint.best is best
    run.add(NonFiniteLossError(3, math.inf), 1.0)
    assert str(run.error).startswith("The loss became inf in epoch 3 at step 4 of 12")


@needs_native
@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_a_run_with_everything_goes_on_bit_by_bit(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)  # every call is one block
    config = replace(RICH, engine="blocked", block_steps=4)
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > steps

    fit(config, DATA, out=tmp_path / "whole")
    assert fit(config, DATA, out=tmp_path / "run", should_stop=stop).interrupted
    assert not resume(tmp_path / "run", DATA).interrupted
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@needs_native
@pytest.mark.parametrize("normalize", ["unit", "standard"])
def test_engines_agree_on_every_variant(normalize: str) -> None:
    config = replace(RICH, normalize=normalize, grad_average=True, lr=0.2, init="normal:0.3")
    runs = [
        fit(replace(config, **engine), DATA)
        for engine in (
            {"engine": "reference"},
            {"engine": "eager"},
            {"engine": "blocked"},
            {"engine": "blocked", "block_steps": 4},
        )
    ]
    for run in runs[1:]:
        for ours, theirs in zip(run.history, runs[0].history, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
            assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-4)
        for name, tensor in run.best_parameters.items():
            torch.testing.assert_close(tensor, runs[0].best_parameters[name])


@pytest.mark.parametrize(
    "change", [{"augment": "none"}, {"loader": "shuffle"}, {"normalize": "unit"}, {"hidden": (16,)}]
)
def test_every_variant_makes_a_difference(change: dict[str, Any]) -> None:
    first, other = (fit(replace(c, epochs=1), DATA) for c in (RICH, replace(RICH, **change)))
    assert first.history[0].train_loss != pytest.approx(other.history[0].train_loss, rel=1e-4)


def test_the_course_preset_runs() -> None:
    course = resolve_config({"epochs": 3, "threads": 1, "device": "cpu"}, preset="course")
    run = fit(course, DATA)
    assert len(run.history) == 3
    assert run.test is not None
    assert tuple(run.best_parameters["0.weight"].shape) == (256, FEATURES)
    assert 0.7 < float(run.best_parameters["0.weight"].std()) < 0.9
    fixed = fit(replace(course, init="kaiming", loader="shuffle"), DATA)
    again = resolve_config({"epochs": 3, "threads": 1, "device": "cpu"}, preset="course-fixed")
    assert_same_tensors(fixed.best_parameters, fit(again, DATA).best_parameters)
