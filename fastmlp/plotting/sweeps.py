"""Pictures of what a network has learned and of what a sweep has found, each into a PNG file.

Colours are told apart with any colour vision. Functions raise OSError where the file cannot be
written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

from fastmlp.utils.files import atomic_path
from fastmlp.plotting.curves import LEGEND, TRAIN, VALIDATION
from fastmlp.training.checkpoint import EpochRecord

Shape = tuple[int, int, int]
"""Planes, height, width."""

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7B00")
"""One colour for each value of a sweep: Okabe and Ito's palette, its yellow made darker."""
NAMED = 3
"""Lines that are named where there are more of them than colours: those that end highest."""
LOG_FROM = 6
"""The ratio of the largest value to the smallest from which an axis is logarithmic."""


@dataclass(frozen=True)
class SweepPoint:
    """One value of a hyper-parameter, and the epochs of the runs with it, one list per seed. A run
    that diverged has fewer epochs than the others, or none; ``ended`` says so in a word."""

    value: float | int | str
    histories: list[list[EpochRecord]]
    ended: str = "diverged"


def sweep_picture(
    name: str, points: Sequence[SweepPoint], target: str | Path, title: str = ""
) -> None:
    """Draws the final accuracies by the value of the hyper-parameter ``name``, with the standard
    deviation over seeds, and under them those after every epoch, as means over seeds.

    What diverged counts in neither and is marked with a cross. Raises ValueError without points.
    """
    if not points:
        raise ValueError("points must hold at least one value, got none")
    figure = _figure(7.5, 8.6)
    final, curves = figure.subplots(2, 1, height_ratios=(1, 1.15))
    places, ticks, scale = _places([point.value for point in points])
    _draw_final(final, places, points, _whole(name, points))
    if scale is not None:
        final.set_xscale(scale)
    if ticks is not None:
        final.xaxis.set_major_locator(FixedLocator(places))
        final.set_xticks(places, ticks)
        final.xaxis.set_minor_locator(NullLocator())
    final.set_xlabel(name, fontsize=12)
    final.set_ylabel("accuracy after the last epoch", fontsize=12)
    _draw_by_epoch(curves, name, points, _whole(name, points))
    if title:
        _title(figure, title)
    for axes in (final, curves):
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=int(high - low < 0.06)))
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, target)


def _whole(name: str, points: Sequence[SweepPoint]) -> list[list[list[EpochRecord]]]:
    """The runs of each value that went through all their epochs."""
    longest = max((len(history) for point in points for history in point.histories), default=0)
    wanted = [
        point.value if name == "epochs" and isinstance(point.value, int) else longest
        for point in points
    ]
    return [
        [history for history in point.histories if history and len(history) == epochs]
        for point, epochs in zip(points, wanted, strict=True)
    ]


def _places(
    values: Sequence[float | int | str],
) -> tuple[list[float], list[str] | None, str | None]:
    """Where the values stand on their axis, their ticks (None: matplotlib's), and its scale."""
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
    """Final accuracies by value, joined in the order of the values."""
    parts: list[tuple[str, dict[str, Any], Callable[[EpochRecord], float]]] = [
        (
            "validation",
            {"color": VALIDATION, "marker": "o", "capsize": 5},
            lambda record: record.val_acc,
        ),
        (
            "training",
            {"color": TRAIN, "marker": "s", "capsize": 9, "linestyle": "--", "mfc": "none"},
            lambda record: record.train_acc,
        ),
    ]
    order = sorted((i for i in range(len(places)) if whole[i]), key=lambda i: places[i])
    for label, style, accuracy in parts:
        finals = [[accuracy(history[-1]) for history in whole[i]] for i in order]
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
    else:
        axes.set_ylim(0, 1)
    axes.margins(x=0.08, y=0.12)


