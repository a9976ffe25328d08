"""linear and linear_backward against PyTorch: values, gradients, layouts, determinism, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support.cases import DTYPES, LAYOUTS, LINEAR_CASES, LinearCase, randn, small_integers
from support.compare import assert_same_gradients, assert_within_2x
from support.draws import linear_backward_draws, linear_draws
from support.marks import needs_native
from support.pairwise import pairwise
from torch import Tensor

from fastmlp import functional
from fastmlp.ops import linear as ops
from fastmlp.ops import matmul_precision as float32
from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.linear import linear_backward_ref, linear_ref

pytestmark = needs_native

CASES = pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
NONE, RELU = (ACTIVATIONS[name].kernel for name in ("none", "relu"))
ACTIVATION = pytest.mark.parametrize("activation", ["none", "relu"])


def operands(case: LinearCase, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return (
        randn(case.batch, case.inputs, dtype=dtype),
        randn(case.outputs, case.inputs, dtype=dtype),
        randn(case.outputs, dtype=dtype),
    )


def doubles(*tensors: Tensor | None) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor.double() for tensor in tensors]


@pairwise(case=LINEAR_CASES, dtype=DTYPES, activation=["none", "relu"], with_bias=[True, False])
def test_forward_is_as_close_to_the_truth_as_pytorch(case, dtype, activation, with_bias):
    x, w, b = operands(case, dtype)
    b = b if with_bias else None
    y = ops.linear(x, w, b, activation)
    truth = linear_ref(*doubles(x, w, b), activation)
    scale = linear_ref(*[t if t is None else t.abs() for t in doubles(x, w, b)])
    assert_within_2x(y, linear_draws(x, w, b, activation), truth, scale)


@pairwise(case=LINEAR_CASES, dtype=DTYPES, activation=["none", "relu"])
def test_backward_is_as_close_to_the_truth_as_pytorch(case, dtype, activation):
    x, w, b = operands(case, dtype)
    y = linear_ref(x, w, b, "relu") if activation == "relu" else None
    dy = randn(case.batch, case.outputs, dtype=dtype)
    ours = ops.linear_backward(dy, x, w, y)
    theirs = linear_backward_draws(dy, x, w, y)
    truth = linear_backward_ref(*doubles(dy, x, w, y))
    scale = linear_backward_ref(*[t.abs() for t in doubles(dy, x, w)])
    for got, peer, true, size in zip(ours, theirs, truth, scale, strict=True):
        assert_within_2x(got, peer, true, size)


@pairwise(case=LINEAR_CASES, layout=list(LAYOUTS), dtype=[torch.float32, torch.bfloat16])
def test_small_integers_are_exact_in_every_layout(case, layout, dtype):
    x = small_integers(case.batch, case.inputs, dtype=dtype)
    w = small_integers(case.outputs, case.inputs, dtype=dtype)
    b = small_integers(case.outputs, dtype=dtype)
    dy = small_integers(case.batch, case.outputs, dtype=dtype)
    x, w, dy = (LAYOUTS[layout](tensor) for tensor in (x, w, dy))
    before = [tensor.clone() for tensor in (x, w, b, dy)]
    y = ops.linear(x, w, b, "relu")
    assert torch.equal(y, linear_ref(*doubles(x, w, b), "relu").to(dtype))
    mask = LAYOUTS[layout](y)
    for got, true in zip(
        ops.linear_backward(dy, x, w, mask),
        linear_backward_ref(*doubles(dy, x, w, mask)),
        strict=True,
    ):
        assert torch.equal(got, true.to(dtype))
    for now, then in zip((x, w, b, dy), before, strict=True):
        assert torch.equal(now, then), "an input was changed"


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (2, 1, 2, 7), (0, 4, 7)])
def test_leading_dimensions(shape):
    x, w, b = small_integers(*shape), small_integers(5, 7), small_integers(5)
    dy = small_integers(*shape[:-1], 5)
    y = ops.linear(x, w, b)
    assert torch.equal(y, linear_ref(x, w, b))
    for got, want in zip(ops.linear_backward(dy, x, w), linear_backward_ref(dy, x, w), strict=True):
        assert torch.equal(got, want)
    permuted = small_integers(7, 4, 6).permute(2, 1, 0)
    assert torch.equal(ops.linear(permuted, w, b), linear_ref(permuted, w, b))


def test_expanded_inputs():
    x, w = small_integers(1, 40).expand(9, 40), small_integers(1, 40).expand(21, 40)
    b, dy = small_integers(1).expand(21), small_integers(1, 1).expand(9, 21)
    assert torch.equal(ops.linear(x, w, b), linear_ref(x, w, b))
    for got, want in zip(ops.linear_backward(dy, x, w), linear_backward_ref(dy, x, w), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("batch", [1, 40])
def test_few_inputs_by_a_transposed_weight(batch):
    x, w, b = small_integers(batch, 5), small_integers(5, 130).t(), small_integers(130)
    assert torch.equal(ops.linear(x, w, b, "relu"), linear_ref(x, w, b, "relu"))


@pytest.mark.parametrize("inputs", [16, 19, 64])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_or_two_rows_by_a_transposed_weight(batch, inputs):
    x, w = small_integers(batch, inputs), small_integers(inputs, 130).t()
    b = small_integers(130)
    assert torch.equal(ops.linear(x, w, b, "relu"), linear_ref(x, w, b, "relu"))


def test_the_biass_gradient_of_many_rows_loses_no_digits():
    dy = torch.ones(512, 3)
    dy[0] = 1 << 24  # beside which float32 has no room for a one
    db = ops.linear_backward(dy, randn(512, 5), randn(3, 5))[2]
    assert ((db.double() - dy.double().sum(0)).abs() <= 16).all()


@pytest.mark.parametrize("mask", [(True, False, True), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_asked_for(mask):
    dy, x, w = randn(4, 6), randn(4, 9), randn(6, 9)
    whole, some = ops.linear_backward(dy, x, w), ops.linear_backward(dy, x, w, None, mask)
    for wanted, full, part in zip(mask, whole, some, strict=True):
        assert (part is not None) == wanted
        assert part is None or torch.equal(part, full)


def test_relu_keeps_nan_as_pytorch_does():
    x = torch.tensor([[float("nan")], [float("inf")], [-0.0], [0.0], [-1.0], [float("-inf")]])
    w, b = torch.tensor([[1.0]]), torch.tensor([0.0])
    y, want = ops.linear(x, w, b, "relu"), linear_ref(x, w, b, "relu")
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y.nan_to_num(5), want.nan_to_num(5))
    dy = torch.full((6, 1), 3.0)
    dx, _, _ = ops.linear_backward(dy, x.nan_to_num(0), w, y)
    assert dx.flatten().tolist() == [3.0, 3.0, 0.0, 0.0, 0.0, 0.0]


@ACTIVATION
def test_gradients_of_every_order(activation):
    args = [t.double().requires_grad_() for t in (randn(4, 5), randn(3, 5), randn(3))]
    torch.autograd.gradcheck(lambda *a: functional.linear(*a, activation), args)
    torch.autograd.gradgradcheck(lambda *a: functional.linear(*a, activation), args)


def test_second_backward_and_frozen_weights():
    x, w, b = randn(4, 5), randn(3, 5).requires_grad_(), randn(3)
    y = functional.linear(x, w, b, "relu")
    dy = randn(4, 3)
    y.backward(dy, retain_graph=True)
    first = w.grad.clone()
    y.backward(dy)
    assert torch.equal(w.grad, 2 * first)
    assert x.grad is None
    assert b.grad is None


@ACTIVATION
def test_opcheck(activation):
    x, w, b = randn(4, 5).requires_grad_(), randn(3, 5).requires_grad_(), randn(3)
    relu = ACTIVATIONS[activation].kernel
    torch.library.opcheck(torch.ops.fastmlp.linear.default, (x, w, b, relu))
    torch.library.opcheck(torch.ops.fastmlp.linear.default, (x.t().reshape(2, 2, 5), w, None, relu))
    y = linear_ref(x, w, b, activation).detach() if activation == "relu" else None
    args = (randn(4, 3).requires_grad_(), x, w, y, relu, True, True, False)
    torch.library.opcheck(torch.ops.fastmlp.linear_backward.default, args)
    torch.library.opcheck(torch.ops.fastmlp.linear.default, (x, w, b, relu, float32.TF32_ALLOWED))
    args = (*args, float32.TF32_ALLOWED)
    torch.library.opcheck(torch.ops.fastmlp.linear_backward.default, args)


def test_the_cpu_does_not_care_how_a_gpu_would_multiply():
    x, w, b, dy = randn(40, 50), randn(30, 50), randn(30), randn(40, 30)
    linear, backward = torch.ops.fastmlp.linear, torch.ops.fastmlp.linear_backward
    y, *gradients = linear(x, w, b, RELU), *backward(dy, x, w, None, NONE, True, True, True)
    for way in range(5):
        assert torch.equal(linear(x, w, b, RELU, way), y)
        again = backward(dy, x, w, None, NONE, True, True, True, way)
        assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))
    for way in (-1, 5):
        with pytest.raises(
            RuntimeError, match=f"matmul_precision must be between 0 and 4, got {way}"
        ):
            linear(x, w, b, RELU, way)
        with pytest.raises(
            RuntimeError, match=f"matmul_precision must be between 0 and 4, got {way}"
        ):
            backward(dy, x, w, None, NONE, True, True, True, way)


@pytest.fixture
def matmul():
    """PyTorch's settings of matrix products on CUDA."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    yield settings
    # The older interface first: where it says otherwise than the newer, PyTorch answers neither.
    torch.set_float32_matmul_precision("highest")
    settings.fp32_precision = before
    assert not settings.allow_tf32


