"""Every loss, activation and option of a step on rows of numbers: ``native`` against the plain
PyTorch of ``reference``, and resuming."""

from dataclasses import replace

import pytest
import torch

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.base import Epoch
from fastmlp.engines.native import NativeEngine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.engines.registry import choose_engine, engine_for
from fastmlp.nn.init import initial_parameters
from fastmlp.utils.errors import UserError

CPU = torch.device("cpu")
ROWS, INPUTS, OUTPUTS = 61, 7, 3
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error", "huber", "poisson")
PLAIN = OptimizerConfig(8, optimizer="adam")


def rows(loss="cross_entropy", weighted=True):
    """Rows with targets for the loss, some of weight 0."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(ROWS, INPUTS, generator=generator)
    targets = torch.randint(0, OUTPUTS, (ROWS,), generator=generator)
    if loss != "cross_entropy":
        targets = torch.randint(0, 2, (ROWS, OUTPUTS), generator=generator).float()
    weights = torch.randint(0, 4, (ROWS,), generator=generator).float()
    return Subset(x, targets, weights=weights if weighted else None)


def make(kind, config, data, dtype=torch.float64):
    engine = kind(data, make_normalization("none", data.images), CPU)
    sizes = [INPUTS, 9, 5, OUTPUTS]
    parameters = initial_parameters(sizes, "torch", seed=1, activation=config.activation)
    return engine, engine.new_state({k: p.to(dtype) for k, p in parameters.items()}, config)


def epoch(start_step=0, number=2):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(number))
    return Epoch(EpochOrder(order), 0.02, start_step, number)


def train(kind, config, data, dtype=torch.float64):
    """Return the parameters after two epochs, the metrics of the second and an evaluation."""
    engine, state = make(kind, config, data, dtype)
    engine.train_epoch([state], [epoch(number=0)])
    (metrics,) = engine.train_epoch([state], [epoch(number=1)])
    (evaluation,) = engine.evaluate([state], data)
    return torch.cat([p.flatten() for p in state.tensors]), metrics, evaluation


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        *({"loss": loss} for loss in LOSSES),
        *({"activation": name} for name in ("none", "leaky_relu", "tanh", "sigmoid", "gelu")),
        {"label_smoothing": 0.2},
        {"dropout": 0.3, "seed": 2**40 + 3},
        {"clip_norm": 0.05},
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "grad_average": True, "clip_norm": 0.01},
    ],
    ids=str,
)
def test_native_does_what_plain_pytorch_does(change, weighted):
    config = replace(PLAIN, **change)
    data = rows(config.loss, weighted)
    ours, metrics, evaluation = train(NativeEngine, config, data)
    theirs, metrics_ref, evaluation_ref = train(ReferenceEngine, config, data)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert metrics.loss == pytest.approx(metrics_ref.loss, rel=1e-6)  # losses are kept in float32
    assert (metrics.correct, metrics.weight) == (metrics_ref.correct, metrics_ref.weight)
    assert evaluation.loss == pytest.approx(evaluation_ref.loss, rel=1e-9)
    assert evaluation.accuracy == pytest.approx(evaluation_ref.accuracy, nan_ok=True)
    if "loss" not in change:
        plain, _, _ = train(NativeEngine, PLAIN, data)
        assert (ours - plain).abs().max() > 1e-4  # the option does something


def test_metrics_are_means_by_weight():
    data = rows("squared_error")
    config = replace(PLAIN, loss="squared_error")
    engine, state = make(NativeEngine, config, data)
    (evaluation,) = engine.evaluate([state], data)
    outputs = torch.nn.Sequential(
        *(torch.nn.Linear(INPUTS, 9), torch.nn.ReLU(), torch.nn.Linear(9, 5)),
        *(torch.nn.ReLU(), torch.nn.Linear(5, OUTPUTS)),
    ).double()
    outputs.load_state_dict(state.parameters)
    errors = (outputs(data.images.double()) - data.labels).square().mean(1)
    expected = (errors * data.weights).sum() / data.weights.sum()
    assert evaluation.loss == pytest.approx(expected.item(), rel=1e-12)
    assert evaluation.accuracy != evaluation.accuracy  # nan
    (metrics,) = engine.train_epoch([state], [replace(epoch(), lr=0.0)])
    assert metrics.weight == float(data.weights.sum())
    assert metrics.loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [NativeEngine, ReferenceEngine])
def test_an_epoch_that_was_stopped_resumes_bit_by_bit(kind):
    config, data = replace(PLAIN, dropout=0.4, clip_norm=0.5, seed=9), rows()
    engine, whole = make(kind, config, data, torch.float32)
    engine.train_epoch([whole], [epoch()])
    engine, state = make(kind, config, data, torch.float32)
    (first,) = engine.train_epoch([state], [epoch()], should_stop=lambda: True)
    again, resumed = make(kind, config, data, torch.float32)
    resumed.load_state_dict(state.state_dict())
    while first.steps < 8:
        (more,) = again.train_epoch([resumed], [epoch(first.steps)], should_stop=lambda: True)
        first += more
    for ours, theirs in zip(whole.tensors, resumed.tensors, strict=True):
        assert torch.equal(ours, theirs)
    assert first.weight == pytest.approx(float(data.weights.sum()))


def test_engines_for_plain_steps_say_what_they_lack():
    config = replace(PLAIN, optimizer="sgd", dropout=0.5)
    for name in ("blocked", "eager"):
        reason = engine_for(name, CPU).unsupported_reason(CPU, [7, 9, 3], config)
        assert reason == "it does not have dropout 0.5"
        with pytest.raises(ValueError, match=r"dropout 0\.5"):
            make(engine_for(name, CPU), config, rows())
    kind, why = choose_engine("auto", CPU, [7, 9, 3], config)
    assert kind is NativeEngine
    assert "not blocked, because it does not have dropout 0.5" in why


def test_engines_for_images_do_not_take_rows():
    sgd = replace(PLAIN, optimizer="sgd")
    kind, why = choose_engine("auto", CPU, [7, 9, 3], sgd, rows())
    assert kind is NativeEngine
    assert "not blocked, because it trains on uint8 images with labels alone" in why
    with pytest.raises(UserError, match="blocked cannot run here: it trains on uint8 images"):
        choose_engine("blocked", CPU, [7, 9, 3], sgd, rows())
