"""The command line's parser, and how a command ends: errors of one line, exit codes."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from fastmlp.utils.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    UserError,
    describe_device_error,
    describe_os_error,
)
from fastmlp.utils.files import expanded
from fastmlp.utils.untrusted import printable

BEFORE_OPTIONS = (
    *("pass", "use", "try", "set", "another", "smaller", "larger", "more"),
    *("or", "and", "in", "with", "below", "times", "needs a"),
)
"""Words of a sentence after which the name of an option means the option."""
LONG = 10_000
"""Characters of an error, which may list what is allowed."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line instead of a usage dump, and defaults shown in --help."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)", EXIT_USAGE)


def run_command(main: Callable[[list[str]], int], argv: list[str] | None = None) -> NoReturn:
    """Run ``main(argv)`` and exit with its code; a :class:`UserError` or ``OSError`` becomes one
    line on standard error."""
    _prepare_streams()
    warnings.formatwarning = _one_line
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all processes make one mistake
            print(f"fastmlp: error: {printable(with_flags(error), LONG)}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        code = EXIT_FAILURE  # the reader of our output (head, less) has left
        sys.stderr.close()
    except OSError as error:
        print(f"fastmlp: error: {printable(describe_os_error(error), LONG)}", file=sys.stderr)
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


def with_flags(error: UserError) -> str:
    """Return the sentence of an error with the options that it names written as flags: where it
    begins with one or tells to pass one. Elsewhere, "missing" and "target" are words like others.
    """
    sentence = str(error)
    for name in error.options:
        flag, before = as_flag(name), rf"(^|\b(?:{'|'.join(BEFORE_OPTIONS)}) )"
        sentence, found = re.subn(rf"{before}{name}\b", rf"\g<1>{flag}", sentence)
        if not found and "_" in name:
            sentence = re.sub(rf"\b{name}\b", flag, sentence, count=1)
    return sentence


def picture_file(text: str) -> Path:
    """Return the file of ``--out`` for a picture; raise :class:`UserError` where its name ends
    otherwise, since it may be one that holds something else."""
    if not text.lower().endswith((".png", ".pdf", ".svg")):
        raise UserError(f"--out must end in .png, .pdf or .svg, got {text!r}", EXIT_USAGE)
    return expanded(text)


def as_flag(name: str) -> str:
    """Return the flag of an option: ``batch_size`` is ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


class _Terminal(io.FileIO):
    """A terminal. Where it is gone, what is written to it is lost, and the program whose window was
    closed comes to save what it has."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def _prepare_streams() -> None:
    """Escape what the terminal's encoding lacks, and drop what is written to a stream that the
    caller closed (``2>&-``), instead of ending in a traceback."""
    sys.stdout = _prepared(sys.stdout)
    sys.stderr = _prepared(sys.stderr)


def _prepared(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w")
    if isinstance(stream, io.TextIOWrapper):
        if stream.isatty():
            raw = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            stream = io.TextIOWrapper(raw, encoding=stream.encoding, line_buffering=True)
        stream.reconfigure(errors="backslashreplace")
    return stream


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return a warning as a command shows it."""
    return f"fastmlp: warning: {printable(message, LONG)}\n"
