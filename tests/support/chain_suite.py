"""What is asked of the chain's kernel, on a GPU (gpu/test_blocked.py) and on an emulated one
(engines/test_blocked_cuda.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.blocked import OPTIMIZERS
from support.compare import assert_within_2x
from support.draws import permutations
from torch import Tensor

from fastmlp.ops.blocked_sgd import blocked_chain_ref, recurrence

DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@dataclass(frozen=True)
class Chain:
    """A block's sizes; ``rows`` of each group are there, all of them for None."""

    batch: int
    steps: int
    hidden: int
    classes: int
    groups: int = 1
    networks: int = 1
    rows: tuple[int, ...] | None = None

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.steps}-{self.hidden}-{self.classes}"
        return f"{sizes}-{self.groups}x{self.networks}" + ("-short" if self.rows else "")


CHAINS = (
    Chain(8, 16, 256, 10),  # what it is for: tiles of 8 rows, two units a thread
    Chain(8, 3, 100, 10, 2, 3, (24, 13)),  # groups, one of them with a ragged second step
    Chain(1, 20, 8, 2),  # tiles of 2 rows, half of them empty
    Chain(1, 1, 1, 2),
    Chain(4, 7, 129, 33, rows=(26,)),  # whole warps share a row of logits
    Chain(3, 5, 31, 16),
    Chain(20, 5, 64, 17, rows=(77,)),  # several tiles, the last not full, in a short last step
    Chain(16, 2, 40, 5, 1, 2, (16,)),  # a step that is all padding
    Chain(3, 4, 600, 7, 2, 1, (0, 12)),  # a group that is all padding; four units a thread
    Chain(100, 1, 64, 37),
    Chain(128, 1, 1024, 128),  # the largest of all: the last weight is not kept
    Chain(5, 6, 1000, 100, rows=(29,)),
    Chain(20, 5, 64, 10, rows=(77,)),  # 15 tiles, three of a step
    Chain(24, 3, 70, 16, 1, 2),
    Chain(64, 2, 200, 10),
    Chain(128, 1, 256, 2),
    Chain(1, 16, 33, 3, 2, 1, (16, 7)),
    Chain(16, 4, 130, 10, rows=(60,)),  # on clusters: two tiles a step
    Chain(13, 3, 64, 8, 1, 2, (27,)),
    Chain(8, 3, 300, 10),
    Chain(7, 3, 700, 16, rows=(20,)),
)

CHAINS_AND_OPTIMIZERS = [
    pytest.param(case, options, id=f"{name}-{case}")
    for case in CHAINS
    for name, options in OPTIMIZERS.items()
    if name in ("plain", "all") or case in CHAINS[:8]
]
"""Every optimizer in several shapes, and the extremes in all."""


@dataclass
class Block:
    """The arguments of ``blocked_chain_``, in its order."""

    p: Tensor
    q: Tensor | None
    gram: Tensor
    labels: Tensor
    rows: Tensor
    recurrence: Tensor
    options: Tensor
    batch: int
    parameters: list[Tensor]
    momentum: list[Tensor]
    to_w: Tensor
    to_v: Tensor | None
    ends: Tensor
    losses: Tensor
    correct: Tensor

    def args(self) -> list[Any]:
        return list(self.__dict__.values())

    def results(self) -> list[Tensor]:
        changed = [*self.parameters, *self.momentum, self.to_w, self.ends, self.losses]
        return [*changed, self.correct, *([] if self.to_v is None else [self.to_v])]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Block:
        def apply(value: Any) -> Any:
            if isinstance(value, list):
                return [change(tensor) for tensor in value]
            return change(value) if isinstance(value, Tensor) else value

        return Block(*map(apply, self.args()))

    def to(self, dtype: torch.dtype) -> Block:
        return self.mapped(lambda t: t.to(dtype, copy=True) if t.is_floating_point() else t.clone())


