"""The folder of a run: its files, each written so that a crash never spoils it.

    config.json         the configuration, every "auto" resolved
    encoding.json       how raw rows become inputs, and targets; for a user's own data
    metrics.csv         one row per epoch
    best.pt             state_dict of the best epoch so far: validation accuracy, or loss in a
                        regression
    last.pt             state_dict as of the last save
    resume.pt           everything that a resumed run needs
    resume.previous.pt  the same as of the save before, for where resume.pt is damaged
    curves.png          loss and accuracy by epoch
    summary.json        results, versions and device; the last file, so only a finished run has it
    .lock               empty; the process that trains the run holds a lock on it

Each file is replaced as a whole, and those that are read again hold a digest of their content
(:mod:`fastmlp.utils.formats`). ``resume.pt`` is written after the others and holds all that is in
them, so a resumed run repairs them whenever the program was killed. The ``state_dict`` files load
into ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear)`` with ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmlp.engines.metrics import EpochRecord
from fastmlp.training.checkpoint import Checkpoint, parameters_of, state_from_dict, state_to_dict
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
)
from fastmlp.utils.formats import (
    DamagedFileError,
    has_digest,
    json_bytes,
    parse_tensors,
    read_json,
    tensor_bytes,
)
from fastmlp.utils.value_checks import (
    Fields,
    check_fields,
    is_count,
    is_finite,
    is_name,
    is_object,
    is_share,
    optional,
)

BEFORE_RESUME = {"encoding.json", "config.json", "last.pt", "metrics.csv"}
"""The files that a run writes before its first ``resume.pt``."""


FILES = {
    *BEFORE_RESUME,
    *("best.pt", "resume.pt", "resume.previous.pt", "curves.png", "summary.json"),
}
"""All files of a run."""


_SUMMARY: Fields = {
    "epochs": is_count,
    "test_accuracy": optional(is_share),
    "test_loss": optional(is_finite),
    "source": is_name,
    "best": lambda value: (
        is_object(value)
        and {"epoch", "val_acc", "val_loss"}.issubset(value)
        and all(map(optional(is_finite), value.values()))
    ),
}
"""What is shown of ``summary.json``."""


class RunDirectory:
    """The folder of a run at ``path``. Its methods raise :class:`UserError` where a file cannot be
    read or written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expanded(path)
        self._damaged: list[Path] = []
        self._locks = contextlib.ExitStack()

    @classmethod
    @contextlib.contextmanager
    def new(cls, path: str | Path) -> Iterator[RunDirectory]:
        """Yield a folder for a new run, locked against other processes. It is made at once, and
        removed again where the run came to no ``resume.pt``.

        Raises :class:`UserError` where it exists and holds anything but what is left of a run that
        was killed before it had one.
        """
        folder = cls(path)
        folder._check_free()
        made = not folder.path.exists()
        make_folder(folder.path)
        with folder._locks:
            folder.lock()
            folder._check_free()  # another process may have filled it
            folder._remove_unbegun()
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError, UserError):
                    if folder._unbegun():
                        folder._remove_unbegun()
                        (folder.path / LOCK).unlink()
                        if made:
                            folder.path.rmdir()

    @classmethod
    @contextlib.contextmanager
    def existing(cls, path: str | Path) -> Iterator[RunDirectory]:
        """Yield the folder of a run to resume, locked against other processes; raise
        :class:`UserError` where it is not the folder of a run."""
        folder = cls(path)
        folder.read_config()
        with folder._locks:
            folder.lock()
            remove_files(leftovers(folder.path, *FILES))
            yield folder

    def lock(self) -> None:
        """Lock the folder against other processes, also one that was removed and made again, which
        has another lock."""
        make_folder(self.path)
        self._locks.enter_context(locked_folder(self.path))

    def discard(self) -> None:
        """Remove the files of a run that has come to nothing, so that another can take its
        place."""
        remove_files(self.path / name for name in FILES)

    def _unbegun(self) -> bool:
        """Return whether the folder holds nothing but what a run writes before its first
        ``resume.pt``, if anything."""
        found = {path.name for path in self.path.iterdir()} - {LOCK}
        found -= {path.name for path in leftovers(self.path, *FILES)}
        ours = (has_digest(self.path / name) for name in found if name.endswith(".json"))
        return not found or (found <= BEFORE_RESUME and "config.json" in found and all(ours))

    def _remove_unbegun(self) -> None:
        remove_files(self.path / name for name in BEFORE_RESUME)
        remove_files(leftovers(self.path, *FILES))

    def _check_free(self) -> None:
        try:
            taken = self.path.exists() and not (self.path.is_dir() and self._unbegun())
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
        if taken:
            raise UserError(
                f"{self.path} is there already and is not an empty folder; pass another --out, or "
                f"--resume {self.path} to go on with the run in it"
            )

    @property
    def finished(self) -> bool:
        """Whether the run finished all its epochs."""
        return (self.path / "summary.json").exists()

    @property
    def resumable(self) -> bool:
        """Whether it is the folder of a run that came to its first save."""
        return self.whole and not self._unbegun()

    @property
    def whole(self) -> bool:
        """Whether the folder still has the configuration that makes it the folder of a run."""
        return (self.path / "config.json").exists()

    def read_config(self) -> TrainConfig:
        """Return the configuration of the run."""
        if not self.whole:
            what, remedy = "does not exist", "pass the folder of a run, which has a config.json"
            if self.path.exists():
                what = "is not the folder of a run"
            if self.path.is_file():
                remedy = "pass the folder that holds it"
            raise UserError(f"{self.path} {what}; {remedy}")
        path = self.path / "config.json"
        values = read_json(path)
        try:
            return config_from_dict(values, str(path))
        except UserError as error:  # of the file, whose options are no flags
            if str(path) in str(error):
                raise
            raise UserError(
                f"{path} is damaged: {error}; mend it if you edited it, or train the network again"
            ) from error

    def write_encoding(self, encoding: Mapping[str, Any]) -> None:
        """Write ``encoding.json``."""
        self._write("encoding.json", json_bytes(encoding))

    def read_encoding(self) -> dict[str, Any]:
        """Return what ``encoding.json`` holds; raise :class:`UserError` where there is none."""
        if not self.has_encoding:
            raise UserError(
                f"{self.path} has no encoding.json, so it cannot predict raw rows; pass the folder "
                "of a run on data of your own"
            )
        return read_json(self.path / "encoding.json")

    @property
    def has_encoding(self) -> bool:
        """Whether the run is one on a user's own data."""
        return (self.path / "encoding.json").exists()

    def read_best(self, sizes: Sequence[int]) -> dict[str, Tensor]:
        """Return the parameters in ``best.pt``, of a network of these layer widths."""
        try:
            return parse_tensors(self.path / "best.pt", partial(parameters_of, sizes))
        except DamagedFileError as error:
            raise UserError(f"{error}; train the network again") from error

    def write_config(self, config: TrainConfig) -> None:
        """Write ``config.json``, which makes the folder that of a run."""
        self._write("config.json", json_bytes(config.to_dict()))

    def read_state(self) -> Checkpoint:
        """Return the state of the run, from ``resume.pt``, or with a warning from that of the save
        before where it is missing or damaged."""
        path = self.path / "resume.pt"
        try:
            return parse_tensors(path, state_from_dict)
        except UserError as error:
            try:
                state = parse_tensors(previous_generation(path), state_from_dict)
            except UserError:
                raise self._no_state(error) from error
            self._damaged = [path]
            warnings.warn(
                f"{error}; the run goes on from the save before it, after "
                f"{len(state.history)} epochs",
                stacklevel=2,
            )
            return state

    def _no_state(self, error: UserError) -> UserError:
        """Return what to say where neither file has a state, for the ``error`` with the first."""
        if not isinstance(error, DamagedFileError) and self._unbegun():
            return UserError(
                f"the run in {self.path} was stopped before its first save; start it again, with "
                f"--out {self.path} if you like"
            )
        return UserError(
            f"{error}, so the run cannot be resumed; the parameters that it last saved are in "
            "last.pt and best.pt beside it, if they are there"
        )

    def save(self, state: Checkpoint) -> None:
        """Write the state of the run into all files that a run under way has."""
        self.save_best(state)
        self._write("last.pt", tensor_bytes(state.engine["parameters"]))
        self.write_metrics(state)
        write_file(self.path / "resume.pt", tensor_bytes(state_to_dict(state)), keep_previous=True)

    def save_best(self, state: Checkpoint) -> None:
        """Write ``best.pt``, once there is a best epoch."""
        if state.best:
            self._write("best.pt", tensor_bytes(state.best))

    def write_metrics(self, state: Checkpoint) -> None:
        """Write the whole of ``metrics.csv``."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in fields(EpochRecord)])
        writer.writerows(asdict(record).values() for record in state.history)
        self._write("metrics.csv", text.getvalue().encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, which marks the run as finished."""
        self._write("summary.json", json_bytes(summary))

    def read_summary(self) -> dict[str, Any]:
        """Return the results of a finished run."""
        summary = read_json(self.path / "summary.json")
        try:
            check_fields("the summary", {name: summary.get(name) for name in _SUMMARY}, _SUMMARY)
        except ValueError as error:
            raise UserError(
                f"{self.path / 'summary.json'} is damaged: {error}; remove it, and fastmlp train "
                f"--resume {self.path} writes it again"
            ) from error
        return summary

    def reopen(self) -> None:
        """Prepare to resume: remove the summary, which will be outdated, and a damaged state, so
        that it does not take the place of the one that serves."""
        remove_files([self.path / "summary.json", *self._damaged])

    def _write(self, name: str, data: bytes) -> None:
        write_file(self.path / name, data)
