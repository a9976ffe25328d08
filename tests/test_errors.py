"""A user's mistake is one line on standard error and an exit code."""

from __future__ import annotations

import errno

import pytest

from fastmlp.errors import ArgumentParser, UserError, describe_os_error, run_command


def run(action, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(action, [])
    return caught.value.code, capsys.readouterr().err


def fail_with(error):
    def action(argv):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("The folder x is missing."), 1, "fastmlp: error: The folder x is missing.\n"),
        (UserError("--lr must be above 0", 2), 2, "fastmlp: error: --lr must be above 0\n"),
        (OSError(errno.ENOSPC, "No space", "/out/a"), 1, "The disk is full while writing /out/a"),
        (OSError(errno.EACCES, "Denied", "/out"), 1, "No permission to use /out"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_mistakes(error, code, text, capsys):
    got, err = run(fail_with(error), capsys)
    assert got == code
    assert text in err
    assert "Traceback" not in err


def test_success_and_a_bug(capsys):
    assert run(lambda argv: 0, capsys) == (0, "")
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        run_command(fail_with(ZeroDivisionError()), [])


def test_a_wrong_flag_is_one_line():
    parser = ArgumentParser(prog="fastmlp x")
    parser.add_argument("--count", type=int)
    with pytest.raises(UserError, match=r"--count.*see fastmlp x --help") as caught:
        parser.parse_args(["--count", "many"])
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="unrecognized arguments: --cou"):
        parser.parse_args(["--cou", "1"])


def test_an_unknown_os_error_keeps_its_own_words():
    assert describe_os_error(OSError(errno.EIO, "Input/output error", "/a")) == (
        "Input/output error /a."
    )
