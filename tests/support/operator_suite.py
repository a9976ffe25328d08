"""What every GPU operator has to pass, on a GPU (gpu/test_operators.py) or on an emulated one
(ops/test_cuda_emulated.py): the case table against float64 truth, exact integers, PyTorch's
semantics.

A ``machine`` has ``run(name, *args)``, which calls an operator, ``place(tensor)``, which moves an
argument, in its strides, to where that operator reads it, and the ``device`` that PyTorch itself
computes on for comparison; results come back on the CPU.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from support.cases import DTYPES, LAYOUTS, LINEAR_CASES, LinearCase, randn, small_integers
from support.compare import assert_within_2x
from support.draws import cross_entropy_draws, linear_backward_draws, linear_draws
from support.pairwise import pairwise
from torch import Tensor

from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.cross_entropy import cross_entropy_ref
from fastmlp.ops.linear import linear_backward_ref, linear_ref

GPU_CASES = (
    *LINEAR_CASES,
    LinearCase(8, 4096, 60, "a sum in many parts, and fewer columns than a tile has"),
    LinearCase(24, 640, 130, "a tile of 32 rows, three of columns, and a sum in parts"),
    LinearCase(64, 515, 64, "whole tiles, and a sum in parts with a tail"),
    LinearCase(256, 30, 20, "as large a batch as our kernels take"),
)
CASES = pytest.mark.parametrize("case", GPU_CASES, ids=str)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
NONE, RELU = (ACTIVATIONS[name].kernel for name in ("none", "relu"))
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
REDUCTIONS = ["none", "mean", "sum"]  # in the order of their numbers
CROSS_ENTROPY_SHAPES = [
    (1, 1),
    (8, 10),
    (7, 16),
    (40, 32),
    (5, 33),
    (1025, 3),
    (70, 100),
    (3, 1024),
]
CROSS_ENTROPY_SHAPES += [(3, 1031), (2, 9000), (1, 2048)]


def doubles(*tensors: Tensor | None) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor.double() for tensor in tensors]


def loss_and_gradient(
    machine: Any, logits: Tensor, target: Tensor, dloss: Tensor, **options: Any
) -> Any:
    """Loss and gradient by the operators."""
    weight = options.get("weight")
    tail = (
        None if weight is None else machine.place(weight),
        REDUCTIONS.index(options.get("reduction", "mean")),
        options.get("ignore_index", -100),
        options.get("label_smoothing", 0.0),
    )
    args = machine.place(logits), machine.place(target)
    loss, stats, total = machine.run("cross_entropy", *args, *tail)
    saved = machine.place(stats), machine.place(total)
    dloss = machine.place(dloss.to(loss.dtype))
    return loss, machine.run("cross_entropy_backward", dloss, *args, *saved, *tail)


def loss_and_gradient_ref(logits: Tensor, target: Tensor, dloss: Tensor, **options: Any) -> Any:
    """Loss and gradient by PyTorch."""
    leaf = logits.detach().clone().requires_grad_()
    loss = cross_entropy_ref(leaf, target, **options)
    loss.backward(dloss.to(loss.dtype))
    return loss.detach(), leaf.grad


def compare_cross_entropy(machine: Any, logits: Tensor, target: Tensor, **options: Any) -> None:
    rows = target.shape if options.get("reduction") == "none" else ()
    dloss, weight = randn(*rows, dtype=logits.dtype), options.get("weight")
    wide = {**options, "weight": None if weight is None else weight.double()}
    near = {**options, "weight": None if weight is None else weight.to(machine.device)}
    placed = [t.to(machine.device) for t in (logits, target, dloss)]
    truth = loss_and_gradient_ref(logits.double(), target, dloss, **wide)
    peers = cross_entropy_draws(loss_and_gradient_ref, *placed, **near)
    ours = loss_and_gradient(machine, logits, target, dloss, **options)
    for got, draws, true in zip(ours, peers, truth, strict=True):
        assert_within_2x(got, [draw.cpu() for draw in draws], true)


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    """Equal in every bit but those of a nan."""
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))
    signs = [torch.signbit(tensor) & ~tensor.isnan() for tensor in (ours, theirs)]
    assert torch.equal(*signs)


class LinearTests:
    """linear and linear_backward."""

    @pairwise(case=GPU_CASES, dtype=DTYPES, activation=["none", "relu"])
    def test_linear_is_as_close_to_the_truth_as_pytorch(self, machine, case, dtype, activation):
        x, w = randn(case.batch, case.inputs, dtype=dtype), randn(case.outputs, case.inputs)
        w, b = w.to(dtype), randn(case.outputs, dtype=dtype) if activation == "relu" else None
        arguments = [t if t is None else machine.place(t) for t in (x, w, b)]
        y = machine.run("linear", *arguments, ACTIVATIONS[activation].kernel)
        truth = linear_ref(*doubles(x, w, b), activation)
        scale = linear_ref(*[t if t is None else t.abs() for t in doubles(x, w, b)])
        peers = [draw.cpu() for draw in linear_draws(*arguments, activation)]
        assert_within_2x(y, peers, truth, scale)

    @pairwise(case=GPU_CASES, dtype=DTYPES, activation=["none", "relu"])
    def test_linear_backward_is_as_close_to_the_truth(self, machine, case, dtype, activation):
        x, w = randn(case.batch, case.inputs, dtype=dtype), randn(case.outputs, case.inputs)
        w, dy = w.to(dtype), randn(case.batch, case.outputs, dtype=dtype)
        y = randn(case.batch, case.outputs).relu().to(dtype) if activation == "relu" else None
        arguments = [t if t is None else machine.place(t) for t in (dy, x, w, y)]
        ours = machine.run(
            "linear_backward", *arguments, ACTIVATIONS[activation].kernel, *[True] * 3
        )
        peers = linear_backward_draws(*arguments)
        truths = linear_backward_ref(*doubles(dy, x, w, y))
        scales = linear_backward_ref(*[t.abs() for t in doubles(dy, x, w)])
        for got, draws, truth, scale in zip(ours, peers, truths, scales, strict=True):
            assert_within_2x(got, [draw.cpu() for draw in draws], truth, scale)

    @pairwise(
        case=GPU_CASES, layout=list(LAYOUTS), dtype=[torch.float32, torch.bfloat16, torch.float16]
    )
    def test_small_integers_are_exact_in_every_layout(self, machine, case, layout, dtype):
        lay = LAYOUTS[layout]
        x = lay(small_integers(case.batch, case.inputs, dtype=dtype))
        w = lay(small_integers(case.outputs, case.inputs, dtype=dtype))
        b = small_integers(case.outputs, dtype=dtype)
        dy = lay(small_integers(case.batch, case.outputs, dtype=dtype))
        mask = lay(small_integers(case.batch, case.outputs, dtype=dtype))
        placed = [machine.place(tensor) for tensor in (x, w, b, dy, mask)]
        y = machine.run("linear", *placed[:3], RELU)
        assert torch.equal(y, linear_ref(*doubles(x, w, b), "relu").to(dtype))
        gradients = machine.run(
            "linear_backward", placed[3], *placed[:2], placed[4], RELU, *[True] * 3
        )
        truths = linear_backward_ref(*doubles(dy, x, w, mask))
        for got, true in zip(gradients, truths, strict=True):
            assert torch.equal(got, true.to(dtype))
        for now, then in zip(placed, (x, w, b, dy, mask), strict=True):
            assert torch.equal(now.cpu(), then), "an input was changed"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rows_padded_to_aligned_ones(self, machine, dtype):
        """What stands between the rows, nan, is not read as part of them."""

        def padded(tensor: Tensor) -> Tensor:
            rows, columns = tensor.shape
            whole = tensor.new_full((rows, (columns + 15) // 8 * 8), math.nan)
            whole[:, :columns] = tensor
            return machine.place(whole)[:, :columns]

        x, w = small_integers(9, 37, dtype=dtype), small_integers(21, 37, dtype=dtype)
        dy, mask = small_integers(9, 21, dtype=dtype), small_integers(9, 21, dtype=dtype)
        ours = machine.run("linear", padded(x), padded(w), None, NONE)
        assert torch.equal(ours, linear_ref(*doubles(x, w)).to(dtype))
        arguments = [padded(tensor) for tensor in (dy, x, w, mask)]
        gradients = machine.run("linear_backward", *arguments, RELU, *[True] * 3)
        truths = linear_backward_ref(*doubles(dy, x, w, mask))
        for got, true in zip(gradients, truths, strict=True):
            assert torch.equal(got, true.to(dtype))
        logits, target, dloss = randn(5, 37), torch.tensor([1, 36, 0, 2, 3]), torch.tensor(1.0)
        loss, stats, total = machine.run("cross_entropy", padded(logits), machine.place(target))
        torch.testing.assert_close(loss, cross_entropy_ref(logits, target))
        args = [machine.place(t) for t in (target, stats, total)]
        dlogits = machine.run("cross_entropy_backward", machine.place(dloss), padded(logits), *args)
        torch.testing.assert_close(dlogits, loss_and_gradient_ref(logits, target, dloss)[1])

    def test_leading_and_expanded_dimensions(self, machine):
        w, b = small_integers(5, 7), small_integers(5)
        for x in (small_integers(7), small_integers(2, 3, 7), small_integers(1, 7).expand(9, 7)):
            dy = small_integers(1).expand(*x.shape[:-1], 5)
            place = [machine.place(t) for t in (x, w, b, dy)]
            assert torch.equal(machine.run("linear", *place[:3], NONE), linear_ref(x, w, b))
            ours = machine.run("linear_backward", place[3], *place[:2], None, NONE, *[True] * 3)
            for got, want in zip(ours, linear_backward_ref(dy, x, w), strict=True):
                assert torch.equal(got, want)

    def test_only_the_gradients_that_are_asked_for(self, machine):
        dy, x, w = (machine.place(t) for t in (randn(40, 6), randn(40, 9), randn(6, 9)))
        whole = machine.run("linear_backward", dy, x, w, None, NONE, *[True] * 3)
        for mask in itertools.product([True, False], repeat=3):
            some = machine.run("linear_backward", dy, x, w, None, NONE, *mask)
            for wanted, full, part in zip(mask, whole, some, strict=True):
                assert torch.equal(part, full) if wanted else part.shape == (0,)

    def test_relu_keeps_nan_and_lets_its_gradient_pass(self, machine):
        x = torch.tensor([[math.nan], [math.inf], [-0.0], [0.0], [-1.0], [-math.inf]])
        w, b = torch.tensor([[1.0]]), torch.tensor([0.0])
        y = machine.run("linear", *(machine.place(t) for t in (x, w, b)), RELU)
        assert_same_bits(y, linear_ref(x, w, b, "relu"))
        dy = torch.full((6, 1), 3.0)
        args = (machine.place(t) for t in (dy, x.nan_to_num(0), w, y))
        dx, _, _ = machine.run("linear_backward", *args, RELU, *[True] * 3)
        assert dx.flatten().tolist() == [3.0, 3.0, 0.0, 0.0, 0.0, 0.0]


class CrossEntropyTests:
    """cross_entropy and cross_entropy_backward."""

    @pairwise(shape=CROSS_ENTROPY_SHAPES, dtype=DTYPES, reduction=REDUCTIONS)
    def test_cross_entropy_is_as_close_to_the_truth_as_pytorch(
        self, machine, shape, dtype, reduction
    ):
        target = torch.randint(0, shape[1], shape[:1])
        compare_cross_entropy(machine, 3 * randn(*shape, dtype=dtype), target, reduction=reduction)

    @pairwise(
        shape=[(29, 19), (9, 45), (3, 1100)],
        dtype=[torch.float32, torch.bfloat16],
        how=list(itertools.product(REDUCTIONS, [False, True], [0.0, 0.1, 1.0], [False, True])),
    )
    def test_every_option(self, machine, shape, dtype, how):
        reduction, weighted, smoothing, ignored = how
        logits, target = 2 * randn(*shape, dtype=dtype), torch.randint(0, shape[1], shape[:1])
        if ignored:
            target[::3] = 4  # a class of its own that does not count
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        options["weight"] = torch.rand(shape[1]).to(dtype) + 0.5 if weighted else None
        options["ignore_index"] = 4 if ignored else -100
        compare_cross_entropy(machine, logits, target, **options)

    @LAYOUT
    @pytest.mark.parametrize("shape", [(9, 13), (5, 96), (3, 1040)], ids=str)
    def test_cross_entropy_layouts_agree(self, machine, layout, shape):
        logits, dloss = randn(*shape), randn(shape[0])
        target = torch.randint(0, shape[1], shape[:1])
        apart = torch.stack([target, target + 100], 1)[:, 0]
        once = loss_and_gradient(machine, logits, target, dloss, reduction="none")
        other = loss_and_gradient(machine, LAYOUTS[layout](logits), apart, dloss, reduction="none")
        for a, b in zip(once, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("classes", [3, 40, 1200])
    @pytest.mark.parametrize("label", [-1, 1 << 40, "classes"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_a_label_that_is_no_class_makes_its_row_nan(self, machine, classes, label, smoothing):
        logits, good = randn(5, classes), torch.tensor([0, 1, 2, 0, 1])
        bad = good.clone()
        bad[2] = classes if label == "classes" else label
        dloss, rest = randn(5), [0, 1, 3, 4]
        options = {"reduction": "none", "label_smoothing": smoothing}
        for ours, want in zip(
            loss_and_gradient(machine, logits, bad, dloss, **options),
            loss_and_gradient(machine, logits, good, dloss, **options),
            strict=True,
        ):
            assert ours[2].isnan().all()
            assert torch.equal(ours[rest], want[rest])
        loss, dlogits = loss_and_gradient(machine, logits, bad, torch.tensor(1.0))
        assert loss.isnan()
        assert dlogits[2].isnan().all()
        assert dlogits[rest].isfinite().all()

    def test_uint8_targets_are_labels_too(self, machine):
        logits, target = randn(300, 256), torch.randint(0, 256, (300,))
        target[0] = 156  # as a byte equal to -100
        once = loss_and_gradient(machine, logits, target, torch.tensor(1.5))
        again = loss_and_gradient(machine, logits, target.byte(), torch.tensor(1.5))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))

    def test_the_corners_of_pytorchs_semantics(self, machine):
        empty, none = randn(0, 3), torch.empty(0, dtype=torch.int64)
        assert loss_and_gradient(machine, empty, none, torch.tensor(1.0))[0].isnan()
        loss, dlogits = loss_and_gradient(machine, empty, none, torch.tensor(1.0), reduction="sum")
        assert loss == 0
        assert dlogits.shape == (0, 3)
        assert loss_and_gradient(machine, empty, none, torch.empty(0), reduction="none")[
            0
        ].shape == (0,)
        compare_cross_entropy(machine, randn(4, 3), torch.full((4,), -100))
        compare_cross_entropy(machine, randn(4, 3), torch.full((4,), -100), reduction="none")
        for smoothing in (0.0, 0.5):
            loss, _ = loss_and_gradient(
                machine,
                randn(2, 3),
                torch.tensor([1, 2]),
                torch.tensor(1.0),
                weight=torch.tensor([1.0, 0.0, 0.0]),
                label_smoothing=smoothing,
            )
            assert loss.isnan(), "a total weight of 0"

    @pairwise(
        row=[
            *([1e30, 1e30], [3e38, -3e38], [-math.inf, 0.0], [0.0, -math.inf], [math.inf, 0.0]),
            *([math.nan, 0.0], [-math.inf, -math.inf], [88.0, -104.0], [-1e4, 1e4]),
        ],
        smoothing=[0.0, 0.2],
        width=[2, 40, 1200],
    )
    def test_extreme_logits_as_pytorch(self, machine, row, smoothing, width):
        logits = torch.tensor([row + [-200.0] * (width - 2)])
        compare_cross_entropy(machine, logits, torch.tensor([1]), label_smoothing=smoothing)
