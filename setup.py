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

from cuda_toolkit import Plan, make_plan, pip_folders

LEAST_TORCH = (2, 11)
ROOT = Path(__file__).resolve().parent
ABI_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
# GCC takes the undefined operands inside its own intrinsics for uninitialised variables; the stable
# headers of torch leave parameters unused.
WARNINGS = ["-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-unused-parameter"]


def find_torch() -> bool:
    """Whether torch can be imported; from the environment itself where pip builds in isolation."""
    if importlib.util.find_spec("torch") is None:
        user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
        for folder in (*map(sysconfig.get_path, ("purelib", "platlib")), *user):
            site.addsitedir(folder)
    return importlib.util.find_spec("torch") is not None


def check_torch() -> None:
    """Stop, with what to do, before an older PyTorch than the sources can be compiled against."""
    import torch

    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise SystemExit(
            f"fastmlp needs PyTorch {least} or newer, and {torch.__version__} is installed in "
            f"{Path(torch.__file__).parent}; run pip install --upgrade 'torch>={least}'"
        )


def find_compiler() -> str | None:
    """The C++ compiler that torch.utils.cpp_extension will call."""
    return shutil.which(os.environ.get("CXX", "c++"))


def choose_toolkit() -> Plan | None:
    """The plan to build fastmlp._cuda by, or None; says which, or why not."""
    import torch

    wish = os.environ.get("FASTMLP_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"FASTMLP_CUDA must be 0, 1 or auto, got {wish!r}")
    lacks, plan = "", None
    if os.environ.get("FASTMLP_SANITIZE"):
        lacks = "sanitizers are for the CPU"
    elif not torch.version.cuda:
        lacks = "this PyTorch is a CPU build"
    elif wish == "0":
        lacks = "FASTMLP_CUDA=0"
    else:
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = [torch.cuda.get_device_capability(i) for i in range(seen)]
        plan = make_plan(torch.version.cuda, gpus, os.environ, pip_folders())
        lacks = "" if plan.toolkit else plan.said
    if lacks or plan is None:
        print(f"fastmlp: CPU kernels alone ({lacks})")
        if wish == "1":
            raise SystemExit(f"FASTMLP_CUDA=1 asks for the CUDA kernels, but {lacks}")
        return None
    print(f"fastmlp: CPU and CUDA kernels, {plan.said} (FASTMLP_CUDA=0: CPU alone)")
    os.environ["TORCH_CUDA_ARCH_LIST"] = plan.archs
    os.environ["CUDA_HOME"] = str(plan.toolkit.home)  # torch.utils.cpp_extension reads it once
    return plan


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
    check_torch()
    plan = choose_toolkit()
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
    if plan is None or plan.toolkit is None:
        return [native], build
    both = {"cxx": [*flags, "-DUSE_CUDA", f'-DFASTMLP_CUDA_ARCHS="{plan.archs}"']}
    both["nvcc"] = ["-O3", "-Xcompiler=-fvisibility=hidden"]
    sources = files("csrc/cuda/**/*.cpp", "csrc/cuda/**/*.cu")
    cuda = CUDAExtension("fastmlp._cuda", sources, extra_compile_args=both, **common)
    cuda.include_dirs = [*cuda.include_dirs, str(plan.toolkit.include)]
    library = plan.runtime
    assert library is not None
    cuda.library_dirs = [*cuda.library_dirs, str(library.parent)]
    if library.name != "libcudart.so":  # pip has it by its version alone
        cuda.libraries[cuda.libraries.index("cudart")] = f":{library.name}"
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
