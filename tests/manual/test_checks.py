"""The checks of anybody's layer pass right ones and name the slip in wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.course import BACKENDS
from torch import Tensor

from fastmlp.manual import checks, course, layers


class FC:
    """A student's layer; ``y``, ``dw`` and ``db`` are what it computes."""

    def __init__(self, **slips: Callable[..., Any]) -> None:
        self.y = slips.get("y", lambda x, w, b: x @ w + b)
        self.dw = slips.get("dw", lambda x, w, g: x.T @ g / len(g))
        self.db = slips.get("db", lambda x, w, g: g.sum(0) / len(g))

    def forward(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        self.x, self.w = x, w
        return self.y(x, w, b)

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return self.dw(self.x, self.w, g), self.db(self.x, self.w, g)


class Relu:
    def __init__(self, **slips: Callable[..., Any]) -> None:
        self.y = slips.get("y", lambda x: x.clamp(min=0))
        self.dx = slips.get("dx", lambda x, g: g * (x > 0))

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return self.y(x)

    def backward(self, g: Tensor) -> Tensor:
        return self.dx(self.x, g)


class SCE:
    def __init__(self, **slips: Callable[..., Any]) -> None:
        self.p = slips.get("p", lambda z: z.softmax(1))
        self.pred = slips.get("pred", lambda p: p.argmax(1))
        self.loss = slips.get("loss", lambda z, p, y: F.cross_entropy(z, y))
        self.dx = slips.get("dx", lambda p, hot: (p - hot) / len(p))

    def forward(self, y: Tensor, net_out: Tensor) -> Any:
        self.hot = F.one_hot(y, net_out.shape[1])
        self.q = self.p(net_out)
        return self.pred(self.q), self.loss(net_out, self.q, y)

    def backward(self) -> Tensor:
        return self.dx(self.q, self.hot)


def naive(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(1, keepdim=True)


def shifted_by_all(z: Tensor) -> Tensor:
    return naive(z - z.max())


def nll(p: Tensor, y: Tensor) -> Tensor:
    return -p[torch.arange(len(y)), y].log()


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_layers_pass_in_the_courses_words(backend, capsys):
    course.FCL_Tests(layers.FullyConnectedLayer("cpu", backend=backend))
    course.FCL_Tests(layers.FullyConnectedLayer(backend=backend, grad_average=False))
    course.FCL_Tests(FC())
    course.ReLU_Tests(layers.ReLU(backend=backend))
    course.ReLU_Tests(Relu())
    course.SCE_Tests(course.Softmax_CrossEntropy(backend=backend))
    course.SCE_Tests(SCE(loss=lambda z, p, y: F.cross_entropy(z, y).item()))
    # as a course has it: a shifted softmax, then its logarithm, perhaps with a little added
    course.SCE_Tests(SCE(loss=lambda z, p, y: nll(p, y).mean()))
    course.SCE_Tests(SCE(loss=lambda z, p, y: nll(p + 1e-9, y).mean()))
    fc = "Results of fully connected layer forward and backward tests: All passed."
    relu = "Results of ReLU function tests: All passed."
    loss = "Results of softmax and cross entropy forward and backward tests: All passed."
    assert capsys.readouterr().out.splitlines() == [fc, fc, fc, relu, relu, *4 * [loss]]


SLIPS: list[tuple[Any, str, str]] = [
    (FC(dw=lambda x, w, g: x.T @ g), "backward's dw", "division by N is missing"),
    (FC(db=lambda x, w, g: g.sum(0)), "backward's db", "division by N is missing"),
    (FC(dw=lambda x, w, g: g.T @ x / len(g)), "backward's dw", "transpose is missing.*g.T @ x"),
    (FC(db=lambda x, w, g: g.mean(0, keepdim=True)), "backward's db", "too many: no keepdim.$"),
    (FC(db=lambda x, w, g: g.sum(1) / len(g)), "backward's db", "wrong axis"),
    (FC(dw=lambda x, w, g: x.T @ g / len(g) ** 2), "backward's dw", "too many"),
    (FC(dw=lambda x, w, g: x @ g), "backward's dw", "missing.* x @ g, and the division by N is"),
    (FC(dw=lambda x, w, g: g @ x.T), "backward's dw", "the wrong way round: g @ x.T"),
    (FC(dw=lambda x, w, g: x.T @ g / x.shape[1]), "backward's dw", "number of inputs, not by N"),
    (FC(db=lambda x, w, g: g.sum(0, keepdim=True)), "backward's db", "many.*, and the division by"),
    (FC(db=lambda x, w, g: g), "backward's db", "sum over the batch is missing"),
    (FC(y=lambda x, w, b: x @ w), "forward's output", "bias is not added"),
    (FC(y=lambda x, w, b: x @ w.T + b), "forward's output", "a transpose too many: x @ w.T"),
    (FC(y=lambda x, w, b: w.T @ x + b), "forward's output", "the wrong way round: w.T @ x"),
    (Relu(dx=lambda x, g: g * (x >= 0)), "backward's output", "mask is >= 0"),
    (Relu(dx=lambda x, g: g), "backward's output", "mask is missing"),
    (Relu(dx=lambda x, g: (x > 0).float()), "backward's output", "mask alone"),
    (Relu(dx=lambda x, g: g * x), "backward's output", "by forward's input"),
    (Relu(y=lambda x: x.abs()), "forward's output", "absolute value"),
    (SCE(pred=lambda p: p), "forward's pred_y", "the probabilities, not the class"),
    (SCE(pred=lambda p: p.argmax(0)), "forward's pred_y", "over the batch"),
    (
        SCE(loss=lambda z, p, y: F.cross_entropy(z, y, reduction="sum")),
        "forward's loss",
        "division by N is missing",
    ),
    (SCE(loss=lambda z, p, y: -F.cross_entropy(z, y)), "forward's loss", "minus"),
    (
        SCE(p=naive, loss=lambda z, p, y: nll(p, y).mean()),
        "forward's loss on a batch of 4 with outputs in the thousands",
        "softmax is not shifted",
    ),
    (
        SCE(p=shifted_by_all),
        "backward's output on a batch of 4",
        "shifted by the largest .* of all",
    ),
    (
        SCE(p=shifted_by_all, loss=lambda z, p, y: nll(p, y).mean()),
        "forward's loss on a batch of 4",
        "not shifted by each row's largest output.$",  # and exp does not overflow
    ),
    (SCE(p=lambda z: z.softmax(0)), "backward's output", "softmax runs over the batch"),
    (SCE(pred=lambda p: p.amax(1)), "forward's pred_y", "the largest probability, not its class"),
    (SCE(pred=lambda p: p.argmax(1, keepdim=True)), "forward's pred_y", "no keepdim.$"),
    (SCE(dx=lambda p, hot: p - hot), "backward's output", "not divided by N"),
    (SCE(dx=lambda p, hot: hot - p), "backward's output", "sign is wrong, and .*not divided by N"),
    (SCE(dx=lambda p, hot: (p - hot) / p.numel()), "backward's output", "number of all outputs"),
    (SCE(dx=lambda p, hot: p / len(p)), "backward's output", "one-hot labels are not subtracted"),
    (SCE(dx=lambda p, hot: (hot - p) / len(p)), "backward's output", "sign is wrong"),
]


def faults_of(layer: object) -> list[str]:
    kinds = {
        FC: checks.fully_connected_faults,
        Relu: checks.relu_faults,
        SCE: checks.softmax_cross_entropy_faults,
    }
    return kinds[type(layer)](layer)


@pytest.mark.parametrize(("layer", "result", "slip"), SLIPS, ids=[f"{r}: {s}" for _, r, s in SLIPS])
def test_a_slip_is_named_with_what_was_expected(layer, result, slip):
    faults = faults_of(layer)
    (fault,) = (each for each in faults if each.startswith(result))
    assert not any("raised" in each for each in faults)  # a slip has been named: that is enough
    before, _, named = fault.partition("Likeliest slip: ")
    assert re.search(slip, named), fault
    assert "expected" in before
    assert "got" in before


@pytest.mark.parametrize("read", [torch.from_numpy, lambda y: y.long(), lambda y: y.astype(int)])
def test_a_loss_may_be_written_for_arrays_or_for_tensors(read):
    layer = SCE()
    forward = layer.forward
    layer.forward = lambda y, z: forward(torch.as_tensor(read(y)), z)  # type: ignore[method-assign]
    assert faults_of(layer) == []


def test_how_far_off_is_told_with_the_place():
    (fault,) = faults_of(FC(y=lambda x, w, b: x @ w + b + F.one_hot(torch.tensor(1), w.shape[1])))
    assert "expected" in fault
    assert ", 1], got" in fault
    assert "off by 1, " in fault
    assert "times the largest true value" in fault
    assert "slip" not in fault  # none that is known


def test_what_is_no_result_is_told():
    for test in (course.FCL_Tests, course.ReLU_Tests, course.SCE_Tests):
        test(None)  # no method at all: told, not raised
    raises = FC(y=lambda x, w, b: x @ b @ w[1:])
    assert "forward raised RuntimeError" in faults_of(raises)[0]
    assert faults_of(Relu(y=lambda x: None))[0] == "forward's output must be a tensor, and is None."
    alone = SCE()
    alone.forward = lambda y, z: z  # type: ignore[method-assign]
    assert "forward must return (pred_y, loss), and returned a Tensor" in faults_of(alone)[0]
    assert "changed its input in place" in faults_of(Relu(y=lambda x: x.clamp_(min=0)))[-1]
    assert faults_of(Relu(y=lambda x: np.maximum(x.numpy(), 0))) == []
    with pytest.raises(TypeError, match=r"pass a layer, FC\(\), not the class"):
        checks.check_fully_connected(FC)


def test_faults_are_printed_below_the_sentence(capsys):
    course.FCL_Tests(FC(dw=lambda x, w, g: x.T @ g))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Results of fully connected layer forward and backward tests: 1 wrong."
    assert second.startswith("  backward's dw on a batch of 4: expected ")
