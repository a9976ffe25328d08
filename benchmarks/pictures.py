"""Draw the pictures of benchmarks/results/*.json, a column or row for each make of processor.

python benchmarks/pictures.py            writes docs/epoch-time.png and docs/growth.png
python benchmarks/pictures.py --check    fails where they were drawn from other results

A picture carries a fingerprint of the results that it was drawn from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import measured
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from PIL import Image

from fastmlp.utils.files import atomic_path

DOCS = Path(__file__).resolve().parent.parent / "docs"
GROWTH_PANELS = {
    "batch": "batch size (256 hidden units)",
    "hidden": "hidden units (batch 8)",
    "models": "models (64 hidden units, batch 16)",
}
STYLES = {
    "fastmlp blocked": ("#D55E00", "o", "-"),
    "nn.Module + torch.optim.SGD": ("#0072B2", "s", "--"),
    "JAX jit(scan)": ("#009E73", "^", "--"),
    "scikit-learn": ("#777777", "D", ":"),
}
"""Colours of Okabe and Ito's palette, told apart with any colour vision."""
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def draw_epoch_time(results: Mapping[str, dict[str, Any]]) -> Figure:
    """Draw seconds per epoch against batch size, a panel for each make."""
    figure = Figure(figsize=(2.2 + 4.6 * len(results), 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, each in zip(panels, results.values(), strict=True):
        draw_times(axes, each["rows"], "batch")
        about = each["provenance"]
        title = f"{about['device']}, {about['cpu_kernels']}, {about['threads']} threads"
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("batch size")
    panels[0].set_ylabel("seconds per epoch (log scale)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return figure


def draw_growth(results: Mapping[str, dict[str, Any]]) -> Figure:
    """Draw seconds per epoch and model by batch size, hidden units and models, a row a make."""
    figure = Figure(figsize=(11, 4.2 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), len(GROWTH_PANELS), squeeze=False)
    for panels, each in zip(grid, results.values(), strict=True):
        for axes, (axis, label) in zip(panels, GROWTH_PANELS.items(), strict=True):
            draw_times(axes, [row for row in each["rows"] if row["axis"] == axis], axis)
            axes.set_xlabel(label)
        panels[0].set_ylabel(f"seconds per epoch and model\n({each['provenance']['device']})")
    grid[0][0].legend(frameon=False, fontsize=9)
    return figure


def draw_times(axes: Axes, rows: Sequence[dict[str, Any]], axis: str) -> None:
    """Draw a line for each contender in STYLES over the values of ``axis``."""
    for name, (colour, marker, line) in STYLES.items():
        points = [
            (row[axis], row["epoch"][name]["median_us"] / 1e6 / row["models"])
            for row in rows
            if name in row["epoch"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, line, color=colour, marker=marker, markersize=5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row[axis] for row in rows])
    axes.tick_params(axis="x", rotation=45 if len(rows) > 6 else 0)
    for formatted in (axes.xaxis, axes.yaxis):
        formatted.set_major_formatter(ScalarFormatter())
        formatted.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    low = max((tick for tick in TICKS if tick < low), default=low)
    axes.set_ylim(bottom=low)
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


PICTURES = {
    "epoch-time.png": ("epoch_time", draw_epoch_time),
    "growth.png": ("growth", draw_growth),
}
"""Files in docs/, with the benchmark that each shows."""


def fingerprint(results: Mapping[str, dict[str, Any]]) -> str:
    """Return a hash of results, by which a picture is told to be out of date."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def out_of_date() -> list[str]:
    """Return the names of the pictures that were drawn from other results than there are."""
    stale = []
    for name, (benchmark, _) in PICTURES.items():
        with Image.open(DOCS / name) as picture:
            if picture.info.get("Source") != fingerprint(measured(benchmark)):
                stale.append(name)
    return stale


def main() -> None:
    """Run the script from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if stale := out_of_date():
            raise SystemExit(f"{', '.join(stale)} out of date; run python benchmarks/pictures.py")
        return
    for name, (benchmark, draw) in PICTURES.items():
        results = measured(benchmark)
        figure = draw(results)
        FigureCanvasAgg(figure)
        with atomic_path(DOCS / name) as temporary:
            figure.savefig(
                temporary, format="png", dpi=130, metadata={"Source": fingerprint(results)}
            )
        print(f"written to {DOCS / name}")


if __name__ == "__main__":
    main()
