"""ReLUs that save a mask: the operators on the CPU, what autograd keeps, functions and modules."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from cases import DTYPES, LAYOUTS, randn
from compare import assert_same_gradients
from conftest import needs_native
from mask_cases import MaskTests
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import fastmlp
from fastmlp.ops import mask_ops
from fastmlp import functional
from fastmlp.ops.reference import (
    linear_relu_with_mask_ref,
    pack_mask_ref,
    relu_backward_ref,
    relu_with_mask_ref,
)

pytestmark = needs_native

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture
def machine():
    """The CPU."""
    operators = torch.ops.fastmlp
    return SimpleNamespace(
        run=lambda name, *args: getattr(operators, name)(*args), place=lambda t: t, device="cpu"
    )


class TestMasks(MaskTests):
    @pytest.mark.parametrize("by_columns", [False, True])
    @pytest.mark.parametrize("shape", [(8, 3072, 256), (5, 70, 131), (500, 64, 30)], ids=str)
    def test_threads_do_not_change_a_bit(self, threads, shape, by_columns):
        batch, inputs, outputs = shape
        x, w = randn(batch, inputs), randn(outputs, inputs)
        w = w.t().contiguous().t() if by_columns else w
        large, results = randn(41, 70_001), []
        for count in (1, 2, 3, 2):
            threads(count)
            results.append([*mask_ops.linear_relu_with_mask(x, w), *mask_ops.relu_with_mask(large)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    @DTYPE
    def test_a_relu_larger_than_the_caches_exact(self, machine, dtype):
        for shape in ((4_300_001,), (2100, 2048)):
            x, dy = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
            y, mask = machine.run("relu_with_mask", x)
            assert torch.equal(y, x.relu())
            assert torch.equal(mask, pack_mask_ref(x))
            assert torch.equal(machine.run("relu_backward", dy, mask), relu_backward_ref(dy, x))


def test_the_references_are_the_operators():
    x, w, b = randn(4, 5), randn(13, 5), randn(13)
    ours, theirs = mask_ops.linear_relu_with_mask(x, w, b), linear_relu_with_mask_ref(x, w, b)
    torch.testing.assert_close(ours, theirs)
    ours, theirs = mask_ops.relu_with_mask(x.t()), relu_with_mask_ref(x.t())
    assert all(
        torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(ours, theirs, strict=True)
    )


# ---- what is kept ----


class Kept:
    """Bytes of what autograd saves while it is entered, but for the given tensors'."""

    def __init__(self, *known: Tensor) -> None:
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.sizes: list[int] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.known:
            self.sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    def __enter__(self) -> list[int]:
        self.hooks.__enter__()
        return self.sizes

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


