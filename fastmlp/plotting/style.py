"""Share colours, figures and titles among the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fastmlp.utils.files import atomic_path

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7B00")
"""One colour for each value of a sweep: Okabe and Ito's palette with a darker yellow."""


def new_figure(width: float, height: float, pad: float = 0.09) -> Figure:
    """Return a figure, sizes in inches, that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=pad, h_pad=pad)
    return figure


def set_title(figure: Figure, text: str) -> None:
    """Set the title above all axes; a ``$`` is no formula."""
    printable = text.encode("utf-8", "replace").decode()  # a file name may hold any bytes
    figure.suptitle(printable, fontsize=12, parse_math=False)


def save_figure(figure: Figure, target: str | Path) -> None:
    """Write a PNG file; raises OSError if it is not writable."""
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


LEGEND: dict[str, Any] = {"edgecolor": "none", "framealpha": 0.85}
"""The style of a legend that stays legible over a line."""
