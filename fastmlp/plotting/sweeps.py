"""Draw the results of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from fastmlp.engines.metrics import EpochRecord
from fastmlp.plotting.curves import TRAIN, VALIDATION
from fastmlp.plotting.style import LEGEND, LINES, finish, new_figure, set_title

NAMED = 3
"""The number of lines that are named, the best, if there are more lines than colours."""
LOG_FROM = 6
"""The smallest ratio of the largest to the smallest value of a logarithmic axis."""


@dataclass(frozen=True)
class SweepPoint:
    """One value of a hyper-parameter and the epochs of its runs, one list per seed.

    A run that diverged has fewer epochs than the others, or none; ``ended`` is the word for it.
    """

    value: float | int | str
    histories: list[list[EpochRecord]]
    ended: str = "diverged"


def sweep_picture(
    name: str, points: Sequence[SweepPoint], target: str | Path | None = None, title: str = ""
) -> Figure:
    """Draw the final accuracies or losses by value of the hyper-parameter ``name`` into a PNG file;
    without one, show them if this is a notebook.

    They are means with standard deviations over seeds; below them are the means after each epoch.
    Runs that diverged count in neither and are marked with a cross. Raises ValueError without
    points and OSError if the file is not writable.
    """
    if not points:
        raise ValueError("points must hold at least one value, got none")
    figure = new_figure(7.5, 8.6)
    final, curves = figure.subplots(2, 1, height_ratios=(1, 1.15))
    places, ticks, scale = axis_places([point.value for point in points])
    _draw_final(final, places, points, _whole(name, points))
    if scale is not None:
        final.set_xscale(scale)
    if ticks is not None:
        final.xaxis.set_major_locator(FixedLocator(places))
        final.set_xticks(places, ticks)
        final.xaxis.set_minor_locator(NullLocator())
    final.set_xlabel(name, fontsize=12)
    shown = "loss" if _regression(points) else "accuracy"
    final.set_ylabel(f"{shown} after the last epoch", fontsize=12)
    _draw_by_epoch(curves, name, points, _whole(name, points))
    if title:
        set_title(figure, title)
    for axes in (final, curves):
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        if shown == "accuracy":
            percent = PercentFormatter(xmax=1, decimals=int(high - low < 0.06))
            axes.yaxis.set_major_formatter(percent)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return finish(figure, target)


def _regression(points: Sequence[SweepPoint]) -> bool:
    return any(history[0].regression for p in points for history in p.histories if history)


def _whole(name: str, points: Sequence[SweepPoint]) -> list[list[list[EpochRecord]]]:
    """Return the runs of each value that completed all epochs."""
    longest = max((len(history) for point in points for history in point.histories), default=0)
    wanted = [
        point.value if name == "epochs" and isinstance(point.value, int) else longest
        for point in points
    ]
    return [
        [history for history in point.histories if history and len(history) == epochs]
        for point, epochs in zip(points, wanted, strict=True)
    ]


def axis_places(
    values: Sequence[float | int | str],
) -> tuple[list[float], list[str] | None, str | None]:
    """Return the places of the values, their ticks (None: matplotlib's) and the axis' scale."""
    names = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(values):
        return list(map(float, range(len(values)))), names, None
    ticks = names if len(values) <= len(LINES) else None
    decades = min(numbers) > 0 and max(numbers) >= LOG_FROM * min(numbers)
    return numbers, ticks, "log" if decades else None


def _draw_final(
    axes: Axes,
    places: list[float],
    points: Sequence[SweepPoint],
    whole: list[list[list[EpochRecord]]],
) -> None:
    """Draw the final accuracies, joined in the order of the values."""
    parts: list[tuple[str, dict[str, Any], Callable[[EpochRecord], float]]] = [
        (
            "validation",
            {"color": VALIDATION, "marker": "o", "capsize": 5},
            lambda record: record.shown[1],
        ),
        (
            "training",
            {"color": TRAIN, "marker": "s", "capsize": 9, "linestyle": "--", "mfc": "none"},
            lambda record: record.shown[0],
        ),
    ]
    order = sorted((i for i in range(len(places)) if whole[i]), key=lambda i: places[i])
    for label, style, shown in parts:
        finals = [[shown(history[-1]) for history in whole[i]] for i in order]
        axes.errorbar(
            [places[i] for i in order],
            [mean(values) for values in finals],
            yerr=[stdev(values) if len(values) > 1 else 0.0 for values in finals],
            label=label,
            markersize=8,
            **style,
        )
    for place, point, runs in zip(places, points, whole, strict=True):
        lost, total = len(point.histories) - len(runs), len(point.histories)
        if lost:
            along = axes.get_xaxis_transform()
            axes.plot([place], [0.03], "x", color="black", markersize=9, transform=along)
            axes.annotate(
                f"{lost} of {total}\n{point.ended}",
                (place, 0.03),
                xycoords=along,
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=10,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
    most = max(len(point.histories) for point in points)
    spread = f", mean and standard deviation over {most} runs" if most > 1 else ""
    axes.set_title(f"after the last epoch{spread}", fontsize=11)
    if order:
        axes.legend(**LEGEND, fontsize=11)
    elif not _regression(points):
        axes.set_ylim(0, 1)
    axes.margins(x=0.08, y=0.12)


def _draw_by_epoch(
    axes: Axes, name: str, points: Sequence[SweepPoint], whole: list[list[list[EpochRecord]]]
) -> None:
    """Draw the mean accuracies by epoch, one colour per value, named at the end of its line."""
    ends: list[tuple[float, str, str]] = []
    last = max((len(history) for point in points for history in point.histories), default=0)
    few = len(points) <= len(LINES)
    many, places = colormaps["cividis"], axis_places([point.value for point in points])[0]
    ranks = [sorted(places).index(place) for place in places]
    for index, (point, runs) in enumerate(zip(points, whole, strict=True)):
        colour = LINES[index] if few else to_hex(many(0.85 * ranks[index] / (len(points) - 1)))
        for history in point.histories:
            if history and history not in runs:
                epochs = [record.epoch for record in history]
                values = [record.shown[1] for record in history]
                axes.plot(epochs, values, color=colour, linewidth=1)
                axes.plot(epochs[-1], values[-1], "x", color=colour, markersize=9)
        if runs:
            epochs = [record.epoch for record in runs[0]]
            rows = list(zip(*runs, strict=True))
            marker = "." if len(epochs) <= 25 else ""
            train = [mean(record.shown[0] for record in row) for row in rows]
            values = [mean(record.shown[1] for record in row) for row in rows]
            axes.plot(epochs, train, color=colour, linestyle="--", marker=marker, linewidth=1.2)
            axes.plot(epochs, values, color=colour, marker=marker, linewidth=1.8)
            ends.append((values[-1], axis_places([point.value])[1][0], colour))  # type: ignore[index]
    best = sorted(ends, reverse=not _regression(points))[:NAMED]
    _name_lines(axes, last, ends if few else best)
    styles: Any = (("-", "validation"), ("--", "training"))
    axes.legend(
        handles=[Line2D([], [], color="0.3", linestyle=line, label=text) for line, text in styles],
        **LEGEND,
        fontsize=11,
    )
    axes.set_title(f"after each epoch, mean over the runs, by {name}", fontsize=11)
    axes.set_xlabel("epoch", fontsize=12)
    axes.set_ylabel("loss" if _regression(points) else "accuracy", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _name_lines(axes: Axes, last: int, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's value at its end without overlap."""
    low, high = axes.get_ylim()
    step, floor = 0.055 * (high - low), low
    for height, text, colour in sorted(ends):
        place = max(height, floor)
        floor = place + step
        axes.annotate(
            text,
            (last, height),
            xytext=(1.02, place),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=11,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
