"""The folder of a sweep.

    results.csv       a row for each run: what was varied, its status, its accuracies
    epochs.csv        a row for each epoch of each run
    sweep-NAME.png    a picture for each hyper-parameter that was varied
    best.toml         the best configuration, as ``train --config`` takes it
    resume-N.pt       the state of all runs of process N, from which a stopped sweep resumes
    resume-N.previous.pt    the same as of the save before, for where resume-N.pt is damaged
    .lock             empty; the first process of the sweep holds a lock on it

A sweep resumes every run that it finds in such a folder: the same command finishes one that was
stopped, another one with more values or seeds only adds to it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmlp.engines.metrics import EpochRecord
from fastmlp.sweeps.search_space import shown
from fastmlp.training.callbacks import Callback
from fastmlp.training.checkpoint import Checkpoint, state_from_dict, state_to_dict
from fastmlp.training.config import TrainConfig, config_from_dict
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.files import (
    LOCK,
    expanded,
    leftovers,
    locked_folder,
    make_folder,
    previous_generation,
    remove_files,
    write_file,
    write_text,
)
from fastmlp.utils.formats import parse_tensors, tensor_bytes

if TYPE_CHECKING:
    from fastmlp.sweeps.distributed import ProcessGroup
    from fastmlp.sweeps.results import SweepResult, SweepShare
    from fastmlp.training.trainer import Trainer

FILES = ("results.csv", "epochs.csv", "sweep-*.png", "best.toml", "resume-0.pt")
"""The files that the first process writes."""
SAVE_SECONDS = 30.0
"""The work that a killed sweep loses, at most about."""


def config_key(config: TrainConfig) -> str:
    """Return a key that is equal for configurations with equal results."""
    return json.dumps(config.essentials(), sort_keys=True)


def _config_of(key: str) -> TrainConfig:
    """Return the configuration of a saved key; options that it lacks get their defaults. Raise
    ValueError where it is none."""
    try:
        return config_from_dict(json.loads(key))
    except (RecursionError, UserError) as error:
        raise ValueError(str(error)) from error


class SweepDirectory:
    """The folder of a sweep at ``path``. Its methods raise :class:`UserError` where a file cannot
    be read or written."""

    def __init__(self, path: str | Path, rank: int) -> None:
        self.path = expanded(path)
        self._resume = self.path / f"resume-{rank}.pt"
        self._others: dict[str, Checkpoint] = {}  # runs in the folder that are not this process's
        self._saved = time.monotonic()
        self._locks: contextlib.ExitStack | None = None  # of the first process

    @classmethod
    @contextlib.contextmanager
    def at(cls, path: str | Path, workers: ProcessGroup) -> Iterator[SweepDirectory]:
        """Yield the folder, locked against other sweeps; it is made, and removed again where
        nothing was written into it. Raises :class:`UserError` where it holds something else."""
        folder = cls(path, workers.rank)
        if folder.path.exists() and not folder.path.is_dir():
            raise UserError(f"{folder.path} is a file; pass --out another folder")
        made = not folder.path.exists()
        if not made and not folder._is_of_a_sweep():
            raise UserError(f"{folder.path} holds something else than a sweep; pass another --out")
        make_folder(folder.path)
        with contextlib.ExitStack() as locks:
            if workers.is_first:
                folder._locks = locks
                locks.enter_context(locked_folder(folder.path))
            own = FILES if workers.is_first else (f"resume-{workers.rank}.pt",)
            remove_files(leftovers(folder.path, *own))
            try:
                yield folder
            finally:
                if made and os.listdir(folder.path) == [LOCK]:
                    (folder.path / LOCK).unlink()
                    folder.path.rmdir()

    def _is_of_a_sweep(self) -> bool:
        """Return whether the folder is empty or has the states of a sweep."""
        found = {path.name for path in self.path.iterdir()} - {LOCK}
        found -= {path.name for path in leftovers(self.path, *FILES, "resume-*.pt")}
        return not found or any(name.startswith("resume-") for name in found)

    def read_states(self) -> dict[str, Checkpoint]:
        """Return the states of the runs in the folder, by :func:`config_key`; with a warning those
        of the save before where a file is missing or damaged."""
        states: dict[str, Checkpoint] = {}
        for path in self._resume_files():
            found = self._read(path)
            for key, state in found.items():
                if key not in states or _progress(state) > _progress(states[key]):
                    states[key] = state
            if path == self._resume:
                self._others = found
        return states

    def _resume_files(self) -> list[Path]:
        """Return the files that are there, or of which only the previous generation is."""
        found = {path.name.partition(".")[0] for path in self.path.glob("resume-*.pt")}
        return [self.path / f"{name}.pt" for name in sorted(found)]

    def _read(self, path: Path) -> dict[str, Checkpoint]:
        try:
            return parse_tensors(path, _states)
        except UserError as error:
            previous = previous_generation(path)
            try:
                found = parse_tensors(previous, _states)
            except UserError:
                raise UserError(
                    f"{error}, so the sweep cannot go on; remove it to start anew"
                ) from error
            if path == self._resume:  # the next save must not put it in the place of what serves
                remove_files([path])
            warnings.warn(f"{error}; the sweep goes on from the save before it", stacklevel=3)
            return found

    def save_now_and_then(self, states: Callable[[], Mapping[str, Checkpoint]]) -> None:
        """Save if the last time was a while ago."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save(states())

    def save(self, states: Mapping[str, Checkpoint]) -> None:
        """Write the states of this process's runs."""
        if not self.path.exists():
            warnings.warn(
                f"{self.path} was removed while the sweep ran; it is made again", stacklevel=2
            )
            make_folder(self.path)
            if self._locks is not None:  # it has another lock
                self._locks.enter_context(locked_folder(self.path))
        self._others.update(states)
        values = {key: state_to_dict(state) for key, state in self._others.items()}
        write_file(self._resume, tensor_bytes(values), keep_previous=True)
        self._saved = time.monotonic()

    def write(self, result: SweepResult) -> None:
        """Write the results and the pictures."""
        try:
            result.to_csv(self.path / "results.csv")
            write_text(self.path / "epochs.csv", _epochs_csv(result))
            if any(trial.score > -math.inf for trial in result.trials):
                write_text(self.path / "best.toml", as_toml(result.best))
            result.plot(self.path)
        except OSError as error:
            raise UserError(describe_os_error(error)) from error


