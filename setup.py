"""Builds fastmlp._C (operator schemas, CPU kernels) against the torch that is installed, and
fastmlp._cuda where that torch is a CUDA build and there is an nvcc.

Both use LibTorch's stable ABI alone, so one wheel (cp310-abi3) serves torch >= 2.11.
FASTMLP_CUDA=0 leaves CUDA out, 1 insists on it; TORCH_CUDA_ARCH_LIST names the GPUs to build for.
Without a C++ compiler the package is pure PyTorch, and says so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import sys
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


def find_compiler() -> str | None:
    """The C++ compiler that torch.utils.cpp_extension will call."""
    return shutil.which(os.environ.get("CXX", "c++"))


def find_toolkit() -> str | None:
    """The folder of a CUDA toolkit. The nvcc on PATH may be a script that stands elsewhere."""
    nvcc, pip = shutil.which("nvcc"), importlib.util.find_spec("nvidia")
    places = [os.environ.get("CUDA_HOME", "/usr/local/cuda")]
    places += [str(Path(p).parent.parent) for p in (nvcc, os.path.realpath(nvcc or "")) if p]
    pips = pip.submodule_search_locations if pip else ()
    places += ["/usr/local/cuda", *(f"{folder}/cu13" for folder in pips or ())]
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    return next((p for p in places if all(Path(p, part).is_file() for part in parts)), None)


def choose_toolkit() -> str | None:
    """The toolkit to build fastmlp._cuda with, or None; says which, or why not."""
    import torch

    wish, toolkit = os.environ.get("FASTMLP_CUDA", "auto"), find_toolkit()
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"FASTMLP_CUDA must be 0, 1 or auto, got {wish!r}")
    lacks = "" if toolkit else "there is no CUDA toolkit; the extra [cuda-build] has one"
    lacks = lacks if torch.version.cuda else "this PyTorch is a CPU build"
    lacks = "sanitizers are for the CPU" if os.environ.get("FASTMLP_SANITIZE") else lacks
    if wish == "0" or lacks:
        print(f"fastmlp: CPU kernels alone ({lacks or 'FASTMLP_CUDA=0'})")
        if wish == "1":
            raise SystemExit(f"FASTMLP_CUDA=1 asks for the CUDA kernels, but {lacks}")
        return None
    default = "" if torch.cuda.is_available() else "8.0;9.0a;10.0;12.0+PTX"  # "": the GPU here
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default) or "the GPU of this machine"
    print(f"fastmlp: CPU and CUDA kernels, with {toolkit} for {archs} (FASTMLP_CUDA=0: CPU alone)")
    os.environ["CUDA_HOME"] = str(toolkit)  # torch.utils.cpp_extension reads it once
    return toolkit


def keeping_objects(command: type) -> type:
    """The build command, with compiled files kept in build/: pip gives an editable install a folder
    that it removes, and everything would be compiled again each time."""

    class Build(command):  # type: ignore[misc]
        def finalize_options(self) -> None:
            given = self.build_temp
            super().finalize_options()
            platform = self.get_finalized_command("build").plat_name
            self.build_temp = given or f"build/temp.{platform}-{sys.implementation.cache_tag}"

        def run(self) -> None:
            files = sum(len(extension.sources) for extension in self.extensions)
            print(
                f"fastmlp: compiling those of {files} files that have changed; the first time this "
                "takes some minutes on two cores, with CUDA more (MAX_JOBS=N: N at once)",
                flush=True,
            )
            super().run()

    return Build


def extensions() -> tuple[list, dict]:
    """The extension modules and the command that builds them."""
    toolkit = choose_toolkit()
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    debug = os.environ.get("FASTMLP_SANITIZE", "")  # e.g. address,undefined
    flags = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", *WARNINGS, *ABI_FLAGS]
    flags += [f"-fsanitize={debug}", "-fno-sanitize-recover=all", "-g", "-O1"] if debug else []

    def files(*patterns: str) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))

    common = {"depends": files("csrc/**/*.h", "csrc/**/*.cuh"), "py_limited_api": True}
    common["include_dirs"] = [str(ROOT / "csrc")]
    common["extra_link_args"] = [f"-fsanitize={debug}"] if debug else []
    sources = files("csrc/*.cpp", "csrc/cpu/**/*.cpp")
    native = CppExtension("fastmlp._C", sources, extra_compile_args={"cxx": flags}, **common)
    build = {"build_ext": keeping_objects(BuildExtension)}
    if not toolkit:
        return [native], build
    both = {"cxx": [*flags, "-DUSE_CUDA"], "nvcc": ["-O3", "-Xcompiler=-fvisibility=hidden"]}
    sources = files("csrc/cuda/**/*.cpp", "csrc/cuda/**/*.cu")
    cuda = CUDAExtension("fastmlp._cuda", sources, extra_compile_args=both, **common)
    if not [*Path(toolkit).glob("lib*/libcudart.so")]:  # pip has it by its version alone
        name = next(Path(toolkit).glob("lib*/libcudart.so.*")).name
        cuda.libraries[cuda.libraries.index("cudart")] = f":{name}"
    return [native, cuda], build


options: dict = {"options": {"bdist_wheel": {"py_limited_api": "cp310"}}}
if find_compiler() is None:
    print(
        f"fastmlp: WARNING: there is no C++ compiler ({os.environ.get('CXX', 'c++')}), so this is "
        "the pure-PyTorch package: same results, several times slower. Install g++ (Debian: "
        "apt install g++) and install fastmlp again",
        file=sys.stderr,
    )
elif find_torch():
    if not {"egg_info", "dist_info", "sdist"} & set(sys.argv):  # these compile nothing
        options["ext_modules"], options["cmdclass"] = extensions()
elif "sdist" not in sys.argv:
    # pip then installs one into its build environment and runs this file again
    options["setup_requires"] = ["torch>=2.11"]
setup(**options)
