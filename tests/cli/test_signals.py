"""Signals before a command has begun, and a terminal that goes away."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import SUPPORT, python_environment

from fastmlp.training.run_directory import RunDirectory

TORCH = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
"""In place of PyTorch: somebody presses Ctrl-C while it is imported."""


@pytest.mark.parametrize("command", ["-m fastmlp.train", "-X dev -m fastmlp sweep", "SCRIPT"])
def test_ctrl_c_during_the_imports_ends_without_a_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    script = tmp_path / "fastmlp"
    script.write_text("from fastmlp.cli.main import main; main()")
    environment = python_environment()
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"

    def ended(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    assert ended(*command.replace("SCRIPT", str(script)).split()) == (-signal.SIGINT, "")
    _, err = ended("-c", "import fastmlp")  # a program of the user's own
    assert err.endswith("KeyboardInterrupt\n")


def test_a_terminal_that_goes_away_saves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        program = [sys.executable, str(SUPPORT / "tiny.py"), "--out", str(folder)]
        program += ["--epochs", "200", "--hidden", "512", "--save-every", "1000"]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
        os.execve(program[0], program, python_environment(TINY_IMAGES="4000"))
    said = b""
    while b"epoch 2/" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    state = RunDirectory(folder).read_state()
    assert len(state.history) + state.partial.steps > 0
