"""How the learning rate changes from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.3
"""The share of the epochs in which ``one_cycle`` rises."""
DIV, FINAL_DIV = 25.0, 1e4
"""``one_cycle`` begins with the learning rate over the first and ends with that over the second."""


def one_cycle(epoch: int, epochs: int) -> float:
    """Return the factor of ``torch.optim.lr_scheduler.OneCycleLR`` (Smith and Topin, 2018) with its
    defaults, ``total_steps=epochs`` and ``cycle_momentum=False``: up from 1/25 in the first 30 % of
    the epochs, and down to 1/250,000 in the last; 1 for a single epoch."""
    if epochs == 1:
        return 1.0
    low, end, turn = 1 / DIV, 1 / (DIV * FINAL_DIV), WARM_UP * epochs - 1
    if epoch <= turn:
        return _cosine_between(low, 1.0, epoch / turn)
    return _cosine_between(1.0, end, (epoch - turn) / (epochs - 1 - turn))


def _cosine_between(start: float, end: float, share: float) -> float:
    """Return ``start`` for the share 0, ``end`` for 1, half a cosine in between."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


LR_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
    "one_cycle": one_cycle,
}
"""By name: the factor on the learning rate in an epoch, counted from 0, of a number of them."""


def decayed(lr: float, decay: float, epoch: int) -> float:
    """Return ``lr * decay**epoch``, infinity where that is beyond all numbers."""
    try:
        return lr * float(decay) ** epoch
    except OverflowError:
        return math.inf
