"""The command ``fastmlp COMMAND ...``, also ``python -m fastmlp COMMAND ...``."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any, NoReturn

import torch

from fastmlp.cli.parser import run_command
from fastmlp.utils.environment import package_version
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.signals import interrupt_as_usual

COMMANDS = {
    "train": "train a network on CIFAR-10 or data of your own",
    "predict": "predict rows with a network trained on data of your own",
    "sweep": "train many configurations side by side and compare them",
    "find-lr": "try learning rates on a fresh network and suggest one",
    "show": "what a run has come to, with its curves",
    "compare": "a table and the curves of several runs",
    "reproduce": "do a course's experiments again and write an HTML report of them",
    "data": "fetch, check and show the data",
    "info": "what was built, what runs here, and why not",
    "completion": "print what completes this command line in bash, zsh or tcsh",
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; without ``argv``, that of the command line."""
    run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: fastmlp COMMAND ...   (fastmlp COMMAND --help tells more)\n")
        for command, what in COMMANDS.items():
            print(f"  {command:12}{what}")
        print("\n  --version, -V  the versions of fastmlp, PyTorch and Python")
        return 0
    if name in ("-V", "--version"):
        print(
            f"fastmlp {package_version()} (torch {torch.__version__}, "
            f"Python {platform.python_version()})"
        )
        return 0
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command; try {', '.join(COMMANDS)}", EXIT_USAGE)
    module = module_of(name)
    interrupt_as_usual()
    code: int = module.main(argv[1:])
    return code


def module_of(name: str) -> Any:
    """Return the module of a command: ``main(argv)`` runs it, ``build_parser()`` has its flags."""
    return importlib.import_module(f"fastmlp.cli.{name.replace('-', '_')}")
