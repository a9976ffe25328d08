"""What the products between two chains must be, on whatever machine runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.compare import assert_within_2x
from torch import Tensor

from fastmlp.ops.blocked_sgd import (
    blocked_gram_ref,
    blocked_product_sum_ref,
    blocked_products_ref,
)


@dataclass(frozen=True)
class Shape:
    """Sizes of two blocks of images and of the networks that they go through."""

    rows: int
    inputs: int
    hidden: int
    groups: int = 1
    networks: int = 1

    def __str__(self) -> str:
        sizes = f"{self.rows}x{self.inputs}x{self.hidden}"
        return f"{sizes}-{self.groups}x{self.networks}"


SHAPES = [
    Shape(128, 160, 256),  # blocks of 8 warps, the last tile not full
    Shape(128, 96, 40),
    Shape(57, 48, 130, 2, 1),  # pads of rows and units
    Shape(1, 16, 1),
    Shape(16, 64, 65, 1, 3),  # networks share their images; an odd number of units
    Shape(24, 784, 17, 3, 2),
]
TILES = Shape(24, 336, 20, 1, 2)
"""On a few multiprocessors a slice has several tiles of it."""
GPU = 132, 90, 227 << 10


@dataclass
class Case:
    """The arguments of ``blocked_products_`` and of ``blocked_product_sum_``."""

    weight: Tensor
    factors: Tensor | None
    before: Tensor | None
    pixels: Tensor | None
    scale: Tensor
    shift: Tensor
    parts: Tensor | None
    p: Tensor
    cross: Tensor | None
    changed: Tensor | None

    def products(self) -> list[Any]:
        return list(self.__dict__.values())[:7]

    def sum(self) -> list[Any]:
        return [self.p, self.parts, self.cross, self.changed]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Case:
        return Case(*(None if t is None else change(t) for t in self.__dict__.values()))

    def to(self, dtype: torch.dtype) -> Case:
        return self.mapped(lambda t: t.to(dtype, copy=True) if t.is_floating_point() else t.clone())


def slices_of(shape: Shape, gpu: tuple[int, int, int] = GPU) -> int:
    sizes = shape.rows, shape.inputs, 1, shape.hidden, shape.groups * shape.networks
    slices, why = torch.ops.fastmlp.blocked_products_plan_cuda(*sizes, False, *gpu)
    assert why == ""
    return int(slices)


def draw(shape: Shape, gpu: tuple[int, int, int] = GPU) -> Case:
    """A case with drawn numbers in float32; outputs are poisoned."""
    n, networks = shape, shape.groups * shape.networks
    products = (n.groups, n.rows, n.networks, n.hidden)
    images = (n.groups, n.rows, n.inputs)
    return Case(
        weight=torch.randn(networks, n.hidden, n.inputs) / n.inputs**0.5,
        factors=0.01 * torch.randn(products),
        before=torch.randint(0, 256, images, dtype=torch.uint8),
        pixels=torch.randint(0, 256, images, dtype=torch.uint8),
        scale=(1 + torch.rand(n.inputs)) / 255,
        shift=torch.rand(n.inputs) - 0.8,
        parts=torch.full((slices_of(shape, gpu), *products), torch.nan),
        p=torch.full(products, torch.nan),
        cross=torch.randn(n.groups, n.rows, n.rows),
        changed=0.01 * torch.randn(products),
    )


def by_reference(case: Case) -> tuple[Tensor, Tensor]:
    """Return weight and p, which change in the case."""
    blocked_products_ref(*case.products())
    blocked_product_sum_ref(*case.sum())
    return case.weight, case.p


def product_draws(case: Case) -> list[tuple[Tensor, ...]]:
    """Return draws of the reference's weight and p in float32, sums in several orders."""
    draws = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randperm(case.weight.shape[2], generator=generator)
        rows = torch.randperm(case.p.shape[1], generator=generator)
        moved = case.to(torch.float32)
        for name in ("weight", "before", "pixels", "scale", "shift"):
            setattr(moved, name, getattr(moved, name)[..., columns].contiguous())
        for name in ("before", "factors", "changed"):
            setattr(moved, name, getattr(moved, name)[:, rows].contiguous())
        assert moved.cross is not None
        moved.cross = moved.cross[..., rows].contiguous()
        weight, p = by_reference(moved)
        draws.append((weight[..., columns.argsort()], p))
    return list(zip(*draws, strict=True))