def set_tf32(matmul, name: str, allowed: bool) -> None:
    if name == "fp32_precision":
        matmul.fp32_precision = "tf32" if allowed else "ieee"
    elif name == "allow_tf32":
        matmul.allow_tf32 = allowed
    else:
        torch.set_float32_matmul_precision("high" if allowed else "highest")


TF32_NAMES = ["fp32_precision", "allow_tf32", "set_float32_matmul_precision"]


@pytest.mark.parametrize("name", TF32_NAMES)
def test_tf32_is_asked_for_where_torch_allows_it_on_a_gpu(monkeypatch, matmul, name):
    calls = []
    for operator in ("_linear_op", "_linear_backward_op"):
        record = lambda *args: calls.append(args[-1]) or (None, None, None)  # noqa: E731
        monkeypatch.setattr(ops, operator, record)
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), randn(2, 3)
    for allowed in (True, False):
        set_tf32(matmul, name, allowed)
        for tensor in (on_gpu, on_cpu):
            ops.linear(tensor, tensor)
            ops.linear_backward(tensor, tensor, tensor)
    assert calls == [float32.TF32_ALLOWED] * 2 + [float32.FLOAT32] * 6


@pytest.mark.parametrize("name", TF32_NAMES)
def test_compiled_code_follows_the_setting_of_tf32(matmul, name):
    def allowed_after(x: Tensor) -> Tensor:
        return x + float32.allowed_matmul_precision()

    set_tf32(matmul, name, False)
    compiled = torch.compile(allowed_after, fullgraph=True, backend="eager")
    for allowed in (False, True, False):
        set_tf32(matmul, name, allowed)
        assert compiled(torch.zeros(1)).item() == (
            float32.TF32_ALLOWED if allowed else float32.FLOAT32
        )


