"""Ctrl-C that finishes the step first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true once SIGINT (Ctrl-C) or SIGTERM has come.

    The second one acts as if nothing had been installed. Outside the main thread, where Python
    allows no handlers, the function stays false.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stopped = False
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        restore()

    for number in signals:
        signal.signal(number, stop)
    try:
        yield lambda: stopped
    finally:
        restore()