class SaveSweep(Callback):
    """Saves the states of this process's runs now and then, and at the end."""

    def __init__(self, folder: SweepDirectory, share: SweepShare) -> None:
        self._folder, self._share = folder, share

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._folder.save_now_and_then(lambda: self._states(trainer))

    def on_train_end(self, trainer: Trainer) -> None:
        self._folder.save(self._states(trainer))

    def _states(self, trainer: Trainer) -> dict[str, Checkpoint]:
        """Return the states by key, without those of runs that diverged, which are lost."""
        return {
            config_key(config): run.save_point()
            for config, run in zip(self._share.seeded, trainer.runs, strict=True)
            if run.error is None
        }


def _states(values: Any) -> dict[str, Checkpoint]:
    """Return the states in the content of a file; raise ValueError where it has none."""
    if not isinstance(values, dict):
        raise ValueError("it does not hold the states of runs")
    states = {}
    for key, run in values.items():
        config, state = _config_of(key), state_from_dict(run)
        if len(state.history) > config.epochs:
            raise ValueError(f"a run of {config.epochs} epochs has {len(state.history)}")
        states[config_key(config)] = state
    return states


def _progress(state: Checkpoint) -> tuple[int, int]:
    return len(state.history), state.partial.steps


def _epochs_csv(result: SweepResult) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*result.values, "seed", *(field.name for field in fields(EpochRecord))])
    for run in result.runs:
        settings = [shown(getattr(run.config, name)) for name in result.values]
        for record in run.history:
            writer.writerow([*settings, run.config.seed, *astuple(record)])
    return text.getvalue()


def _toml(value: Any) -> str:
    """Return a value as TOML has it, which is JSON but for characters beyond 16 bits and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def as_toml(config: TrainConfig) -> str:
    """Return the configuration as ``train --config`` reads it, without the machine's options."""
    lines = [
        f"{name} = {_toml(value)}"
        for name, value in config.essentials().items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"
