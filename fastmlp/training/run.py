"""A training run: its state while it trains, and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from fastmlp.data.sampling import sliding_part
from fastmlp.data.splits import DataSplits, Subset
from fastmlp.engines.base import Engine, Epoch, TrainState, check_shapes
from fastmlp.engines.metrics import (
    EpochMetrics,
    EpochRecord,
    EvalMetrics,
    NonFiniteLossError,
    best_of,
)
from fastmlp.ops.losses import loss_row
from fastmlp.training.checkpoint import Checkpoint, layer_shapes
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import make_epoch
from fastmlp.training.predictor import Predictor, as_module
from fastmlp.training.summary import make_summary
from fastmlp.utils.errors import EXIT_FAILURE, EXIT_USAGE, UserError
from fastmlp.utils.untrusted import reason


class DivergedError(UserError):
    """The loss became nan or infinite; ``epoch`` and ``step`` count from 1."""

    def __init__(self, message: str, epoch: int, step: int) -> None:
        super().__init__(message, EXIT_FAILURE, options=("lr",))
        self.epoch = epoch
        self.step = step


@dataclass(frozen=True)
class RunResult:
    """The result of a run. ``best_parameters`` is a plain ``state_dict``."""

    config: TrainConfig
    folder: Path | None
    history: list[EpochRecord]
    best_parameters: dict[str, Tensor]
    test: EvalMetrics | None = None
    """With the best parameters; None where the run was stopped before its end, and where the data
    has no test part."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The content of ``summary.json``; empty where the run was stopped before its end, and for one
    of many."""
    diverged: str | None = None
    """For one of many: how its loss became nan or infinite."""
    finished: bool = False
    """Whether it trained all its epochs, or was ended early for want of progress."""
    predictor: Predictor | None = None
    """The network with the encoding of raw rows; None where it was not trained on rows and
    targets given to :func:`fastmlp.fit`."""

    def __repr__(self) -> str:
        """Return a line of what it came to, without the history and the parameters."""
        found = [f"{len(self.history)} epochs"]
        if self.history:
            best = best_of(self.history)
            found.append(f"validation {_shown(best.val_loss, best.val_acc)}")
        if self.test is not None:
            found.append(f"test {_shown(self.test.loss, self.test.accuracy)}")
        if self.diverged is not None:
            found.append("diverged")
        return f"RunResult({', '.join(found)}, folder {self.folder})"

    def predict(self, x: object) -> NDArray[Any]:
        """Return the class or number of each raw row; see :meth:`Predictor.predict`."""
        return self._of_rows.predict(x)

    def predict_proba(self, x: object) -> NDArray[Any]:
        """Return the probability of each class; see :meth:`Predictor.predict_proba`."""
        return self._of_rows.predict_proba(x)

    def evaluate(self, x: object, y: object, sample_weight: object = None) -> EvalMetrics:
        """Return loss and accuracy on raw rows; see :meth:`Predictor.evaluate`."""
        return self._of_rows.evaluate(x, y, sample_weight)

    @property
    def model(self) -> nn.Sequential:
        """The network of the best epoch as a module of ``torch.nn``, from normalised inputs to
        outputs before the loss."""
        return as_module(self.best_parameters, self.config.activation)

    @property
    def _of_rows(self) -> Predictor:
        if self.predictor is None:
            raise UserError(
                "This run was not trained on rows given to fastmlp.fit(X, y), so it cannot take "
                "raw rows; call its model with normalised inputs"
            )
        return self.predictor

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before its end."""
        return not self.finished and self.diverged is None


def _shown(loss: float, accuracy: float) -> str:
    return f"loss {loss:.4g}" if math.isnan(accuracy) else f"accuracy {accuracy:.2%}"


