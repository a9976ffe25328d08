"""The number of threads changes no bit of what our kernels compute, whatever ran before with
another number. Where PyTorch's BLAS multiplies (``linear_plan`` says so), it may.

``FASTMLP_FAULTS=all`` draws 200 calls of each operator, otherwise 12.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import torch
from support import native_fuzz
from support.figures import count
from support.marks import needs_native
from support.native_calls import FOR_A_GPU, Arguments, Calls

import fastmlp

pytestmark = needs_native
DRAWS = 200 if os.environ.get("FASTMLP_FAULTS") == "all" else 12
NUMBERS = (2, 3, 8, 1)  # 1 comes first, too


def larger_calls(number: int) -> Calls:
    """Return a maker of calls that are large enough to be shared among threads."""
    source = random.Random(number)
    torch.manual_seed(number)
    calls = Calls(source)
    calls.rows = source.choice([1, 3, 17, 100, 300, 700, 1500])
    calls.inputs, calls.outputs = (
        source.choice([1, 7, 20, 64, 257]),
        source.choice([1, 10, 37, 130]),
    )
    return calls


def copied(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return [copied(each) for each in value] if isinstance(value, list) else value


def is_for_the_blas(name: str, arguments: Arguments) -> bool:
    """Return whether PyTorch's BLAS computes this call, or a layer of it."""
    name, backward = name.removesuffix("_backward"), name.endswith("_backward")
    if name not in ("linear", "mlp"):
        return False
    x, weights = arguments[1 if backward else 0], [arguments[2 if backward else 1]]
    if name == "mlp":
        parameters = arguments[3 if backward else 1]
        weights = [tensor for tensor in parameters if tensor.dim() == 2]
    rows = x.numel() // max(x.shape[-1], 1)
    plans = (
        torch.ops.fastmlp.linear_plan(rows, *reversed(weight.shape), x.dtype) for weight in weights
    )
    return any(plan.startswith("ATen's BLAS") for plan in plans)


@pytest.mark.parametrize("name", [n for n in native_fuzz.operators() if n not in FOR_A_GPU])
def test_operators(name: str, threads: Callable[[int], None]) -> None:
    operator, compared = getattr(torch.ops.fastmlp, name).default, 0
    for number in range(DRAWS):
        threads(1)
        arguments = getattr(larger_calls(number), name)()
        if is_for_the_blas(name, arguments):
            continue
        results = []
        for n in (1, *NUMBERS):
            mine = copied(arguments)
            assert isinstance(mine, list)
            threads(n)
            results.append((native_fuzz.digest([operator(*mine)]), native_fuzz.digest(mine)))
        for n, result in zip(NUMBERS, results[1:], strict=True):
            assert result == results[0], f"{n} threads: {native_fuzz.describe(arguments)[:400]}"
            compared += 1
    assert compared
    count(threads_compared=compared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_layers(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    """A training step of layers that are told to run our kernels (tests/conftest.py), with as many
    rows as those take."""
    compared = 0
    for sizes in ([64, 100, 10], [784, 128, 10], [20, 5], [256, 256]):
        for rows in (1, 4) if dtype == torch.bfloat16 else (1, 8, 200, 512):
            torch.manual_seed(rows)
            model, loss = fastmlp.MLP(sizes).to(dtype), fastmlp.CrossEntropyLoss()
            x, target = torch.randn(rows, sizes[0], dtype=dtype), torch.zeros(rows).long()
            results = []
            for n in (1, *NUMBERS):
                threads(n)
                model.zero_grad()
                value = loss(model(x), target)
                value.backward()
                results.append([value.detach(), *(p.grad for p in model.parameters())])
            for n, result in zip(NUMBERS, results[1:], strict=True):
                same = all(map(torch.equal, result, results[0]))
                assert same, f"{n} threads, {rows} rows, {sizes}"
                compared += 1
    count(threads_compared=compared)
