"""The commands and programs of docs/several-machines.md run; processes stand for its machines."""

from __future__ import annotations

import csv
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.processes import python_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "several-machines.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGE.exists(), reason="not run from a checkout"),
]


def block(name: str) -> str:
    """The page's block of code with a name."""
    text = PAGE.read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)```", text, re.S)
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=python_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def output(process: subprocess.Popen[str]) -> str:
    """What a process prints, once it has come to a good end."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def modules(commands: str, port: int) -> list[list[str]]:
    """The shell's commands as arguments of python, with this machine as ``first``."""
    here = re.sub(r"\bfirst\b", "127.0.0.1", commands.replace("\\\n", " "))
    here = re.sub(r"\b(29500|8786)\b", str(port), here)
    programs = {"torchrun": "torch.distributed.run", "dask": "dask"}
    lines = [shlex.split(line) for line in here.strip().splitlines()]
    return [["-m", programs[name], *rest] for name, *rest in lines]


def test_a_sweep_on_two_machines(tmp_path: Path) -> None:
    """Each machine has a folder of its own."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        lines = [f"{a},{b},{'high' if a > 0 else 'low'}" for a, b in rows]
        (folder / "people.csv").write_text("\n".join(["age,hours,income", *lines]))
    port, quick = free_port(), ["--epochs", "2"]
    ((one,), (other,)) = (modules(block(name), port) for name in ("first", "second"))
    with ExitStack() as stack:
        starts = zip(folders, (one, other), strict=True)
        both = [stack.enter_context(started(f, *c, *quick)) for f, c in starts]
        shown, silent = map(output, both)
    assert "Best in validation" in shown
    assert silent == ""
    with open(folders[0] / "income" / "results.csv", newline="") as file:
        results = list(csv.DictReader(file))
    assert len(results) == 3  # one value at a time from the base: 1e-2, 1e-3 and 16, 64
    assert {row["status"] for row in results} == {"finished"}
    assert (folders[0] / "income" / "resume-0.pt").exists()
    assert [p.name for p in (folders[1] / "income").glob("*.*")] == ["resume-1.pt"]


def test_optuna_on_two_machines(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    (tmp_path / "search.py").write_text(block("search.py"))
    with started(tmp_path, "search.py") as one, started(tmp_path, "search.py") as other:
        counts = [int(output(each).split(" trials so far")[0]) for each in (one, other)]
    assert max(counts) == 16  # both searched in one study


def test_scikit_learn_on_dask(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    port = free_port()
    scheduler, worker = modules(block("dask"), port)
    scheduler += ["--host", "127.0.0.1", "--no-dashboard"]
    program = block("grid.py").replace("first:8786", f"127.0.0.1:{port}")
    (tmp_path / "grid.py").write_text(program)
    assert str(port) in program
    alone = program.replace('"dask"', '"threading"').replace(f'Client("127.0.0.1:{port}"), ', "")
    (tmp_path / "alone.py").write_text(alone)
    with ExitStack() as stack:
        for arguments in (scheduler, [*worker, "--no-dashboard"], ["grid.py"]):
            process = stack.enter_context(started(tmp_path, *arguments))
        found = output(process)
    with started(tmp_path, "alone.py") as process:
        assert found == output(process)
