"""No kernel has a data race, nor lanes that wait for each other at different places: the kernels'
own source on an emulated GPU that sees every load and store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import emulation
from support.blocked import OPTIMIZERS
from support.cases import randn
from support.chain_suite import CHAINS, Chain, draw
from support.marks import needs_native
from support.operator_suite import RELU
from support.products_suite import SHAPES, TILES, Shape
from support.products_suite import draw as draw_products

from fastmlp.ops.matmul_precision import FMA, TF32, THREE_TF32

pytestmark = [
    needs_native,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]

SHUFFLED = 6
RACE = r"a race: thread .* and thread \d+ touch .* with nothing between them that orders it"
GPUS = pytest.mark.parametrize(
    ("capability", "processors"),
    [(90, 132), (90, 7), (86, 20), (75, 40)],
    ids=["H100", "a seventh of an H100", "Ampere", "T4"],
)


@pytest.fixture(autouse=True)
def operators(threads: Any) -> Iterator[Any]:
    """The operators, whose threads run in a shuffled order."""
    threads(1)
    operators = emulation.operators(races=True)
    operators.configure(SHUFFLED, 132, 90, 0)
    yield operators
    operators.release_tensors()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((f"across {what}", RACE) for what in ("warps", "lanes", "blocks")),
        *((name, RACE) for name in ("too early", "a numbered barrier")),
        *((f"a flag {how}", RACE) for how in ("raised too early", "seen by one lane")),
        ("in two places", r"threads \d+ and \d+ wait for each other at different places"),
        ("an inbox not opened", "a race|something was sent to an inbox that is not open"),
        ("an inbox not waited for", f"{RACE}|a phase of an inbox has two expectations"),
        ("a place sent to too early", RACE),
        ("behind an array", "something was written behind an array in shared memory"),
    ],
)
def test_what_is_wrong_is_found_and_nothing_else(operators: Any, name: str, words: str) -> None:
    for order in (0, 1, SHUFFLED):
        operators.configure(order, 132, 90, 0)
        operators.example(name, True)
        with pytest.raises(RuntimeError, match=words):
            operators.example(name, False)


@GPUS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_linear(operators: Any, dtype: torch.dtype, capability: int, processors: int) -> None:
    operators.configure(SHUFFLED, processors, capability, 0)
    ways = (FMA, TF32, THREE_TF32) if dtype == torch.float32 else (FMA,)
    shapes = ((5, 33, 9), (20, 300, 70), (9, 640, 16), (33, 64, 17), (40, 200, 300))
    for rows, inputs, outputs in shapes:
        x, w = randn(rows, inputs, dtype=dtype), randn(outputs, inputs, dtype=dtype)
        bias, dy = randn(outputs, dtype=dtype), randn(rows, outputs, dtype=dtype)
        for way in ways:
            y = operators.linear(x, w, bias, RELU, way)
            torch.testing.assert_close(
                y.float(), (x @ w.t() + bias).relu().float(), rtol=0.02, atol=0.2
            )
            operators.linear_backward(dy, x, w, y, RELU, True, True, True, way)
            operators.release_tensors()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(70, 10), (9, 100), (3, 3000)], ids=str)
def test_cross_entropy(operators: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits, target = randn(*shape, dtype=dtype), torch.randint(0, shape[1], shape[:1])
    for weight in (None, torch.rand(shape[1], dtype=dtype)):
        for reduction in range(3):
            options = (weight, reduction, -100, 0.1)
            loss, stats, total = operators.cross_entropy(logits, target, *options)
            args = (torch.ones_like(loss), logits, target, stats, total, *options)
            operators.cross_entropy_backward(*args)
            operators.release_tensors()


def test_activation(operators: Any) -> None:
    x = randn(1000)
    y = operators.activation(x, RELU)
    assert torch.equal(y, x.relu())
    operators.activation_backward(y, y, RELU)


SMALL = [case for case in CHAINS if case.hidden * case.classes <= 20_000]
"""The others take seconds, and do the same in more memory."""


@GPUS
@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_chain(operators: Any, case: Chain, options: str, capability: int, processors: int) -> None:
    operators.configure(SHUFFLED, processors, capability, 0)
    for dtype in (torch.float32, torch.float64):
        operators.blocked_chain_(*draw(case, **OPTIMIZERS[options]).to(dtype).args())
        operators.release_tensors()


@GPUS
@pytest.mark.parametrize("shape", [*SHAPES[2:5], TILES], ids=str)
def test_products(operators: Any, shape: Shape, capability: int, processors: int) -> None:
    if capability < 80:
        return
    operators.configure(SHUFFLED, processors, capability, 0)
    case = draw_products(shape, (processors, capability, 227 << 10))
    operators.blocked_products_(*case.products())
    operators.blocked_product_sum_(*case.sum())
    pixels = torch.randint(0, 256, (2, shape.groups, 40, 48), dtype=torch.uint8)
    gram, cross = torch.zeros(2, 2, shape.groups, 40, 40)
    operators.blocked_gram_(gram, cross, pixels, torch.ones(48), torch.zeros(48), 3)
