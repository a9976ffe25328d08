"""What every row of the table of activations has to pass, on every machine: the CPU, a GPU, an
emulated one, and plain PyTorch for rows that have no kernels.

A ``machine`` is as in ``operator_suite``; ``activation``, a fixture of the test module, is the row
of the case table. The truth is the row's counterpart in ``torch.nn``, differentiated by autograd.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.cases import DTYPES, LAYOUTS, ActivationCase, LinearCase, randn
from support.compare import assert_within_2x
from support.operator_suite import DTYPE, assert_same_bits
from support.pairwise import pairwise
from torch import Tensor

from fastmlp.ops.activations import (
    ACTIVATIONS,
    Activation,
    activation_backward_ref,
    activation_ref,
)
from fastmlp.ops.linear import linear_backward_ref, linear_ref

LINEARS = (
    LinearCase(8, 256, 10, "fewer outputs than a vector has lanes"),
    LinearCase(5, 17, 70, "odd tails, and more columns than a tile has"),
    LinearCase(8, 4096, 60, "a sum in many parts"),
    LinearCase(513, 40, 30, "a batch that goes to the BLAS"),
)

SHAPES = [
    *(((33,), dtype) for dtype in DTYPES),
    *(((7001,), dtype) for dtype in DTYPES),
    *((shape, torch.float32) for shape in ((), (0,), (1,), (3, 0, 2), (2, 3, 129))),
]
"""Vectors with a tail, of every dtype; how the elements are counted does not depend on it."""


def run(machine: Any, name: str, *args: Any) -> Any:
    """An operator, which knows a row by the number of its kernels, where it has some."""
    numbers = [
        arg.kernel if isinstance(arg, Activation) and arg.kernel is not None else arg
        for arg in args
    ]
    return machine.run(name, *numbers)


def reference_machine() -> Any:
    """The operators by the references that stand beside them."""

    def linear_backward(dy: Any, x: Any, w: Any, saved: Any, row: Activation, *needs: bool) -> Any:
        return linear_backward_ref(dy, x, w, saved, needs, row.name)

    operators = {
        "activation": lambda x, row: activation_ref(x, row.name),
        "activation_backward": lambda dy, saved, row: activation_backward_ref(dy, saved, row.name),
        "linear": lambda x, w, b, row: linear_ref(x, w, b, row.name),
        "linear_backward": linear_backward,
    }
    return SimpleNamespace(
        run=lambda name, *args: operators[name](*args), place=lambda x: x, device="cpu"
    )


def row_of(activation: ActivationCase) -> Activation:
    return ACTIVATIONS[activation.name]


def by_torch(activation: ActivationCase, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient by the counterpart in ``torch.nn``."""
    leaf = x.detach().clone().requires_grad_()
    y = row_of(activation).module()(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


def by_us(machine: Any, activation: ActivationCase, x: Tensor, dy: Tensor) -> list[Tensor]:
    """The output and the gradient by the operators."""
    row = row_of(activation)
    y = run(machine, "activation", x, row)
    saved = x if row.saves == "input" else y.to(x.device)
    return [y, run(machine, "activation_backward", dy, saved, row)]


def compare(machine: Any, activation: ActivationCase, x: Tensor, dy: Tensor) -> None:
    """Ours against PyTorch's: the same bits for the exact rows, else within the tolerance rule.

    The bits are those of PyTorch's CPU operators: on a GPU its relu(-0.) is +0.
    """
    ours = by_us(machine, activation, x, dy)
    where = "cpu" if activation.exact else x.device
    peers = [tensor.cpu() for tensor in by_torch(activation, x.to(where), dy.to(where))]
    truths = by_torch(activation, x.cpu().double(), dy.cpu().double())
    for got, peer, truth in zip(ours, peers, truths, strict=True):
        if activation.exact:
            assert_same_bits(got, peer)
        else:
            assert_within_2x(got, peer, truth, 1 + x.cpu().abs())


class ActivationTests:
    """activation, activation_backward, and both fused with linear."""

    @pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
    def test_every_shape_as_pytorch(self, machine, activation, shape, dtype):
        x, dy = 2 * randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
        placed = machine.place(x)
        compare(machine, activation, placed, machine.place(dy))
        assert torch.equal(placed.cpu(), x)

    @pairwise(dtype=DTYPES, start=[0, 1], count=[8192, 16385])
    def test_aligned_and_misaligned_as_pytorch(self, machine, activation, start, count, dtype):
        x, dy = (machine.place(randn(count + 1, dtype=dtype))[start:][:count] for _ in range(2))
        compare(machine, activation, x, dy)

    @DTYPE
    def test_special_values_as_pytorch(self, machine, activation, dtype):
        tiny = torch.finfo(dtype).smallest_normal
        sizes = [0.0, tiny / 4, tiny, 1e-3, 0.6, 1.0, 7.0, 20.0, 100.0, 1000.0, math.inf]
        x = torch.tensor([math.nan, *sizes, *(-size for size in sizes)]).double()
        x = x.repeat(5).to(dtype)  # whole vectors and a tail
        dy = torch.ones_like(x)
        ours = by_us(machine, activation, machine.place(x), machine.place(dy))
        eps = torch.finfo(dtype).eps
        # in float64, as oneDNN, by which PyTorch takes the GELU of float32, makes nan of its inf
        wants = by_torch(activation, x.double(), dy.double())
        for got, wide in zip(ours, wants, strict=True):
            want = wide.to(dtype)
            torch.testing.assert_close(got, want, rtol=4 * eps, atol=4 * eps, equal_nan=True)
            kept = (want == 0) & (x == 0)
            assert torch.equal(torch.signbit(got)[kept], torch.signbit(want)[kept]), "not its -0."
        nans = torch.full((33,), math.nan, dtype=dtype)
        for result in by_us(machine, activation, *(machine.place(t) for t in (nans, nans))):
            assert result.isnan().all()
        if activation.exact:
            compare(machine, activation, machine.place(x), machine.place(randn(*x.shape).to(dtype)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_every_16_bit_pattern_as_pytorch(self, machine, activation, dtype):
        x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        dy = randn(1 << 16, dtype=dtype)
        if activation.exact:
            return compare(machine, activation, machine.place(x), machine.place(dy))
        y, dx = by_us(machine, activation, machine.place(x), machine.place(dy))
        row, eps = row_of(activation), torch.finfo(dtype).eps
        saved = x if row.saves == "input" else y
        wide = row.module()(x.double()), row.backward(dy.double(), saved.double())
        for got, want in zip((y, dx), wide, strict=True):
            want = want.to(dtype)
            torch.testing.assert_close(got, want, rtol=2 * eps, atol=1e-6, equal_nan=True)
        return None

    @pytest.mark.parametrize("x_layout", LAYOUTS)
    @pytest.mark.parametrize("dy_layout", LAYOUTS)
    def test_layouts_as_pytorch(self, machine, activation, x_layout, dy_layout):
        x, dy = LAYOUTS[x_layout](randn(9, 37)), LAYOUTS[dy_layout](randn(9, 37))
        placed = machine.place(x)
        compare(machine, activation, placed, machine.place(dy))
        y = run(machine, "activation", placed, row_of(activation))
        assert y.stride() == torch.empty_like(x).stride(), "not what the fake kernel promises"
        row = machine.place(randn(1, 37)).expand(9, 37)
        compare(machine, activation, row, machine.place(dy))
        compare(machine, activation, placed, row)

    @pairwise(case=LINEARS, by_columns=[False, True], dtype=DTYPES)
    def test_linear_is_as_close_to_the_truth_as_pytorch(
        self, machine, activation, case, by_columns, dtype
    ):
        row, x = row_of(activation), randn(case.batch, case.inputs, dtype=dtype)
        w = randn(case.outputs, case.inputs, dtype=dtype) / max(case.inputs, 1) ** 0.5
        w = LAYOUTS["transposed"](w) if by_columns else w
        b, dy = randn(case.outputs, dtype=dtype), randn(case.batch, case.outputs, dtype=dtype)
        placed = [machine.place(tensor) for tensor in (x, w, b)]
        upstream = machine.place(dy)
        pre, module = F.linear(*placed), row.module()
        saved = {"nothing": None, "input": pre, "output": module(pre)}[row.saves]
        ours = [run(machine, "linear", *placed, row)]
        ours += run(machine, "linear_backward", upstream, *placed[:2], saved, row, *[True] * 3)

        def results(tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
            leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
            y = module(F.linear(*leaves))
            return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

        truths = results([t.double() for t in (x, w, b)], dy.double())
        scale = case.inputs + case.batch + case.outputs  # of sums of numbers about 1
        for got, peer, truth in zip(ours, results(placed, upstream), truths, strict=True):
            assert_within_2x(got, peer.cpu(), truth, torch.tensor(float(scale)))
