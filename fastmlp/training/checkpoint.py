"""The folder of a run: its files, each written so that a crash never spoils it.

    config.json    the configuration, every "auto" resolved
    encoding.json  how raw rows become inputs, and targets; for a user's own data
    metrics.csv    one row per epoch
    best.pt        state_dict of the best epoch so far: validation accuracy, or loss in a regression
    last.pt        state_dict as of the last save
    resume.pt      everything that a resumed run needs
    summary.json   results, versions and device; only in the folder of a finished run
    curves.png     loss and accuracy by epoch
    .lock          empty; the process that trains the run holds a lock on it

Each file is replaced as a whole. ``resume.pt`` is written after the others and holds all that is in
them, so a resumed run repairs them whenever the program was killed. The ``state_dict`` files load
into ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear)`` with ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.dataset import current_name
from fastmlp.engines.metrics import EpochMetrics, EpochRecord
from fastmlp.training.config import TrainConfig, config_from_dict
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.files import LOCK, locked_folder, write_bytes

FORMAT = 1
"""The version of ``resume.pt``."""


@dataclass
class Checkpoint:
    """The state of a run: all that changes in its course, and the fingerprint of its data."""

    fingerprint: str
    """The hash of the data, which must be the same when the run resumes."""
    engine_reason: str
    """Why the engine was chosen."""
    engine: dict[str, dict[str, Tensor]]
    """The ``state_dict`` of parameters and optimizer state."""
    history: list[EpochRecord] = field(default_factory=list)
    """The finished epochs."""
    partial: EpochMetrics = field(default_factory=EpochMetrics)
    """The steps done of the epoch after them."""
    partial_seconds: float = 0.0
    """The time that those steps took."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The parameters after the best epoch; empty before the first."""
    seconds: float = 0.0
    """The duration of the run in all sittings, without loading the data."""

    @property
    def best_record(self) -> EpochRecord:
        """The epoch with the highest score, the first of equals."""
        return max(self.history, key=lambda record: record.score)