def draw(case: Chain, momentum: float = 0.0, **options: Any) -> Block:
    """A block with drawn numbers in float64; outputs are poisoned."""
    rows, networks = case.batch * case.steps, case.groups * case.networks
    options = {"weight_decay": 0.0, "nesterov": False, "grad_average": False, **options}

    def randn(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64)

    def sgd(network: int) -> dict[str, Any]:
        return {"lr": 0.1 + 0.02 * network, "momentum": momentum, **options}

    x = 0.3 * randn(case.groups, rows, 9)
    products = (case.groups, rows, case.networks, case.hidden)
    layers = ((networks, case.hidden), (networks, case.classes, case.hidden))
    layers += ((networks, case.classes),)
    kept = ("lr", "momentum", "weight_decay", "nesterov")
    tables = [
        recurrence(case.steps, **{k: v for k, v in sgd(m).items() if k in kept})
        for m in range(networks)
    ]
    bad = float("nan")
    return Block(
        p=randn(*products),
        q=0.1 * randn(*products) if momentum and case.steps > 1 else None,
        gram=x @ x.transpose(1, 2) + 1 if case.steps > 1 else x.new_empty(case.groups, rows, 0),
        labels=torch.randint(case.classes, (case.groups, rows)),
        rows=torch.tensor(case.rows or [rows] * case.groups),
        recurrence=torch.stack(tables),
        options=torch.tensor(
            [
                [float(v) for k in (*kept, "grad_average") for v in [sgd(m)[k]]]
                for m in range(networks)
            ],
            dtype=torch.float64,
        ),
        batch=case.batch,
        parameters=[0.3 * randn(*sizes) for sizes in layers],
        momentum=[0.1 * randn(*sizes) for sizes in layers] if momentum else [],
        to_w=torch.full(products, bad, dtype=torch.float64),
        to_v=torch.full(products, bad, dtype=torch.float64) if momentum else None,
        ends=torch.full((networks, 4), bad, dtype=torch.float64),
        losses=torch.full((networks, case.steps), bad, dtype=torch.float64),
        correct=torch.full((networks, case.steps), -1),
    )


def by_reference(block: Block) -> list[Tensor]:
    """Return the results of the reference, which change the block."""
    blocked_chain_ref(*block.args())
    return block.results()


