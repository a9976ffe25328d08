"""Draw a learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fastmlp.plotting.curves import TRAIN, mark_best
from fastmlp.plotting.style import Picture, finish, new_figure, set_title


def lr_range_picture(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float,
    target: str | Path | None = None,
) -> Picture:
    """Draw the loss of each batch and the smoothed loss by learning rate, with the suggested rate
    marked, into the PNG file ``target``; without one, show them if this is a notebook.

    Raises OSError if the file is not writable.
    """
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    axes.plot(lrs, losses, ".", color="0.7", markersize=4, label="loss of a batch, before its step")
    axes.plot(lrs, smoothed, color=TRAIN, linewidth=2, label="smoothed")
    nearest = min(range(len(lrs)), key=lambda i: abs(math.log(lrs[i] / suggestion)))
    mark_best(axes, suggestion, smoothed[nearest], f"{suggestion:g}", label="suggestion")
    axes.set_xscale("log")
    low, top = min(smoothed), max(smoothed[: nearest + 1])
    axes.set_ylim(low - 0.15 * (top - low), top + 0.6 * (top - low))  # the explosion may leave it
    axes.set_xlabel("learning rate")
    axes.set_ylabel("mean loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", edgecolor="none", framealpha=0.85)
    set_title(figure, "Learning-rate range test")
    finish(figure, target)
    return figure
