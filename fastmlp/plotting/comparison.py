"""Draw the learning curves of several runs into one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastmlp.engines.metrics import EpochRecord
from fastmlp.plotting.style import LINES, finish, new_figure, set_title

LOG_FROM = 30
"""The smallest ratio of the largest to the smallest loss of a logarithmic axis."""


def compare_runs(
    histories: Mapping[str, Sequence[EpochRecord]], target: str | Path | None = None
) -> Figure:
    """Draw loss and, unless one is a regression, accuracy of several runs by epoch, validation as a
    line and training dashed, into the PNG file ``target``; without one, show them if this is a
    notebook.

    ``histories`` holds at least one epoch for each name. Raises OSError if the file is not
    writable.
    """
    regression = any(history[0].regression for history in histories.values())
    figure = new_figure(6 if regression else 11, 4.8)
    panels = figure.subplots(1, 1 if regression else 2, squeeze=False)[0]
    for place, (name, history) in enumerate(histories.items()):
        colour = _colour(place, len(histories))
        epochs = [record.epoch for record in history]
        marker = "o" if len(epochs) == 1 else None
        for axes, (train, validation) in zip(
            panels, (("train_loss", "val_loss"), ("train_acc", "val_acc")), strict=False
        ):
            values = [getattr(record, validation) for record in history]
            axes.plot(epochs, values, color=colour, marker=marker, label=name)
            values = [getattr(record, train) for record in history]
            axes.plot(epochs, values, color=colour, linestyle="--", linewidth=1, alpha=0.6)
    for axes, what in zip(panels, ("mean loss", "accuracy"), strict=False):
        axes.set_ylabel(what)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    losses = [value for h in histories.values() for r in h for value in (r.val_loss, r.train_loss)]
    if min(losses) > 0 and max(losses) > LOG_FROM * min(losses):
        panels[0].set_yscale("log")
    if not regression:
        panels[1].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    handles, labels = panels[0].get_legend_handles_labels()
    printable = [label.encode("utf-8", "replace").decode() for label in labels]
    legend = figure.legend(handles, printable, loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    set_title(figure, "Validation, and training dashed")
    return finish(figure, target)


def _colour(place: int, count: int) -> str:
    if count <= len(LINES):
        return LINES[place]
    return to_hex(colormaps["viridis"](place / (count - 1)))
