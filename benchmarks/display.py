"""Show rows as they are measured, and below them a bar with the time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

TRUST_SECONDS = 60.0
"""The expected time counts as much as this many seconds of work at the expected pace."""


class Display:
    """A bar over work that is expected to take ``seconds``; a context manager.

    Where the output is no terminal there is no bar, and :meth:`left` prints a line instead.
    """

    def __init__(self, seconds: float, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._seconds, self._done, self._begin = seconds, 0.0, time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            _TimeLeft(self),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=seconds)

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

    def advance(self, seconds: float) -> None:
        """Count work that was expected to take ``seconds`` as done."""
        self._done += seconds
        self._progress.advance(self._task, seconds)

    def extend(self, seconds: float) -> None:
        """Expect more work, of ``seconds``."""
        self._seconds += seconds
        self._progress.update(self._task, total=self._seconds)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(Text(text), soft_wrap=True)

    def left(self) -> None:
        """Print the time left where there is no bar to show it."""
        if not self.console.is_terminal:
            self.line(f"  about {self.seconds_left():.0f} s left")

    def seconds_left(self) -> float:
        """Return the seconds left at the pace so far."""
        elapsed = time.monotonic() - self._begin
        pace = (TRUST_SECONDS + max(elapsed, self._done)) / (TRUST_SECONDS + self._done)
        return max(self._seconds - self._done, 0.0) * pace


class _TimeLeft(ProgressColumn):
    """The time left as "1:05 left"."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def render(self, task: Task) -> Text:
        minutes, seconds = divmod(round(self._display.seconds_left()), 60)
        return Text(f"{minutes}:{seconds:02} left")