def _draw_by_epoch(
    axes: Axes, name: str, points: Sequence[SweepPoint], whole: list[list[list[EpochRecord]]]
) -> None:
    """Mean accuracies by epoch, a colour for each value, which stands at the end of its line."""
    ends: list[tuple[float, str, str]] = []
    last = max((len(history) for point in points for history in point.histories), default=0)
    few = len(points) <= len(LINES)
    many, places = colormaps["cividis"], _places([point.value for point in points])[0]
    ranks = [sorted(places).index(place) for place in places]
    for index, (point, runs) in enumerate(zip(points, whole, strict=True)):
        colour = LINES[index] if few else to_hex(many(0.85 * ranks[index] / (len(points) - 1)))
        for history in point.histories:
            if history and history not in runs:
                epochs = [record.epoch for record in history]
                values = [record.val_acc for record in history]
                axes.plot(epochs, values, color=colour, linewidth=1)
                axes.plot(epochs[-1], values[-1], "x", color=colour, markersize=9)
        if runs:
            epochs = [record.epoch for record in runs[0]]
            rows = list(zip(*runs, strict=True))
            marker = "." if len(epochs) <= 25 else ""
            train = [mean(record.train_acc for record in row) for row in rows]
            values = [mean(record.val_acc for record in row) for row in rows]
            axes.plot(epochs, train, color=colour, linestyle="--", marker=marker, linewidth=1.2)
            axes.plot(epochs, values, color=colour, marker=marker, linewidth=1.8)
            ends.append((values[-1], _places([point.value])[1][0], colour))  # type: ignore[index]
    _name_lines(axes, last, ends if few else sorted(ends)[-NAMED:])
    styles: Any = (("-", "validation"), ("--", "training"))
    axes.legend(
        handles=[Line2D([], [], color="0.3", linestyle=line, label=text) for line, text in styles],
        **LEGEND,
        fontsize=11,
    )
    axes.set_title(f"after each epoch, mean over the runs, by {name}", fontsize=11)
    axes.set_xlabel("epoch", fontsize=12)
    axes.set_ylabel("accuracy", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _name_lines(axes: Axes, last: int, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes each line's value at its end, none over another."""
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


def confusion_picture(counts: Tensor, names: Sequence[str], title: str, target: str | Path) -> None:
    """Draws what each class was taken for, in per cent of its images, and the share of each class
    that was recognised. ``counts`` (classes, classes): images of the row's class that were taken
    for the column's."""
    classes = len(names)
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    figure = _figure(8.4, 7)
    matrix, bars = figure.subplots(1, 2, width_ratios=(5, 1), sharey=True)
    matrix.imshow(shares.numpy(), cmap="cividis", vmin=0, vmax=max(0.5, float(shares.max())))
    for row in range(classes):
        for column in range(classes):
            share = float(shares[row, column])
            matrix.text(
                *(column, row, f"{share:.0%}".rstrip("%")),
                ha="center",
                va="center",
                fontsize=11,
                fontweight="bold" if row == column else "normal",
                color="black" if share > 0.5 * float(shares.max()) else "white",
            )
    matrix.set_xticks(range(classes), names, rotation=40, ha="right", rotation_mode="anchor")
    matrix.set_yticks(range(classes), names)
    matrix.set_xlabel("taken for", fontsize=12)
    matrix.set_ylabel("true class", fontsize=12)
    recognised = shares.diagonal().tolist()
    bars.barh(range(classes), recognised, color=TRAIN, height=0.62)
    for row, share in enumerate(recognised):
        bars.text(share, row, f" {share:.0%}", va="center", fontsize=11)
    bars.set_xlim(0, 1.25 * max(*recognised, 0.01))
    bars.set_xticks([])
    bars.set_xlabel("recognised", fontsize=12)
    for axes in (matrix, bars):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=11)
    bars.tick_params(labelleft=False)
    _title(figure, f"{title}\nper cent of the images of each true class")
    _save(figure, target)


def weights_picture(weight: Tensor, shape: Shape, target: str | Path, count: int = 48) -> None:
    """Draws what the ``count`` hidden units with the largest weights look for, as small images.

    ``weight`` (units, features) is the first layer's. Each image is scaled by its own largest
    weight; grey is 0.
    """
    norms = weight.norm(dim=1)
    chosen = norms.argsort(descending=True, stable=True)[:count]
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = _figure(columns * 1.05, rows * 1.05 + 0.55, pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, unit in zip(grid.flat, chosen.tolist(), strict=False):
        image = weight[unit].reshape(shape)
        _show(axes, 0.5 + 0.5 * image / image.abs().max().clamp(min=1e-30))
    for axes in grid.flat:
        axes.set_axis_off()
    _title(
        figure,
        f"first-layer weights of {len(chosen)} of {len(weight)} hidden units, those with the "
        "largest norm",
    )
    _save(figure, target)


def mistakes_picture(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    shape: Shape,
    names: Sequence[str],
    target: str | Path,
    count: int = 15,
) -> None:
    """Draws the images that were classified wrongly with the highest probability.

    ``images`` (n, features) uint8, ``labels`` (n,), ``probabilities`` (n, classes).
    """
    sure, guess = probabilities.max(1)
    sure = torch.where(guess == labels, -1.0, sure)
    chosen = sure.argsort(descending=True, stable=True)[:count]
    chosen = chosen[sure[chosen] >= 0]
    columns = 5
    rows = max(1, -(-len(chosen) // columns))
    figure = _figure(columns * 1.75, rows * 2.25 + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, chosen.tolist(), strict=False):
        _show(axes, images[index].reshape(shape).float() / 255)
        axes.set_title(
            f"{names[int(guess[index])]}, {float(sure[index]):.1%}?\n"
            f"no: {names[int(labels[index])]}",
            fontsize=10.5,
            parse_math=False,
        )
    _title(figure, "the most confident mistakes: what was guessed, how surely, and the true class")
    _save(figure, target)


def _show(axes: Axes, image: Tensor) -> None:
    """An image (planes, height, width) of values from 0 to 1."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")


def _figure(width: float, height: float, pad: float = 0.09) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=pad, h_pad=pad)
    return figure


def _title(figure: Figure, text: str) -> None:
    printable = text.encode("utf-8", "replace").decode()  # a file name may hold any bytes
    figure.suptitle(printable, fontsize=12, parse_math=False)


def _save(figure: Figure, target: str | Path) -> None:
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
