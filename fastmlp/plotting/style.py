"""Share colours, figures and titles among the pictures."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fastmlp.utils.environment import in_notebook
from fastmlp.utils.files import atomic_path

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7B00")
"""One colour for each value of a sweep: Okabe and Ito's palette with a darker yellow."""


class Picture(Figure):
    """A figure that needs no display, and that a notebook shows once in a cell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        FigureCanvasAgg(self)  # draws without a display
        self._shown: int | None = None

    def png(self) -> bytes:
        """Return the bytes of a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def show_in_notebook(self) -> None:
        """Show it in the cell that runs, unless it has been shown there."""
        ipython: Any = importlib.import_module("IPython")  # a notebook has it
        cell = ipython.get_ipython().execution_count
        if cell != self._shown:
            self._shown = cell
            ipython.display.display(ipython.display.Image(self.png()))

    def _ipython_display_(self) -> None:
        """What a notebook calls for the value of a cell."""
        self.show_in_notebook()


def new_figure(width: float, height: float, pad: float = 0.09) -> Picture:
    """Return a figure, sizes in inches, that needs no display."""
    figure = Picture(figsize=(width, height), layout="constrained")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=pad, h_pad=pad)
    return figure


def literal(names: Iterable[str]) -> list[str]:
    """Return names as they are drawn at an axis, where a ``$`` would begin a formula."""
    return [name.replace("$", r"\$") for name in names]


def set_title(figure: Figure, text: str) -> None:
    """Set the title above all axes; a ``$`` is no formula."""
    printable = text.encode("utf-8", "replace").decode()  # a file name may hold any bytes
    figure.suptitle(printable, fontsize=12, parse_math=False)


def finish(figure: Picture, target: str | Path | None) -> Figure:
    """Write a PNG file or, without a target, show the figure if this is a notebook; return it.

    Raises OSError if the file is not writable.
    """
    if target is not None:
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    elif in_notebook():
        figure.show_in_notebook()
    return figure


LEGEND: dict[str, Any] = {"edgecolor": "none", "framealpha": 0.85}
"""The style of a legend that stays legible over a line."""
