"""Callbacks that write what is measured: tables, TensorBoard, the parameters of the best epochs."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastmlp.engines.metrics import EpochRecord
from fastmlp.training.callbacks import Callback
from fastmlp.training.option_schema import whole
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import expanded, make_folder, write_file
from fastmlp.utils.formats import tensor_bytes

if TYPE_CHECKING:
    from fastmlp.training.run import TrainingRun
    from fastmlp.training.trainer import Trainer


class PrintEpochs(Callback):
    """Prints a line for each epoch of each run, as ``verbose=True`` does: losses, accuracies, the
    learning rate, seconds and speed.

    >>> import fastmlp, io, numpy as np
    >>> lines, X = io.StringIO(), np.random.default_rng(0).normal(size=(300, 4))
    >>> printer = fastmlp.callbacks.PrintEpochs(lines)
    >>> run = fastmlp.fit(X, X[:, 0] > 0, epochs=2, callbacks=[printer])
    >>> [line.split("  train")[0] for line in lines.getvalue().splitlines()]
    ['epoch 1/2', 'epoch 2/2']
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream`` is standard output where it is not given."""
        self._stream = stream

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        line = epoch_line(run.checkpoint.history[-1], run.config.epochs, unit_of(trainer), improved)
        if len(trainer.runs) > 1:
            line = f"run {trainer.runs.index(run)}  {line}"
        print(line, file=self._stream, flush=True)


def unit_of(trainer: Trainer) -> str:
    """Return what the data has many of: "rows" or "images"."""
    return "rows" if trainer.data.shape is None else "images"


def epoch_line(record: EpochRecord, epochs: int, unit: str, improved: bool) -> str:
    """Return an epoch in one line; ``improved`` says that its parameters are the best so far."""
    return (
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}"
        f"  train {record.train_loss:.4f}{_share(record.train_acc)}"
        f"  validation {record.val_loss:.4f}{_share(record.val_acc)}"
        f"  lr {record.lr:.4g}  {record.seconds:.2f} s"
        f"  {record.images_per_s:,.0f} {unit}/s"
        f"{'  [MODEL SAVED]' if improved else ''}"
    )


def _share(accuracy: float) -> str:
    """Return an accuracy as a column; nothing in a regression, which has none."""
    return "" if math.isnan(accuracy) else f" {accuracy:6.2%}"


class _Table(Callback):
    """Writes a row for each epoch of each run; the file is whole at any time."""

    def __init__(self, path: str | Path) -> None:
        self._path = expanded(path)

    def on_train_begin(self, trainer: Trainer) -> None:
        self.on_epoch_end(trainer)  # a path that cannot be written is known at once

    def on_epoch_end(self, trainer: Trainer) -> None:
        write_file(self._path, self._text(_rows(trainer)).encode())

    def _text(self, rows: Iterator[dict[str, Any]]) -> str:
        raise NotImplementedError


def _rows(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Yield the epochs of all runs, which are numbered from 0."""
    for number, run in enumerate(trainer.runs):
        for record in run.checkpoint.history:
            yield {"run": number, **asdict(record)}


class CSVLogger(_Table):
    """Writes a row of a CSV file for each epoch: the number of the run, from 0, and the fields of
    :class:`~fastmlp.engines.metrics.EpochRecord`. As ``keras.callbacks.CSVLogger``.

    >>> import fastmlp, numpy as np
    >>> rows, targets = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2
    >>> run = fastmlp.fit(rows, targets, epochs=2, callbacks=[CSVLogger("epochs.csv")])
    >>> len(open("epochs.csv").readlines())
    3
    """

    def _text(self, rows: Iterator[dict[str, Any]]) -> str:
        text = io.StringIO(newline="")
        names = ["run", *(field.name for field in fields(EpochRecord))]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


