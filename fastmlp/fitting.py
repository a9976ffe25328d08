"""One training run, from its configuration to its results; what the command ``train`` calls."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import TrainConfig
from .data import make_normalization
from .engine_base import Engine, EpochStats, EvalStats, NonFiniteLossError, SgdOptions
from .engines import choose_engine, resolve_device
from .errors import EXIT_USAGE, UserError
from .layers import MLP, init_parameters
from .progress import Progress
from .run_data import RunData, load_run_data
from .run_folder import EpochRecord, RunFolder, RunState
from .stopping import stop_on_signals
from .summary import make_summary


@dataclass(frozen=True)
class Run:
    """What came of a run. ``best_parameters`` is a plain ``state_dict``."""

    config: TrainConfig
    folder: Path | None
    history: list[EpochRecord]
    best_parameters: dict[str, Tensor]
    test: EvalStats | None = None
    """With the best parameters; None where the run was stopped before its end."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What ``summary.json`` holds; empty where the run was stopped before its end."""

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before its end."""
        return self.test is None


class DivergedError(UserError):
    """The loss became nan or infinite; ``epoch`` and ``step`` count from 1."""

    def __init__(self, message: str, epoch: int, step: int) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


def fit(
    config: TrainConfig,
    data: RunData | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Trains a network, keeps the parameters with the best validation accuracy, and tests those.

    ``data`` is loaded as ``config`` says where it is not given. ``out`` is a folder for the run's
    files (:mod:`fastmlp.run_folder`), new or empty; without one nothing is written. Where
    ``should_stop`` is not given, Ctrl-C and SIGTERM let the present step finish and end the run.
    Raises :class:`UserError` for what the user can mend and :class:`DivergedError`.
    """
    progress = progress or Progress()
    with RunFolder.new(out) if out is not None else contextlib.nullcontext() as folder:
        if data is None:
            data = load_run_data(config, progress.verbose)
            config = replace(config, dataset=data.name)  # "auto" means the same when resumed
        return _run(config, data, folder, None, progress, should_stop)


