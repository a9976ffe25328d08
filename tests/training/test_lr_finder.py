"""The range test takes the run's own steps, each with the next learning rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.tiny import tiny_data

import fastmlp
from fastmlp.cli.find_lr import main
from fastmlp.data.sampling import epoch_order
from fastmlp.nn.init import initial_parameters
from fastmlp.training.config import TrainConfig
from fastmlp.training.lr_finder import LrRange, find_lr
from fastmlp.utils.errors import UserError

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(6,),
    batch_size=16,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    device="cpu",
    threads=1,
)


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_its_steps_are_those_of_pytorch(engine: str) -> None:
    config = TrainConfig(**{**CONFIG.to_dict(), "engine": engine})
    found = find_lr(config, DATA, low=1e-3, high=0.1, steps=14)
    assert found.lrs == pytest.approx([1e-3 * 100 ** (i / 13) for i in range(14)])
    model = torch.nn.Sequential(torch.nn.Linear(12, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    model.load_state_dict(initial_parameters([12, 6, 3], config.init, config.seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    inputs = DATA.normalization("standard").apply(DATA.train.images)
    batches = [part for epoch in range(3) for part in epoch_order(0, epoch, 90).split(16)]
    losses = []
    for lr, batch in zip(found.lrs, batches[:14], strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs[batch]), DATA.train.labels[batch])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert found.losses == pytest.approx(losses, rel=1e-4)


def test_it_suggests_a_rate_that_trains_and_stops_where_the_loss_explodes() -> None:
    found = find_lr(CONFIG, DATA, steps=100, high=1e6)
    assert 20 < len(found.lrs) < 100
    assert 1e-3 < found.suggestion < 1
    run = fastmlp.fit(TrainConfig(**{**CONFIG.to_dict(), "lr": found.suggestion}), DATA)
    assert run.history[-1].train_loss < 0.8 * found.losses[0]


def test_the_suggestion_is_two_thirds_along_the_longest_fall() -> None:
    lrs = [10.0 ** (i - 9) for i in range(12)]
    smoothed = [3, 3.1, 2.9, 3.2, 3.0, 2.8, 2.5, 2.1, 1.9, 1.8, 2.5, 9.0]
    # 3.2 to 1.8 is the longest fall: the end is place 9, of 7 epochs, a third of which is 2
    assert LrRange(lrs, smoothed, smoothed).suggestion == pytest.approx(lrs[7])
    rising = [float(i) for i in range(12)]
    with pytest.raises(UserError, match="The loss falls at no learning rate from 1e-09 to 100"):
        _ = LrRange(lrs, rising, rising).suggestion


def test_rows_of_ones_own_and_mistakes() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4))
    found = fastmlp.find_lr(x, x[:, 0] * 2, batch_size=32, optimizer="sgd")
    assert 1e-5 < found.suggestion < 1
    assert all(map(math.isfinite, found.losses))
    for call, words in (
        (lambda: find_lr(CONFIG, DATA, low=1.0, high=0.1), "low must be below high, got 1 and 0.1"),
        (lambda: find_lr(CONFIG, DATA, steps=3), "steps must be a whole number of at least 10"),
        (lambda: find_lr(CONFIG, DATA, epochs=3), "has no option 'epochs'"),
        (lambda: find_lr(CONFIG, DATA, low=1e36, high=1e37), "try a smaller low"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_the_command(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmlp.training.lr_finder.load_splits", lambda config: DATA)
    monkeypatch.chdir(tmp_path)
    flags = ["--hidden", "6", "--batch-size", "16", "--momentum", "0.5", "--threads", "1"]
    assert main([*flags, "--steps", "50", "--out", "a.png"]) == 0
    out = capsys.readouterr().out
    lr = float(out.rpartition("--lr ")[2])
    config = TrainConfig(hidden=(6,), batch_size=16, momentum=0.5, threads=1)
    assert lr == find_lr(config, DATA, steps=50).suggestion
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
