"""The activations on the CPU: values, gradients of every order, determinism, errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.activation_suite import ActivationTests
from support.cases import ACTIVATION_CASES, DTYPES, randn
from support.compare import assert_same_gradients, assert_within_2x
from support.marks import needs_native

from fastmlp import functional
from fastmlp.ops import activations as ops
from fastmlp.ops.activations import ACTIVATIONS

pytestmark = needs_native

NATIVE = SimpleNamespace(
    run=lambda name, *args: getattr(torch.ops.fastmlp, name)(*args),
    place=lambda tensor: tensor,
    device="cpu",
)


@pytest.fixture
def machine():
    return NATIVE


@pytest.fixture(params=ACTIVATION_CASES, ids=str)
def activation(request):
    return request.param


KINDS = [case for case in ACTIVATION_CASES if case.name in ("none", "relu", "gelu")]
"""Rows that save nothing, the output, and the input."""


def test_the_case_table_has_every_row_in_the_order_of_its_kernels():
    assert [case.name for case in ACTIVATION_CASES] == list(ACTIVATIONS)
    assert [row.kernel for row in ACTIVATIONS.values()] == list(range(len(ACTIVATIONS)))


class TestActivation(ActivationTests):
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_larger_than_the_caches_as_in_parts(self, activation, dtype):
        """Results of more than 16 MB are written past the caches."""
        count = (17 << 20) // dtype.itemsize + 1
        x, dy = (randn(50_021, dtype=dtype).repeat(count // 50_021 + 1)[:count] for _ in range(2))
        y = ops.activation(x, activation.name)
        pieces = [ops.activation(part, activation.name) for part in x.split(1_000_003)]
        assert torch.equal(y, torch.cat(pieces))
        dx = ops.activation_backward(dy, x, activation.name)  # x as well as what it saves
        parts = zip(dy.split(1_000_003), x.split(1_000_003), strict=True)
        pieces = [ops.activation_backward(*part, activation.name) for part in parts]
        assert torch.equal(dx, torch.cat(pieces))

    def test_threads_do_not_change_a_bit(self, activation, threads):
        x, dy = randn(300_001), randn(300_001)
        results = []
        for count in (1, 2):
            threads(count)
            y = ops.activation(x, activation.name)
            results.append((y, ops.activation_backward(dy, y, activation.name)))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)

    @pytest.mark.parametrize("backend", ["native", "reference"])
    def test_gradients_of_every_order(self, activation, backend):
        def act(x):
            return functional.activation(x, activation.name, backend=backend)

        def layer(x, w, b):
            return functional.linear(x, w, b, activation.name, backend=backend)

        def operator(x, w, b):  # also where linear alone keeps nothing of the activation's input
            return torch.ops.fastmlp.linear(x, w, b, ACTIVATIONS[activation.name].kernel)

        x = randn(4, 5, dtype=torch.float64).requires_grad_()
        args = [t.double().requires_grad_() for t in (randn(4, 5), randn(3, 5), randn(3))]
        for function, inputs in ((act, [x]), (layer, args), (operator, args)):
            torch.autograd.gradcheck(function, inputs)
            torch.autograd.gradgradcheck(function, inputs)

    @pytest.mark.parametrize("activation", KINDS, indirect=True, ids=str)
    def test_opcheck(self, activation):
        row = ACTIVATIONS[activation.name]
        x, w, b = randn(4, 5).requires_grad_(), randn(3, 5).requires_grad_(), randn(3)
        for tensor in (x, x.t()):
            torch.library.opcheck(torch.ops.fastmlp.activation.default, (tensor, row.kernel))
        args = (x, randn(4, 5).requires_grad_(), row.kernel)
        torch.library.opcheck(torch.ops.fastmlp.activation_backward.default, args)
        torch.library.opcheck(torch.ops.fastmlp.linear.default, (x, w, b, row.kernel))
        saved = None if row.saves == "nothing" else randn(4, 3).requires_grad_()
        args = (randn(4, 3).requires_grad_(), x, w, saved, row.kernel, True, True, True)
        torch.library.opcheck(torch.ops.fastmlp.linear_backward.default, args)

    def test_compiles_to_one_graph(self, activation):
        """Up to PyTorch's own code generation, which test_linear.py has."""
        x, w, b = randn(4, 5).requires_grad_(), randn(3, 5).requires_grad_(), randn(3)

        def loss(x, w, b):
            hidden = functional.linear(x, w, b, activation.name)
            return functional.activation(hidden, activation.name).sin().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert_same_gradients(compiled, loss, x, w, b)

    def test_torch_func_and_autocast(self, activation):
        x, w, b = randn(4, 5), randn(3, 5), randn(3)

        def loss(w, x, backend=None):
            y = functional.linear(x, w, b, activation.name, backend=backend)
            return functional.activation(y, activation.name, backend=backend).square().sum()

        def want(w, x):
            return loss(w, x, "reference")

        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
        expected = torch.func.vmap(torch.func.grad(want), (None, 0))
        torch.testing.assert_close(per_sample(w, x), expected(w, x))
        hessian = torch.func.jacrev(torch.func.jacrev(loss))(w, x)
        torch.testing.assert_close(hessian, torch.func.jacrev(torch.func.jacrev(want))(w, x))
        w.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = functional.linear(x, w, b, activation.name)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert w.grad.dtype == torch.float32

    def test_the_fused_kernel_is_what_runs_where_autograd_records_nothing(self, activation):
        x, w, b = randn(9, 40), randn(30, 40), randn(30)
        fused = functional.linear(x, w, b, activation.name, backend="native")
        kept = functional.linear(x, w.clone().requires_grad_(), b, activation.name)
        truth = functional.linear(
            *(t.double() for t in (x, w, b)), activation.name, backend="reference"
        )
        assert_within_2x(fused, kept.detach(), truth)
        assert fused.grad_fn is None
        assert kept.grad_fn is not None


def test_wrong_arguments_get_one_sentence():
    with pytest.raises(TypeError, match="x must be float32, float64, bfloat16 or float16"):
        functional.relu(torch.arange(3))
    with pytest.raises(ValueError, match=r"must be one of none, relu, .*, silu, got 'swish'"):
        functional.activation(randn(3), "swish")
    with pytest.raises(RuntimeError, match=r"saved must have the shape of dy \(3\), got \(4\)"):
        ops.activation_backward(randn(3), randn(4), "relu")
    for number in (-1, len(ACTIVATIONS)):
        with pytest.raises(RuntimeError, match=f"activation must be between 0 and 6, got {number}"):
            torch.ops.fastmlp.activation(randn(3), number)
        with pytest.raises(RuntimeError, match=f"activation must be between 0 and 6, got {number}"):
            torch.ops.fastmlp.linear(randn(2, 3), randn(4, 3), None, number)
    args = randn(2, 4), randn(2, 3), randn(4, 3)
    for saved, name in ((None, "gelu"), (randn(2, 4), "none")):
        number = ACTIVATIONS[name].kernel
        with pytest.raises(RuntimeError, match="saved must be given where there is an activation"):
            torch.ops.fastmlp.linear_backward(*args, saved, number, True, True, True)
