"""A training run as such: its network, its epochs, what has come of it. Writes no files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from fastmlp.data.sampling import sliding_part
from fastmlp.data.splits import DataSplits, Subset
from fastmlp.engines.base import Epoch
from fastmlp.engines.metrics import EpochMetrics, EpochRecord, EvalMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.registry import EnginePool, choose_engine, resolve_device
from fastmlp.nn.init import initial_parameters
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import make_epoch
from fastmlp.utils.errors import EXIT_USAGE, UserError


class DivergedError(UserError):
    """The loss became nan or infinite; ``epoch`` and ``step`` count from 1."""

    def __init__(self, message: str, epoch: int, step: int) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


class Training:
    """A run under way: ``state`` is where it stands, ``network`` what ``engine`` trains, ``config``
    has every "auto" resolved. ``engines`` may be shared with other runs on the same data. Raises
    :class:`UserError` where the configuration does not fit the data or the machine, or ``state``
    does not fit either."""

    def __init__(
        self,
        config: TrainConfig,
        data: DataSplits,
        state: Checkpoint | None = None,
        engines: EnginePool | None = None,
    ) -> None:
        device = resolve_device(config.device)
        self.sizes = [data.train.images.shape[1], *config.hidden, data.classes]
        options = OptimizerConfig(
            config.batch_size,
            config.momentum,
            config.nesterov,
            config.weight_decay,
            config.grad_average,
            config.optimizer,
            config.precision,
        )
        kind, reason = choose_engine(config.engine, device, self.sizes, options)
        self.config = replace(config, device=str(device), engine=kind.name)
        self.data = data
        self.images = self._count_images()
        engines = engines or EnginePool(data.train)
        self.engine = engines.get(kind, data.normalization(config.normalize), device)
        parameters = initial_parameters(self.sizes, config.init, config.seed)
        try:
            self.network = self.engine.new_state(
                parameters, options, block_steps=config.block_steps or None
            )
        except ValueError as error:
            raise UserError(str(error), EXIT_USAGE) from error
        self.steps = -(-self.images // config.batch_size)
        fingerprint = data.fingerprint
        if state is None:
            self.state = Checkpoint(fingerprint, reason, self.network.state_dict())
        else:
            self.state = state
            if config.engine == "auto":
                self.state.engine_reason = reason
            self._go_on(fingerprint)

    def _count_images(self) -> int:
        """How many images an epoch uses; raises UserError where they cannot be augmented."""
        try:
            images = len(self.next_epoch_of(0).order)
        except ValueError as error:
            raise UserError(f"augment {self.config.augment}: {error}", EXIT_USAGE) from error
        if self.config.augment != "none" and self.data.shape is None:
            raise UserError(
                "augment needs square images in one plane or three, not rows of "
                f"{self.sizes[0]} numbers; use augment none",
                EXIT_USAGE,
            )
        return images

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
            self.network.load_state_dict(self.state.engine)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"resume.pt does not fit config.json: {error}") from error

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0, that is under way or comes next."""
        return len(self.state.history)

    @property
    def finished(self) -> bool:
        """Whether all its epochs are done."""
        return self.epoch >= self.config.epochs

    @cached_property
    def validation(self) -> Subset:
        """What the epochs are compared on."""
        part = self.data.val
        if self.config.loader == "sliding":
            return sliding_part(part, self.config.batch_size)
        return part

    def next_epoch(self) -> Epoch:
        """The epoch under way, from where it stands."""
        return self.next_epoch_of(self.epoch, self.state.partial.steps)

    def next_epoch_of(self, epoch: int, start_step: int = 0) -> Epoch:
        """Any epoch, counted from 0."""
        images = len(self.data.train.labels)
        return make_epoch(self.config, epoch, images, self.data.shape, start_step)

    def take(self, result: EpochMetrics | NonFiniteLossError, seconds: float) -> None:
        """Notes what an engine has done of the epoch; raises :class:`DivergedError`."""
        if isinstance(result, NonFiniteLossError):
            raise self.diverged("The loss", result.step + 1, result.loss) from result
        self.state.partial += result
        self.state.partial_seconds += seconds

    def end_epoch(self, validation: EvalMetrics) -> tuple[EpochRecord, bool]:
        """Ends an epoch whose steps are done; returns its record and whether it is the best so far.
        Raises :class:`DivergedError`."""
        state = self.state
        if not math.isfinite(validation.loss):
            raise self.diverged("The validation loss", self.steps, validation.loss)
        record = _record(
            self.epoch,
            state.partial,
            validation,
            self.config.lr_at(self.epoch),
            state.partial_seconds,
        )
        improved = not state.history or record.val_acc > state.best_record.val_acc
        state.history.append(record)
        state.partial, state.partial_seconds = EpochMetrics(), 0.0
        if improved:
            state.best = self.network.parameters_state()
        return record, improved

    def diverged(self, what: str, step: int, loss: float) -> DivergedError:
        """The error that says so."""
        return DivergedError(
            f"{what} became {loss} in epoch {self.epoch + 1} at step {step} of {self.steps} with a "
            f"learning rate of {self.config.lr_at(self.epoch):g}; try a smaller --lr",
            self.epoch + 1,
            step,
        )


def train_epochs(
    trainings: Sequence[Training],
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[list[EpochMetrics]], None] | None = None,
) -> list[DivergedError | None]:
    """Runs the next epoch of all these runs, side by side, or as much of it as ``should_stop``
    allows; returns the errors of those that diverged.

    They must share their engine. ``on_progress`` gets what is done since the call. Their epochs
    are not ended: see :meth:`Training.end_epoch`.
    """
    begin = time.perf_counter()
    results = trainings[0].engine.train_epoch(
        [training.network for training in trainings],
        [training.next_epoch() for training in trainings],
        should_stop=should_stop,
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - begin
    images = [r.samples if isinstance(r, EpochMetrics) else 0 for r in results]
    errors: list[DivergedError | None] = []
    for training, result, count in zip(trainings, results, images, strict=True):
        try:
            training.take(result, seconds * count / max(sum(images), 1))
            errors.append(None)
        except DivergedError as error:
            errors.append(error)
    return errors


def _record(
    epoch: int, train: EpochMetrics, validation: EvalMetrics, lr: float, seconds: float
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
        images_per_s=round(train.samples / max(seconds, 1e-9), 1),
    )
