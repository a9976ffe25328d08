"""Let Ctrl-C and other requests to stop finish the current step first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""The signals that ask a process to stop; Windows has no SIGHUP."""

_ending = False


def end_commands_at_once() -> None:
    """Let Ctrl-C end this process without a traceback if it is one of the project's commands: while
    it imports, nothing has begun. :func:`interrupt_as_usual` undoes it."""
    global _ending
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual and threading.current_thread() is threading.main_thread() and _is_command():
        _ending = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_as_usual() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    global _ending
    if _ending:
        _ending = False
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Return whether Python was started as ``python -m fastmlp...`` or ``fastmlp``."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument == "-m":
            return next(arguments, "").partition(".")[0] == "fastmlp"
        if argument in ("-X", "-W"):
            next(arguments, "")
        elif not argument.startswith("-"):
            return os.path.basename(argument) == "fastmlp"
    return False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal has
    gone).

    A second SIGINT or SIGTERM acts as if nothing had been installed. A signal that the process
    ignores (SIGINT of a background job, SIGHUP under nohup) remains ignored. Outside the main
    thread, where Python allows no handlers, the function always returns False.
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
        if signal.Signals(number).name != "SIGHUP":  # which a terminal may send twice as it goes
            restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: stopped
    finally:
        restore()
