"""The trainer tells its callbacks what happens, in order, and closes them however it ends."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
from support.tiny import stop_after, tiny_data

from fastmlp.training.api import fit
from fastmlp.training.callbacks import Callback, StopOnSignals, StopWhen
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import TrainingRun
from fastmlp.training.trainer import Trainer
from fastmlp.utils.errors import UserError

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(4,), batch_size=30, epochs=2, lr=0.05, device="cpu", threads=1, engine="reference"
)


class Note(Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_train_begin(self, trainer: Trainer) -> None:
        self.told.append("begin")

    def on_progress(self, trainer: Trainer) -> None:
        self.told.append(f"progress {trainer.epochs_done:g}")

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        number = trainer.runs.index(run)
        self.told.append(f"run {number} epoch {run.epoch}{' improved' * improved}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.told.append(f"epoch {trainer.epoch}")

    def on_goals(self, trainer: Trainer) -> bool:
        self.told.append("goals")
        return False

    def on_train_end(self, trainer: Trainer) -> None:
        self.told.append("end")

    def close(self) -> None:
        self.told.append("close")


def test_what_is_told_and_when() -> None:
    note = Note()
    configs = [CONFIG, replace(CONFIG, epochs=1, lr=1e-9)]
    trainer = Trainer(configs, DATA, callbacks=[note])
    trainer.fit()
    assert note.told[0] == "begin"
    assert note.told[-3:] == ["goals", "end", "close"]
    told = [words.removesuffix(" improved") for words in note.told]
    progress = [words for words in told if words.startswith("progress")]
    assert progress[-1] == "progress 2"
    assert "progress 1" in progress
    rest = [words for words in told[1:-3] if not words.startswith("progress")]
    assert rest == ["run 0 epoch 1", "run 1 epoch 1", "epoch 1", "run 0 epoch 2", "epoch 2"]
    assert "run 0 epoch 1 improved" in note.told  # the first is the best so far


def test_new_goals_let_training_go_on() -> None:
    class Raise(Note):
        def on_train_begin(self, trainer: Trainer) -> None:
            trainer.runs[0].goal = 1

        def on_goals(self, trainer: Trainer) -> bool:
            self.told.append(f"goals at {trainer.epoch}")
            trainer.runs[0].goal += 1
            return trainer.runs[0].goal <= CONFIG.epochs

    note = Raise()
    Trainer([CONFIG], DATA, callbacks=[note]).fit()
    assert [w for w in note.told if w.startswith("goals")] == ["goals at 1", "goals at 2"]


@pytest.mark.parametrize("hook", ["on_train_begin", "should_stop", "on_run_epoch_end"])
def test_an_error_closes_all_and_ends_nothing(hook: str) -> None:
    class Fails(Callback):
        pass

    def fail(*args: object) -> None:
        raise UserError("full")

    setattr(Fails, hook, fail)
    first, last = Note(), Note()
    with pytest.raises(UserError, match="full"):
        Trainer([CONFIG], DATA, callbacks=[first, Fails(), last]).fit()
    for note in (first, last):
        assert note.told[-1] == "close"
        assert "end" not in note.told


def test_any_callback_can_stop() -> None:
    note = Note()
    run = fit(CONFIG, DATA, callbacks=[StopWhen(stop_after(3)), note], should_stop=lambda: False)
    assert run.interrupted
    assert run.history == []
    assert note.told[-4:] == ["epoch 0", "goals", "end", "close"]


def test_a_signal_stops_and_its_handler_is_put_back() -> None:
    class Send(Callback):
        def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    trainer = Trainer([CONFIG], DATA, callbacks=[Send(), StopOnSignals()])
    trainer.fit()
    assert [run.epoch for run in trainer.runs] == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_that_fails_to_close_leaves_no_signal_handler_behind() -> None:
    class Broken(Callback):
        def close(self) -> None:
            raise RuntimeError("closing failed")

    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer([replace(CONFIG, epochs=1)], DATA, callbacks=[Broken(), StopOnSignals()])
    with pytest.raises(RuntimeError, match="closing failed"):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_no_callback_is_told() -> None:
    for given, words in (
        (Callback(), r"callbacks must be a list; write callbacks=\[...\] around a single one"),
        ([print], "callbacks must be of classes made from fastmlp.callbacks.Callback, got <built"),
    ):
        with pytest.raises(UserError, match=words):
            fit(CONFIG, DATA, callbacks=given)  # type: ignore[arg-type]
