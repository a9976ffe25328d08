"""How a user's mistake is told: one sentence, no traceback, a meaningful exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_FAILURE = 1
"""The command was understood but could not be done (missing data, full disk, ...)."""
EXIT_USAGE = 2
"""The command line itself was wrong."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C, as a shell reports it (128 + SIGINT)."""


class UserError(Exception):
    """Something the user can mend. ``str(error)`` is one sentence: what was wrong, what was
    wanted, what to do. ``exit_code`` is what a command ends with."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line instead of a usage dump, and defaults shown in --help."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)", EXIT_USAGE)


def describe_os_error(error: OSError) -> str:
    """One sentence for the operating-system errors that users meet."""
    where = f" {error.filename}" if error.filename else ""
    hints = {
        errno.ENOSPC: f"The disk is full while writing{where}; free some space or change --out.",
        errno.EACCES: f"No permission to use{where}; pass another folder or change its mode.",
        errno.EPERM: f"No permission to use{where}; pass another folder or change its mode.",
        errno.EROFS: f"The file system of{where} is read-only; pass another folder.",
        errno.ENOENT: f"File or folder{where} does not exist; check the path.",
        errno.ENOTDIR: f"Part of the path{where} is a file, not a folder; check the path.",
        errno.EISDIR: f"{where.strip() or 'The path'} is a folder where a file was wanted.",
    }
    return hints.get(error.errno or 0, f"{error.strerror or error}{where}.")


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns errors for lack of memory into the user's kind; PyTorch raises RuntimeErrors, on a GPU
    ``torch.OutOfMemoryError``, a subclass."""
    import torch  # after the command line has been read

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("can't allocate memory", "Storage size calculation overflowed")
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and not any(word in str(error) for word in words):
            raise
        raise UserError("Not enough memory; try a smaller --hidden or --batch-size") from error


def run_command(main: Callable[[list[str]], int], argv: list[str] | None = None) -> NoReturn:
    """Runs ``main(argv)`` and exits with its code; a :class:`UserError` or ``OSError`` becomes
    one line on standard error."""
    _prepare_streams()
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all processes make one mistake
            print(f"fastmlp: error: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        code = EXIT_FAILURE  # the reader of our output (head, less) has left
        sys.stderr.close()
    except OSError as error:
        print(f"fastmlp: error: {describe_os_error(error)}", file=sys.stderr)
        code = EXIT_FAILURE
    except KeyboardInterrupt:
        print("\nfastmlp: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _prepare_streams() -> None:
    """What cannot be written in the terminal's encoding is escaped, and what is written to a
    stream that the caller closed (``2>&-``) is dropped, instead of ending in a traceback."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open to the end)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
