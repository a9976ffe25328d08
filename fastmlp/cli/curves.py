"""Draw curves with characters, for a terminal without a display."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from uniplot import plot_to_string

HEIGHT = 14
"""Lines of text that a plot is high, without its frame."""


def print_curves(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Print the points (x, y) of each named curve, joined, in a frame as wide as the terminal.

    On a terminal each has a colour; elsewhere, and where the encoding lacks the characters of
    lines, each is drawn with a letter or sign of its own.
    """
    console = Console(file=sys.stdout)
    width = max(20, min(console.width, 100) - 14)  # the frame and the numbers beside it
    coloured = console.is_terminal and not console.no_color
    lines = console.encoding.startswith("utf") and (coloured or len(curves) == 1)
    drawn = plot_to_string(
        xs=[[x for x, _ in points] for points in curves.values()],
        ys=[[y for _, y in points] for points in curves.values()],
        lines=True,
        legend_labels=list(curves),
        title=title,
        width=width,
        height=HEIGHT,
        color=coloured,
        character_set="braille" if lines else "ascii",
    )
    print(drawn if isinstance(drawn, str) else "\n".join(drawn))
