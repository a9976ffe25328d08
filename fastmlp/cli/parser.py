"""The command line's parser, and how a command ends: errors of one line, exit codes."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from fastmlp.utils.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    UserError,
    describe_device_error,
    describe_os_error,
)


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
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all processes make one mistake
            print(f"fastmlp: error: {with_flags(error)}", file=sys.stderr)
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


def with_flags(error: UserError) -> str:
    """Return the sentence of an error with the options that it names written as flags."""
    sentence = str(error)
    for name in error.options:
        sentence = re.sub(rf"\b{name}\b", as_flag(name), sentence, count=1)
    return sentence


def as_flag(name: str) -> str:
    """Return the flag of an option: ``batch_size`` is ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def _prepare_streams() -> None:
    """Escape what the terminal's encoding lacks, and drop what is written to a stream that the
    caller closed (``2>&-``), instead of ending in a traceback."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open to the end)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
