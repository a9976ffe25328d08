"""Draw samples, confusion matrix, weights and mistakes, each into an image file or, without
one, into a notebook.

Raises OSError if the file is not writable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fastmlp.data.dataset import Dataset
from fastmlp.plotting.curves import TRAIN
from fastmlp.plotting.style import finish, literal, new_figure, set_title
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import atomic_path

Shape = tuple[int, int, int]
"""Planes, height, width."""


def draw_samples(dataset: Dataset, out: Path) -> None:
    """Draw the first ten training images of each class, a row for each, into the file ``out``.

    Raises UserError for a file type that matplotlib cannot write.
    """
    cell, columns = 34, 10  # an image and a white gap of two pixels
    grid = np.full((len(dataset.classes) * cell, columns * cell, 3), 255, np.uint8)
    for row in range(len(dataset.classes)):
        chosen = dataset.images[dataset.labels == row][:columns].permute(0, 2, 3, 1).numpy()
        for column, image in enumerate(chosen):
            y, x = row * cell + 1, column * cell + 1
            grid[y : y + 32, x : x + 32] = image

    figure = Figure(figsize=(9, 9))
    canvas = FigureCanvasAgg(figure)
    kind = out.suffix[1:].lower()
    if kind not in canvas.get_supported_filetypes():
        raise UserError(f"out must be a file name that ends in .png, .pdf or .svg, got {out}.")
    axes = figure.add_subplot()
    axes.imshow(grid, interpolation="nearest")
    title = f"{dataset.name}: ten training images of each class"
    axes.set_title(title, fontsize=13, parse_math=False)
    places = [(row + 0.5) * cell for row in range(len(dataset.classes))]
    axes.set_yticks(places, literal(dataset.classes))
    axes.tick_params(axis="y", length=0, labelsize=12)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight")


def confusion_picture(
    counts: Tensor, names: Sequence[str], title: str, target: str | Path | None = None
) -> Figure:
    """Draw the predictions for each class in per cent of its images, and the share recognised.

    ``counts`` (classes, classes): images of the row's class that were taken for the column's.
    """
    classes = len(names)
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    figure = new_figure(8.4, 7)
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
    names = literal(names)
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
    set_title(figure, f"{title}\nper cent of the images of each true class")
    return finish(figure, target)


def weights_picture(
    weight: Tensor, shape: Shape, target: str | Path | None = None, count: int = 48
) -> Figure:
    """Draw the weights of the ``count`` hidden units of the largest norm as small images.

    ``weight`` (units, features) is the first layer's. Each image is scaled by its own largest
    weight; grey is 0.
    """
    norms = weight.norm(dim=1)
    chosen = norms.argsort(descending=True, stable=True)[:count]
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(columns * 1.05, rows * 1.05 + 0.55, pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, unit in zip(grid.flat, chosen.tolist(), strict=False):
        image = weight[unit].reshape(shape)
        _show(axes, 0.5 + 0.5 * image / image.abs().max().clamp(min=1e-30))
    for axes in grid.flat:
        axes.set_axis_off()
    set_title(
        figure,
        f"first-layer weights of {len(chosen)} of {len(weight)} hidden units, those with the "
        "largest norm",
    )
    return finish(figure, target)


def mistakes_picture(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    shape: Shape,
    names: Sequence[str],
    target: str | Path | None = None,
    count: int = 15,
) -> Figure:
    """Draw the images that were misclassified with the highest probability.

    ``images`` (N, features) uint8, ``labels`` (N,), ``probabilities`` (N, classes).
    """
    sure, guess = probabilities.max(1)
    sure = torch.where(guess == labels, -1.0, sure)
    chosen = sure.argsort(descending=True, stable=True)[:count]
    chosen = chosen[sure[chosen] >= 0]
    columns = 5
    rows = max(1, -(-len(chosen) // columns))
    figure = new_figure(columns * 1.75, rows * 2.25 + 0.5)
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
    set_title(
        figure, "the most confident mistakes: what was guessed, how surely, and the true class"
    )
    return finish(figure, target)


def _show(axes: Axes, image: Tensor) -> None:
    """Show an image (planes, height, width) of values from 0 to 1."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
