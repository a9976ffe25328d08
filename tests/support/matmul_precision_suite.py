"""How a GPU multiplies float32: by FMA, by three TF32 products, or in TF32, each in every shape.

Test classes for a GPU (gpu/test_operators.py) and an emulated one (ops/test_cuda_emulated.py) take
these over; operator_suite.py says what a ``machine`` is.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.cases import LAYOUTS, LinearCase, randn, small_integers
from support.compare import assert_within_2x
from support.draws import linear_backward_draws, linear_draws
from support.operator_suite import CASES, GPU_CASES, NONE, doubles
from support.pairwise import pairwise
from torch import Tensor

from fastmlp.ops.linear import linear_backward_ref, linear_ref
from fastmlp.ops.matmul_precision import FMA, TF32, THREE_TF32

ACCURATE = pytest.mark.parametrize("by", [FMA, THREE_TF32], ids=["fma", "three"])
EVERY_WAY = pytest.mark.parametrize("by", [FMA, THREE_TF32, TF32], ids=["fma", "three", "tf32"])
LONG = [
    LinearCase(40, 4200, 24, "a long sum in parts"),
    LinearCase(24, 40, 4200, "a long sum in dx"),
    LinearCase(100, 20, 1300, "the same of more rows"),
    LinearCase(256, 72, 40, "the longest sum in dw"),
]
TF32_ROUNDING = 1.01 * 2**-10
"""Two operands rounded to 11 bits, relative to the sum of the products' magnitudes."""


