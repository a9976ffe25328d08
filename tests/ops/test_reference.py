"""The reference functions against formulas (forward) and PyTorch's autograd (backward).

Everything here is float64: these functions are the truth that the other tests rely on.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_within_2x
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastmlp.ops.activations import activation_ref, relu_backward_ref
from fastmlp.ops.cross_entropy import cross_entropy_backward_ref, cross_entropy_ref
from fastmlp.ops.linear import linear_backward_ref, linear_ref

INF, NAN = math.inf, math.nan
SHAPES = [  # (leading dimensions of x, inputs, outputs)
    ((5,), 7, 3),
    ((), 4, 2),  # a single vector
    ((2, 3), 5, 4),  # more than one leading dimension
    ((1,), 1, 1),
    ((0,), 3, 2),  # an empty batch
    ((4,), 0, 3),  # no inputs: the bias alone
    ((4,), 3, 0),  # no outputs
]
MASKS = list(itertools.product([False, True], repeat=3))


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def same(actual: Tensor, truth: Tensor) -> None:
    assert_within_2x(actual, truth, truth)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_linear_is_its_formula(lead, inputs, outputs, bias, activation):
    x, weight = randn(*lead, inputs), randn(outputs, inputs, seed=1)
    b = randn(outputs, seed=2) if bias else None
    truth = (x.unsqueeze(-2) * weight).sum(-1) + (b if bias else 0)
    if activation == "relu":
        truth = truth.clamp(min=0)
    same(linear_ref(x, weight, b, activation), truth)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_linear_backward_is_autograd(lead, inputs, outputs, activation):
    x, weight = leaf(randn(*lead, inputs)), leaf(randn(outputs, inputs, seed=1))
    b, dy = leaf(randn(outputs, seed=2)), randn(*lead, outputs, seed=3)
    y = F.linear(x, weight, b)
    y = F.relu(y) if activation == "relu" else y
    truth = torch.autograd.grad(y, (x, weight, b), dy)
    saved = y.detach() if activation == "relu" else None
    grads = linear_backward_ref(dy, x.detach(), weight.detach(), saved)
    for actual, wanted in zip(grads, truth, strict=True):
        same(actual, wanted)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_linear_backward_gives_what_the_mask_asks_for(mask):
    dy, x, weight = randn(5, 3), randn(5, 7), randn(3, 7)
    every = linear_backward_ref(dy, x, weight)
    some = linear_backward_ref(dy, x, weight, None, mask)
    assert [grad is not None for grad in some] == list(mask)
    for wanted, grad in zip(every, some, strict=True):
        assert grad is None or torch.equal(grad, wanted)


def test_linear_and_its_backward_are_exact_on_small_integers():
    x, weight, b = torch.arange(6.0).view(2, 3), torch.tensor([[1.0, -2, 3]]), torch.tensor([-4.0])
    y = linear_ref(x, weight, b, "relu")
    assert y.tolist() == [[0.0], [6.0]]  # [0, 1, 2] gives 4 - 4: relu' at 0 is 0
    dx, dw, db = linear_backward_ref(torch.tensor([[5.0], [7.0]]), x, weight, y)
    assert dx.tolist() == [[0, 0, 0], [7, -14, 21]]
    assert dw.tolist() == [[21, 28, 35]]
    assert db.tolist() == [7]


def test_relu_keeps_nan_and_the_sign_of_zero():
    x = torch.tensor([-INF, -1.0, -0.0, 0.0, 2.0, INF, NAN], dtype=torch.float64)
    y = activation_ref(x, "relu")
    wanted = torch.tensor([0.0, 0.0, -0.0, 0.0, 2.0, INF, NAN], dtype=torch.float64)
    assert torch.equal(y.view(torch.int64)[:-1], wanted.view(torch.int64)[:-1])
    assert y[-1].isnan()


def test_relu_backward_is_autograd_from_the_output_or_the_input():
    x = leaf(torch.tensor([-INF, -1.0, -0.0, 0.0, 2.0, INF, NAN], dtype=torch.float64))
    dy, y = randn(7), F.relu(x)
    (truth,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(relu_backward_ref(dy, y.detach()), truth)
    assert torch.equal(relu_backward_ref(dy, x.detach()), truth)
    assert truth.tolist() == [0, 0, 0, 0, *dy[4:].tolist()]  # nan passes the gradient


@pytest.mark.parametrize("dy", [NAN, INF])
def test_relu_backward_stops_even_nan_and_infinity_where_the_output_is_zero(dy):
    assert relu_backward_ref(torch.tensor([dy]), torch.tensor([0.0])).item() == 0


def cross_entropy_case(
    weighted: bool, reduction: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    logits, target = 3 * randn(6, 5), torch.tensor([4, 0, 2, 2, 1, 3])
    weight = randn(5, seed=1).abs() if weighted else None
    return logits, target, weight, randn(6, seed=2) if reduction == "none" else randn(seed=2)


XENT = [
    pytest.mark.parametrize("weighted", [False, True]),
    pytest.mark.parametrize("reduction", ["mean", "sum", "none"]),
    pytest.mark.parametrize("ignored", [[], [1], [0, 3, 5]], ids=str),
    pytest.mark.parametrize("ignore_index", [-100, 2]),
    pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0]),
]


def cross_entropy_grid(test):
    for mark in XENT:
        test = mark(test)
    return test


@cross_entropy_grid
def test_cross_entropy_is_its_formula(weighted, reduction, ignored, ignore_index, smoothing):
    logits, target, weight, _ = cross_entropy_case(weighted, reduction)
    target[ignored] = ignore_index
    w = [1.0] * 5 if weight is None else weight.tolist()
    losses, counted = [], 0.0
    for row, t in zip(logits.tolist(), target.tolist(), strict=True):
        log_sum = math.log(math.fsum(math.exp(z) for z in row))
        smooth = math.fsum(w[c] * (log_sum - row[c]) for c in range(5)) / 5
        kept = t != ignore_index
        hard = w[t] * (log_sum - row[t]) if kept else 0.0
        losses.append(((1 - smoothing) * hard + smoothing * smooth) if kept else 0.0)
        counted += w[t] if kept else 0.0
    truth = {"none": losses, "sum": math.fsum(losses), "mean": math.fsum(losses) / counted}
    actual = cross_entropy_ref(logits, target, weight, reduction, ignore_index, smoothing)
    same(actual, torch.tensor(truth[reduction], dtype=torch.float64))


@cross_entropy_grid
def test_cross_entropy_backward_is_autograd(weighted, reduction, ignored, ignore_index, smoothing):
    logits, target, weight, dloss = cross_entropy_case(weighted, reduction)
    target[ignored] = ignore_index
    logits = leaf(logits)
    loss = F.cross_entropy(
        logits,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    (truth,) = torch.autograd.grad(loss, logits, dloss)
    actual = cross_entropy_backward_ref(
        dloss, logits.detach(), target, weight, reduction, ignore_index, smoothing
    )
    same(actual, truth)
    assert not actual[target == ignore_index].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_backward_where_every_row_is_ignored_is_zero(reduction, smoothing):
    logits, target = leaf(randn(3, 4)), torch.full((3,), -100)
    dloss = randn(3) if reduction == "none" else randn()
    loss = F.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
    (truth,) = torch.autograd.grad(loss, logits, dloss)
    actual = cross_entropy_backward_ref(
        dloss, logits.detach(), target, None, reduction, -100, smoothing
    )
    assert not truth.any()
    assert torch.equal(actual, truth)


@pytest.mark.parametrize(
    ("logits", "target", "loss"),
    [
        ([[1e30, 1e30]], 0, math.log(2)),
        ([[-INF, 0.0, 0.0]], 1, math.log(2)),  # -inf on a class that is not the target's
        ([[-INF, 0.0]], 0, INF),
        ([[NAN, 0.0]], 1, NAN),
        ([[3.0]], 0, 0.0),  # a single class
    ],
)
def test_cross_entropy_at_the_edges(logits, target, loss):
    z, t = leaf(torch.tensor(logits, dtype=torch.float64)), torch.tensor([target])
    actual = cross_entropy_ref(z, t)
    same(actual, torch.tensor(loss, dtype=torch.float64))
    dloss = randn()
    (truth,) = torch.autograd.grad(F.cross_entropy(z, t), z, dloss)
    same(cross_entropy_backward_ref(dloss, z.detach(), t), truth)


def test_cross_entropy_of_an_empty_batch():
    logits, target = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    assert cross_entropy_ref(logits, target).isnan()
    assert cross_entropy_ref(logits, target, reduction="sum").item() == 0
    assert cross_entropy_ref(logits, target, reduction="none").shape == (0,)
    dlogits = cross_entropy_backward_ref(torch.tensor(2.0), logits, target)
    assert dlogits.shape == (0, 3)


@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_cross_entropy_takes_uint8_labels(ignore_index):
    logits, target, dloss = randn(4, 200), torch.tensor([4, 156, 2, 199]), randn()
    small = target.to(torch.uint8)  # in which -100 would be 156
    ours = cross_entropy_ref(logits, small, ignore_index=ignore_index)
    assert torch.equal(ours, F.cross_entropy(logits, target, ignore_index=ignore_index))
    wanted, actual = (
        cross_entropy_backward_ref(dloss, logits, labels, ignore_index=ignore_index)
        for labels in (target, small)
    )
    assert torch.equal(actual, wanted)


def test_autograd_goes_through_every_reference():
    x, weight, b, dy = leaf(randn(4, 3)), leaf(randn(2, 3)), leaf(randn(2)), leaf(randn(4, 2))
    target, w = torch.tensor([1, 0, -100, 1]), randn(2, seed=5).abs()
    y = F.linear(x, weight, b).detach()

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy_ref(logits, target, w, "mean", -100, 0.1)

    def loss_backward(dloss: Tensor, logits: Tensor) -> Tensor:
        return cross_entropy_backward_ref(dloss, logits, target, w, "mean", -100, 0.1)

    assert gradcheck(lambda *a: linear_ref(*a, "relu"), (x, weight, b))
    assert gradgradcheck(linear_ref, (x, weight, b))
    assert gradcheck(lambda *a: linear_backward_ref(*a, y), (dy, x, weight))
    assert gradcheck(lambda x: activation_ref(x, "relu"), (x,))
    assert gradcheck(lambda g: relu_backward_ref(g, y), (dy,))
    assert gradcheck(loss, (dy,))
    assert gradgradcheck(loss, (dy,))
    assert gradcheck(loss_backward, (leaf(randn()), dy))