class JSONLogger(_Table):
    """Writes a JSON object a line for each epoch, as :class:`CSVLogger` its row; null where a value
    is nan.

    >>> import fastmlp, json, numpy as np
    >>> rows, targets = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2
    >>> run = fastmlp.fit(rows, targets, epochs=2, callbacks=[JSONLogger("epochs.jsonl")])
    >>> [json.loads(line)["epoch"] for line in open("epochs.jsonl")]
    [1, 2]
    """

    def _text(self, rows: Iterator[dict[str, Any]]) -> str:
        return "".join(
            json.dumps({name: None if math.isnan(value) else value for name, value in row.items()})
            + "\n"
            for row in rows
        )


class TensorBoard(Callback):
    """Writes losses, accuracies and learning rate by epoch for TensorBoard, and the configuration,
    into ``folder``; several runs into folders below it, ``run-0``, ``run-1``, ....

    By ``torch.utils.tensorboard`` or, where the package tensorboard is missing, tensorboardX;
    raises :class:`UserError` where both are.

    >>> import fastmlp, numpy as np
    >>> rows, targets = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2
    >>> run = fastmlp.fit(rows, targets, epochs=2, callbacks=[TensorBoard("logs")])
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = expanded(folder)
        self._make = _summary_writer()
        self._writers: list[Any] = []

    def on_train_begin(self, trainer: Trainer) -> None:
        for number, run in enumerate(trainer.runs):
            folder = self._folder if len(trainer.runs) == 1 else self._folder / f"run-{number}"
            make_folder(folder)
            writer = self._make(str(folder), purge_step=run.epoch + 1 if run.epoch else None)
            writer.add_text("configuration", f"```\n{json.dumps(run.config.to_dict(), indent=2)}")
            self._writers.append(writer)

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        writer, record = self._writers[trainer.runs.index(run)], run.checkpoint.history[-1]
        values = {
            "loss/training": record.train_loss,
            "loss/validation": record.val_loss,
            "accuracy/training": record.train_acc,
            "accuracy/validation": record.val_acc,
            "learning rate": record.lr,
            "images per second": record.images_per_s,
        }
        for name, value in values.items():
            if not math.isnan(value):  # a regression has no accuracies
                writer.add_scalar(name, value, record.epoch)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = []


def _summary_writer() -> Any:
    """Return the class that writes TensorBoard's files."""
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).SummaryWriter
    raise UserError(
        "The callback TensorBoard needs the package tensorboard, or tensorboardX; install one: "
        "pip install tensorboard"
    )


class ModelCheckpoint(Callback):
    """Keeps the parameters of the ``save_top_k`` best epochs of each run in ``folder``, as
    ``epoch-0012.pt`` or, of several runs, ``run-3-epoch-0012.pt``: state dicts like ``best.pt``.

    The best are those with the highest :attr:`~fastmlp.engines.metrics.EpochRecord.score`, of
    equals the first. As Lightning's ``ModelCheckpoint``.

    >>> import fastmlp, numpy as np, os
    >>> rows, targets = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2
    >>> run = fastmlp.fit(rows, targets, epochs=5, callbacks=[ModelCheckpoint("best", 2)])
    >>> len(os.listdir("best"))
    2
    """

    def __init__(self, folder: str | Path, save_top_k: int = 3) -> None:
        whole(1).check("save_top_k", save_top_k)
        self._folder, self._top = expanded(folder), save_top_k

    def on_run_epoch_end(self, trainer: Trainer, run: TrainingRun, improved: bool) -> None:
        number = trainer.runs.index(run) if len(trainer.runs) > 1 else None
        history = run.checkpoint.history
        best = sorted(history, key=lambda record: record.score, reverse=True)[: self._top]
        if history[-1] not in best:
            return
        write_file(self._path(number, len(history)), tensor_bytes(run.state.parameters_state()))
        kept = {record.epoch for record in best}
        for record in history:
            if record.epoch not in kept:
                self._path(number, record.epoch).unlink(missing_ok=True)

    def _path(self, number: int | None, epoch: int) -> Path:
        run = "" if number is None else f"run-{number}-"
        return self._folder / f"{run}epoch-{epoch:04}.pt"
