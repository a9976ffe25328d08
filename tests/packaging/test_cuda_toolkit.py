"""Which toolkit and which GPUs setup.py builds for: fake toolkits of every layout, every CUDA of
PyTorch, every kind of GPU, each ending in a plan or in a sentence."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "cuda_toolkit.py"
CAPABILITIES = {
    "11.8": "50 60 70 75 80 86 89 90",
    "12.4": "50 60 70 75 80 86 89 90",
    "12.6": "50 60 70 75 80 86 89 90",
    "12.8": "50 60 70 75 80 86 89 90 100 101 120",
    "13.0": "75 80 86 87 88 89 90 100 103 110 120 121",
}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_toolkit", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_toolkit"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


cuda_toolkit = load()


def make_toolkit(home: Path, version: str, include: Path, library: Path | None) -> Path:
    """A toolkit whose nvcc answers what a real one of that version does."""
    (home / "bin").mkdir(parents=True, exist_ok=True)
    archs = "\n".join(f"compute_{c}" for c in CAPABILITIES[version].split())
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "Cuda compilation tools, release {version}";;\n'
        f'--list-gpu-arch) echo "{archs}";; *) exit 1;; esac\n'
    )
    nvcc.chmod(0o755)
    include.mkdir(parents=True, exist_ok=True)
    (include / "cuda_runtime.h").touch()
    if library is not None:
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
    return home


def nvidia(root: Path, version: str, folder: str = "cuda") -> Path:
    home = root / "usr/local" / folder
    return make_toolkit(home, version, home / "include", home / "lib64/libcudart.so")


def debian(root: Path, version: str) -> Path:
    home = root / "usr/lib/nvidia-cuda-toolkit"
    library = root / "usr/lib/x86_64-linux-gnu/libcudart.so"
    return make_toolkit(home, version, root / "usr/include", library)


def conda(root: Path, version: str) -> Path:
    home, target = root / "conda", root / "conda/targets/x86_64-linux"
    return make_toolkit(home, version, target / "include", target / "lib/libcudart.so")


def pip(root: Path, version: str) -> Path:
    home = root / "site/nvidia" / f"cu{version.split('.')[0]}"
    library = home / f"lib/libcudart.so.{version.split('.')[0]}"
    return make_toolkit(home, version, home / "include", library)


LAYOUTS = {"nvidia": nvidia, "debian": debian, "conda": conda, "pip": pip, "none": None}


def plan_for(root: Path, torch_cuda: str, gpus=(), **environ: str):
    environ = {"CONDA_PREFIX": str(root / "conda"), "PATH": "", **environ}
    return cuda_toolkit.make_plan(torch_cuda, gpus, environ, [root / "site/nvidia"], root)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_toolkit_with_every_pytorch_for_every_gpu(layout: str, tmp_path: Path) -> None:
    gpus = ([], [(6, 1)], [(7, 0)], [(7, 5)], [(8, 6)], [(9, 0)], [(12, 0)])
    gpus += ([(7, 0), (7, 5), (8, 0), (8, 0)],)
    for version, torch_cuda in itertools.product(CAPABILITIES, ("11.8", "12.4", "12.8", "13.0")):
        root = tmp_path / f"{version}-{torch_cuda}"
        make = LAYOUTS[layout]
        home = make(root, version) if make is not None else None
        same = home is not None and version.split(".")[0] == torch_cuda.split(".")[0]
        for seen in gpus:
            plan = plan_for(root, torch_cuda, seen)
            assert "\n" not in plan.said
            fits = [g for g in seen if g >= (7, 5) and f"{g[0]}{g[1]}" in CAPABILITIES[version]]
            if not same:
                assert plan.toolkit is None
                assert "toolkit" in plan.said
                assert home is None or f"{version} in {home}" in plan.said
            elif seen and not fits:
                assert plan.toolkit is None
                assert "nothing to build for" in plan.said
            else:
                assert plan.toolkit.home == home
                assert plan.toolkit.include is not None
                assert plan.runtime.name.startswith("libcudart.so")
                archs = plan.archs.split(";")
                if seen:
                    assert archs == list(dict.fromkeys(f"{g[0]}.{g[1]}" for g in fits))
                else:
                    assert archs[0] == "7.5"
                    assert archs[-1].endswith("+PTX")
                    known = {a.rstrip("a").removesuffix("+PTX").replace(".", "") for a in archs}
                    assert known <= set(CAPABILITIES[version].split())


def test_the_one_of_pytorchs_major_version_is_taken_wherever_it_is(tmp_path: Path) -> None:
    nvidia(tmp_path, "12.4")
    right = pip(tmp_path, "13.0")
    assert plan_for(tmp_path, "13.0").toolkit.home == right
    newer = nvidia(tmp_path, "13.0", "cuda-13.0")
    assert plan_for(tmp_path, "13.0").toolkit.home == newer
    assert plan_for(tmp_path, "13.0", CUDA_HOME=str(right)).toolkit.home == right
    assert plan_for(tmp_path, "12.8").toolkit.home == tmp_path / "usr/local/cuda"


def test_an_nvcc_on_the_path_that_stands_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / "opt/cuda"
    make_toolkit(home, "13.0", home / "include", home / "lib64/libcudart.so")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").symlink_to(home / "bin/nvcc")
    assert plan_for(tmp_path, "13.0", PATH=str(tmp_path / "bin")).toolkit.home == home


@pytest.mark.parametrize(
    ("wish", "archs", "said"),
    [
        ("8.6", "8.6", ""),
        ("6.1;7.0;8.0+PTX", "8.0+PTX", "without 6.1 (the kernels need 7.5), 7.0 (the kernels"),
        ("7.5;8.0+PTX", "7.5;8.0+PTX", ""),
        ("8.0 9.0a", "8.0;9.0a", ""),
        ("Ampere", "8.0;8.6+PTX", ""),
        ("Turing", "7.5", ""),
        ("Volta", "", "nothing to build for, without 7.0+PTX (the kernels need 7.5)"),
        ("10.0", "", "10.0 (which this toolkit does not know)"),
        ("sm_80", "", "sm_80 (which is no compute capability such as 8.6)"),
    ],
)
def test_a_list_of_gpus(wish: str, archs: str, said: str, tmp_path: Path) -> None:
    nvidia(tmp_path, "12.4")
    plan = plan_for(tmp_path, "12.4", TORCH_CUDA_ARCH_LIST=wish)
    assert plan.archs == archs
    assert said in plan.said
    assert (plan.toolkit is None) == (archs == "")


def test_a_toolkit_with_parts_missing(tmp_path: Path) -> None:
    home = tmp_path / "usr/local/cuda"
    make_toolkit(home, "13.0", home / "include", None)
    assert plan_for(tmp_path, "13.0").said.endswith("has no libcudart.so")
    library = tmp_path / "site/nvidia/cu13/lib/libcudart.so.13"  # as PyTorch's own packages have
    library.parent.mkdir(parents=True)
    library.touch()
    assert plan_for(tmp_path, "13.0").runtime == library
    (home / "include/cuda_runtime.h").unlink()
    assert plan_for(tmp_path, "13.0").said.endswith("has no cuda_runtime.h")
    (home / "bin/nvcc").write_text("#!/bin/sh\nexit 1\n")
    assert "one whose nvcc does not run in" in plan_for(tmp_path, "13.0").said
