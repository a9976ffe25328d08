"""The learning-rate schedules are those of PyTorch."""

from __future__ import annotations

import pytest
import torch

from fastmlp.training.config import TrainConfig


@pytest.mark.parametrize("epochs", [2, 3, 7, 40])
def test_one_cycle_is_that_of_pytorch(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=epochs, cycle_momentum=False
    )
    theirs = []
    for _ in range(epochs):
        theirs += schedule.get_last_lr()
        optimizer.step()
        if len(theirs) < epochs:
            schedule.step()
    config = TrainConfig(lr=0.3, lr_schedule="one_cycle", epochs=epochs)
    assert [config.lr_at(epoch) for epoch in range(epochs)] == pytest.approx(theirs, rel=1e-12)


def test_a_single_epoch_has_the_whole_rate() -> None:
    assert TrainConfig(lr=0.3, lr_schedule="one_cycle", epochs=1).lr_at(0) == 0.3
