"""Draw what the course's notebook draws: a training's results, and values of a hyper-parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fastmlp.plotting.curves import TRAIN, VALIDATION, draw_both, mark_best
from fastmlp.plotting.style import LEGEND, LINES, Picture, finish, new_figure
from fastmlp.plotting.sweeps import axis_places


def plot_result(
    train_loss: Sequence[float],
    train_acc: Sequence[float],
    valid_loss: Sequence[float],
    valid_acc: Sequence[float],
    *,
    target: str | Path | None = None,
) -> Figure:
    """Draw the logs of a training by epoch, losses beside accuracies in per cent, with the epoch of
    the lowest validation loss marked; show them in a notebook and return the figure.

    Each holds a number for each epoch; those of the validation may be empty. ``target`` is a PNG
    file to write instead of showing them. Raises ValueError for logs of other lengths.
    """
    logs = {
        name: _numbers(name, log)
        for name, log in (
            ("train_loss", train_loss),
            ("train_acc", train_acc),
            ("valid_loss", valid_loss),
            ("valid_acc", valid_acc),
        )
    }
    lengths = {name: len(log) for name, log in logs.items() if log or name.startswith("train")}
    if len(set(lengths.values())) > 1 or not lengths["train_loss"]:
        raise ValueError(f"the logs must be of one length, at least 1, got {lengths}")
    figure = new_figure(10, 4.2, pad=0.04)
    loss, accuracy = figure.subplots(1, 2)
    epochs = list(range(1, lengths["train_loss"] + 1))
    draw_both(loss, epochs, logs["train_loss"], logs["valid_loss"])
    draw_both(accuracy, epochs, logs["train_acc"], logs["valid_acc"])
    loss.set_ylabel("loss")
    accuracy.set_ylabel("accuracy")
    _in_per_cent(accuracy)
    finite = [i for i, value in enumerate(logs["valid_loss"]) if math.isfinite(value)]
    if finite and logs["valid_acc"]:
        best = min(finite, key=lambda i: logs["valid_loss"][i])
        lowest, reached = logs["valid_loss"][best], logs["valid_acc"][best]
        mark_best(loss, epochs[best], lowest, f"{lowest:.4g}")
        mark_best(accuracy, epochs[best], reached, f"{reached:.1f}%")
    else:
        loss.legend(**LEGEND, fontsize=10.5)
        accuracy.legend(**LEGEND, fontsize=10.5)
    return finish(figure, target)


def plot_curves(
    values: Sequence[Any],
    train_acc: Sequence[Any],
    valid_acc: Sequence[Any],
    *,
    name: str = "value",
    target: str | Path | None = None,
) -> Figure:
    """Draw the accuracies in per cent that values of a hyper-parameter, called ``name``, gave; show
    them in a notebook and return the figure.

    ``train_acc`` and ``valid_acc`` hold for each value its accuracy, or those of its epochs as
    training returns them, which are then drawn by epoch. ``target`` is a PNG file to write instead.
    Raises ValueError where they are not as many as the values.
    """
    for called, given in (("values", values), ("train_acc", train_acc), ("valid_acc", valid_acc)):
        if not hasattr(given, "__len__") or isinstance(given, str):
            raise ValueError(f"{called} must be a list, got {type(given).__name__}")
    # numbers of NumPy and tensors by themselves are written as what they hold
    values = [value.item() if hasattr(value, "item") else value for value in values]
    counts = {"values": len(values), "train_acc": len(train_acc), "valid_acc": len(valid_acc)}
    if len(set(counts.values())) > 1 or not values:
        raise ValueError(
            f"there must be accuracies for each value, as many as values, got {counts}"
        )
    if any(np.ndim(log) for log in (*train_acc, *valid_acc)):
        of_train = [_numbers("train_acc", log) for log in train_acc]
        of_valid = [_numbers("valid_acc", log) for log in valid_acc]
        return finish(_by_epoch(values, of_train, of_valid, name), target)
    train, valid = _numbers("train_acc", train_acc), _numbers("valid_acc", valid_acc)
    return finish(_by_value(values, train, valid, name), target)


def _numbers(name: str, log: Any) -> list[float]:
    """Return a log as numbers; raise ValueError, naming it, for what is none."""
    if np.ndim(log) != 1:
        raise ValueError(f"{name} must be a list of numbers, got {type(log).__name__}")
    return [float(value) for value in log]


def _in_per_cent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))


def _by_value(values: Sequence[Any], train: list[float], valid: list[float], name: str) -> Picture:
    """Draw one accuracy for each value, and name the highest in validation."""
    figure = new_figure(6.4, 4.2, pad=0.04)
    axes = figure.subplots()
    places, ticks, scale = axis_places(values)
    order = sorted(range(len(values)), key=lambda i: places[i])
    for accuracies, colour, line, mark, label in (
        (train, TRAIN, "--", "s", "training"),
        (valid, VALIDATION, "-", "o", "validation"),
    ):
        axes.plot(
            [places[i] for i in order],
            [accuracies[i] for i in order],
            color=colour,
            linestyle=line,
            marker=mark,
            label=label,
        )
    if scale is not None:
        axes.set_xscale(scale)
    if ticks is not None:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.set_xticks(places, ticks)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(name, fontsize=12)
    axes.set_ylabel("accuracy", fontsize=12)
    axes.margins(x=0.08, y=0.15)
    _in_per_cent(axes)
    finite = [i for i, value in enumerate(valid) if math.isfinite(value)]
    if finite:
        best = max(finite, key=lambda i: valid[i])
        shown = ticks[best] if ticks is not None else f"{values[best]:.4g}"
        mark_best(axes, places[best], valid[best], f"{valid[best]:.1f}%", f"best, {shown}")
    _tidy(axes)
    return figure


def _by_epoch(
    values: Sequence[Any], train: list[list[float]], valid: list[list[float]], name: str
) -> Picture:
    """Draw the accuracies after each epoch, training beside validation, a colour for each value."""
    figure = new_figure(10, 4.4, pad=0.04)
    panels = figure.subplots(1, 2, sharey=True)
    places, many = axis_places(values)[0], colormaps["cividis"]
    few, ranks = len(values) <= len(LINES), sorted(places)
    colours = [
        LINES[i] if few else to_hex(many(0.9 * ranks.index(place) / (len(values) - 1)))
        for i, place in enumerate(places)
    ]
    longest = max(map(len, (*train, *valid)))
    for axes, logs, title in zip(panels, (train, valid), ("training", "validation"), strict=True):
        for log, colour in zip(logs, colours, strict=True):
            style: dict[str, Any] = {"marker": "o", "markersize": 3.5} if longest <= 25 else {}
            axes.plot(range(1, len(log) + 1), log, color=colour, **style)
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("epoch", fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _tidy(axes)
    panels[0].set_ylabel("accuracy", fontsize=12)
    _in_per_cent(panels[0])
    names = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours]
    figure.legend(
        handles,
        names,
        title=name,
        loc="outside right upper",
        frameon=False,
        fontsize=11,
        ncols=-(-len(names) // 14),
    )
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