class ProductsTests:
    """``products`` runs the two operators one after the other and returns weight and p."""

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_as_near_to_the_truth_as_plain_float32(self, products, shape):
        case = draw(shape)
        truth, peers = by_reference(case.to(torch.float64)), product_draws(case)
        for mine, draws, true in zip(products(case.to(torch.float32)), peers, truth, strict=True):
            assert_within_2x(mine, draws, true)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_whole_numbers_are_exact(self, products, shape):
        case = draw(shape)
        assert case.factors is not None
        assert case.cross is not None
        assert case.changed is not None
        for tensor, most in (
            *((case.weight, 40), (case.factors, 2), (case.scale, 1), (case.shift, 20)),
            *((case.cross, 3), (case.changed, 30)),
        ):
            tensor.copy_(torch.randint(-most, most + 1, tensor.shape))
        case.scale.fill_(1)
        for images in (case.before, case.pixels):
            assert images is not None
            images.remainder_(7)
        want = by_reference(case.to(torch.float64))
        for ours, theirs in zip(products(case.to(torch.float32)), want, strict=True):
            assert torch.equal(ours.double(), theirs)

    def test_every_bit_of_a_weight_counts(self, products):
        """One pixel of a power of two in each image leaves a weight's 24 bits as they are."""
        shape = Shape(48, 48, 20)
        case = replace(draw(shape), factors=None, before=None, cross=None, changed=None)
        assert case.pixels is not None
        case.pixels.fill_(128)
        case.pixels.view(48, 48).fill_diagonal_(128 + 64)
        case.scale.fill_(1)
        case.shift.fill_(-128)
        weight, p = products(case.to(torch.float32))
        assert torch.equal(weight, case.weight)
        assert torch.equal(p.view(48, 20), 64 * case.weight.view(20, 48).T)

    def test_an_update_alone_and_a_product_alone(self, products):
        case = draw(Shape(24, 64, 30, 2, 2))
        alone = replace(case, pixels=None, parts=None)
        both = products(case.to(torch.float32))
        updated = products(alone.to(torch.float32))[0]
        assert torch.equal(updated, both[0])
        later = replace(case, weight=updated, factors=None, before=None)
        assert torch.equal(products(later.to(torch.float32))[1], both[1])

    @pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3e38])
    def test_numbers_that_are_none_spoil_their_own_unit_alone(self, products, bad):
        case = draw(Shape(20, 64, 20))
        case.weight[0, 7, 33] = bad
        weight, p = products(case.to(torch.float32))
        rest = torch.arange(20) != 7
        assert weight[0, rest].isfinite().all()
        assert p[..., rest].isfinite().all()
        assert not p[..., 7].isfinite().any() or bad == 3e38


GRAMS = [(3, 1, 128, 3, 1024), (2, 2, 57, 1, 784), (2, 1, 8, 3, 16), (1, 3, 65, 1, 160)]
"""Blocks, groups, rows, planes and their pixels."""


class GramTests:
    """``grams(gram, cross, pixels, scale, shift, planes)`` runs the operator on copies and returns
    gram and cross."""

    @pytest.mark.parametrize("sizes", GRAMS, ids=str)
    @pytest.mark.parametrize("name", ["unit", "standard", "none"])
    def test_rounded_once(self, grams, sizes, name):
        blocks, groups, rows, planes, pixels = sizes
        images = torch.randint(0, 256, (blocks, groups, rows, planes * pixels), dtype=torch.uint8)
        images[0, 0, 0] = 255
        images[-1, -1, -1] = 0
        means = {"standard": torch.rand(planes) * 255}.get(name, torch.zeros(planes))
        deviations = torch.full((planes,), 255.0 if name == "unit" else 1.0)
        if name == "standard":
            deviations = 60 + torch.rand(planes)
        columns = [each.repeat_interleave(pixels) for each in (1 / deviations, -means / deviations)]
        poison = torch.full((blocks, groups, rows, rows), torch.nan)
        truth = [poison.double(), poison.double()]
        blocked_gram_ref(*truth, images, *(each.double() for each in columns), planes)
        gram, cross = grams(poison, poison, images, *columns, planes)
        assert torch.equal(gram, truth[0].float())
        assert torch.equal(cross[1:], truth[1][1:].float())
        assert cross[0].isnan().all()
        alone, _ = grams(poison, None, images, *columns, planes)
        assert torch.equal(alone, gram)
