"""What setup.py decides to build, and says so."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Runs setup.py, for its name alone, with a value of FASTMLP_CUDA."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("os.environ", dict(os.environ))
    monkeypatch.setattr("sys.argv", ["setup.py", "--name"])

    def run(wish: str) -> object:
        os.environ["FASTMLP_CUDA"] = wish
        return runpy.run_path("setup.py", run_name="__main__")

    return run


def test_a_build_says_what_it_chose(
    setup: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    setup("0")
    assert "fastmlp: CPU kernels alone" in capsys.readouterr().out


def test_an_unknown_wish_is_one_sentence(setup: Callable[[str], object]) -> None:
    with pytest.raises(SystemExit, match="FASTMLP_CUDA must be 0, 1 or auto, got 'yes'"):
        setup("yes")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is a CUDA build")
def test_cuda_is_not_built_against_a_cpu_build_of_torch(
    setup: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    setup("auto")
    told = "fastmlp: CPU kernels alone (this PyTorch is a CPU build)"
    assert told in capsys.readouterr().out
    with pytest.raises(SystemExit, match="asks for the CUDA kernels, but this PyTorch is a CPU"):
        setup("1")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def hook(checkout: Path, call: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend as a frontend does."""
    code = f"""
import sys
sys.path.insert(0, ".")
import build_backend
{call}
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_sdist_has_every_file_and_asks_for_no_torch(checkout: Path, tmp_path: Path) -> None:
    call = "print(build_backend.get_requires_for_build_sdist())\n"
    call += f"build_backend.build_sdist({str(tmp_path)!r})"
    run = hook(checkout, call, FASTMLP_CUDA="0")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[]")
    (archive,) = tmp_path.glob("fastmlp-*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    wanted = {str(p.relative_to(checkout)) for p in checkout.rglob("*") if p.is_file()}
    wanted = {
        n for n in wanted if not n.startswith(("build/", "fastmlp.egg-info/", "__pycache__/"))
    }
    assert wanted - held <= {".gitignore"}
    assert "fastmlp/py.typed" in held


def test_without_a_compiler_the_package_is_pure_python(checkout: Path, tmp_path: Path) -> None:
    run = hook(checkout, f"build_backend.build_wheel({str(tmp_path)!r})", CXX="no-such-compiler")
    assert run.returncode == 0, run.stderr
    assert "WARNING: there is no C++ compiler (no-such-compiler)" in run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastmlp/py.typed", "fastmlp/report/report.html.jinja"} <= set(names)
    assert not [name for name in names if name.startswith("tests") or name.endswith(".so")]


def test_a_tag_is_the_version(checkout: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for command in (
        ["init", "-q"],
        ["add", "CITATION.cff"],
        ["commit", "-qm", "a"],
        ["tag", "v9.8.7"],
    ):
        subprocess.run([*git, *command], check=True)
    try:
        run = hook(checkout, "from setuptools_scm import get_version; print(get_version())")
    finally:
        shutil.rmtree(checkout / ".git")
    assert run.stdout.startswith("9.8.7"), run.stderr
