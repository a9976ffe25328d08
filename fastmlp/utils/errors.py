"""How a user's mistake is told: one sentence, no traceback, a meaningful exit code."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable
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


def describe_device_error(error: Exception) -> str | None:
    """One sentence for lack of memory and for a GPU that has failed, which PyTorch raises as
    RuntimeErrors of several kinds; None for any other error."""
    import torch  # after the command line has been read

    if isinstance(error, torch.OutOfMemoryError):
        return "Not enough memory on the GPU; try a smaller --hidden or --batch-size"
    words = ("can't allocate memory", "Storage size calculation overflowed")
    if isinstance(error, MemoryError) or any(word in str(error) for word in words):
        return "Not enough memory; try a smaller --hidden or --batch-size"
    if isinstance(error, torch.AcceleratorError):
        what = str(error).partition("\n")[0]
        return f"The GPU has failed ({what}); what was saved before is whole, go on from there"
    return None


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
    except (MemoryError, RuntimeError) as error:
        told = describe_device_error(error)
        if told is None:
            raise
        print(f"fastmlp: error: {told}", file=sys.stderr)
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
