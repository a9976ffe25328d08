"""relu and relu_backward against PyTorch."""

from __future__ import annotations

import pytest
import torch
from support.cases import DTYPES, LAYOUTS, randn
from support.marks import needs_native

from fastmlp import functional
from fastmlp.ops import activations as ops
from fastmlp.ops.activations import relu_backward_ref, relu_ref

pytestmark = needs_native

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
SHAPES = [(), (0,), (1,), (15,), (16,), (33,), (3, 0, 2), (5, 7), (2, 3, 129), (70001,), (4300001,)]


def assert_same_bits(ours, theirs):
    """Equal in every bit but those of a nan, which PyTorch itself does not keep."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))
    signs = [torch.signbit(tensor) & ~tensor.isnan() for tensor in (ours, theirs)]
    assert torch.equal(*signs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPE
def test_exact_as_pytorch(shape, dtype):
    x, dy = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    before = x.clone()
    y = ops.relu(x)
    assert_same_bits(y, relu_ref(x))
    assert_same_bits(ops.relu_backward(dy, y), relu_backward_ref(dy, y))
    assert_same_bits(ops.relu_backward(dy, x), relu_backward_ref(dy, x))
    assert torch.equal(x, before)


@DTYPE
def test_special_values_exact_as_pytorch(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, tiny, -tiny, 1, -1])
    x = x.double().repeat(5).to(dtype)
    dy = randn(x.numel(), dtype=dtype)
    assert_same_bits(ops.relu(x), relu_ref(x))
    leaf = x.clone().requires_grad_()
    relu_ref(leaf).backward(dy)
    assert_same_bits(ops.relu_backward(dy, x), leaf.grad)
    nans = torch.full((33,), float("nan"), dtype=dtype)
    assert_same_bits(ops.relu_backward(nans, torch.ones_like(nans)), nans)


def test_every_16_bit_pattern_exact_as_pytorch():
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        assert_same_bits(ops.relu(x), relu_ref(x))


@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("dy_layout", LAYOUTS)
def test_layouts_exact_as_pytorch(x_layout, dy_layout):
    x, dy = LAYOUTS[x_layout](randn(9, 37)), LAYOUTS[dy_layout](randn(9, 37))
    y = ops.relu(x)
    assert torch.equal(y, relu_ref(x))
    assert y.stride() == torch.empty_like(x).stride(), "not the strides the fake kernel promises"
    assert torch.equal(ops.relu_backward(dy, x), relu_backward_ref(dy, x))
    row = randn(1, 37).expand(9, 37)
    assert torch.equal(ops.relu(row), relu_ref(row))
    assert torch.equal(ops.relu_backward(row, x), relu_backward_ref(row, x))


def test_threads_do_not_change_a_bit(threads):
    x, dy = randn(300_001), randn(300_001)
    threads(1)
    one = ops.relu(x), ops.relu_backward(dy, x)
    threads(2)
    assert torch.equal(one[0], ops.relu(x))
    assert torch.equal(one[1], ops.relu_backward(dy, x))


def test_gradients_of_every_order():
    x = randn(4, 5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(functional.relu, x)
    torch.autograd.gradgradcheck(functional.relu, x)


def test_opcheck_and_compile():
    x = randn(4, 5).requires_grad_()
    torch.library.opcheck(torch.ops.fastmlp.relu.default, (x,))
    torch.library.opcheck(torch.ops.fastmlp.relu.default, (x.t(),))
    torch.library.opcheck(torch.ops.fastmlp.relu_backward.default, (x, randn(4, 5)))
    compiled = torch.compile(functional.relu, fullgraph=True)
    assert torch.equal(compiled(x), functional.relu(x))


def test_wrong_arguments_get_one_sentence():
    with pytest.raises(TypeError, match="x must be float32, float64, bfloat16 or float16"):
        functional.relu(torch.arange(3))
    with pytest.raises(RuntimeError, match=r"y must have the shape of dy \(3\), got \(4\)"):
        ops.relu_backward(randn(3), randn(4))
