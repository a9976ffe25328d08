"""One training run, from its configuration to its results; what the command ``train`` calls."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp.cli.progress import Progress
from fastmlp.data.splits import DataSplits
from fastmlp.engines.metrics import EpochRecord, EvalMetrics
from fastmlp.training.checkpoint import Checkpoint, RunDirectory
from fastmlp.training.cohort import Cohort
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import load_splits
from fastmlp.training.summary import make_summary
from fastmlp.training.trainer import DivergedError, Training, train_epochs
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.signals import stop_on_signals


@dataclass(frozen=True)
class Run:
    """What came of a run. ``best_parameters`` is a plain ``state_dict``."""

    config: TrainConfig
    folder: Path | None
    history: list[EpochRecord]
    best_parameters: dict[str, Tensor]
    test: EvalMetrics | None = None
    """With the best parameters; None where the run was stopped before its end."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What ``summary.json`` holds; empty where the run was stopped before its end, and for one of
    many."""
    diverged: str | None = None
    """Of one of many: how its loss became nan or infinite, where it did."""

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before its end."""
        return self.test is None and self.diverged is None


def fit(
    config: TrainConfig,
    data: DataSplits | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Trains a network, keeps the parameters with the best validation accuracy, and tests those.

    ``data`` is loaded as ``config`` says where it is not given. ``out`` is a folder for the run's
    files (:mod:`fastmlp.training.checkpoint`), new or empty; without one nothing is written. Where
    ``should_stop`` is not given, Ctrl-C and SIGTERM let the present step finish and end the run.
    Raises :class:`UserError` for what the user can mend and :class:`DivergedError`.
    """
    progress = progress or Progress()
    with RunDirectory.new(out) if out is not None else contextlib.nullcontext() as folder:
        if data is None:
            data = load_splits(config, progress.verbose)
            config = replace(config, dataset=data.name)  # "auto" means the same when resumed
        return _run(config, data, folder, None, progress, should_stop)


def fit_many(
    configs: Sequence[TrainConfig],
    data: DataSplits | None = None,
    *,
    should_stop: Callable[[], bool] | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> list[Run]:
    """:func:`fit` for many configurations side by side on the same data; writes no files.

    Each run comes to what :func:`fit` makes of it. One that diverges says so and disturbs no other.
    ``data`` is loaded as the first configuration says where it is not given. ``on_epoch`` is told
    how many epochs of how many are done, of the longest run.
    """
    if not configs:
        return []
    data = data or load_splits(configs[0])
    threads = configs[0].threads or torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(thread_count(threads))
        cohort = Cohort([replace(config, threads=threads) for config in configs], data)
        stop = should_stop or stack.enter_context(stop_on_signals())
        done, epochs = 0, max(config.epochs for config in configs)
        while cohort.running and not stop():
            cohort.train_epoch(stop)
            done += 1
            if on_epoch is not None:
                on_epoch(done, epochs)
        tests = {} if cohort.running else cohort.test()
    return runs_of(cohort, [training.config for training in cohort.trainings], tests)


def runs_of(
    cohort: Cohort, configs: Sequence[TrainConfig], tests: Mapping[int, EvalMetrics]
) -> list[Run]:
    """What the runs of a cohort have come to so far, under these configurations; ``tests`` by their
    numbers."""
    return [
        Run(
            config,
            None,
            training.state.history,
            training.state.best,
            tests.get(i),
            diverged=str(cohort.errors[i]) if i in cohort.errors else None,
        )
        for i, (config, training) in enumerate(zip(configs, cohort.trainings, strict=True))
    ]


def resume(
    path: str | Path,
    data: DataSplits | None = None,
    *,
    epochs: int | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Goes on with the run in the folder ``path`` as if it had never stopped, bit by bit.

    ``epochs`` trains it longer; ``device`` and ``data_dir`` replace what its configuration says.
    On another kind of device the results agree to rounding. Otherwise as :func:`fit`.
    """
    progress = progress or Progress()
    given: dict[str, Any] = {"epochs": epochs, "device": device, "data_dir": data_dir}
    given = {key: value for key, value in given.items() if value is not None}
    with RunDirectory.existing(path) as folder:
        old, state = folder.read_config(), folder.read_state()
        config = _resumed_config(old, state, given)
        data = data or load_splits(config, progress.verbose)
        return _run(config, data, folder, state, progress, should_stop)


def _resumed_config(old: TrainConfig, state: Checkpoint, given: dict[str, Any]) -> TrainConfig:
    """What a run goes on with, where ``given`` replaces values of its ``old`` configuration."""
    config = replace(old, **given)
    if config.epochs < len(state.history):
        raise UserError(
            f"epochs must be at least the {len(state.history)} already done, got {config.epochs}",
            EXIT_USAGE,
        )
    if config.epochs != old.epochs and config.lr_schedule == "cosine":
        raise UserError(
            f"The cosine learning-rate schedule of this run is laid out for {old.epochs} epochs, "
            "so their number cannot change; start a new run, or use --lr-schedule constant",
            EXIT_USAGE,
        )
    if config.device != old.device:
        config = replace(config, engine="auto")  # not every engine runs on every device
    return config


def _run(
    config: TrainConfig,
    data: DataSplits,
    folder: RunDirectory | None,
    state: Checkpoint | None,
    progress: Progress,
    should_stop: Callable[[], bool] | None,
) -> Run:
    config = replace(config, threads=config.threads or torch.get_num_threads())
    if config.data_dir is not None:  # means the same when resumed from another folder
        config = replace(config, data_dir=os.path.abspath(os.path.expanduser(config.data_dir)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(thread_count(config.threads))
        stack.callback(progress.close)
        sitting = _Sitting(config, data, folder, state, progress)
        stop = should_stop or stack.enter_context(stop_on_signals())
        return sitting.run(stop)


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Sums over the batch are split by thread, so the same bits need the same number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Sitting:
    """A run under way, with its folder and what a person sees of it."""

    def __init__(
        self,
        config: TrainConfig,
        data: DataSplits,
        folder: RunDirectory | None,
        state: Checkpoint | None,
        progress: Progress,
    ) -> None:
        self._clock = time.perf_counter()
        self.folder, self.progress = folder, progress
        self.training = Training(config, data, state)
        self.config, self.state = self.training.config, self.training.state
        if state is None:
            self._write_config()  # before all else, so that the folder is known as a run's
            self._save()
        else:
            if folder is not None:
                folder.reopen()
                folder.save(self.state)
            self._write_config()
        self._announce()

    def _announce(self) -> None:
        config, data, say = self.config, self.training.data, self.progress.say
        parts = ", ".join(
            f"{len(part.labels):,} {name}"
            for name, part in (
                ("to train", data.train),
                ("to validate", data.val),
                ("to test", data.test),
            )
        )
        say(f"data     {data.name} from {data.source}: {parts}")
        batches = f"{self.training.steps} batches of {config.batch_size} an epoch"
        say(f"network  {self._network()}, {batches}")
        say(f"engine   {config.engine} on {config.device} ({self.state.engine_reason})")
        if self.folder is not None:
            say(f"folder   {self.folder.path}")
        done = len(self.state.history)
        if done or self.state.partial.steps:
            say(f"resumed  after {done} epochs and {self.state.partial.steps} steps")

    def run(self, stop: Callable[[], bool]) -> Run:
        """Trains until the last epoch is done or ``stop()`` is true."""
        state, training = self.state, self.training
        done = len(state.history) * training.images + state.partial.samples
        self.progress.start(self.config.epochs, training.images, done)
        while not training.finished and not stop():
            self._train_epoch(stop)
        self.progress.close()
        path = self.folder.path if self.folder is not None else None
        if not training.finished:
            self._save()
            self._draw()
            return Run(self.config, path, state.history, state.best)
        training.network.load_parameters(state.best)
        (test,) = training.engine.evaluate([training.network], training.data.test)
        self._count_seconds()
        summary = make_summary(self.config, training.data, state, test)
        if self.folder is not None:
            self.folder.write_summary(summary)
        self._draw()
        return Run(self.config, path, state.history, state.best, test, summary)

    def _train_epoch(self, stop: Callable[[], bool]) -> None:
        """Trains and validates one epoch, or as much of it as ``stop`` allows."""
        training, epoch, before = self.training, self.training.epoch, self.state.partial
        try:
            (error,) = train_epochs(
                [training],
                stop,
                lambda now: self.progress.step(epoch + 1, before + now[0]),
            )
            if error is not None:
                raise error
            if self.state.partial.finished:
                self._end_epoch()
        except DivergedError as error:
            raise self._told(error) from error.__cause__

    def _end_epoch(self) -> None:
        """Measures the network, notes the results, saves."""
        training = self.training
        (validation,) = training.engine.evaluate([training.network], training.validation)
        record, improved = self.training.end_epoch(validation)
        if record.epoch % self.config.save_every == 0 or record.epoch == self.config.epochs:
            self._save()
        elif improved and self.folder is not None:
            self.folder.save_best(self.state)
        self.progress.epoch(record, improved)

    def _told(self, error: DivergedError) -> DivergedError:
        """The error, saying what is left of the run."""
        if self.folder is None or not self.state.history:
            return error
        self.folder.write_metrics(self.state)
        self._draw()
        best = self.folder.path / "best.pt"
        message = f"{error}; the best parameters so far are in {best}"
        return DivergedError(message, error.epoch, error.step)

    def _network(self) -> str:
        return "-".join(map(str, self.training.sizes))

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._clock = now

    def _write_config(self) -> None:
        if self.folder is not None:
            self.folder.write_config(self.config)

    def _save(self) -> None:
        if self.folder is not None:
            self._count_seconds()
            self.state.engine = self.training.network.state_dict()
            self.folder.save(self.state)

    def _draw(self) -> None:
        if self.folder is None or not self.state.history:
            return
        from fastmlp.plotting.curves import learning_curves  # matplotlib takes a second to import

        best = self.state.best_record.epoch
        title = f"{self.folder.path.name}: {self.training.data.name}, {self._network()}"
        learning_curves(self.state.history, best, title, self.folder.path / "curves.png")
