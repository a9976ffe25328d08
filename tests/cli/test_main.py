"""``fastmlp`` itself: its versions, its help, and what a shell completes."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny import tiny_data

from fastmlp.cli.main import COMMANDS, main
from fastmlp.training import api as fitting
from fastmlp.training.config import OPTIONS


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as info:
        main(list(argv))
    assert info.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(
    flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1.2")
    words = output(capsys, flag)
    assert (
        words
        == f"fastmlp fastmlp 1.2 (torch {torch.__version__}, Python {platform.python_version()})\n"
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--help")
    assert [line.split()[0] for line in text.splitlines()[2:-2]] == list(COMMANDS)
    for name in COMMANDS:
        assert f"usage: fastmlp {name}" in output(capsys, name, "--help")


def test_bash_completes_commands_flags_and_choices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    (tmp_path / "completion").write_text(output(capsys, "completion", "bash"))

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        script = (
            f"source {tmp_path}/completion; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
            "$(complete -p fastmlp | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        run = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60
        )
        return set(run.stdout.split())

    assert completed("fastmlp", "s") == {"sweep", "show"}
    flags = {f"--{name.replace('_', '-')}" for name in OPTIONS}
    assert flags <= completed("fastmlp", "train", "--")
    assert completed("fastmlp", "train", "--optimizer", "adam") == {"adam", "adamw"}
    assert "--shape" in completed("fastmlp", "info", "--")


def test_completion_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as info:
        main(["completion", "bash"])
    assert info.value.code == 1
    assert "completion needs the package shtab; pip install shtab" in capsys.readouterr().err


def test_the_console_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "load_splits", lambda *_, **__: tiny_data())
    monkeypatch.chdir(tmp_path)
    quick = ["--hidden", "8", "--epochs", "2", "--threads", "1", "--device=cpu"]
    for argv, code in ((["train", *quick, "--out", "run"], 0), (["train", "--bogus"], 2)):
        with pytest.raises(SystemExit) as info:
            main(argv)
        assert info.value.code == code
    assert "Test accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as info:
        main(["trian"])
    assert info.value.code == 2
    assert capsys.readouterr().err == (
        "fastmlp: error: 'trian' is not a command; try train, predict, sweep, "
        "find-lr, show, compare, reproduce, data, info, completion\n"
    )
    monkeypatch.setattr(sys, "argv", ["fastmlp", "--help"])
    with pytest.raises(SystemExit) as info:
        main()
    assert info.value.code == 0
    assert "train a network" in capsys.readouterr().out
