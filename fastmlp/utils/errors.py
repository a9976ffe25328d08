"""Report a user's mistake in one sentence, with a meaningful exit code and no traceback."""

from __future__ import annotations

import errno

EXIT_FAILURE = 1
"""The command was valid but failed (missing data, full disk, ...)."""
EXIT_USAGE = 2
"""The command line itself was wrong."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C, as a shell reports it (128 + SIGINT)."""


class UserError(Exception):
    """A mistake that the user can correct.

    ``str(error)`` is one sentence: what was wrong, what was expected, what to do. ``exit_code`` is
    what a command ends with. ``options`` are the options that the sentence names; the command line
    writes them as flags.
    """

    def __init__(
        self, message: str, exit_code: int = EXIT_FAILURE, options: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.options = options


def describe_os_error(error: OSError) -> str:
    """Return one sentence for the operating-system errors that users meet."""
    where = f" {error.filename}" if error.filename else ""
    hints = {
        errno.ENOSPC: f"The disk is full while writing{where}; free some space or change --out.",
        errno.EACCES: f"No permission to use{where}; pass another folder or change its mode.",
        errno.EPERM: f"No permission to use{where}; pass another folder or change its mode.",
        errno.EROFS: f"The file system of{where} is read-only; pass another folder.",
        errno.ENOENT: f"File or folder{where} does not exist; check the path.",
        errno.ENOTDIR: f"Part of the path{where} is a file, not a folder; check the path.",
        errno.EEXIST: f"There is a file{where}, or a link to nothing; pass another path.",
        errno.ENAMETOOLONG: f"The path{where} is too long; pass a shorter one.",
        errno.ELOOP: f"The path{where} has a link that leads to itself; pass another one.",
        errno.EIO: f"The disk failed while using{where}; check it, or pass another folder.",
        errno.EISDIR: f"{where.strip() or 'The path'} is a folder where a file was wanted.",
    }
    return hints.get(error.errno or 0, f"{error.strerror or error}{where}.")


def describe_device_error(error: Exception) -> str | None:
    """Return one sentence for exhausted memory or a failed GPU, or None for any other error.

    PyTorch raises both as RuntimeErrors of several kinds.
    """
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