def all_products(machine: Any, by: int, dy: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    """y, dx, dw, db."""
    dy, x, w = (machine.place(tensor) for tensor in (dy, x, w))
    y = machine.run("linear", x, w, None, NONE, by)
    return [y, *machine.run("linear_backward", dy, x, w, None, NONE, True, True, True, by)]


def all_products_ref(dy: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    products = [linear_ref(x, w), *linear_backward_ref(dy, x, w)]
    return [tensor for tensor in products if tensor is not None]


def operands(case: LinearCase) -> list[Tensor]:
    shapes = (case.batch, case.outputs), (case.batch, case.inputs), (case.outputs, case.inputs)
    return [randn(*shape) for shape in shapes]


def assert_accurate(machine: Any, by: int, tensors: list[Tensor]) -> None:
    """The tolerance rule, for y, dx and dw."""
    ours, truths = all_products(machine, by, *tensors), all_products_ref(*doubles(*tensors))
    dy, x, w = (tensor.to(machine.device) for tensor in tensors)
    peers = [linear_draws(x, w, None), *linear_backward_draws(dy, x, w)]
    for got, draws, truth in zip(ours[:3], peers[:3], truths[:3], strict=True):
        assert_within_2x(got, [draw.cpu() for draw in draws], truth)


def assert_same_but_rounding(got: Tensor, want: Tensor, by: int) -> None:
    """The same nan and infinities; the rest nearly the same, where numbers are about 1."""
    torch.testing.assert_close(got, want, rtol=0, atol=0.2 if by == TF32 else 1e-4, equal_nan=True)


class Float32Tests:
    """linear and linear_backward, whichever way the plan would take."""

    @CASES
    @ACCURATE
    def test_every_shape_is_as_close_to_the_truth_as_pytorch(self, machine, case, by):
        assert_accurate(machine, by, operands(case))

    @pairwise(case=LONG, by={"fma": FMA, "three": THREE_TF32}, shift=[0.0, 3.0, 100.0])
    def test_long_sums_also_of_one_sign(self, machine, case, by, shift):
        """Cutting off last bits adds up where all products have the same sign."""
        assert_accurate(machine, by, [tensor + shift for tensor in operands(case)])

    @ACCURATE
    def test_rows_and_terms_of_very_different_sizes(self, machine, by):
        def powers(*shape: int, most: int) -> Tensor:
            return torch.randint(-most, most + 1, shape).float().exp2()

        _, x, w = operands(LinearCase(40, 600, 36, ""))
        x, w = x * powers(1, 600, most=12), w * powers(36, 600, most=8)
        rows, columns = powers(40, 1, most=45), powers(1, 36, most=45)
        big_x, big_w = machine.place(x * rows), machine.place(w * columns.t())
        y = machine.run("linear", big_x, big_w, None, NONE, by) / rows / columns
        peers = linear_draws(x.to(machine.device), w.to(machine.device), None)
        truth = linear_ref(x.double(), w.double())
        assert_within_2x(y, [draw.cpu() for draw in peers], truth)

    @CASES
    def test_tf32_is_as_close_as_its_rounding(self, machine, case):
        tensors = operands(case)
        ours, truths = all_products(machine, TF32, *tensors), all_products_ref(*doubles(*tensors))
        sizes = all_products_ref(*(tensor.double().abs() for tensor in tensors))
        for got, truth, size in zip(ours[:3], truths[:3], sizes[:3], strict=True):
            assert ((got - truth).abs() <= TF32_ROUNDING * size).all()

    def test_the_three_ways_differ_but_in_the_biases_gradient(self, machine):
        tensors = operands(LinearCase(64, 515, 64, ""))
        results = [all_products(machine, by, *tensors) for by in (FMA, THREE_TF32, TF32)]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            same = [torch.equal(*pair) for pair in zip(results[one], results[other], strict=True)]
            assert same == [False, False, False, True]
        error = (results[2][0] - results[1][0]).abs().max()
        assert error > 100 * (results[1][0] - results[0][0]).abs().max()

    @pairwise(case=GPU_CASES, layout=list(LAYOUTS), by={"three": THREE_TF32, "tf32": TF32})
    def test_small_integers_are_exact_in_every_layout(self, machine, case, layout, by):
        tensors = [LAYOUTS[layout](small_integers(*t.shape)) for t in operands(case)]
        truths = all_products_ref(*doubles(*tensors))
        for got, truth in zip(all_products(machine, by, *tensors), truths, strict=True):
            assert torch.equal(got, truth.float())

    def test_integers_of_16_bits_are_exact_in_their_two_parts(self, machine):
        x, w = torch.randint(-(1 << 16), 1 << 16, (40, 50)).float(), small_integers(36, 50)
        dy, truth = (
            torch.randint(-(1 << 16), 1 << 16, (40, 36)).float(),
            x.double() @ w.double().t(),
        )
        for by in (FMA, THREE_TF32):
            y, dx, _, _ = all_products(machine, by, dy, x, w)
            assert torch.equal(y, truth.float())
            assert torch.equal(dx, (dy.double() @ w.double()).float())
        assert not torch.equal(all_products(machine, TF32, dy, x, w)[0], truth.float())

    @EVERY_WAY
    def test_inf_and_nan_are_what_pytorch_makes_of_them(self, machine, by):
        nans = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
        dy, x, w = operands(LinearCase(40, 70, 36, ""))
        x[1, 3], x[2, 69], x[3, 40], x[4, 0] = math.inf, -math.inf, *nans
        x[5, 7], x[5, 9], x[6] = math.inf, -math.inf, math.inf
        w[2, 5], w[3, 35], w[4, 1] = math.inf, -math.inf, nans[0]
        w[5, 3], w[6, 3], w[7, 3], w[8, 3] = 0.0, 1e-42, 1.0, math.inf  # beside an inf of x
        dy[20, 30] = -math.inf
        wants = all_products_ref(dy, x, w)
        for got, want in zip(all_products(machine, by, dy, x, w), wants, strict=True):
            assert want.isinf().any()
            assert_same_but_rounding(got, want, by)

    @EVERY_WAY
    def test_the_largest_numbers_and_sums_that_overflow(self, machine, by):
        """TF32 has no number near the largest float32 but inf, and parts of products that overflow
        have both signs."""
        largest = torch.finfo(torch.float32).max
        _, x, w = operands(LinearCase(40, 70, 36, ""))
        signs = torch.randn(70).sign()
        x[0], w[0] = 1.2345678e30 * signs, 1.2345678e30 * signs
        x[1], w[1] = 1.2345678e30 * signs, -1.2345678e30 * signs
        x[2, 2], x[3, 2] = largest, -largest
        w[2:, 2] *= 1e-38
        y = machine.run("linear", machine.place(x), machine.place(w), None, NONE, by)
        want = linear_ref(x, w)
        assert want[:2, :2].isinf().all()
        assert_same_but_rounding(y[:2, :2], want[:2, :2], by)
        assert_same_but_rounding(y[2:, 2:], want[2:, 2:], by)
