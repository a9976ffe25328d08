"""Draws docs/blocked-sgd.png: what ordinary and blocked SGD compute when. A sketch, not to scale.

python docs/blocked_sgd_picture.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROWS = ["gather\nrows of X", "product P", "Gram matrix", "chain\n(rest of a step)", "update of W"]
COLORS = ["#999999", "#0072B2", "#E69F00", "#009E73", "#D55E00"]  # Okabe and Ito's palette
STEPS, BLOCKS = 6, 2


def bar(axes: Axes, row: int, start: float, width: float, label: str = "") -> float:
    """A bar from ``start`` in a row; returns where it ends."""
    axes.barh(row, width, left=start, height=0.72, color=COLORS[row], edgecolor="white", lw=0.8)
    if label:
        inside = {"color": "white" if row == 1 else "black", "fontsize": 9}
        axes.text(start + width / 2, row, label, ha="center", va="center", **inside)
    return start + width


def ordinary(axes: Axes) -> float:
    now = 0.0
    for step in range(BLOCKS * STEPS):
        axes.axvline(now, color="#dddddd", lw=0.7, zorder=0)
        axes.text(now + 1.32, -0.66, f"{step}", ha="center", va="bottom", fontsize=9)
        for row, width in ((0, 0.25), (1, 1.0), (3, 0.4), (4, 1.0)):
            now = bar(axes, row, now, width)
    axes.text(0.1, 2, "none", va="center", fontsize=9, color="#555555", style="italic")
    return now


def blocked(axes: Axes) -> float:
    now = 0.0
    for block in range(BLOCKS):
        axes.axvline(now, color="#bbbbbb", lw=0.9, zorder=0)
        start = now
        steps = f"{block * STEPS}..{block * STEPS + STEPS - 1}"
        now = bar(axes, 0, now, STEPS * 0.25)
        now = bar(axes, 1, now, 3.0, "X Wᵀ + b")
        now = bar(axes, 2, now, 1.4, "X Xᵀ")
        for step in range(STEPS):
            now = bar(axes, 3, now, 0.66, f"{block * STEPS + step}")
        now = bar(axes, 4, now, 3.0, "W += Aᵀ X")
        axes.text((start + now) / 2, -0.66, f"steps {steps}", ha="center", va="bottom", fontsize=9)
    return now


def draw(target: Path) -> None:
    figure = Figure(figsize=(10, 6))
    figure.set_layout_engine("constrained", hspace=0.08, h_pad=0.12)
    FigureCanvasAgg(figure)  # draws without a display
    top, bottom = figure.subplots(2, 1, sharex=True)
    titles = (
        "Ordinary SGD: two skinny products a step, each over all of W",
        f"Blocked SGD: the same steps in blocks of {STEPS}; only the chain goes step by step",
    )
    end = 0.0
    for axes, title, sketch in zip((top, bottom), titles, (ordinary, blocked), strict=True):
        axes.set_title(title, loc="left", fontsize=12, pad=16)
        done = sketch(axes)
        axes.axvline(done, color="#bbbbbb", lw=0.9, zorder=0)
        end = max(end, done)
        axes.set_yticks(range(len(ROWS)), ROWS, fontsize=11)
        axes.set_ylim(len(ROWS) - 0.5, -0.6)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    top.set_xlim(-0.3, end + 0.3)
    bottom.set_xlabel("time →   (sketch, not to scale; numbers are SGD steps)", fontsize=11)
    figure.savefig(target, format="png", dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).with_name("blocked-sgd.png"))