class RunDirectory:
    """The folder of a run at ``path``. Its methods raise :class:`UserError` where a file cannot be
    read or written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.expanduser(path))

    @classmethod
    @contextlib.contextmanager
    def new(cls, path: str | Path) -> Iterator[RunDirectory]:
        """Yield a folder for a new run, locked against other processes. It is made at once, and
        removed again where nothing was written into it.

        Raises :class:`UserError` where it exists and is not empty.
        """
        folder = cls(path)
        folder._check_empty()
        made = not folder.path.exists()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
        with locked_folder(folder.path):
            folder._check_empty()  # another process may have filled it
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):
                    if not folder._content():
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
        with locked_folder(folder.path):
            yield folder

    def _content(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != LOCK]

    def _check_empty(self) -> None:
        try:
            taken = self.path.exists() and (not self.path.is_dir() or self._content())
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

    def read_config(self) -> TrainConfig:
        """Return the configuration of the run."""
        if not (self.path / "config.json").exists():
            what, remedy = "does not exist", "pass --resume a folder that has a config.json"
            if self.path.exists():
                what = "is not the folder of a run"
            if self.path.is_file():
                remedy = "pass the folder that holds it"
            raise UserError(f"{self.path} {what}; {remedy}")
        return config_from_dict(self._read_json("config.json"), str(self.path / "config.json"))

    def write_encoding(self, encoding: Mapping[str, Any]) -> None:
        """Write ``encoding.json``."""
        self._write("encoding.json", _json_bytes(encoding))

    def read_encoding(self) -> dict[str, Any]:
        """Return what ``encoding.json`` holds; raise :class:`UserError` where there is none."""
        if not (self.path / "encoding.json").exists():
            raise UserError(
                f"{self.path} has no encoding.json, so it cannot predict raw rows; pass the folder "
                "of a run on data of your own"
            )
        return self._read_json("encoding.json")

    def read_best(self) -> dict[str, Tensor]:
        """Return the parameters in ``best.pt``."""
        path = self.path / "best.pt"
        try:
            values = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
        except Exception as error:  # torch's unpickler raises any, by the byte that is wrong
            raise UserError(f"{path} is damaged; train the network again") from error
        return dict(values)

    def write_config(self, config: TrainConfig) -> None:
        """Write ``config.json``, which makes the folder that of a run."""
        self._write("config.json", _json_bytes(config.to_dict()))

    def read_state(self) -> Checkpoint:
        """Return the state of the run, from ``resume.pt``."""
        path = self.path / "resume.pt"
        try:
            data = path.read_bytes()  # torch.load itself raises an OSError for a file cut short
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return state_from_dict(values)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing, so the run cannot be resumed") from error
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
        except Exception as error:  # torch's unpickler raises any, by the byte that is wrong
            raise UserError(
                f"{path} is damaged, so the run cannot be resumed; what it last saved is in "
                "last.pt and best.pt beside it"
            ) from error

    def save(self, state: Checkpoint) -> None:
        """Write the state of the run into all files that a run under way has."""
        self.save_best(state)
        self._write("last.pt", torch_bytes(state.engine["parameters"]))
        self.write_metrics(state)
        self._write("resume.pt", torch_bytes(state_to_dict(state)))

    def save_best(self, state: Checkpoint) -> None:
        """Write ``best.pt``, once there is a best epoch."""
        if state.best:
            self._write("best.pt", torch_bytes(state.best))

    def write_metrics(self, state: Checkpoint) -> None:
        """Write the whole of ``metrics.csv``."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in fields(EpochRecord)])
        writer.writerows(asdict(record).values() for record in state.history)
        self._write("metrics.csv", text.getvalue().encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, which marks the run as finished."""
        self._write("summary.json", _json_bytes(summary))

    def read_summary(self) -> dict[str, Any]:
        """Return the results of a finished run."""
        summary = self._read_json("summary.json")
        for key, kinds in (("epochs", (int,)), ("test_accuracy", (int, float, type(None)))):
            if key not in summary or type(summary[key]) not in kinds:
                raise UserError(f"{self.path / 'summary.json'} is damaged: {key} is not a number")
        return summary

    def reopen(self) -> None:
        """Prepare to resume: remove the summary, which will be outdated, and what a killed program
        left half-written."""
        try:
            for path in (self.path / "summary.json", *self.path.glob(".*.tmp")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(describe_os_error(error)) from error

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON or too deep
            raise UserError(f"{path} is damaged: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} is damaged: it does not hold a JSON object")
        return values

    def _write(self, name: str, data: bytes | memoryview) -> None:
        write_file(self.path / name, data)


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Write a file as a whole; raise :class:`UserError` where it cannot be written."""
    try:
        write_bytes(target, data)
    except OSError as error:
        told = OSError(error.errno, error.strerror or str(error), str(target))
        raise UserError(describe_os_error(told)) from error


def state_to_dict(state: Checkpoint) -> dict[str, Any]:
    """Return the content of ``resume.pt``."""
    values = {item.name: getattr(state, item.name) for item in fields(state)}
    values["format"] = FORMAT
    values["history"] = [asdict(record) for record in state.history]
    values["partial"] = asdict(state.partial)
    return values


def state_from_dict(values: dict[str, Any]) -> Checkpoint:
    """Return the state in the content of ``resume.pt``; raise any error where that is damaged."""
    if values.pop("format") != FORMAT:
        raise ValueError("resume.pt has another format")
    name, _, digest = values["fingerprint"].rpartition(":")
    values["fingerprint"] = f"{current_name(name)}:{digest}"
    values["history"] = [EpochRecord(**record) for record in values["history"]]
    values["partial"] = EpochMetrics(**values["partial"])
    return Checkpoint(**values)


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def torch_bytes(value: object) -> memoryview:
    """Return what ``torch.save`` writes; in memory, because on a full disk ``torch.save`` raises
    errors that do not say so."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()
