"""Run a piece of work in a forked process that is killed, or whose disk fails, at a file operation
of its own that is chosen by number."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmlp.utils.errors import UserError

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"}
"""The audit events, next to opening for writing, of what changes a folder."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NAMES = {errno.ENOSPC: "ENOSPC", errno.EIO: "EIO"}


@dataclass
class Outcome:
    """How a piece of work ended: "done", "killed", "refused" with a sentence, or a traceback; and
    the operations that it began."""

    end: str
    operations: list[str] = field(repr=False)
    said: str = ""


def run_forked(
    work: Callable[[], object], folder: Path, *, at: int | None = None, error: int | None = None
) -> Outcome:
    """Do ``work`` in a fork of this process. Its operation number ``at``, counted from 0, on files
    under ``folder`` does not happen: the process is killed, or it and, for a full or a read-only
    disk, all after it raise the OSError ``error``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(work, str(folder), at, error, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        parts = []
        while True:
            try:
                parts.append(pickle.load(pipe))
            except EOFError:
                break
    _, status = os.waitpid(child, 0)
    operations = [part for part in parts if isinstance(part, str)]
    ends = [part for part in parts if isinstance(part, tuple)]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}"
        return Outcome("killed", operations)
    (end, said) = ends[0]
    assert end != "traceback", said
    return Outcome(end, operations, said)


def _child(
    work: Callable[[], object], folder: str, at: int | None, error: int | None, writer: int
) -> None:
    count = 0

    def tell(part: Any) -> None:
        os.write(writer, pickle.dumps(part))

    def operation(what: str) -> None:
        nonlocal count
        number, count = count, count + 1
        tell(what)
        lasts = error in (errno.ENOSPC, errno.EROFS)
        if at is None or number < at or (number > at and not lasts):
            return
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif not what.startswith(("os.remove", "os.rmdir")) or error != errno.ENOSPC:
            raise OSError(error, os.strerror(error))  # a full disk still lets files be removed

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, bytes)) or not isinstance(flags, int):
                return
            if flags & WRITING and os.fsdecode(path).startswith(folder):
                operation(f"open {os.fsdecode(path)[len(folder) :]}")
        elif event in CHANGING and str(arguments[0]).startswith(folder):
            operation(f"{event} {str(arguments[0])[len(folder) :]}")

    os.fsync = lambda handle: operation("os.fsync")  # no power cut comes here
    sys.addaudithook(hook)
    try:
        work()
        tell(("done", ""))
    except UserError as told:
        tell(("refused", str(told)))
    except BaseException:
        tell(("traceback", traceback.format_exc()))
    finally:
        os._exit(0)
