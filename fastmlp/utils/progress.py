"""Show a bar with the time left, in a notebook or on a terminal."""

from __future__ import annotations

import sys
import warnings
from types import TracebackType
from typing import Any

from fastmlp.utils.environment import in_notebook

DELAY = 1.0
"""Seconds after which a bar appears: what is done sooner needs none."""


class ProgressBar:
    """A bar over ``total`` units of work, removed when it is closed.

    It is drawn in a notebook and, with ``terminal``, where standard error is a terminal; elsewhere
    it does nothing. A context manager.
    """

    def __init__(self, total: float, text: str = "", *, terminal: bool = True) -> None:
        shown = in_notebook() or (terminal and sys.stderr is not None and sys.stderr.isatty())
        self._bar: Any = None
        if shown:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without ipywidgets a bar of text is drawn
                from tqdm.auto import tqdm
            self._bar = tqdm(
                total=total,
                desc=text,
                delay=DELAY,
                leave=False,
                bar_format="{l_bar}{bar}| {elapsed}, {remaining} left",
            )

    def move(self, done: float, text: str | None = None) -> None:
        """Show that ``done`` units are done, and perhaps another text before the bar."""
        if self._bar is None:
            return
        if text is not None:
            self._bar.set_description(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def write(self, line: str) -> None:
        """Print a line on standard output, above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
