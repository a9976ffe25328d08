"""Draws docs/growth.png, how the time of an epoch grows, from results/growth.cpu.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from timing import RESULTS

from fastmlp.utils.files import atomic_path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "growth.png"
PANELS = {
    "batch": "batch size (256 hidden units)",
    "hidden": "hidden units (batch 8)",
    "models": "models (64 hidden units, batch 16)",
}
STYLES = {
    "fastmlp blocked": ("#D55E00", "o", "-"),
    "nn.Module + torch.optim.SGD": ("#0072B2", "s", "--"),
}
"""Colours of Okabe and Ito's palette, told apart with any colour vision."""


def draw(results: dict[str, Any]) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (axis, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        rows = [row for row in results["rows"] if row["axis"] == axis]
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
        axes.tick_params(axis="x", rotation=45)
        for formatted in (axes.xaxis, axes.yaxis):
            formatted.set_major_formatter(ScalarFormatter())
            formatted.set_minor_formatter(NullFormatter())
        ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in ticks if low <= tick <= high])
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left = figure.axes[0]
    left.set_ylabel("seconds per epoch and model")
    left.legend(frameon=False, fontsize=9)
    with atomic_path(TARGET) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


if __name__ == "__main__":
    draw(json.loads((RESULTS / "growth.cpu.json").read_text(encoding="utf-8")))
    print(f"written to {TARGET}")
