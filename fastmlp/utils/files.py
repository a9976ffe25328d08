"""Write files atomically and durably: under a temporary name, then renamed; read whole ones; and
lock folders."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
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
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
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


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with a ``~`` as the home folder; raise :class:`UserError` where there is no
    such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} begins with the home folder of a user whom this system does not have; write "
            "the path without ~"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably; raise :class:`UserError` where that fails."""
    try:
        _make_folder(folder)
    except OSError as error:
        raise UserError(describe_os_error(error)) from error


def leftovers(folder: Path, *names: str) -> list[Path]:
    """Return the temporary files that :func:`atomic_path` left in a folder where processes were
    killed; ``names`` are patterns of what they were to become."""
    return [path for name in names for path in folder.glob(f".{name}.*.tmp")]


def remove_files(paths: Iterable[Path]) -> None:
    """Remove those of the files that exist; raise :class:`UserError` where that fails."""
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(describe_os_error(error)) from error


def previous_generation(target: Path) -> Path:
    """Return where :func:`atomic_path` keeps what ``target`` held before: ``resume.previous.pt``
    for ``resume.pt``."""
    return target.with_suffix(f".previous{target.suffix}")


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that replaces it on success (``os.replace``).

    On any error the temporary file is removed and ``target`` stays unchanged. The data is flushed
    to disk before the rename and the folder after it, so a crash or a power cut leaves the old file
    or the new one. With ``keep_previous`` the old one stays as :func:`previous_generation`, and for
    a moment it is the only one. Missing parent folders are made; a ``~`` is the home folder. Raises
    OSError if the folder is not writable.
    """
    target = expanded(target)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():  # a device, say
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    _make_folder(target.parent)
    with _named(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    with _named(target):
        yield from _replaced(target, temporary, keep_previous)
    _sync_folder(target.parent)


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Make the system's errors inside name ``target``, not a temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and str(error.filename or ".tmp").endswith(".tmp"):
            error.filename = str(target)
        raise


def _replaced(target: Path, temporary: Path, keep_previous: bool) -> Iterator[Path]:
    """Yield ``temporary``, to be written, and put it in the place of ``target``; remove it on any
    error."""
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if keep_previous and target.exists():
            os.replace(target, previous_generation(target))
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


def read_bytes(path: str | os.PathLike[str], largest: int | None = None) -> bytes:
    """Return the content of a file, of at most ``largest`` bytes.

    Raises OSError where it cannot be read, and :class:`UserError` where it is larger, or no file
    but a pipe or a device, which might never end.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a pipe or a device, not a file; put the file in its place")
        if largest is not None and status.st_size > largest:
            raise UserError(
                f"{path} has {status.st_size:,} bytes, more than the {largest:,} that such a file "
                "can have; put the right file in its place"
            )
        try:
            return file.read(status.st_size)
        except MemoryError as error:
            raise UserError(
                f"{path} has {status.st_size:,} bytes, and there is not enough memory for them; "
                "put the right file in its place, or use a machine with more"
            ) from error


def write_bytes(
    target: str | os.PathLike[str], data: bytes | memoryview, *, keep_previous: bool = False
) -> None:
    """Write ``data`` to ``target`` atomically; see :func:`atomic_path`."""
    with atomic_path(target, keep_previous=keep_previous) as temporary:
        temporary.write_bytes(data)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``target`` atomically; bytes of a file's name that are no UTF-8 are
    written as escapes."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_file(target: Path, data: bytes | memoryview, *, keep_previous: bool = False) -> None:
    """Write a file as :func:`write_bytes` does; raise :class:`UserError` where that fails."""
    try:
        write_bytes(target, data, keep_previous=keep_previous)
    except OSError as error:
        told = OSError(error.errno, error.strerror or str(error), str(target))
        raise UserError(describe_os_error(told)) from error


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, as SQLite does: where the system can, and without raising,
    since the files are whole either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
