"""The tolerance rule itself: right results pass in any order of summation, wrong ones do not."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.blocked import ENDS, make, problem
from support.cases import randn
from support.compare import assert_within_2x, largest_error
from support.draws import (
    DRAWS,
    by_name,
    cross_entropy_draws,
    linear_backward_draws,
    linear_draws,
    training_draws,
)
from torch import Tensor

from fastmlp.engines.reference import ReferenceEngine
from fastmlp.ops.cross_entropy import cross_entropy_ref

Names = dict[str, Tensor]
SGD = {"batch_size": 8, "momentum": 0.9}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def passes(*args: Any) -> bool:
    try:
        assert_within_2x(*args)
    except AssertionError:
        return False
    return True


def sums_in_order(terms: np.ndarray, orders: int) -> Tensor:
    """Return (orders, 5) sums of terms (5, n), one term after another in float32."""
    random = np.random.default_rng(0)
    shuffled = (terms[:, random.permutation(terms.shape[1])] for _ in range(orders))
    return torch.tensor(np.stack([np.cumsum(s, 1, dtype=np.float32)[:, -1] for s in shuffled]))


def test_right_sums_of_few_numbers_pass_with_all_draws_and_not_with_one():
    """Five sums, such as a bias's gradient: one draw in some hundreds rounds far too well."""
    failed = {1: 0, DRAWS: 0}
    for seed in range(1500):
        terms = np.random.default_rng(seed).normal(size=(5, 200)).astype(np.float32)
        truth = torch.tensor(terms.astype(np.float64).sum(1))
        ours, *draws = sums_in_order(terms, DRAWS + 1)
        for count in failed:
            failed[count] += not passes(ours, draws[:count], truth)
    assert failed[1] > 3
    assert failed[DRAWS] == 0


def cancelling() -> tuple[Tensor, Tensor]:
    """Return x and w of a product whose terms are far larger than their sums."""
    w = randn(5, 3000)
    return randn(8, 3000) + 100, w - w.mean(1, keepdim=True)


@pytest.mark.parametrize("operands", [lambda: (randn(64, 3000), randn(32, 3000)), cancelling])
def test_a_product_in_blocks_passes(operands):
    x, w = operands()
    truth = x.double() @ w.double().t()
    for block in (8, 100, 1000):
        parts = [a @ b.t() for a, b in zip(x.split(block, 1), w.split(block, 1), strict=True)]
        assert_within_2x(torch.stack(parts).sum(0), linear_draws(x, w, None), truth)


@pytest.mark.parametrize("operands", [lambda: (randn(64, 3000), randn(32, 3000)), cancelling])
def test_a_product_with_an_operand_in_float16_fails(operands):
    x, w = operands()
    draws, truth = linear_draws(x, w, None), x.double() @ w.double().t()
    assert not passes(x.half().float() @ w.t(), draws, truth)
    assert not passes(x @ w.t().half().float(), draws, truth)


def test_a_product_that_lacks_one_term_of_thousands_fails():
    x, w = randn(8, 3000), randn(5, 3000)
    draws, truth = linear_draws(x, w, None), x.double() @ w.double().t()
    for term in (0, 1234, 2999):
        lacking = draws[0].clone()
        lacking[3, 2] -= x[3, term] * w[2, term]
        assert not passes(lacking, draws, truth)


@pytest.mark.parametrize("factor", [1.9, 3.0])
def test_three_times_pytorchs_error_fails(factor):
    x, w = cancelling()
    draws, truth = linear_draws(x, w, None), x.double() @ w.double().t()
    furthest = max(draws, key=lambda draw: largest_error([draw], truth))
    ours = (truth + factor * (furthest.double() - truth)).float()
    assert passes(ours, draws, truth) == (factor < 2)


def test_nan_and_infinities_stand_where_pytorch_has_them():
    truth = torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.float64)
    assert passes(truth.float(), truth.float(), truth)
    for wrong in ([1.0, 2.0, float("inf")], [1.0, float("nan"), -float("inf")], 3 * [1.0]):
        assert not passes(torch.tensor(wrong), truth.float(), truth)


# ---- the draws ----------------------------------------------------------------------------------