@DTYPE
@pytest.mark.parametrize("batch", [32, 600])
def test_a_bit_for_each_output_is_kept_and_the_output_freed(dtype, batch):
    """Of our kernels and of the BLAS's."""
    x, w = randn(batch, 40, dtype=dtype), randn(48, 40, dtype=dtype).requires_grad_()
    grads, freed, kept = [], [], []
    for save_mask in (False, True):
        with Kept(x, w) as sizes:
            y = functional.linear_relu(x, w, save_mask=save_mask)
            end = (y + 1).sum()
        kept.append(sizes)
        storage = StorageWeakRef(y.untyped_storage())
        del y
        gc.collect()
        freed.append(storage.expired())
        grads.append(torch.autograd.grad(end, w)[0])
    assert kept == [[batch * 48 * dtype.itemsize], [batch * 48 // 8]]
    assert freed == [False, True]
    assert torch.equal(*grads)


@DTYPE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_keeps_a_bit_for_each_element(dtype, layout):
    x = LAYOUTS[layout](randn(24, 64, dtype=dtype)).requires_grad_()
    dy, results = randn(24, 64, dtype=dtype), []
    for save_mask in (False, True):
        with Kept(x) as sizes:
            y = functional.relu(x, save_mask=save_mask)
        assert sizes == [24 * 64 // 8 if save_mask else 24 * 64 * dtype.itemsize]
        storage = StorageWeakRef(y.untyped_storage())
        results.append((y.detach().clone(), torch.autograd.grad(y, x, dy)[0], y.stride()))
        del y
        gc.collect()
        assert storage.expired()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2], "other strides than relu's"


def test_relu_keeps_channels_last():
    x, dy = (randn(2, 16, 3, 5).to(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    y = functional.relu(x, save_mask=True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx, torch.where(x > 0, dy, 0))
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_no_mask_is_made_where_nothing_is_saved(monkeypatch):
    def refuse(*args):
        raise AssertionError("a mask for nobody")

    monkeypatch.setattr(mask_ops, "linear_relu_with_mask", refuse)
    monkeypatch.setattr(mask_ops, "relu_with_mask", refuse)
    x, w = randn(4, 5).requires_grad_(), randn(3, 5)
    with torch.no_grad():
        assert torch.equal(
            functional.linear_relu(x, w, save_mask=True), functional.linear_relu(x, w)
        )
        assert torch.equal(functional.relu(x, save_mask=True), x.relu())
    for call in (
        lambda: functional.linear_relu(x, w, save_mask=True),
        lambda: functional.relu(x, save_mask=True),
    ):
        with pytest.raises(AssertionError, match="for nobody"):
            call()


# ---- autograd, autocast, torch.compile, torch.func ----


def test_gradients_of_every_order():
    args = [t.double().requires_grad_() for t in (randn(4, 5), randn(9, 5), randn(9))]
    linear = lambda *a: functional.linear_relu(*a, save_mask=True)  # noqa: E731
    torch.autograd.gradcheck(linear, args)
    torch.autograd.gradgradcheck(linear, args)
    torch.autograd.gradcheck(lambda x: functional.relu(x, save_mask=True), args[:1])
    torch.autograd.gradgradcheck(lambda x: functional.relu(x, save_mask=True), args[:1])


def test_double_backward_is_that_without_a_mask():
    found = []
    for save_mask in (False, True):
        torch.manual_seed(1)
        x, w, b = (t.requires_grad_() for t in (randn(4, 5), randn(9, 5), randn(9)))
        y = functional.relu(functional.linear_relu(x, w, b, save_mask=save_mask) - 0.5)
        y = functional.relu(y - 0.1, save_mask=save_mask)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (x, w, b)))
    for plain, masked in zip(*found, strict=True):
        assert torch.equal(plain, masked)


def test_second_backward_and_frozen_weights():
    x, w, b = randn(4, 5), randn(9, 5).requires_grad_(), randn(9)
    y = functional.linear_relu(x, w, b, save_mask=True)
    dy = randn(4, 9)
    y.backward(dy, retain_graph=True)
    first = w.grad.clone()
    y.backward(dy)
    assert torch.equal(w.grad, 2 * first)
    assert x.grad is None
    bias = b.clone().requires_grad_()
    functional.linear_relu(x, w.detach(), bias, save_mask=True).backward(dy)
    torch.testing.assert_close(bias.grad, torch.where(y > 0, dy, 0).sum(0))


def test_a_gradient_that_never_comes():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return None

    x, w = randn(4, 5).requires_grad_(), randn(9, 5).requires_grad_()
    Stop.apply(functional.linear_relu(x, w, save_mask=True)).sum().backward()
    Stop.apply(functional.relu(x, save_mask=True)).sum().backward()
    assert x.grad is None
    assert w.grad is None


@pytest.mark.parametrize("batch", [4, 600])
def test_opcheck(batch):
    x, w, b = randn(batch, 20).requires_grad_(), randn(19, 20).requires_grad_(), randn(19)
    check, operators = torch.library.opcheck, torch.ops.fastmlp
    check(operators.linear_relu_with_mask.default, (x, w, b))
    check(operators.linear_relu_with_mask.default, (x.reshape(2, batch // 2, 20), w))
    mask = pack_mask_ref(randn(batch, 19))
    args = (randn(batch, 19).requires_grad_(), x, w, mask, True, True, False)
    check(operators.linear_backward.default, args)
    check(operators.relu_with_mask.default, (x,))
    check(operators.relu_with_mask.default, (x.t(),))
    check(operators.relu_with_mask.default, (torch.tensor(1.0),))
    check(operators.relu_backward.default, (randn(batch, 19).requires_grad_(), mask))
    check(operators.relu_backward.default, (randn(19, batch).t(), mask))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic):
    def loss(x, w, b):
        y = functional.linear_relu(x, w, b, save_mask=True)
        return functional.relu(y.t() - 0.5, save_mask=True).sin().sum()

    backend = "aot_eager" if dynamic else "inductor"
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=backend)
    for batch in (4, 7):
        x, w, b = randn(batch, 5).requires_grad_(), randn(9, 5).requires_grad_(), randn(9)
        assert_same_gradients(compiled, loss, x, w, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_the_regions_dtype(dtype):
    results = []
    for save_mask in (False, True):
        torch.manual_seed(3)
        x, w, b = randn(4, 5), randn(9, 5).requires_grad_(), randn(9)
        with torch.autocast("cpu", dtype):
            y = functional.linear_relu(x, w, b, save_mask=save_mask)
        assert y.dtype == dtype
        y.backward(randn(4, 9, dtype=dtype))
        assert w.grad.dtype == torch.float32
        results.append((y, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_torch_func():
    x, w, b = randn(4, 5), randn(9, 5), randn(9)

    def loss(w, x, save_mask=True):
        y = functional.linear_relu(x, w, b, save_mask=save_mask)
        return functional.relu(y - 0.5, save_mask=save_mask).square().sum()

    def plain(w, x):
        return loss(w, x, save_mask=False)

    torch.testing.assert_close(torch.func.grad(loss)(w, x), torch.func.grad(plain)(w, x))
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = torch.func.vmap(torch.func.grad(plain), (None, 0))
    torch.testing.assert_close(per_sample(w, x), expected(w, x))


# ---- functions and modules ----


@pytest.mark.parametrize("backend", ["native", "reference", None])
def test_modules_take_it_and_show_it(backend):
    torch.manual_seed(2)
    plain = fastmlp.LinearReLU(5, 9, backend=backend)
    masked = fastmlp.LinearReLU(5, 9, save_mask=True, backend=backend)
    masked.load_state_dict(plain.state_dict())
    results, dy = [], randn(4, 9)
    for layer, relu in (
        (plain, fastmlp.ReLU(backend=backend)),
        (masked, fastmlp.ReLU(save_mask=True, backend=backend)),
    ):
        x = torch.linspace(-1, 1, 20).reshape(4, 5).requires_grad_()
        y = relu(layer(x) - 0.2)
        y.backward(dy)
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    end = f", backend={backend!r}" if backend else ""
    head = "LinearReLU(in_features=5, out_features=9, bias=True"
    assert (repr(plain), repr(masked)) == (f"{head}{end})", f"{head}, save_mask=True{end})")
    assert repr(fastmlp.ReLU(save_mask=True, backend=backend)) == f"ReLU(save_mask=True{end})"
    assert "save_mask" not in repr(fastmlp.ReLU(backend=backend))


def test_a_module_keeps_the_mask_alone():
    layer, x = fastmlp.LinearReLU(40, 48, save_mask=True), randn(32, 40)
    with Kept(x, layer.weight) as sizes:
        fastmlp.ReLU(save_mask=True)(layer(x)).sum()
    assert sizes == [32 * 48 // 8] * 2


def test_wrong_arguments_get_one_sentence():
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 5\)"):
        functional.linear_relu(randn(4, 6), randn(3, 5), save_mask=True)
    with pytest.raises(TypeError, match="x must be float32"):
        functional.relu(torch.arange(3), save_mask=True)
    with pytest.raises(RuntimeError, match="x must be float32"):
        torch.ops.fastmlp.relu_with_mask(torch.arange(3))
    with pytest.raises(RuntimeError, match="weight must have the dtype of x"):
        torch.ops.fastmlp.linear_relu_with_mask(randn(4, 5), randn(3, 5).double())
