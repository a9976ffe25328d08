"""The CUDA operators on an emulated GPU: csrc/cuda as g++ compiles it over native/cuda_on_host.

The kernels' own source runs, each GPU thread as a fiber, and the operators around them. They are
``torch.ops.fastmlp_on_host.<name>`` on CPU tensors; new tensors are poisoned with nan and stand
between guard bands. What this cannot show: timing, memory ordering between running blocks, the
rounding of a GPU's own exp and tensor cores.

A second build (``races=True``) has the compiler's hooks before every load and store, as
``torch.ops.fastmlp_on_host_races.<name>``, and fails where two threads race for memory, or wait for
each other at different places of the source (``races.h``). It is some fifty times as slow.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native" / "cuda_on_host"
UNHOOKED = ("cuda_on_host.cpp", "host_operators.cpp", "races.cpp")
KEPT: list[torch.library.Library] = []
OPERATORS = (
    *("activation", "activation_backward", "linear", "linear_backward"),
    *("cross_entropy", "cross_entropy_backward", "linear_plan_cuda", "blocked_chain_"),
    *("blocked_gram_", "blocked_products_", "blocked_product_sum_"),
)
FLAGS = [
    *("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w"),
    # a misaligned 16-byte access is an error on a GPU: here it traps
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow",
    "-fsanitize-undefined-trap-on-error",
    "-fno-strict-aliasing",  # as nvcc has it
    *("-DFASTMLP_ON_HOST", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"),
]


RACES = ["-DFASTMLP_RACES"]
HOOKS = ["-fsanitize=thread", "-O0"]  # calls stay calls, and what threads share stays in memory


def sources() -> list[Path]:
    cuda = ROOT / "csrc" / "cuda"
    return [
        *(f for end in ("cu", "cpp") for f in sorted(cuda.rglob(f"*.{end}"))),
        *NATIVE.glob("*.cpp"),
    ]


def _flags(source: Path, races: bool) -> list[str]:
    hooked = source.name not in UNHOOKED
    return [*FLAGS, *(RACES if races else ()), *(HOOKS if races and hooked else ())]


def _compile(source: Path, target: Path, races: bool) -> None:
    includes = [str(NATIVE), str(ROOT / "csrc"), *include_paths(), sysconfig.get_path("include")]
    paths = [f"-I{path}" for path in includes]
    command = [
        "g++",
        *_flags(source, races),
        *paths,
        "-c",
        "-x",
        "c++",
        str(source),
        "-o",
        str(target),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(run.stderr[-4000:])


def _link(library: Path, races: bool) -> None:
    """Compile and link all sources."""
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / f"{path.name}.o" for path in sources()]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
            list(pool.map(_compile, sources(), objects, repeat(races)))
        made = Path(folder) / library.name
        paths = [f"-L{path}" for path in library_paths()]
        link = [
            "g++",
            "-shared",
            *map(str, objects),
            *paths,
            "-ltorch_cpu",
            "-lc10",
            "-o",
            str(made),
        ]
        subprocess.run(link, check=True)
        partial = library.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(made.read_bytes())
        partial.replace(library)


def build(races: bool = False) -> Path:
    """Compiles the library unless one of the same sources is there; returns its path."""
    flags = [*FLAGS, *(RACES + HOOKS if races else ())]
    digest = hashlib.sha256(f"{flags}{torch.__version__}{sysconfig.get_platform()}".encode())
    for path in sorted([*(ROOT / "csrc").rglob("*.*"), *NATIVE.glob("*")]):
        digest.update(path.read_bytes())
    library = ROOT / "build" / f"cuda_on_host-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(exist_ok=True)
    with FileLock(library.with_suffix(".lock")):  # test processes wait for the first
        if not library.exists():
            _link(library, races)
    return library


@cache
def operators(races: bool = False) -> Any:
    """``torch.ops.fastmlp_on_host``, or the one that finds races, built and loaded."""
    name = "fastmlp_on_host_races" if races else "fastmlp_on_host"
    definitions = torch.library.Library(name, "DEF")
    KEPT.append(definitions)
    for operator in OPERATORS:
        schema = str(getattr(torch.ops.fastmlp, operator).default._schema)
        definitions.define(schema.removeprefix("fastmlp::"))
    torch.ops.load_library(str(build(races)))
    return getattr(torch.ops, name)


def configure(
    order: int = 0,
    processors: int = 132,
    last_blocks: int = 0,
    capability: int = 90,
    clusters: int = 0,
) -> None:
    """In which order threads and blocks run (0 ascending, 1 descending, else shuffled by that
    seed), how many multiprocessors of which compute capability (90 for 9.0) there are, how
    many of a grid's last blocks run (0: all), and how many clusters of thread blocks at once (0: as
    many as there are multiprocessors for)."""
    operators().configure(order, processors, capability, last_blocks, clusters)


def call(name: str, *args: Any) -> Any:
    """An operator's result, copied out of the guard bands, none of which it may have touched."""
    result = getattr(operators(), name)(*args)
    if isinstance(result, Tensor):
        copies: Any = result.clone()
    else:
        copies = tuple(tensor.clone() for tensor in result)
    del result
    written = operators().release_tensors()
    assert written == 0, f"{written} bytes written outside of {name}'s tensors"
    return copies


def fenced(low: bool = False) -> Callable[[Tensor], Tensor]:
    """Makes copies whose memory ends (or begins) where reading is a segmentation fault."""
    return lambda tensor: operators().fenced(tensor, low)
