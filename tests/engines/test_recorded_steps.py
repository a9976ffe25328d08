"""Steps as recordings against the same steps one by one; on a GPU in tests/gpu/test_engines.py."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.steps import OPTIMIZERS, clone, config_of, make_network, problem
from support.tape import TapeGraph

from fastmlp.engines.recorded_steps import RecordedSteps
from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.losses import LOSSES
from fastmlp.ops.rows import Rows
from fastmlp.ops.train_steps import train_steps_ref

SCIKIT_LEARNS = [
    {"decay_biases": False, "decay_per_row": True, "weight_decay": 0.3, "decay_in_loss": 1.0},
    {"weight_decay": 0.1, "decay_in_loss": 3.0},
    {"loss": "squared_error", "loss_scale": 0.5},
]


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings that hold operators and addresses, as a CUDA graph does, and not Python."""
    monkeypatch.setattr("fastmlp.engines.recorded_steps.CapturedGraph", TapeGraph)


def check_epochs(network, rows):
    """Compare two epochs of other orders and learning rates."""
    ours = clone(network)
    steps = RecordedSteps(ours, rows)
    for epoch, lr in enumerate((0.05, 0.02)):
        order = torch.randperm(len(rows.x), generator=torch.Generator().manual_seed(epoch))
        for each in (network, ours):
            each.order, each.lr, each.epoch = order, lr, epoch
        wanted, found = train_steps_ref(network, rows), steps.take()
        torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-12, atol=1e-12)
        assert found.correct.tolist() == wanted.correct.tolist()
        for mine, theirs in zip(ours.parameters, network.parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [*OPTIMIZERS, *SCIKIT_LEARNS, {"dropout": 0.4}], ids=str)
@pytest.mark.parametrize("batch", [1, 8, 53, 60])
def test_every_option(options, batch):
    config = config_of(**{"batch_size": batch, **options})
    x, targets = problem(config)
    check_epochs(make_network((7, 20, 9, 3), config, 53), Rows(x, targets))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_loss_and_activation_with_weights(loss, activation):
    config = config_of(loss=loss, activation=activation, dropout=0.2, optimizer="adam")
    x, targets = problem(config)
    check_epochs(make_network((7, 12, 3), config, 53), Rows(x, targets, torch.rand(53)))


def test_what_is_recorded_stays_on_its_device(monkeypatch):
    """On meta tensors, which have no values: to mix them with others, or to read one, raises."""
    monkeypatch.setattr("fastmlp.ops.train_steps.check_targets", lambda *_: None)
    for options in (*OPTIMIZERS, *SCIKIT_LEARNS, {"dropout": 0.4}):
        config = config_of(**options)
        x, targets = problem(config)
        network = make_network((7, 20, 9, 3), config, 53)
        network.parameters = [p.to("meta") for p in network.parameters]
        network.state = {k: [t.to("meta") for t in kept] for k, kept in network.state.items()}
        rows = Rows(x.to("meta"), targets.to("meta"), torch.rand(53).to("meta"))
        steps = RecordedSteps(network, rows)
        chunk = steps._new_chunk(3, 24)
        steps._steps(chunk)
        assert {t.device.type for t in (chunk.losses, chunk.correct, *network.parameters)} == {
            "meta"
        }


def test_a_range_of_steps_and_none():
    config = config_of(batch_size=4, momentum=0.9)
    x, targets = problem(config)
    network, rows = make_network((7, 9, 3), config, 53), Rows(x, targets)
    twin = clone(network)
    whole = train_steps_ref(twin, rows)
    steps, losses = RecordedSteps(network, rows), []
    for network.start_step, network.max_steps in ((0, 5), (5, 0), (5, None)):
        losses.append(steps.take().losses)
    torch.testing.assert_close(torch.cat(losses), whole.losses, rtol=1e-12, atol=0)


def test_memory_is_freed_with_the_last_reference():
    config = config_of()
    x, targets = problem(config)
    steps = RecordedSteps(make_network((7, 9, 3), config, 53), Rows(x, targets))
    steps.take()
    seen = weakref.ref(steps)
    gc.disable()
    try:
        del steps
        assert seen() is None
    finally:
        gc.enable()


def test_sparse_rows_and_several_epochs_are_refused():
    config = config_of()
    x, targets = problem(config)
    steps = RecordedSteps(make_network((7, 9, 3), config, 53, epochs=53), Rows(x, targets))
    with pytest.raises(ValueError, match="epochs must be 1 where steps are recorded, got 53"):
        steps.take()
    with pytest.raises(ValueError, match="rows must be dense to be trained on a GPU"):
        RecordedSteps(make_network((7, 9, 3), config, 53), Rows(x.to_sparse_csr(), targets))
