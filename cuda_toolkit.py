"""Choose the CUDA toolkit, and the GPUs, that setup.py builds fastmlp._cuda for. No torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

LEAST = (7, 5)
"""The compute capability that our kernels need."""
EVERY_GPU = "7.5;8.0;9.0a;10.0;12.0+PTX"
"""What is built for where there is no GPU to see: the kernels of 8.0 run on 8.6 and 8.9 too."""
FAMILIES = {
    "Volta": "7.0+PTX",
    "Turing": "7.5",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}
"""Names that TORCH_CUDA_ARCH_LIST may hold; Turing's without PTX, which no later GPU is to run: it
would do without the tensor cores that these have."""


@dataclass(eq=False)
class Toolkit:
    """A toolkit by its folder, in which bin/nvcc is."""

    home: Path
    root: Path = Path("/")

    @cached_property
    def version(self) -> tuple[int, int] | None:
        """Its version, such as (12, 4); None where its nvcc does not run."""
        found = re.search(r"release (\d+)\.(\d+)", self._nvcc("--version"))
        return (int(found[1]), int(found[2])) if found else None

    @cached_property
    def capabilities(self) -> set[tuple[int, int]]:
        """The compute capabilities that its nvcc compiles for."""
        digits = re.findall(r"compute_(\d+)", self._nvcc("--list-gpu-arch"))
        return {(int(d[:-1]), int(d[-1])) for d in digits}

    @cached_property
    def include(self) -> Path | None:
        """The folder of cuda_runtime.h; conda has it below targets, Debian in /usr/include."""
        places = [
            self.home / "include",
            *self.home.glob("targets/*/include"),
            self.root / "usr/include",
        ]
        return next((p for p in places if (p / "cuda_runtime.h").is_file()), None)

    def library(self, others: Iterable[Path] = ()) -> Path | None:
        """The runtime library, libcudart.so or with a version in its name; ``others`` are folders
        to look in besides."""
        folders = [self.home / name for name in ("lib64", "lib", "lib/x86_64-linux-gnu")]
        folders += [
            *self.home.glob("targets/*/lib"),
            *others,
            self.root / "usr/lib/x86_64-linux-gnu",
        ]
        major = self.version[0] if self.version else 0
        for folder in folders:
            for name in ("libcudart.so", f"libcudart.so.{major}*"):
                for path in sorted(folder.glob(name)):
                    return path
        return None

    def _nvcc(self, option: str) -> str:
        try:
            run = subprocess.run(
                [str(self.home / "bin" / "nvcc"), option],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return run.stdout if run.returncode == 0 else ""


@dataclass(frozen=True)
class Plan:
    """What to build fastmlp._cuda with: a toolkit and a TORCH_CUDA_ARCH_LIST, or neither; and what
    to tell the user."""

    toolkit: Toolkit | None
    archs: str
    said: str
    runtime: Path | None = None
    """The library libcudart to link with."""


def pip_folders() -> list[Path]:
    """The folders of NVIDIA's pip packages."""
    found = importlib.util.find_spec("nvidia")
    return [Path(p) for p in (found.submodule_search_locations or ())] if found else []


def toolkits(
    environ: Mapping[str, str], pips: Iterable[Path], root: Path = Path("/")
) -> list[Toolkit]:
    """All toolkits, those that the user names first."""
    homes = [Path(environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    nvcc = shutil.which("nvcc", path=environ.get("PATH", ""))
    homes += [Path(p).parent.parent for p in (nvcc, os.path.realpath(nvcc or "")) if nvcc and p]
    homes += [Path(environ["CONDA_PREFIX"])] if environ.get("CONDA_PREFIX") else []
    homes += [root / "usr/local/cuda", *sorted(root.glob("usr/local/cuda-*"), reverse=True)]
    homes += [root / "usr/lib/nvidia-cuda-toolkit"]  # Debian's
    homes += [home for pip in pips for home in sorted(pip.glob("cu[0-9]*"), reverse=True)]
    found: dict[str, Toolkit] = {}
    for home in homes:
        if (home / "bin" / "nvcc").is_file():
            found.setdefault(str(home.resolve()), Toolkit(home, root))
    return list(found.values())


def make_plan(
    torch_cuda: str,
    gpus: Iterable[tuple[int, int]],
    environ: Mapping[str, str],
    pips: Iterable[Path],
    root: Path = Path("/"),
) -> Plan:
    """Return the plan for a PyTorch of a CUDA version, on a machine with GPUs of these compute
    capabilities. Whatever is missing ends in a plan without a toolkit and a sentence."""
    pips, found, incomplete = list(pips), [], []
    major = int(torch_cuda.split(".")[0])
    for toolkit in toolkits(environ, pips, root):
        version = toolkit.version
        number = ".".join(map(str, version)) if version else "one whose nvcc does not run"
        found.append(f"{number} in {toolkit.home}")
        if version is None or version[0] != major:
            continue
        runtime = toolkit.library(_runtimes(pips, major))
        if toolkit.include is None or runtime is None:
            missing = "libcudart.so" if toolkit.include else "cuda_runtime.h"
            incomplete.append(f"the CUDA toolkit in {toolkit.home} has no {missing}")
            continue
        wish = environ.get("TORCH_CUDA_ARCH_LIST", "")
        return replace(_for_gpus(toolkit, list(gpus), wish), runtime=runtime)
    if incomplete:
        return Plan(None, "", incomplete[0])
    how = "the extra [cuda-build] has one" if major == 13 else f"install CUDA {major}'s"
    if not found:
        return Plan(None, "", f"there is no CUDA toolkit; {how}")
    return Plan(
        None,
        "",
        f"this PyTorch is built with CUDA {torch_cuda}, and the toolkits here are "
        f"{', '.join(found)}; {how}, or a PyTorch of their CUDA",
    )


def _runtimes(pips: Iterable[Path], major: int) -> list[Path]:
    return [pip / name / "lib" for pip in pips for name in (f"cu{major}", "cuda_runtime")]


def _for_gpus(toolkit: Toolkit, gpus: list[tuple[int, int]], wish: str) -> Plan:
    """The plan for the GPUs that are named, or seen, or for all; without those that our kernels or
    the toolkit do not know."""
    seen = ";".join(dict.fromkeys(f"{major}.{minor}" for major, minor in gpus))
    kept, dropped = [], []
    for arch in _spelled_out(wish or seen or EVERY_GPU):
        number = re.match(r"(\d+)\.(\d+)", arch)
        if number is None:
            dropped.append(f"{arch} (which is no compute capability such as 8.6)")
            continue
        capability = int(number[1]), int(number[2])
        if capability < LEAST:
            dropped.append(f"{arch} (the kernels need {LEAST[0]}.{LEAST[1]})")
        elif toolkit.capabilities and capability not in toolkit.capabilities:
            dropped.append(f"{arch} (which this toolkit does not know)")
        else:
            kept.append(arch)
    without = f", without {', '.join(dropped)}" if dropped else ""
    if not kept:
        return Plan(None, "", f"nothing to build for{without}")
    if not wish and not seen and not kept[-1].endswith("+PTX"):
        kept[-1] = f"{kept[-1].rstrip('a')}+PTX"  # for the GPUs to come
    archs = ";".join(kept)
    return Plan(toolkit, archs, f"with {toolkit.home} for {archs}{without}")


def _spelled_out(archs: str) -> list[str]:
    names = re.split(r"[;,\s]+", archs.strip())
    return [a for name in names if name for a in FAMILIES.get(name, name).split(";")]
