"""Draw the learning curves of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastmlp.engines.metrics import EpochRecord
from fastmlp.plotting.style import LEGEND, finish, new_figure

TRAIN, VALIDATION = "#0072B2", "#D55E00"
"""Blue and vermillion of Okabe and Ito's palette, distinct for any colour vision."""


def learning_curves(
    history: Sequence[EpochRecord], best_epoch: int, title: str, target: str | Path | None = None
) -> Figure:
    """Draw loss and, except in a regression, accuracy, training and validation, by epoch, into the
    PNG file ``target``; without one, show them if this is a notebook.

    ``history`` holds at least one epoch; ``best_epoch``, one of them, is marked. A ``$`` in the
    title is no formula. Raises OSError if the file is not writable.
    """
    regression = math.isnan(history[-1].val_acc)
    figure = new_figure(5 if regression else 10, 4.2, pad=0.04)
    loss, *others = figure.subplots(1, 1 if regression else 2, squeeze=False)[0]
    epochs = [record.epoch for record in history]
    best = history[epochs.index(best_epoch)]
    train, validation = zip(*((r.train_loss, r.val_loss) for r in history), strict=True)
    draw_both(loss, epochs, train, validation)
    loss.set_ylabel("mean loss")
    mark_best(loss, best_epoch, best.val_loss, f"{best.val_loss:.3f}")
    train, validation = zip(*((r.train_acc, r.val_acc) for r in history), strict=True)
    for accuracy in others:
        draw_both(accuracy, epochs, train, validation)
        accuracy.set_ylabel("accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        mark_best(accuracy, best_epoch, best.val_acc, f"{best.val_acc:.1%}")
    printable = title.encode("utf-8", "replace").decode()  # a file name may hold any bytes
    figure.suptitle(printable, fontsize=11, parse_math=False)
    return finish(figure, target)


def draw_both(
    axes: Axes, epochs: list[int], train: Sequence[float], validation: Sequence[float]
) -> None:
    """Draw both curves, the second unless it is empty, with dots if there are few epochs, so that a
    single one is visible."""
    marker = "o" if len(epochs) <= 25 else None
    for values, colour, line, label in (
        (train, TRAIN, "--", "training"),
        (validation, VALIDATION, "-", "validation"),
    ):
        if not values:
            continue
        style: dict[str, Any] = {"linestyle": line, "marker": marker, "markersize": 3.5}
        axes.plot(epochs, values, color=colour, label=label, **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def mark_best(axes: Axes, place: float, value: float, text: str, label: str | None = None) -> None:
    """Mark the best epoch, or another best ``place``, with a vertical line and a ring, and name it
    in the legend."""
    axes.axvline(place, color="0.55", linewidth=1, linestyle=":")
    axes.plot(
        [place],
        [value],
        color=VALIDATION,
        marker="o",
        markersize=9,
        markerfacecolor="none",
        markeredgewidth=1.8,
        linestyle="none",
        label=f"{label or f'best epoch, {place}'}: {text}",
    )
    axes.legend(**LEGEND, fontsize=10.5)