def assert_draws_differ_by_rounding_alone(
    exact: list[tuple[Tensor, ...]] | list[list[Tensor]], rounded: list[Any]
) -> None:
    """In float64 all are equal; in float32 some are not."""
    for draws in exact:
        assert len(draws) == DRAWS
        for draw in draws[1:]:
            torch.testing.assert_close(draw, draws[0], rtol=1e-10, atol=1e-12)
    assert any(not torch.equal(draw, draws[0]) for draws in rounded for draw in draws[1:])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_draws_of_the_operators(reduction, weighted):
    x, w, b, dy = randn(9, 70), randn(33, 70), randn(33), randn(9, 33)
    target = torch.tensor([4, 0, 32, 7, 7, 1, -100, 2, 3])
    dloss = randn(9) if reduction == "none" else torch.tensor(1.3)

    def loss_and_gradient(logits: Tensor, target: Tensor, dloss: Tensor, **how: Any) -> Any:
        leaf = logits.detach().clone().requires_grad_()
        loss = cross_entropy_ref(leaf, target, **how)
        loss.backward(dloss.to(loss.dtype))
        return loss.detach(), leaf.grad

    def all_draws(dtype: torch.dtype) -> list[Any]:
        a, c, d, g = (tensor.to(dtype) for tensor in (x, w, b, dy))
        weight = torch.linspace(0.5, 1, 33).to(dtype) if weighted else None
        how = {"reduction": reduction, "weight": weight, "ignore_index": 7}
        if reduction == "mean":
            how["label_smoothing"] = 0.1
        losses = cross_entropy_draws(loss_and_gradient, g, target, dloss, **how)
        y = linear_draws(a, c, d, "relu")
        return [y, *linear_backward_draws(g, a, c, y[0]), *losses]

    target[6] = 7
    exact, rounded = all_draws(torch.float64), all_draws(torch.float32)
    for one, other in zip(exact, rounded, strict=True):
        assert_draws_differ_by_rounding_alone([one], [other])


@ENDS
@pytest.mark.parametrize("hidden", [(19,), (12, 7)])
def test_draws_of_training(options, hidden):
    data, epochs = problem(), [(torch.randperm(211), 0.05), (torch.arange(100), 0.02)]
    how = {"options": {"batch_size": 8, **options}, "hidden": hidden}
    exact, rounded = (
        by_name(training_draws(partial(make, ReferenceEngine, dtype=dtype, **how), data, epochs, 8))
        for dtype in (torch.float64, torch.float32)
    )
    for name, draws in exact.items():
        assert_draws_differ_by_rounding_alone([draws], [rounded[name]])


# ---- training -----------------------------------------------------------------------------------


def trained(steps: int) -> tuple[list[Names], Names, list[Names]]:
    """Return PyTorch's draws, the truth, and more draws, which stand for right engines."""
    data, order = problem(8 * steps - 3, 200, planes=2), torch.randperm(8 * steps - 3)

    def draws(dtype: torch.dtype, count: int) -> list[Names]:
        plain = partial(make, ReferenceEngine, options=SGD, dtype=dtype)
        return training_draws(plain, data, [(order, 0.05)], 8, count)

    first = draws(torch.float32, 3 * DRAWS)
    return first[:DRAWS], draws(torch.float64, 1)[0], first[DRAWS:]


@pytest.mark.parametrize("steps", [1, 2, 15, 50])
def test_right_training_passes(steps):
    draws, truth, right = trained(steps)
    peers = by_name(draws)
    for ours in right:
        for name, true in truth.items():
            assert_within_2x(ours[name], peers[name], true)


def _float16_between(x: Tensor) -> Tensor:
    return x + (x.half().float() - x).detach()


def _without_the_last_unit(x: Tensor) -> Tensor:
    return x * (torch.arange(x.shape[1]) < x.shape[1] - 1)


def _seven_bits_less(x: Tensor) -> Tensor:
    spread = 2.0**8 * x.detach()
    return (x + spread) - spread


@pytest.mark.parametrize("steps", [1, 15])
@pytest.mark.parametrize("wrong", [_float16_between, _without_the_last_unit, _seven_bits_less])
def test_wrong_training_fails(wrong, steps, monkeypatch):
    draws, truth, _ = trained(steps)
    peers = by_name(draws)

    def mlp(parameters: list[Tensor], x: Tensor, *_: object) -> Tensor:
        hidden = wrong(F.relu(F.linear(x, *parameters[:2])))
        return F.linear(hidden, *parameters[2:])

    monkeypatch.setattr("fastmlp.engines.reference.mlp_ref", mlp)
    torch.manual_seed(20)
    (ours,) = trained(steps)[0][:1]
    assert not all(passes(ours[name], peers[name], true) for name, true in truth.items())


def test_infinities_belong_where_pytorch_has_them_or_the_truth_does_not_fit():
    truth = torch.tensor([7.5, 1e6], dtype=torch.float64)
    theirs, inf = torch.tensor([torch.inf, torch.inf]).half(), torch.inf
    for ours, right in (([7.5, inf], 1), ([inf, inf], 1), ([9.0, inf], 0), ([7.5, 1.0], 0)):
        assert passes(torch.tensor(ours).half(), theirs, truth) == right
    assert not passes(torch.tensor([inf, inf]).half(), torch.tensor([7.5, inf]).half(), truth)
