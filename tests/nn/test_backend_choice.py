"""What the layers take by default: PyTorch's operators where those are quicker, our kernels
elsewhere, with the same results and the same errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.marks import needs_native
from support.native_module import internals
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmlp
from fastmlp import functional
from fastmlp.ops import cross_entropy as cross_entropy_ops
from fastmlp.ops import linear as linear_ops
from fastmlp.ops.backend_choice import (
    is_cross_entropy_of_pytorch,
    is_linear_of_pytorch,
    is_relu_of_pytorch,
    linear_reason,
)

pytestmark = needs_native


@pytest.fixture
def free():
    """Nobody asks for a backend."""
    fastmlp.set_backend(None)
    yield
    fastmlp.set_backend(None)


def linear_case(rows, inputs, outputs, dtype=torch.float32):
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    return x, weight.requires_grad_(), torch.randn(outputs, dtype=dtype)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype", "small"),
    [
        (8, 64, 100, torch.float32, True),
        (200, 64, 100, torch.float64, True),
        (1, 3072, 256, torch.float32, True),
        (8, 3072, 256, torch.float32, False),
        (512, 256, 256, torch.float32, False),
        (8, 64, 100, torch.float16, False),
        (8, 64, 100, torch.bfloat16, False),
        (0, 64, 100, torch.float32, True),
    ],
)
def test_linear(free, rows, inputs, outputs, dtype, small):
    assert (linear_reason(rows, inputs, outputs, dtype) is not None) == small
    x, weight, bias = linear_case(rows, inputs, outputs, dtype)
    y = functional.linear(x, weight, bias, "relu")
    assert ("Gradient" in type(y.grad_fn).__name__) != small
    by_kernels = functional.linear(x, weight, bias, "relu", backend="native")
    assert "Gradient" in type(by_kernels.grad_fn).__name__
    torch.testing.assert_close(y, by_kernels, rtol=1e-2, atol=1e-2)


def test_relu_is_pytorchs(free):
    x = torch.randn(8, 3, requires_grad=True)
    assert "Relu" in type(functional.relu(x).grad_fn).__name__
    assert "Gradient" in type(functional.relu(x, backend="native").grad_fn).__name__


@pytest.fixture
def gpu(free, monkeypatch):
    """Makes tensors on a GPU, without one: they have no numbers."""
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    with FakeTensorMode():
        yield lambda *sizes, dtype=torch.float32: torch.empty(sizes, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape",
    [(1, 16, 8), (8, 3072, 256), (32, 3072, 256), (256, 2048, 1024), (257, 4, 4), (0, 4, 3000)],
)
def test_on_a_gpu_a_layer_leaves_what_its_plan_leaves(gpu, shape, dtype):
    rows, inputs, outputs = shape
    doubles, in_16_bits = dtype == torch.float64, dtype.itemsize == 2
    ours, _ = internals().plan_linear_cuda(rows, inputs, outputs, doubles, in_16_bits)
    x, weight = gpu(rows, inputs, dtype=dtype), gpu(outputs, inputs, dtype=dtype)
    assert is_linear_of_pytorch(x, weight, gpu(outputs, dtype=dtype)) == (not ours)
    fastmlp.set_backend("native")
    assert not is_linear_of_pytorch(x, weight, None)


def test_on_a_gpu_relu_is_pytorchs_and_the_loss_ours(gpu):
    assert is_relu_of_pytorch(gpu(3, dtype=torch.bfloat16))
    logits, target = gpu(8, 10), torch.empty(8, dtype=torch.int64, device="cuda")
    assert not is_cross_entropy_of_pytorch(logits, target, None)


@pytest.mark.parametrize(
    ("rows", "classes", "small"),
    [(8, 10, True), (255, 10, True), (256, 10, False), (64, 1000, True), (100, 1000, False)],
)
def test_cross_entropy(free, rows, classes, small):
    logits, target = torch.randn(rows, classes, requires_grad=True), torch.arange(rows) % classes
    loss = functional.cross_entropy(logits, target)
    assert ("Gradient" in type(loss.grad_fn).__name__) != small
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


@pytest.mark.parametrize("backend", [None, "native"])
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda f, b: f.linear(torch.ones(2, 3), torch.ones(4, 5), backend=b), ValueError),
        (lambda f, b: f.linear(torch.ones(2, 3), torch.ones(3), backend=b), ValueError),
        (
            lambda f, b: f.linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(1), backend=b),
            ValueError,
        ),
        (lambda f, b: f.linear(torch.ones(2, 3).int(), torch.ones(4, 3), backend=b), TypeError),
        (lambda f, b: f.linear(torch.ones(2, 3), torch.ones(4, 3).double(), backend=b), TypeError),
        (lambda f, b: f.linear([[1.0]], torch.ones(1, 1), backend=b), TypeError),
        (
            lambda f, b: f.linear(torch.ones(1, 1), torch.ones(1, 1), None, "no", backend=b),
            ValueError,
        ),
        (lambda f, b: f.cross_entropy(torch.ones(2, 3), torch.tensor([0]), backend=b), ValueError),
        (lambda f, b: f.cross_entropy(torch.ones(1, 3), torch.tensor([3]), backend=b), IndexError),
        (
            lambda f, b: f.cross_entropy(
                torch.ones(1, 3), torch.tensor([0]), reduction="no", backend=b
            ),
            ValueError,
        ),
        (
            lambda f, b: f.cross_entropy(
                torch.ones(1, 3), torch.tensor([0]), label_smoothing=2.0, backend=b
            ),
            ValueError,
        ),
    ],
)
def test_errors_are_the_same_either_way(free, backend, call, error):
    with pytest.raises(error) as by_kernels:
        call(functional, "native")
    with pytest.raises(error) as found:
        call(functional, backend)
    if error is not IndexError:
        assert str(found.value) == str(by_kernels.value)


def test_a_backend_that_somebody_asked_for_is_not_second_guessed(free, monkeypatch):
    called = []
    for module, name in ((linear_ops, "linear"), (cross_entropy_ops, "cross_entropy")):
        operator = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, op=operator, name=name: called.append(name) or op(*a)
        )
    fastmlp.set_backend("native")
    functional.linear(*linear_case(2, 3, 4))
    functional.cross_entropy(torch.ones(1, 3), torch.tensor([0]))
    assert called == ["linear", "cross_entropy"]
