"""``fastmlp.find_lr``: the learning-rate range test (Smith, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import DataSplits
from fastmlp.engines.base import Epoch
from fastmlp.engines.metrics import NonFiniteLossError
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import load_splits, make_epoch
from fastmlp.training.option_schema import ABOVE_ZERO, whole
from fastmlp.training.own_data import configured
from fastmlp.training.run import TrainingRun
from fastmlp.training.trainer import Trainer, thread_count
from fastmlp.utils.errors import EXIT_USAGE, UserError

if TYPE_CHECKING:
    from fastmlp.plotting.style import Picture

SMOOTHING = 0.95
"""The weight of the past in the running mean of the losses."""
EXPLODED = 4.0
"""The test ends where the smoothed loss is so many times the smallest so far."""
BEGINNING = 0.1
"""The share of the steps after which the loss may have exploded: before, its mean is of a few."""


@dataclass(frozen=True)
class LrRange:
    """The result of a range test: the learning rate of each step and the loss of its batch, before
    the step; ``smoothed`` is their running mean, corrected for its beginning as Adam's moments."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]

    def __repr__(self) -> str:
        return f"LrRange({len(self.lrs)} steps, from {self.lrs[0]:g} to {self.lrs[-1]:.2g})"

    @property
    def suggestion(self) -> float:
        """The learning rate two thirds along the longest fall of the smoothed loss; for a constant
        schedule, and rather low for the top of a falling one.

        Raises :class:`UserError` where the loss never falls.
        """
        length, end = _longest_fall(self.smoothed)
        if length < 3:
            raise UserError(
                f"The loss falls at no learning rate from {self.lrs[0]:g} to {self.lrs[-1]:g}; "
                "try a smaller low, a larger high or more steps",
                options=("low", "high", "steps"),
            )
        return float(f"{self.lrs[end - length // 3]:.2g}")

    def plot(self, target: str | Path | None = None) -> Picture:
        """Draw the losses by learning rate into the PNG file ``target``; without one, show them if
        this is a notebook. Return the figure; raise OSError if the file is not writable."""
        from fastmlp.plotting.lr_range import lr_range_picture  # matplotlib takes a second

        return lr_range_picture(self.lrs, self.losses, self.smoothed, self.suggestion, target)


def _longest_fall(losses: Sequence[float]) -> tuple[int, int]:
    """Return the length of the longest falling subsequence and the place of its end: the valley of
    fastai's ``valley``."""
    lengths: list[int] = []
    for i, loss in enumerate(losses):
        lengths.append(1 + max((lengths[j] for j in range(i) if losses[j] > loss), default=0))
    longest = max(lengths)
    return longest, lengths.index(longest)


@overload
def find_lr(x: TrainConfig, y: DataSplits | None = None, **options: Any) -> LrRange: ...
@overload
def find_lr(x: object, y: object, **options: Any) -> LrRange: ...


def find_lr(
    x: object = None,
    y: object = None,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 200,
    **options: Any,
) -> LrRange:
    """Train a fresh network for a few steps, each with a larger learning rate than the last, and
    return the loss at each: the learning-rate range test (Smith, 2017, arXiv:1506.01186).

    ``x``, ``y`` and ``options`` are those of :func:`fastmlp.fit`: rows and targets with options,
    or a configuration with data. The rates go from ``low`` to ``high`` in ``steps`` equal ratios;
    the test ends early where the loss explodes. The optimizer, the batches and their augmentation
    are those of the run.

    >>> import fastmlp, numpy as np
    >>> x = np.random.default_rng(0).normal(size=(500, 4))
    >>> found = fastmlp.find_lr(x, x[:, 0] > 0, batch_size=32)
    >>> 1e-5 < found.suggestion < 1
    True
    >>> run = fastmlp.fit(x, x[:, 0] > 0, batch_size=32, epochs=2, lr=found.suggestion)

    Raises :class:`UserError` for values that cannot be used.
    """
    ABOVE_ZERO.check("low", low)
    ABOVE_ZERO.check("high", high)
    whole(10).check("steps", steps)
    if low >= high:
        raise UserError(
            f"low must be below high, got {low:g} and {high:g}", EXIT_USAGE, options=("low", "high")
        )
    if isinstance(x, TrainConfig):
        if options:
            raise UserError(f"find_lr(config, data) has no option {min(options)!r}", EXIT_USAGE)
        config, data = x, y
    else:
        config, own = configured(x, y, options)
        data = own.splits
    splits = data if isinstance(data, DataSplits) else load_splits(config)
    config = replace(config, threads=config.threads or torch.get_num_threads())
    with thread_count(config.threads):
        (run,) = Trainer([config], splits).runs
        return _range_test(run, low, high, steps)


def _range_test(run: TrainingRun, low: float, high: float, steps: int) -> LrRange:
    found = LrRange([], [], [])
    mean = 0.0
    for step in range(steps):
        lr = low * (high / low) ** (step / (steps - 1))
        (result,) = run.engine.train_epoch([run.state], [_one_step(run, step, lr)])
        if isinstance(result, NonFiniteLossError):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * result.loss
        smoothed = mean / (1 - SMOOTHING ** (step + 1))
        found.lrs.append(lr)
        found.losses.append(result.loss)
        found.smoothed.append(smoothed)
        if step >= BEGINNING * steps and smoothed > EXPLODED * min(found.smoothed):
            break
    if len(found.lrs) < 3:
        raise UserError(
            f"The loss is not finite after {len(found.lrs)} steps from a learning rate of {low:g}; "
            "try a smaller low",
            options=("low",),
        )
    return found


def _one_step(run: TrainingRun, step: int, lr: float) -> Epoch:
    """Return a step of a run, counted over its epochs, as an epoch of its own."""
    epoch, place = divmod(step, run.steps)
    batch = slice(place * run.config.batch_size, (place + 1) * run.config.batch_size)
    whole = make_epoch(run.config, epoch, len(run.data.train.labels), run.data.shape).order
    moves = None if whole.flip_shifts is None else whole.flip_shifts[batch]
    return Epoch(EpochOrder(whole.indices[batch], moves), lr, number=step)
