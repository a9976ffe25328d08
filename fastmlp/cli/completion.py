"""The command ``completion``: prints what completes ``fastmlp`` in a shell.

fastmlp completion bash > ~/.local/share/bash-completion/completions/fastmlp
fastmlp completion zsh > ~/.zfunc/_fastmlp          with ~/.zfunc in fpath
"""

from __future__ import annotations

from fastmlp.cli.main import COMMANDS, module_of
from fastmlp.cli.parser import ArgumentParser
from fastmlp.utils.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raise UserError for a user's mistake."""
    shell = build_parser().parse_args(argv).shell
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs the package shtab; pip install shtab") from error
    print(shtab.complete(_whole_parser(), shell))
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp completion", description="Prints what completes fastmlp in a shell."
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def _whole_parser() -> ArgumentParser:
    """Return a parser with all commands and their flags."""
    parser = ArgumentParser(prog="fastmlp")
    commands = parser.add_subparsers(dest="command")
    for name, what in COMMANDS.items():
        own = module_of(name).build_parser()
        commands.add_parser(name, help=what, parents=[own], add_help=False)
    return parser