def resume(
    path: str | Path,
    data: RunData | None = None,
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
    with RunFolder.existing(path) as folder:
        old, state = folder.read_config(), folder.read_state()
        config = _resumed_config(old, state, given)
        data = data or load_run_data(config, progress.verbose)
        return _run(config, data, folder, state, progress, should_stop)


def _resumed_config(old: TrainConfig, state: RunState, given: dict[str, Any]) -> TrainConfig:
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


def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order (images,) int64 in which an epoch, counted from 0, visits the training images: a
    function of its arguments alone."""
    return torch.randperm(images, generator=_generator(seed, epoch + 1))


def initial_parameters(sizes: list[int], init: str, seed: int) -> dict[str, Tensor]:
    """The ``state_dict``, float32, that a run with these layer sizes begins with: a function of its
    arguments alone. Raises ValueError for an unknown ``init``."""
    model = MLP(sizes, init="torch", device="meta").to_empty(device="cpu")
    init_parameters(model, init, _generator(seed, 0))
    return model.state_dict()


def _generator(seed: int, stream: int) -> torch.Generator:
    """Independent random numbers for every pair of seed and stream."""
    state = np.random.SeedSequence((seed, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _run(
    config: TrainConfig,
    data: RunData,
    folder: RunFolder | None,
    state: RunState | None,
    progress: Progress,
    should_stop: Callable[[], bool] | None,
) -> Run:
    config = replace(config, threads=config.threads or torch.get_num_threads())
    if config.data_dir is not None:  # means the same when resumed from another folder
        config = replace(config, data_dir=os.path.abspath(os.path.expanduser(config.data_dir)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(config.threads))
        stack.callback(progress.close)
        training = _Training(config, data, folder, state, progress)
        stop = should_stop or stack.enter_context(stop_on_signals())
        return training.run(stop)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sums over the batch are split by thread, so the same bits need the same number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Training:
    """A run under way."""

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        folder: RunFolder | None,
        state: RunState | None,
        progress: Progress,
    ) -> None:
        device = resolve_device(config.device)
        self.sizes = [data.split.train.images.shape[1], *config.hidden, data.classes]
        engine, reason = choose_engine(config.engine, device, self.sizes)
        self.config = replace(config, device=str(device), engine=engine.name)
        self.data, self.folder, self.progress = data, folder, progress
        self._clock = time.perf_counter()
        self.engine = self._make_engine(engine, device)
        self.images = len(data.split.train.labels)
        self.steps = -(-self.images // config.batch_size)
        fingerprint = data.fingerprint()
        if state is None:
            self._write_config()  # before all else, so that the folder is known as a run's
            self.state = RunState(fingerprint, reason, self.engine.state_dict())
            self._save()
        else:
            self.state = state
            if config.engine == "auto":
                self.state.engine_reason = reason
            self._go_on(fingerprint)
            self._write_config()
        self._announce(device)

    def _make_engine(self, engine: type[Engine], device: torch.device) -> Engine:
        config, train = self.config, self.data.split.train
        options = SgdOptions(
            config.batch_size,
            config.momentum,
            config.nesterov,
            config.weight_decay,
            config.grad_average,
        )
        return engine(
            initial_parameters(self.sizes, config.init, config.seed),
            train,
            make_normalization(config.normalize, train.images),
            options,
            device,
        )

    def _go_on(self, fingerprint: str) -> None:
        if fingerprint != self.state.fingerprint:
            raise UserError(
                f"The run was trained on other data ({self.state.fingerprint}) than the present "
                f"({fingerprint}); pass the --data-dir it was started with"
            )
        partial, batch = self.state.partial, self.config.batch_size
        try:
            if not 0 <= partial.steps < self.steps or partial.samples != partial.steps * batch:
                raise ValueError(
                    f"{partial.steps} steps of {self.steps} are done, on {partial.samples} images"
                )
            self.engine.load_state_dict(self.state.engine)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"resume.pt does not fit config.json: {error}") from error
        if self.folder is not None:
            self.folder.reopen()
            self.folder.save(self.state)

    def _announce(self, device: torch.device) -> None:
        config, split, say = self.config, self.data.split, self.progress.say
        parts = ", ".join(
            f"{len(part.labels):,} {name}"
            for name, part in (
                ("to train", split.train),
                ("to validate", split.val),
                ("to test", split.test),
            )
        )
        say(f"data     {self.data.name} from {self.data.source}: {parts}")
        batches = f"{self.steps} batches of {config.batch_size} an epoch"
        say(f"network  {self._network()}, {batches}")
        say(f"engine   {config.engine} on {device} ({self.state.engine_reason})")
        if self.folder is not None:
            say(f"folder   {self.folder.path}")
        done = len(self.state.history)
        if done or self.state.partial.steps:
            say(f"resumed  after {done} epochs and {self.state.partial.steps} steps")

    def run(self, stop: Callable[[], bool]) -> Run:
        """Trains until the last epoch is done or ``stop()`` is true."""
        state, epochs = self.state, self.config.epochs
        done = len(state.history) * self.images + state.partial.samples
        self.progress.start(epochs, self.images, done)
        while len(state.history) < epochs and not stop():
            self._train_epoch(stop)
        self.progress.close()
        path = self.folder.path if self.folder is not None else None
        if len(state.history) < epochs:
            self._save()
            self._draw()
            return Run(self.config, path, state.history, state.best)
        self.engine.load_parameters(state.best)
        test = self.engine.evaluate(self.data.split.test)
        self._count_seconds()
        summary = make_summary(self.config, self.data, state, test)
        if self.folder is not None:
            self.folder.write_summary(summary)
        self._draw()
        return Run(self.config, path, state.history, state.best, test, summary)

    def _train_epoch(self, stop: Callable[[], bool]) -> None:
        """Trains and validates one epoch, or as much of it as ``stop`` allows."""
        state, epoch = self.state, len(self.state.history)
        before, begin = state.partial, time.perf_counter()
        try:
            stats = self.engine.train_epoch(
                epoch_order(self.config.seed, epoch, self.images),
                self.config.lr_at(epoch),
                start_step=before.steps,
                should_stop=stop,
                on_progress=lambda now: self.progress.step(epoch + 1, before + now),
            )
        except NonFiniteLossError as error:
            raise self._diverged("The loss", error.step + 1, error.loss) from error
        state.partial = before + stats
        state.partial_seconds += time.perf_counter() - begin
        if state.partial.finished:
            self._validate()

    def _validate(self) -> None:
        """Ends an epoch: measures the network, notes the results, saves."""
        state, epoch = self.state, len(self.state.history)
        validation = self.engine.evaluate(self.data.split.val)
        if not math.isfinite(validation.loss):
            raise self._diverged("The validation loss", self.steps, validation.loss)
        record = _record(
            epoch, state.partial, validation, self.config.lr_at(epoch), state.partial_seconds
        )
        improved = not state.history or record.val_acc > state.best_record.val_acc
        state.history.append(record)
        state.partial, state.partial_seconds = EpochStats(), 0.0
        if improved:
            state.best = self.engine.parameters_state()
        if record.epoch % self.config.save_every == 0 or record.epoch == self.config.epochs:
            self._save()
        elif improved and self.folder is not None:
            self.folder.save_best(state)
        self.progress.epoch(record, improved)

    def _diverged(self, what: str, step: int, loss: float) -> DivergedError:
        epoch = len(self.state.history)
        kept = ""
        if self.folder is not None and self.state.history:
            self.folder.write_metrics(self.state)
            self._draw()
            kept = f"; the best parameters so far are in {self.folder.path / 'best.pt'}"
        return DivergedError(
            f"{what} became {loss} in epoch {epoch + 1} at step {step} of {self.steps} with a "
            f"learning rate of {self.config.lr_at(epoch):g}; try a smaller --lr{kept}",
            epoch + 1,
            step,
        )

    def _network(self) -> str:
        return "-".join(map(str, self.sizes))

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
            self.state.engine = self.engine.state_dict()
            self.folder.save(self.state)

    def _draw(self) -> None:
        if self.folder is None or not self.state.history:
            return
        from .plots import learning_curves  # matplotlib takes a second to import

        best = self.state.best_record.epoch
        title = f"{self.folder.path.name}: {self.data.name}, {self._network()}"
        learning_curves(self.state.history, best, title, self.folder.path / "curves.png")


def _record(
    epoch: int, train: EpochStats, validation: EvalStats, lr: float, seconds: float
) -> EpochRecord:
    """Rounded to what means something, so that an epoch in two sittings gives the same row."""
    return EpochRecord(
        epoch=epoch + 1,
        train_loss=round(train.loss, 6),
        train_acc=round(train.accuracy, 6),
        val_loss=round(validation.loss, 6),
        val_acc=round(validation.accuracy, 6),
        lr=float(f"{lr:.8g}"),
        seconds=round(seconds, 6),
        images_per_s=round(train.samples / seconds, 1),
    )