def renumbered(block: Block, units: Tensor, images: Tensor) -> Block:
    """Return the block with its hidden units in another order, and the images of each group.

    ``images`` (G, R) keeps every image in its step, and the padding where it is.
    """
    group = torch.arange(len(images))[:, None]

    def products(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[group, images][..., units].contiguous()

    def layers(tensors: list[Tensor]) -> list[Tensor]:
        return [t[..., units].contiguous() for t in tensors[:2]] + [t.clone() for t in tensors[2:]]

    gram = block.gram
    if gram.numel():
        gram = gram[group[:, :, None], images[:, :, None], images[:, None, :]].contiguous()
    return replace(
        block.to(block.p.dtype),
        p=products(block.p),
        q=products(block.q),
        gram=gram,
        labels=block.labels[group, images],
        parameters=layers(block.parameters),
        momentum=layers(block.momentum),
        to_w=products(block.to_w),
        to_v=products(block.to_v),
    )


def chain_draws(block: Block) -> list[tuple[Tensor, ...]]:
    """Return draws of each of the reference's results, which leave the block as it is."""
    groups, rows = block.labels.shape
    draws = []
    for seed, units in enumerate(permutations(block.p.shape[-1])):
        images = torch.arange(rows).repeat(groups, 1)
        for group, count in enumerate(block.rows.tolist()):
            for step, first in enumerate(range(0, count if seed else 0, block.batch)):
                size = min(block.batch, count - first)
                within = permutations(size, seed=step)[seed]
                images[group, first : first + size] = first + within
        moved = renumbered(block, units, images)
        blocked_chain_ref(*moved.args())
        draws.append(renumbered(moved, units.argsort(), images.argsort(1)).results())
    return list(zip(*draws, strict=True))


class ChainTests:
    """``machine.walk(block)`` runs the kernel on copies and returns the results on the CPU."""

    @pytest.mark.parametrize(("case", "options"), CHAINS_AND_OPTIMIZERS)
    def test_every_shape_and_optimizer(self, machine, case, options):
        block = draw(case, **options)
        truth = by_reference(block.to(torch.float64))
        if case != CHAINS[10]:  # too large in float64
            for ours, true in zip(machine.walk(block), truth, strict=True):
                torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)
        peers = chain_draws(block.to(torch.float32))
        ours = machine.walk(block.to(torch.float32))
        for mine, draws, true in zip(ours, peers, truth, strict=True):
            if mine.dtype == torch.int64:
                assert torch.equal(mine, draws[0])
            else:
                assert_within_2x(mine, draws, true)

    @pytest.mark.parametrize("hidden", [64, 260])
    def test_a_bias_far_larger_than_what_is_added_to_it(self, machine, hidden):
        """Each part alone would be lost in it; so it gets their sum, at once."""
        large = 65536.0
        block = draw(Chain(8, 16, hidden, 10)).to(torch.float32)
        block.recurrence[..., 0] -= 1
        block.parameters[0].fill_(large)
        block.p -= large
        truth = by_reference(block.to(torch.float64))[0]
        last_place = torch.finfo(torch.float32).eps * large
        assert (truth - large).abs().max() > 2 * last_place
        assert (machine.walk(block)[0] - truth).abs().max() <= 0.6 * last_place

    @DTYPE
    @pytest.mark.parametrize("label", [-1, 10, 1 << 40])
    def test_a_label_that_is_no_class_makes_its_network_nan(self, machine, label, dtype):
        block = draw(Chain(8, 2, 40, 10, groups=2)).to(dtype)
        block.labels[0, 3] = label
        parameters, ours = len(block.parameters), machine.walk(block)
        good = by_reference(block.to(dtype))
        for mine, true in zip(ours, good, strict=True):
            torch.testing.assert_close(mine[1], true[1])
        for changed in ours[1:parameters]:
            assert changed[0].isnan().any()
        losses = ours[5 if block.to_v is not None else parameters + 2]
        assert losses[0].isnan().all()

    @DTYPE
    def test_a_network_of_infinities_leaves_the_others_alone(self, machine, dtype):
        block = draw(Chain(8, 4, 40, 10, networks=3), **OPTIMIZERS["all"]).to(dtype)
        before = machine.walk(block)
        block.parameters[1][1] = 1e30
        block.p[:, :, 1] = float("inf")
        after = machine.walk(block)
        for mine, old in zip(after, before, strict=True):
            if mine.dim() == 4:
                mine, old = mine.transpose(1, 2).flatten(0, 1), old.transpose(1, 2).flatten(0, 1)
            assert torch.equal(mine[[0, 2]], old[[0, 2]])
        assert not after[-3][1].isfinite().any()

    @DTYPE
    @pytest.mark.parametrize("case", [CHAINS[1], CHAINS[6]], ids=str)
    def test_reruns_give_the_same_bits(self, machine, case, dtype):
        block = draw(case, **OPTIMIZERS["all"]).to(dtype)
        first = machine.walk(block)
        for _ in range(machine.reruns):
            again = machine.walk(block)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_what_does_not_fit_is_refused(self, machine):
        block = draw(CHAINS[5]).to(torch.float32)
        block.gram = block.gram[:, :, :-1].contiguous()
        with pytest.raises(RuntimeError, match="gram must have size 15 in dimension 2"):
            machine.walk(block)
        block = draw(CHAINS[5]).to(torch.float32)
        block.q = block.p.clone()
        with pytest.raises(RuntimeError, match="q must come with momentum"):
            machine.walk(block)
        with pytest.raises(RuntimeError, match="takes batches of 1 to 128 images"):
            machine.walk(draw(Chain(129, 1, 8, 3)).to(torch.float32))
        with pytest.raises(RuntimeError, match="does not fit into a GPU's shared memory"):
            machine.walk(draw(Chain(128, 1, 1024, 128)))