class TrainingRun:
    """A run under way: it begins with a fresh ``state``, or resumes from a checkpoint.

    ``config`` has every "auto" resolved; ``checkpoint`` is all that changes in the course of the
    run, of which :meth:`save_point` brings the engine's part up to date; ``goal`` is the number of
    epochs to train for now, which a callback may lower.

    Raises :class:`UserError` where the configuration does not fit the data or the checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataSplits,
        engine: Engine,
        state: TrainState,
        engine_reason: str,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        _check_targets(config, data)
        self.config, self.data = config, data
        self.engine, self.state = engine, state
        self.goal = config.epochs
        self.stopped_early = False
        """Whether a callback has ended it before its last epoch, as :meth:`stop_early` does."""
        self.sizes = layer_sizes(config, data)
        self.images = self._count_images()
        self.steps = -(-self.images // config.batch_size)
        self.error: DivergedError | None = None
        self.test: EvalMetrics | None = None
        self.under_way = EpochMetrics()
        """What is done of the epoch under way, as of the last report."""
        self._clock = time.perf_counter()
        if checkpoint is None:
            self.checkpoint = Checkpoint(data.fingerprint, engine_reason, state.state_dict())
        else:
            self.checkpoint = checkpoint
            self._resume()

    def _resume(self) -> None:
        """Load the checkpoint into the state; raise :class:`UserError` where it does not fit."""
        try:
            self._check_steps(self.checkpoint.partial)
            self.state.load_state_dict(self.checkpoint.engine)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _does_not_fit(error) from error
        self.under_way = self.checkpoint.partial

    def _count_images(self) -> int:
        """Return the number of images in an epoch; raise UserError where they cannot be
        augmented."""
        try:
            images = len(self._epoch(0).order)
        except ValueError as error:
            raise UserError(f"augment {self.config.augment}: {error}", EXIT_USAGE) from error
        if self.config.augment != "none" and self.data.shape is None:
            raise UserError(
                "augment needs square images in one plane or three, not rows of "
                f"{self.sizes[0]} numbers; use augment none",
                EXIT_USAGE,
            )
        return images

    def _check_steps(self, partial: EpochMetrics) -> None:
        if (
            not 0 <= partial.steps < self.steps
            or partial.samples != partial.steps * self.config.batch_size
        ):
            raise ValueError(
                f"{partial.steps} steps of {self.steps} are done, on {partial.samples} rows"
            )

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0, that is under way or comes next."""
        return len(self.checkpoint.history)

    @property
    def finished(self) -> bool:
        """Whether all its epochs are done, or it was ended early."""
        return self.epoch >= self.config.epochs or self.stopped_early

    @property
    def active(self) -> bool:
        """Whether it has epochs left before its goal and has not diverged."""
        return self.epoch < self.goal and self.error is None and not self.stopped_early

    def stop_early(self) -> None:
        """End the run after the epochs that it has: it counts as finished."""
        self.stopped_early = True

    @cached_property
    def validation(self) -> Subset:
        """The images that the epochs are compared on."""
        if self.config.loader == "sliding":
            return sliding_part(self.data.val, self.config.batch_size)
        return self.data.val

    def next_epoch(self) -> Epoch:
        """Return the rest of the epoch under way."""
        return self._epoch(self.epoch, self.checkpoint.partial.steps)

    def _epoch(self, epoch: int, start_step: int = 0) -> Epoch:
        images = len(self.data.train.labels)
        return make_epoch(self.config, epoch, images, self.data.shape, start_step)

    def add(self, result: EpochMetrics | NonFiniteLossError, seconds: float) -> None:
        """Note what an engine has done of the epoch; a loss that is not finite ends the run."""
        if isinstance(result, NonFiniteLossError):
            self.error = self._diverged("The loss", result.step + 1, result.loss)
            self.error.__cause__ = result
            return
        self.checkpoint.partial += result
        self.checkpoint.partial_seconds += seconds

    def end_epoch(self, validation: EvalMetrics) -> bool:
        """End an epoch whose steps are done; return whether it is the best so far. A loss that is
        not finite ends the run."""
        now = self.checkpoint
        if not math.isfinite(validation.loss):
            self.error = self._diverged("The validation loss", self.steps, validation.loss)
            return False
        lr = self.config.lr_at(self.epoch)
        record = _record(self.epoch, now.partial, validation, lr, now.partial_seconds)
        improved = not now.history or record.score > now.best_record.score
        now.history.append(record)
        now.partial, now.partial_seconds = EpochMetrics(), 0.0
        self.under_way = EpochMetrics()
        if improved:
            now.best = self.state.parameters_state()
        return improved

    def _diverged(self, what: str, step: int, loss: float) -> DivergedError:
        return DivergedError(
            f"{what} became {loss} in epoch {self.epoch + 1} at step {step} of {self.steps} with a "
            f"learning rate of {self.config.lr_at(self.epoch):g}; try a smaller lr",
            self.epoch + 1,
            step,
        )

    def save_point(self) -> Checkpoint:
        """Return the checkpoint, brought up to date, to resume from."""
        self.count_seconds()
        self.checkpoint.engine = self.state.state_dict()
        return self.checkpoint

    def count_seconds(self) -> None:
        """Add the time since the last call to the checkpoint's."""
        now = time.perf_counter()
        self.checkpoint.seconds += now - self._clock
        self._clock = now

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``; raises ValueError before the run has been tested."""
        if self.test is None and self.data.test is not None:
            raise ValueError("a run has a summary once it has been tested")
        self.count_seconds()
        return make_summary(self.config, self.data, self.checkpoint, self.test)

    def result(self, config: TrainConfig | None = None) -> RunResult:
        """Return what the run has come to so far, under another ``config`` if one is given."""
        return RunResult(
            config or self.config,
            None,
            self.checkpoint.history,
            self.checkpoint.best,
            self.test,
            diverged=None if self.error is None else str(self.error),
            finished=self.finished and self.error is None,
        )


def _check_targets(config: TrainConfig, data: DataSplits) -> None:
    """Raise :class:`UserError` unless the loss takes such targets."""
    labels = not data.train.labels.is_floating_point()
    if loss_row(config.loss).takes_labels != labels:
        have, losses = ("labels", "cross_entropy") if labels else ("numbers", "squared_error")
        raise UserError(
            f"loss {config.loss} cannot be used for targets that are {have}; pass loss {losses}",
            EXIT_USAGE,
            options=("loss",),
        )


def check_fits(checkpoint: Checkpoint, data: DataSplits, sizes: Sequence[int]) -> None:
    """Raise :class:`UserError` unless the checkpoint is of a run on this data, of a network of
    these layer widths."""
    if data.fingerprint != checkpoint.fingerprint:
        raise UserError(
            f"The run was trained on other data ({checkpoint.fingerprint}) than the present "
            f"({data.fingerprint}); pass the data_dir it was started with",
            options=("data_dir",),
        )
    found = checkpoint.engine.get("parameters", {}).items()
    try:
        check_shapes("parameters", layer_shapes(sizes), {n: tuple(t.shape) for n, t in found})
    except ValueError as error:
        raise _does_not_fit(error) from error


def _does_not_fit(error: Exception) -> UserError:
    return UserError(
        "A run's saved state (resume.pt, or a sweep's resume-N.pt) does not fit its "
        f"configuration: {reason(error)}; train it anew, in another folder"
    )


def layer_sizes(config: TrainConfig, data: DataSplits) -> list[int]:
    """Return the widths of a network's input, hidden layers and output."""
    return [data.train.images.shape[1], *config.hidden, data.classes]


def _record(
    epoch: int, train: EpochMetrics, validation: EvalMetrics, lr: float, seconds: float
) -> EpochRecord:
    """Return a row of metrics, rounded so that an interrupted epoch gives the same row."""
    regression = math.isnan(validation.accuracy)
    return EpochRecord(
        epoch=epoch + 1,
        train_loss=round(train.loss, 6),
        train_acc=math.nan if regression else round(train.accuracy, 6),
        val_loss=round(validation.loss, 6),
        val_acc=round(validation.accuracy, 6),
        lr=float(f"{lr:.8g}"),
        seconds=round(seconds, 6),
        images_per_s=round(train.samples / max(seconds, 1e-9), 1),
    )
