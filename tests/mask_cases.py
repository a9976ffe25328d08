"""What the ReLUs that save a mask have to pass on every device: y and all gradients are those of
the operators without one, to the bit, and the mask is the reference's.

A ``machine`` is what operator_cases.py says.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import LAYOUTS, randn, small_integers
from operator_cases import CASES, DTYPE, LAYOUT, assert_same_bits
from torch import Tensor

from fastmlp.ops.reference import pack_mask_ref

SPECIAL = [math.nan, math.inf, 1e-30, 1.0, 0.0, -0.0, -1e-30, -1.0, -math.inf, math.nan, -2.0]
SHAPES = [(), (0,), (1,), (7,), (8,), (33,), (3, 0, 2), (5, 1), (2, 3, 129), (70001,), (300, 40)]


def compare_linear(machine: Any, x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor) -> Tensor:
    """Returns y, after comparing everything."""
    placed = [t if t is None else machine.place(t) for t in (x, w, b)]
    want = machine.run("linear", *placed, True)
    y, mask = machine.run("linear_relu_with_mask", *placed)
    assert_same_bits(y, want)
    assert torch.equal(mask, pack_mask_ref(want))
    upstream = machine.place(dy)
    gradients = [
        machine.run("linear_backward", upstream, *placed[:2], machine.place(saved), *[True] * 3)
        for saved in (want, mask)
    ]
    for plain, masked in zip(*gradients, strict=True):
        assert_same_bits(masked, plain)
    return y


def compare_relu(machine: Any, x: Tensor, dy: Tensor) -> None:
    placed, upstream = machine.place(x), machine.place(dy)
    y, mask = machine.run("relu_with_mask", placed)
    assert_same_bits(y, machine.run("relu", placed))
    assert y.is_contiguous()
    assert torch.equal(mask, pack_mask_ref(x))
    dx = machine.run("relu_backward", upstream, machine.place(mask))
    assert_same_bits(dx, machine.run("relu_backward", upstream, placed))
    assert dx.is_contiguous()


class MaskTests:
    """linear_relu_with_mask, relu_with_mask and the backward operators on their masks."""

    @CASES
    @DTYPE
    def test_linear_exact_as_without_a_mask(self, machine, case, dtype):
        x, w = randn(case.batch, case.inputs, dtype=dtype), randn(case.outputs, case.inputs)
        b = randn(case.outputs, dtype=dtype)
        y = compare_linear(machine, x, w.to(dtype), b, randn(*x.shape[:1], *b.shape, dtype=dtype))
        assert y.numel() < 100 or 0.2 < (y > 0).double().mean() < 0.8, "the mask says nothing"

    @CASES
    @LAYOUT
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_linear_exact_in_every_layout(self, machine, case, layout, dtype):
        lay = LAYOUTS[layout]
        x = lay(small_integers(case.batch, case.inputs, dtype=dtype))
        w = lay(small_integers(case.outputs, case.inputs, dtype=dtype))
        dy = lay(small_integers(case.batch, case.outputs, dtype=dtype))
        compare_linear(machine, x, w, None, dy)

    @pytest.mark.parametrize("lead", [(), (2, 3), (2, 0), (1, 4, 2)], ids=str)
    def test_linear_exact_with_leading_dimensions(self, machine, lead):
        compare_linear(machine, randn(*lead, 20), randn(37, 20), randn(37), randn(*lead, 37))

    @DTYPE
    @pytest.mark.parametrize("rows", [11, 300])
    def test_linear_exact_at_special_values(self, machine, dtype, rows):
        x = torch.tensor(SPECIAL).repeat(rows // len(SPECIAL) + 1)[:rows, None].to(dtype)
        w = torch.ones(9, 1, dtype=dtype)
        compare_linear(machine, x, w, None, randn(rows, 9, dtype=dtype))

    def test_the_mask_is_of_what_is_stored_exact(self, machine):
        """The product is above 0 in float32 and 0 in float16."""
        x, w = torch.full((3, 20), 1e-4).half(), torch.full((20, 20), 1e-5).half()
        y = compare_linear(machine, x, w, None, randn(3, 20, dtype=torch.float16))
        assert not y.any()

    @LAYOUT
    def test_a_mask_in_every_layout_exact(self, machine, layout):
        dy, x, w, y = randn(9, 90), randn(9, 20), randn(90, 20), randn(9, 90)
        args = [machine.place(t) for t in (dy, x, w)]
        mask = machine.place(LAYOUTS[layout](pack_mask_ref(y)))
        want = machine.run("linear_backward", *args, machine.place(y), *[True] * 3)
        ours = machine.run("linear_backward", *args, mask, *[True] * 3)
        for got, true in zip(ours, want, strict=True):
            assert torch.equal(got, true)
        want = machine.run("relu_backward", args[0], machine.place(y))
        assert torch.equal(machine.run("relu_backward", args[0], mask), want)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @DTYPE
    def test_relu_exact_as_without_a_mask(self, machine, shape, dtype):
        compare_relu(machine, randn(*shape, dtype=dtype), randn(*shape, dtype=dtype))

    @DTYPE
    @pytest.mark.parametrize("repeats", [1, 8, 800])
    def test_relu_exact_at_special_values(self, machine, dtype, repeats):
        x = torch.tensor(SPECIAL).to(dtype).repeat(repeats)
        compare_relu(machine, x, randn(x.numel(), dtype=dtype))

    @pytest.mark.parametrize("start", [0, 1, 4])
    @pytest.mark.parametrize("count", [8192, 65536, 65537])
    @DTYPE
    def test_relu_exact_aligned_and_misaligned(self, machine, start, count, dtype):
        x, dy = (machine.place(randn(count + 4, dtype=dtype))[start:][:count] for _ in range(2))
        compare_relu(machine, x.cpu(), dy.cpu())
        y, mask = machine.run("relu_with_mask", x)
        assert torch.equal(mask, pack_mask_ref(x.cpu()))
        want = machine.run("relu_backward", dy, machine.place(y))
        assert_same_bits(machine.run("relu_backward", dy, machine.place(mask)), want)

    @pytest.mark.parametrize("x_layout", LAYOUTS)
    @pytest.mark.parametrize("dy_layout", LAYOUTS)
    def test_relu_exact_in_every_layout(self, machine, x_layout, dy_layout):
        compare_relu(machine, LAYOUTS[x_layout](randn(9, 37)), LAYOUTS[dy_layout](randn(9, 37)))

    @pytest.mark.parametrize("shape", [(4, 1), (4, 3), (3, 2), (8,), (1, 4, 2)], ids=str)
    def test_masks_of_another_shape_are_refused(self, machine, shape):
        dy, x, w = (machine.place(t) for t in (randn(4, 9), randn(4, 5), randn(9, 5)))
        mask = machine.place(torch.zeros(shape, dtype=torch.uint8))
        with pytest.raises(RuntimeError, match="the mask of y must have"):
            machine.run("linear_backward", dy, x, w, mask, True, True, True)
        with pytest.raises(RuntimeError, match="the mask of y must have"):
            machine.run("relu_backward", dy, mask)
