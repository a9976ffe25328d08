"""The Python module ``fastmlp_internals``: csrc's torch-free parts, by pybind11.

It is built from ``tests/native/internals.cpp`` when a test first asks for it, which takes some
twenty seconds, and kept under ``build/`` for as long as none of its sources changes.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
NAME = "fastmlp_internals"
SOURCE = ROOT / "tests" / "native" / "internals.cpp"
CUDA_ON_HOST = ROOT / "tests" / "native" / "cuda_on_host"
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-w", "-DFASTMLP_ON_HOST"),
]


def missing() -> str | None:
    """Return what the module cannot be built without, or None."""
    if shutil.which("g++") is None:
        return "g++ is missing"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is missing; the extra [test] has it"
    return None


def _compile(library: Path) -> None:
    """Compile the module."""
    import pybind11

    folders = (CUDA_ON_HOST, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))
    includes = [f"-I{folder}" for folder in folders]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / library.name
        command = ["g++", *FLAGS, *includes, str(SOURCE), "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise RuntimeError(run.stderr[-4000:])
        partial = library.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(made.read_bytes())
        partial.replace(library)


def build() -> Path:
    """Compile the module unless one of the same sources exists, and return its path."""
    import pybind11

    version = f"{FLAGS}{pybind11.__version__}{sysconfig.get_config_var('EXT_SUFFIX')}"
    digest = hashlib.sha256(version.encode())
    headers = (f for end in ("h", "cuh") for f in (ROOT / "csrc").rglob(f"*.{end}"))
    for path in (SOURCE, *sorted(headers), *sorted(CUDA_ON_HOST.glob("*.h"))):
        digest.update(path.read_bytes())
    library = ROOT / "build" / f"{NAME}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(exist_ok=True)
    with FileLock(library.with_suffix(".lock")):  # test processes wait for the first
        if not library.exists():
            _compile(library)
    return library


@cache
def internals() -> ModuleType:
    """Return the module, built where necessary; skip the test where it cannot be."""
    if reason := missing():
        pytest.skip(reason)
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(build()))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
