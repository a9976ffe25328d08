"""What the engines measure: metrics of an epoch and of an evaluation, and how they add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochMetrics:
    """What one call of :meth:`Engine.train_epoch` has done for a network: steps, images, the sum of
    their losses times their weights, and how many were classified correctly, each before the step
    that used it."""

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    finished: bool = False
    """Whether the last batch of the epoch is done."""
    weight: float | None = None
    """The sum of the images' weights; None where each counts once."""

    @property
    def loss(self) -> float:
        """Mean loss per image, by their weights; nan before the first step."""
        weight = self.samples if self.weight is None else self.weight
        return self.loss_sum / weight if weight else math.nan

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, 0 to 1; nan before the first step."""
        return self.correct / self.samples if self.samples else math.nan

    def __add__(self, later: EpochMetrics) -> EpochMetrics:
        """Return the metrics of two parts of an epoch that was stopped in between."""
        return EpochMetrics(
            self.steps + later.steps,
            self.samples + later.samples,
            self.loss_sum + later.loss_sum,
            self.correct + later.correct,
            later.finished,
            None if later.weight is None else (self.weight or 0.0) + later.weight,
        )


@dataclass(frozen=True)
class EvalMetrics:
    """Mean loss per image, by their weights, share classified correctly (0 to 1; nan in a
    regression) and number of images."""

    loss: float
    accuracy: float
    count: int


def eval_metrics(
    loss: str, loss_sum: float, weight: float, correct: float, count: int
) -> EvalMetrics:
    """Return the metrics of sums over ``count`` images; ``loss`` is a name of
    :data:`fastmlp.ops.losses.LOSSES`."""
    accuracy = correct / count if classifies(loss) else math.nan
    return EvalMetrics(loss_sum / weight if weight else math.nan, accuracy, count)


def classifies(loss: str) -> bool:
    """Return whether outputs of this loss are classes, so that there is an accuracy."""
    return loss in ("cross_entropy", "binary_cross_entropy")


def batch_weights(weights: Tensor | None, order: Tensor, batch: int) -> Tensor | None:
    """Return the sum of the weights (n,) of each batch of an epoch's ``order``, float64 on the CPU;
    None where there are no weights."""
    if weights is None:
        return None
    parts = torch.split(weights.cpu()[order.cpu()].double(), batch)
    return torch.stack([part.sum() for part in parts])


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, counted from 0 in its epoch, was nan or infinite."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss of step {step} is {loss}")
        self.step = step
        self.loss = loss


class MetricsAccumulator:
    """Accumulates the losses and hits of a network's epoch from ``start_step`` on.

    They stay on the device until they are read, so that no step syncs with it. Raises ValueError
    for a ``start_step`` beyond the epoch. ``weights`` (steps,) are those of
    :func:`batch_weights`.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        start_step: int,
        device: torch.device,
        weights: Tensor | None = None,
    ) -> None:
        self.total = -(-samples // batch)
        if not 0 <= start_step < self.total:
            raise ValueError(f"start_step must be from 0 to {self.total - 1}, got {start_step}")
        self._start = self._next = start_step
        self._losses = torch.empty(self.total, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._sizes = torch.full((self.total,), batch, dtype=torch.float64)
        if samples % batch:
            self._sizes[-1] = samples % batch
        self._weights = weights

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Add the mean losses (steps,) of the next steps and the number of images classified
        correctly in them, as one number or one for each step."""
        self._losses[self._next : self._next + len(losses)] = losses
        self._correct += correct.sum()
        self._next += len(losses)

    @property
    def next_step(self) -> int:
        """The next step, counted from the epoch's first."""
        return self._next

    def read(self) -> EpochMetrics:
        """Return the sums so far; raise NonFiniteLossError for the first non-finite loss."""
        done = slice(self._start, self._next)
        losses, sizes = self._losses[done].double().cpu(), self._sizes[done]
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step = int(bad[0])
            raise NonFiniteLossError(self._start + step, losses[step].item())
        weights = sizes if self._weights is None else self._weights[done]
        return EpochMetrics(
            steps=len(losses),
            samples=int(sizes.sum()),
            loss_sum=(losses * weights).sum().item(),
            weight=None if self._weights is None else weights.sum().item(),
            correct=int(self._correct),
            finished=self._next == self.total,
        )


@dataclass(frozen=True)
class EpochRecord:
    """A row of ``metrics.csv``. Losses are means per image; accuracies are shares, 0 to 1, nan in
    a regression; ``seconds`` is the time spent training, without validation."""

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    lr: float
    seconds: float
    images_per_s: float

    @property
    def score(self) -> float:
        """What the best epoch has most of: validation accuracy or, in a regression, minus the
        validation loss."""
        return -self.val_loss if self.regression else self.val_acc

    @property
    def regression(self) -> bool:
        """Whether it has losses and no accuracies."""
        return math.isnan(self.val_acc)

    @property
    def shown(self) -> tuple[float, float]:
        """What training and validation are shown by: accuracies or, in a regression, losses."""
        if self.regression:
            return self.train_loss, self.val_loss
        return self.train_acc, self.val_acc


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """Return the epoch with the highest score, the first of equals."""
    return max(history, key=lambda record: record.score)
