"""Let Ctrl-C and other requests to stop finish the current step first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""The signals that ask a process to stop; Windows has no SIGHUP."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal has
    gone).

    A second signal acts as if nothing had been installed. A signal that the process ignores (SIGINT
    of a background job, SIGHUP under nohup) remains ignored. Outside the main thread, where Python
    allows no handlers, the function always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stopped = False
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    # None is a handler that Python did not install and cannot restore.
    before = {
        n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: stopped
    finally:
        restore()
