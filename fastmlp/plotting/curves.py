"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastmlp.engines.metrics import EpochRecord
from fastmlp.plotting.style import LEGEND
from fastmlp.utils.files import atomic_path

TRAIN, VALIDATION = "#0072B2", "#D55E00"
"""Blue and vermillion of Okabe and Ito's palette, told apart with any colour vision."""


def learning_curves(
    history: Sequence[EpochRecord], best_epoch: int, title: str, target: str | Path
) -> None:
    """Draws loss and accuracy, training and validation, by epoch, into the PNG file ``target``.

    ``history`` holds at least one epoch; ``best_epoch``, one of them, is marked. Raises OSError
    where the file cannot be written. A ``$`` in the title is a dollar.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    loss, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    best = history[epochs.index(best_epoch)]
    _draw(
        loss,
        epochs,
        [record.train_loss for record in history],
        [record.val_loss for record in history],
    )
    loss.set_ylabel("loss per image")
    _mark(loss, best_epoch, best.val_loss, f"{best.val_loss:.3f}")
    _draw(
        accuracy,
        epochs,
        [record.train_acc for record in history],
        [record.val_acc for record in history],
    )
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    _mark(accuracy, best_epoch, best.val_acc, f"{best.val_acc:.1%}")
    printable = title.encode("utf-8", "replace").decode()  # a file name may hold any bytes
    figure.suptitle(printable, fontsize=11, parse_math=False)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw(axes: Axes, epochs: list[int], train: list[float], validation: list[float]) -> None:
    """Both curves; dots as long as there are few epochs, so that a single one is seen."""
    marker = "o" if len(epochs) <= 25 else None
    for values, colour, line, label in (
        (train, TRAIN, "--", "training"),
        (validation, VALIDATION, "-", "validation"),
    ):
        axes.plot(
            epochs,
            values,
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=3.5,
            label=label,
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Axes, epoch: int, value: float, text: str) -> None:
    """A vertical line and a ring at the best epoch; it is named in the legend."""
    axes.axvline(epoch, color="0.55", linewidth=1, linestyle=":")
    axes.plot(
        [epoch],
        [value],
        color=VALIDATION,
        marker="o",
        markersize=9,
        markerfacecolor="none",
        markeredgewidth=1.8,
        linestyle="none",
        label=f"best epoch, {epoch}: {text}",
    )
    axes.legend(**LEGEND, fontsize=10.5)
