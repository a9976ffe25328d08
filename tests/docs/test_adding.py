"""The code of the pages on adding an operator and adding an engine is compiled, run and tested."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.marks import needs_native
from support.processes import python_environment
from support.single import single
from support.tiny import CLASSES, FEATURES, tiny_data

from fastmlp.data.sampling import epoch_order
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.registry import ENGINES, choose_engine
from fastmlp.nn.init import initial_parameters
from fastmlp.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not run from a checkout")
CPU = torch.device("cpu")


def block(page: str, name: str) -> str:
    """A page's block of code with a name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.S)
    return found


# What setup.py does for the files in csrc/, and where fastmlp/ops/ would have the module.
CONFTEST = """
import importlib.util, os, sys
from pathlib import Path
from torch.utils.cpp_extension import load

import fastmlp.ops

here = Path(__file__).parent
flags = ["-O1", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
flags += ["-Wno-unused-parameter"]
flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
load("rms_norm", [str(here / "rms_norm.cpp")], extra_cflags=flags, is_python_module=False,
     extra_include_paths=[os.environ["CSRC"]], build_directory=str(here))
spec = importlib.util.spec_from_file_location("fastmlp.ops.rms_norm", here / "rms_norm.py")
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


@pytest.mark.slow
@needs_native
def test_the_operator(tmp_path: Path) -> None:
    """In a process of its own, whose operators are one more."""
    pytest.importorskip("ninja", reason="ninja is not installed")
    page = "adding-an-operator.md"
    schemas = f"\nSTABLE_TORCH_LIBRARY_FRAGMENT(fastmlp, m) {{\n{block(page, 'schemas')}}}\n"
    (tmp_path / "rms_norm.cpp").write_text(block(page, "kernels") + schemas)
    (tmp_path / "rms_norm.py").write_text(block(page, "fastmlp/ops/rms_norm.py"))
    (tmp_path / "test_rms_norm.py").write_text(block(page, "tests/ops/test_rms_norm.py"))
    (tmp_path / "conftest.py").write_text(CONFTEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_rms_norm.py"],
        cwd=tmp_path,
        env=python_environment(CSRC=str(ROOT / "csrc"), MAX_JOBS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b67 passed", done.stdout), done.stdout


SETTINGS = {
    "plain": OptimizerConfig(8),
    "momentum": OptimizerConfig(7, 0.9, True, 0.01),
    "averaged": OptimizerConfig(8, grad_average=True),
    "adam": OptimizerConfig(8, optimizer="adam"),
}


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_the_engine(config: OptimizerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {"__name__": "page"}
    exec(block("adding-an-engine.md", "engine"), names)
    engine = names["AutogradEngine"]
    monkeypatch.setitem(ENGINES, "autograd", engine)
    assert choose_engine("autograd", CPU, [FEATURES, 16, CLASSES], config)[0] is engine
    data = tiny_data(90)
    norm = make_normalization("standard", data.train.images)
    parameters = initial_parameters([FEATURES, 16, 5, CLASSES], "kaiming", seed=3)
    parameters = {name: tensor.double() for name, tensor in parameters.items()}
    networks = [
        single(ENGINES[name], parameters, data.train, norm, config, CPU)
        for name in ("autograd", "reference")
    ]
    for epoch in range(2):
        order = epoch_order(0, epoch, 90)
        ours, theirs = (network.train_epoch(order, 0.05) for network in networks)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-10)
        assert ours.accuracy == theirs.accuracy
    ours, theirs = (network.parameters_state() for network in networks)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-10)
    mine, reference = (network.evaluate(data.val) for network in networks)
    assert mine.loss == pytest.approx(reference.loss, rel=1e-10)


def test_the_engine_says_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {"__name__": "page"}
    exec(block("adding-an-engine.md", "engine"), names)
    monkeypatch.setitem(ENGINES, "autograd", names["AutogradEngine"])
    for asked in (OptimizerConfig(8, dropout=0.5), OptimizerConfig(8, precision="bfloat16")):
        with pytest.raises(UserError, match="The engine autograd cannot run here: it "):
            choose_engine("autograd", CPU, [FEATURES, 16, CLASSES], asked)
