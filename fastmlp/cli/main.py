"""The command ``fastmlp COMMAND ...``, also ``python -m fastmlp COMMAND ...``."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from fastmlp.cli.parser import run_command
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.signals import interrupt_as_usual

COMMANDS = {
    "train": "train a network on CIFAR-10 or data of your own",
    "predict": "predict rows with a network trained on data of your own",
    "sweep": "train many configurations side by side and compare them",
    "find-lr": "try learning rates on a fresh network and suggest one",
    "show": "what a run has come to, with its curves",
    "compare": "a table and the curves of several runs",
    "reproduce": "the whole report: sweeps, final training, what explains the figures",
    "data": "fetch, check and show the data",
    "info": "what was built, what runs here, and why not",
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; without ``argv``, that of the command line."""
    run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: fastmlp COMMAND ...   (fastmlp COMMAND --help tells more)\n")
        for command, what in COMMANDS.items():
            print(f"  {command:11}{what}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command; try {', '.join(COMMANDS)}", EXIT_USAGE)
    module = importlib.import_module(f"fastmlp.cli.{name.replace('-', '_')}")
    interrupt_as_usual()
    code: int = module.main(argv[1:])
    return code