def test_opcheck_of_a_batch_for_the_blas():
    args = (randn(600, 3), randn(600, 5), randn(3, 5), None, NONE, True, False, False)
    torch.library.opcheck(torch.ops.fastmlp.linear_backward.default, args)


def test_tensors_on_two_devices_are_refused_by_the_operator_too():
    with pytest.raises(RuntimeError, match="wants all tensors on one device, got cpu, meta"):
        torch.ops.fastmlp.linear(randn(4, 5), randn(3, 5).to("meta"))


def test_torch_func():
    x, w, b = randn(4, 5), randn(3, 5), randn(3)

    def loss(w, x, backend=None):
        return functional.linear(x, w, b, "relu", backend=backend).square().sum()

    def want(w, x):
        return loss(w, x, "reference")

    torch.testing.assert_close(torch.func.grad(loss)(w, x), torch.func.grad(want)(w, x))
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = torch.func.vmap(torch.func.grad(want), (None, 0))
    torch.testing.assert_close(per_sample(w, x), expected(w, x))
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(w, x)
    torch.testing.assert_close(hessian, torch.func.jacrev(torch.func.jacrev(want))(w, x))


def test_compiles_to_one_graph():
    x, w, b = randn(4, 5).requires_grad_(), randn(3, 5).requires_grad_(), randn(3)

    def loss(x, w, b):
        return functional.linear(x, w, b, "relu").sin().sum()

    assert_same_gradients(torch.compile(loss, fullgraph=True), loss, x, w, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_the_regions_dtype(dtype):
    x, w, b = randn(4, 5), randn(3, 5).requires_grad_(), randn(3)
    with torch.autocast("cpu", dtype):
        y = functional.linear(x, w, b, "relu")
        want = functional.linear(x, w, b, "relu", backend="reference")
        assert functional.linear(x.double(), w.double(), b.double()).dtype == torch.float64
    assert y.dtype == want.dtype == dtype
    torch.testing.assert_close(y, want, rtol=0.02, atol=0.02)
    y.backward(randn(4, 3, dtype=dtype))
    assert w.grad.dtype == torch.float32


@CASES
def test_threads_do_not_change_a_bit(case, threads):
    x, w, b = operands(case, torch.float32)
    dy = randn(case.batch, case.outputs)
    if case.batch > 512:
        pytest.skip("the BLAS answers for its own")
    results = []
    for count in (1, 2, 3, 2):
        threads(count)
        y = ops.linear(x, w, b, "relu")
        results.append([y, *ops.linear_backward(dy, x, w, y), ops.linear(x, w.t().clone().t(), b)])
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_lesser_instruction_sets(isa):
    """The case table again, with the kernels of an older processor; 16-bit types and all
    activations but GELU are left to the sanitizers."""
    order = ["portable", "avx2", "avx512"]
    if order.index(isa) >= order.index(torch.ops.fastmlp.cpu_isa()):
        pytest.skip("that is what the tests run with already, or more than this processor has")
    names = ["test_linear.py", "test_activations.py", "test_cross_entropy.py"]
    names += ["../engines/test_blocked.py"]
    chosen = "(pytorch or exact or threads or leading) and not float64 and not 3072"
    chosen += " and not silu and not sigmoid and not tanh and not float16"  # bfloat16, too
    command = [sys.executable, "-m", "pytest", "-x", "-n0", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *names, "-k", chosen],
        cwd=os.path.dirname(__file__),
        env={**os.environ, "FASTMLP_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


ERRORS = [
    ({"x": randn(4, 6)}, ValueError, r"x must have shape \(\.\.\., 5\).*got \(4, 6\)"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x must have shape"),
    ({"weight": randn(5)}, ValueError, r"weight must have shape \(O, I\), got \(5,\)"),
    ({"bias": randn(4)}, ValueError, r"bias must have shape \(3,\), got \(4,\)"),
    ({"x": torch.ones(4, 5, dtype=torch.int64)}, TypeError, "x must be float32.*got torch.int64"),
    ({"weight": randn(3, 5).double()}, TypeError, "weight must have the dtype of x"),
    ({"activation": "swish"}, ValueError, "activation must be one of none, relu, .*got 'swish'"),
    ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
]


@pytest.mark.parametrize(("change", "kind", "message"), ERRORS)
def test_wrong_arguments_get_one_sentence(change, kind, message):
    good = {"x": randn(4, 5), "weight": randn(3, 5), "bias": randn(3), "activation": "none"}
    with pytest.raises(kind, match=message):
        functional.linear(**{**good, **change})


def test_the_operators_own_checks_are_a_second_line():
    with pytest.raises(
        RuntimeError, match=r"x must have size 5 in dimension 1, got shape \(4, 6\)"
    ):
        ops.linear(randn(4, 6), randn(3, 5))
    with pytest.raises(RuntimeError, match="dy must have size 3"):
        ops.linear_backward(randn(4, 2), randn(4, 5), randn(3, 5))
    with pytest.raises(RuntimeError, match="saved must have the shape of dy"):
        ops.linear_backward(randn(4, 3), randn(4, 5), randn(3, 5), randn(4, 2))
