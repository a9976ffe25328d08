"""Builds fastmlp._C (operator schemas and CPU kernels) against the torch that is installed.

The extension uses LibTorch's stable ABI alone, so one wheel (cp310-abi3) serves torch >= 2.11.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
ABI_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]

# GCC takes the undefined operands inside its own intrinsics for uninitialised variables; the stable
# headers of torch leave parameters unused.
WARNINGS = ["-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-unused-parameter"]


def find_torch() -> bool:
    """Whether torch can be imported; from the environment itself where pip builds in isolation."""
    if importlib.util.find_spec("torch") is None:
        for name in ("purelib", "platlib"):
            site.addsitedir(sysconfig.get_path(name))
    return importlib.util.find_spec("torch") is not None


def extensions() -> tuple[list, dict]:
    """The extension modules and the command that builds them."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    debug = os.environ.get("FASTMLP_SANITIZE", "")
    flags = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", *WARNINGS, *ABI_FLAGS]
    link: list[str] = []
    if debug:  # e.g. FASTMLP_SANITIZE=address,undefined
        flags += [f"-fsanitize={debug}", "-fno-sanitize-recover=all", "-g", "-O1"]
        link += [f"-fsanitize={debug}"]
    sources = [ROOT / "csrc" / "ops.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    native = CppExtension(
        "fastmlp._C",
        [str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")],
        extra_compile_args={"cxx": flags},
        extra_link_args=link,
        py_limited_api=True,
    )
    return [native], {"build_ext": BuildExtension}


def main() -> None:
    options: dict = {"options": {"bdist_wheel": {"py_limited_api": "cp310"}}}
    if find_torch():
        options["ext_modules"], options["cmdclass"] = extensions()
    else:  # pip then installs one into its build environment and runs this file again
        options["setup_requires"] = ["torch>=2.11"]
    setup(**options)


main()
