"""What setup.py decides to build, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SETUP = Path(__file__).resolve().parents[2] / "setup.py"


def setup(wish: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SETUP.name, "--name"],
        cwd=SETUP.parent,
        env={**os.environ, "FASTMLP_CUDA": wish},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_build_says_what_it_chose():
    run = setup("0")
    assert run.returncode == 0, run.stderr
    assert "fastmlp: CPU kernels alone" in run.stdout


def test_an_unknown_wish_is_one_sentence():
    run = setup("yes")
    assert run.returncode != 0
    assert "FASTMLP_CUDA must be 0, 1 or auto, got 'yes'" in run.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is a CUDA build")
def test_cuda_is_not_built_against_a_cpu_build_of_torch():
    run = setup("auto")
    assert run.returncode == 0, run.stderr
    assert "fastmlp: CPU kernels alone (this PyTorch is a CPU build)" in run.stdout
    run = setup("1")
    assert run.returncode != 0
    assert "FASTMLP_CUDA=1 asks for the CUDA kernels, but this PyTorch is a CPU build" in run.stderr
