"""Real processes, killed at any moment from the first millisecond on: each goes on, to the bits of
a run that nobody killed.

``FASTMLP_FAULTS=all`` kills 300, otherwise 2.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.figures import count
from support.processes import SUPPORT, python_environment
from support.tiny import assert_same_run

KILLS = 300 if os.environ.get("FASTMLP_FAULTS") == "all" else 2
OPTIONS = (
    *("--engine", "reference", "--hidden", "8", "--batch-size", "16", "--epochs", "8"),
    *("--save-every", "5", "--threads", "1", "--quiet"),
)


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / "tiny.py"), *arguments],
        env=python_environment(TINY_IMAGES="300", OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path) -> None:
    """What a person does: the same command, or the one that its sentence names."""
    again = command("--out", str(folder), *OPTIONS)
    _, err = again.communicate(timeout=300)
    if again.returncode != 0:
        assert "--resume" in err, err
        resumed = command("--resume", str(folder), "--quiet")
        _, err = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, err


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    begin = time.monotonic()
    finish(tmp_path / "whole")
    whole = time.monotonic() - begin
    draw = random.Random(7)

    def one(number: int) -> None:
        folder = tmp_path / str(number)
        # a second kill may hit the process that goes on
        for seconds in [draw.uniform(0, 1.1 * whole) for _ in range(draw.choice([1, 1, 2]))]:
            started = folder.exists() and (folder / "resume.pt").exists()
            process = command(
                *(("--resume", str(folder), "--quiet") if started else ()),
                *(() if started else ("--out", str(folder), *OPTIONS)),
            )
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        finish(folder)
        assert_same_run(folder, tmp_path / "whole")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(KILLS)))
    count(killed_processes=KILLS)
