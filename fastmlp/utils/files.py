"""Write files atomically: under a temporary name, then renamed; and lock folders."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fastmlp.utils.errors import UserError, describe_os_error

LOCK = ".lock"
"""The empty file, in a folder, that a process holds a lock on."""


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it however the process ends.

    Raises :class:`UserError` where another process holds it, or ``folder`` cannot be written. On a
    file system without locks nothing is held.
    """
    path = folder / LOCK
    try:
        path.touch()
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is using {folder}; wait for it or pass another folder"
        ) from error
    except OSError:
        pass  # a file system without locks, which is no reason not to train
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that replaces it on success (``os.replace``).

    On any error the temporary file is removed and ``target`` stays unchanged. The data is flushed
    to disk before the rename, so a crash leaves the old file or the new one. Missing parent folders
    are made; a ``~`` is the home folder. Raises OSError if the folder is not writable.
    """
    target = Path(target).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(target: Path) -> None:
    """Raise OSError where :func:`atomic_path` could not write ``target``, before the work is done
    whose result it is."""
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{target} cannot be written: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{target} cannot be written: the folder {folder} is read-only")


def write_bytes(target: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
