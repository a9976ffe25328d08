"""Show rows as they are measured, and below them a bar with the time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


class Display:
    """A bar over ``total`` units of expected work, such as seconds; a context manager.

    Where the output is no terminal there is no bar, and :meth:`left` prints a line instead.
    """

    def __init__(self, total: float, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn("left  {task.description}", markup=False),
            console=self.console,
            transient=True,
            speed_estimate_period=60,
            disable=not self.console.is_terminal,
        )
        self._begin = time.monotonic()
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def doing(self, what: str) -> None:
        """Say beside the bar what is measured now."""
        self._progress.update(self._task, description=what)

    def advance(self, units: float) -> None:
        """Count ``units`` of the work as done."""
        self._progress.advance(self._task, units)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(Text(text), soft_wrap=True)

    def left(self, todo: int, total: int) -> None:
        """Print the time left for ``todo`` of ``total`` rows where there is no bar to show it."""
        if self.console.is_terminal or not todo:
            return
        seconds = (time.monotonic() - self._begin) / (total - todo) * todo
        self.line(f"  about {seconds:.0f} s left")
