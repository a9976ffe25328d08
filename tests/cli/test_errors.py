"""A user's mistake is one line on standard error and an exit code."""

from __future__ import annotations

import errno
import io
import json
import shlex
import subprocess
import sys

import pytest
import torch
from support.processes import SUPPORT, python_environment

from fastmlp.cli.parser import ArgumentParser, run_command, with_flags
from fastmlp.cli.train import main
from fastmlp.utils.errors import UserError, describe_os_error


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
        (MemoryError(), 1, "Not enough memory; try a smaller --hidden"),
        (RuntimeError("[enforce] can't allocate memory: 9 bytes"), 1, "Not enough memory; try"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "Not enough memory on the GPU; try"),
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors"),
            1,
            "The GPU has failed (CUDA error: unspecified launch failure); what was saved before",
        ),
    ],
)
def test_mistakes(error, code, text, capsys):
    got, err = run(fail_with(error), capsys)
    assert got == code
    assert text in err
    assert "Traceback" not in err
    assert err.startswith("fastmlp: error: ") or code == 130
    assert err.strip().count("\n") == 0


def test_success_and_a_bug(capsys):
    assert run(lambda argv: 0, capsys) == (0, "")
    for bug in (ZeroDivisionError(), RuntimeError("shapes differ")):  # they keep their traceback
        with pytest.raises(type(bug)):
            run_command(fail_with(bug), [])


def test_what_a_stream_cannot_write_is_escaped(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])

    def action(argv):
        print("ü")
        raise UserError("ö")

    with pytest.raises(SystemExit):
        run_command(action, [])
    for stream, text in zip(streams, (b"\\xfc\n", b"fastmlp: error: \\xf6\n"), strict=True):
        stream.flush()
        assert stream.buffer.getvalue() == text


@pytest.mark.parametrize("error", [UserError("x"), BrokenPipeError(), KeyboardInterrupt()])
def test_closed_streams_swallow_what_is_said(error, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(SystemExit):
        run_command(fail_with(error), [])


def test_a_wrong_flag_is_one_line():
    parser = ArgumentParser(prog="fastmlp x")
    parser.add_argument("--count", type=int)
    with pytest.raises(UserError, match=r"--count.*see fastmlp x --help") as caught:
        parser.parse_args(["--count", "many"])
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="unrecognized arguments: --cou"):
        parser.parse_args(["--cou", "1"])


def test_an_unknown_os_error_keeps_its_own_words():
    assert describe_os_error(OSError(errno.EBUSY, "Device or resource busy", "/a")) == (
        "Device or resource busy /a."
    )


def test_streams_that_are_closed_or_not_utf_8(tmp_path):
    environment = python_environment(PYTHONIOENCODING="ascii")
    quick = ["--hidden=8", "--epochs=1", "--threads=1", "--device=cpu"]
    command = shlex.join([sys.executable, str(SUPPORT / "tiny.py"), *quick])

    def tell(rest):
        done = subprocess.run(
            f"{command} {rest}", shell=True, cwd=tmp_path, env=environment, capture_output=True
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = tell("--out r_ü")
    assert (code, err) == (0, b"")
    assert b"folder   r_\\xfc\n" in out
    code, out, err = tell("--out r_ü")
    assert (code, out) == (1, b"")
    assert err.startswith(b"fastmlp: error: r_\\xfc is there already")
    code, out, err = tell("--json --out three 2>&-")
    assert json.loads(out)["folder"] == "three"
    assert tell("--out four >&-") == (0, b"", b"")


@pytest.mark.parametrize(
    ("name", "said"),
    [("link", "a link to nothing; pass another"), ("x" * 300, "is too long; pass a shorter one")],
)
def test_paths_that_cannot_become_a_folder(name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SystemExit) as info:
        run_command(main, ["--dataset", "synthetic", "--out", name, "--quiet"])
    assert info.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("sentence", "options", "told"),
    [
        ("(55 are missing); fill them in, or pass missing mean", "missing", "or pass --missing m"),
        ("missing must be error, got 'x'", "missing", "--missing must be error"),
        ("'c' has 1,200 categories; leave it out", "categories", "'c' has 1,200 categories; l"),
        ("name the column in categories", "categories", "name the column in --categories"),
        (
            "loss huber cannot be; pass loss poisson",
            "loss",
            "--loss huber cannot be; pass --loss p",
        ),
        ("The target 'y' has 4; pass one target, or task regression", "task", "or --task regr"),
        (
            "The loss became nan at 1e30; try a smaller lr",
            "lr",
            "The loss became nan at 1e30; try a ",
        ),
        ("There is none; pass the data_dir that has them", "data_dir", "pass the --data-dir that"),
    ],
)
def test_options_are_flags_where_they_mean_the_option(
    sentence: str, options: str, told: str
) -> None:
    assert told in with_flags(UserError(sentence, options=(options,)))
