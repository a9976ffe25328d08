"""Two hundred epochs: rounding errors do not add up to another result."""

from __future__ import annotations

import pytest
import torch
from support.blocked import problem
from support.marks import needs_native
from support.single import single

from fastmlp.data.sampling import epoch_order
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.base import Engine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.engines.registry import engine_for
from fastmlp.nn.init import initial_parameters

SEEDS = range(5)
EPOCHS = 200


@pytest.fixture(scope="module")
def data() -> tuple[Subset, Normalization]:
    torch.manual_seed(11)
    return problem(images=121)


def final_loss(
    kind: type[Engine], data: tuple[Subset, Normalization], device: torch.device, seed: int
) -> float:
    """Of the last epoch, in float32, with momentum and weight decay."""
    part, norm = data
    start = initial_parameters([part.images.shape[1], 19, 5], "kaiming", seed)
    options = OptimizerConfig(batch_size=8, momentum=0.5, weight_decay=1e-3)
    engine = single(kind, start, part, norm, options, device)
    for epoch in range(EPOCHS):
        stats = engine.train_epoch(epoch_order(seed, epoch, 121), 0.003)
    return stats.loss


@pytest.fixture(scope="module")
def expected(data: tuple[Subset, Normalization]) -> list[float]:
    """What plain PyTorch comes to on the CPU, by seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses = [final_loss(ReferenceEngine, data, torch.device("cpu"), seed) for seed in SEEDS]
    torch.set_num_threads(threads)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "device"),
    [
        pytest.param("blocked", "cpu", marks=needs_native),
        pytest.param("blocked", "cuda", marks=pytest.mark.cuda),
        pytest.param("graph", "cuda", marks=pytest.mark.cuda),
        pytest.param("eager", "cuda", marks=pytest.mark.cuda),
    ],
)
def test_it_comes_to_the_loss_of_pytorch(
    name: str, device: str, data: tuple[Subset, Normalization], expected: list[float]
) -> None:
    there = torch.device(device)
    losses = [final_loss(engine_for(name, there), data, there, seed) for seed in SEEDS[:2]]
    assert losses == pytest.approx(expected[:2], rel=1e-3)
    assert all(min(expected) <= loss <= max(expected) for loss in losses)
    assert max(expected) > 1.5 * min(expected)  # seeds differ by far more
