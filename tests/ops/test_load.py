"""Which implementation runs, and what is said where the compiled one is missing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings

import pytest
import torch
from support.cases import randn
from support.marks import needs_native
from torch import Tensor

import fastmlp
from fastmlp import functional
from fastmlp.ops import _load as backend
from fastmlp.ops import activations


@pytest.fixture(autouse=True)
def _restore():
    yield
    fastmlp.set_backend(None)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_native
def test_native_is_the_default_and_both_can_be_named():
    assert backend.resolve_backend() == "native"
    assert backend.resolve_backend("reference") == "reference"
    fastmlp.set_backend("reference")
    assert backend.resolve_backend() == "reference"
    assert backend.resolve_backend("native") == "native"
    fastmlp.set_backend(None)
    assert backend.resolve_backend() == "native"


@needs_native
def test_the_named_backend_is_what_runs(monkeypatch):
    called = []
    monkeypatch.setattr(activations, "activation", lambda x, name: called.append("native") or x)
    monkeypatch.setattr(
        activations, "activation_ref", lambda x, name: called.append("reference") or x
    )
    functional.relu(randn(3))
    functional.relu(randn(3), backend="reference")
    fastmlp.set_backend("reference")
    functional.relu(randn(3))
    assert called == ["native", "reference", "reference"]


def test_an_unknown_backend_is_refused():
    for use in (fastmlp.set_backend, lambda name: functional.relu(randn(3), backend=name)):
        with pytest.raises(ValueError, match="one of native, reference, got 'cuda'"):
            use("cuda")


MISSING = """
import sys, warnings
sys.modules["fastmlp._C"] = None  # as if it had never been built
import fastmlp, torch
from fastmlp import functional
from fastmlp.ops import activations
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = fastmlp.MLP([4, 3, 2])
    loss = fastmlp.CrossEntropyLoss()(model(torch.ones(5, 4)), torch.zeros(5).long())
    loss.backward()
    functional.relu(torch.ones(2))
ours = [str(w.message) for w in caught if "fastmlp" in str(w.message)]
assert len(ours) == 1, ours
print(ours[0])
try:
    functional.relu(torch.ones(2), backend="native")
except RuntimeError as error:
    print(error)
"""


def test_without_the_extension_the_reference_serves_after_one_warning():
    run = python(MISSING)
    assert run.returncode == 0, run.stderr
    warning, refusal = run.stdout.splitlines()
    assert "reference" in warning
    assert "could not be loaded" in warning
    assert "pip install -e ." in warning
    assert "backend 'native' is not available on cpu" in refusal


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("8.0;9.0a;10.0;12.0+PTX", (8, 0), True),
        ("8.0;9.0a;10.0;12.0+PTX", (8, 9), True),
        ("8.0;9.0a;10.0;12.0+PTX", (9, 0), True),
        ("8.0;9.0a;10.0;12.0+PTX", (12, 1), True),
        ("8.0;9.0a;10.0;12.0+PTX", (13, 0), True),
        ("8.0;9.0a;10.0;12.0+PTX", (7, 5), False),
        ("7.5;8.0;9.0a;10.0;12.0+PTX", (7, 5), True),
        ("7.5;8.0;9.0a;10.0;12.0+PTX", (7, 0), False),
        ("7.5+PTX", (7, 5), True),
        ("7.5+PTX", (8, 0), False),
        ("8.6", (8, 0), False),
        ("9.0a", (9, 1), False),
        ("8.0+PTX", (12, 0), True),
        ("8.0", (12, 0), False),
    ],
)
def test_what_runs_on_a_gpu(archs, capability, runs):
    assert backend.runs_on(archs, capability) == runs


@needs_native
def test_a_gpu_that_the_build_has_no_code_for(monkeypatch):
    """A build for newer GPUs, on the T4 of Google Colab."""
    monkeypatch.setattr(backend, "NATIVE_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(backend, "CUDA_ERROR", None)
    monkeypatch.setattr(torch.ops.fastmlp, "cuda_archs", lambda: "8.0;9.0a", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    backend._look_at_gpus.cache_clear()
    backend._warned.clear()
    fastmlp.set_backend(None)
    try:
        assert not fastmlp.native_available("cuda")
        with pytest.warns(UserWarning, match=r"8.0, 9.0a, and the Tesla T4 here has 7.5; run 'pip"):
            assert backend.resolve_backend(None, "cuda") == "reference"
    finally:
        backend._look_at_gpus.cache_clear()


def test_torch_compile_takes_what_is_known_of_gpus_as_a_constant(monkeypatch):
    """Without looking into how it is found out, which it cannot trace."""

    @functools.cache
    def look() -> str | None:
        torch._dynamo.graph_break()
        return None

    monkeypatch.setattr(backend, "NATIVE_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(backend, "_look_at_gpus", look)

    @torch.compile(fullgraph=True, backend="eager")
    def ask(x: Tensor) -> Tensor:
        return x + fastmlp.native_available("cuda")

    assert ask(torch.zeros(1)).item() == 1


def test_a_device_without_kernels_gets_the_reference_and_one_warning():
    backend._warned.clear()
    fastmlp.set_backend(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert backend.resolve_backend(None, "mps") == "reference"
        assert backend.resolve_backend(None, "mps") == "reference"
    assert len(caught) == 1
    assert "on mps" in str(caught[0].message)
    with pytest.raises(RuntimeError, match="not available on mps"):
        backend.resolve_backend("native", "mps")


@pytest.mark.parametrize("name", [None, *backend.BACKENDS])
def test_shapes_on_meta_tensors_warn_of_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fastmlp.MLP([4, 3, 2], device="meta", backend=name)
        logits = model(torch.empty(5, 4, device="meta"))
        target = torch.empty(5, dtype=torch.int64, device="meta")
        loss = functional.cross_entropy(functional.relu(logits, backend=name), target, backend=name)
    assert (logits.shape, loss.shape) == ((5, 2), ())


@needs_native
def test_why_there_are_no_cuda_kernels(monkeypatch):
    if torch.version.cuda is None:
        assert "only for cpu (this PyTorch is a CPU build)" in backend.unsupported_reason("cuda")
        assert "cuda" not in backend.NATIVE_DEVICES
    monkeypatch.setitem(sys.modules, "fastmlp._cuda", None)  # as if it had never been built
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "fastmlp._cuda is not built; run 'pip install -e .'" in str(backend._load_cuda())


@needs_native
def test_an_instruction_set_that_is_not_there_is_told():
    run = python("import fastmlp.ops._load as b; print(b.NATIVE_ERROR)", FASTMLP_CPU_ISA="mmx")
    assert "FASTMLP_CPU_ISA must be portable, avx2 or avx512" in run.stdout
    run = python("import torch, fastmlp; print(torch.ops.fastmlp.cpu_isa())", FASTMLP_CPU_ISA="")
    assert run.stdout.strip() in ("portable", "avx2", "avx512")
    run = python(
        "import torch, fastmlp; print(torch.ops.fastmlp.cpu_isa())", FASTMLP_CPU_ISA="portable"
    )
    assert run.stdout.strip() == "portable"
