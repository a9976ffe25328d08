"""How the learning rate changes from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

LR_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * epoch / epochs)),
}
"""By name: the factor on the learning rate in an epoch, counted from 0, of a number of them."""


def decayed(lr: float, decay: float, epoch: int) -> float:
    """Return ``lr * decay**epoch``, infinity where that is beyond all numbers."""
    try:
        return lr * float(decay) ** epoch
    except OverflowError:
        return math.inf
