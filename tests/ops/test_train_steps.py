"""The operator ``train_steps_`` against autograd and torch.optim."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.steps import (
    OPTIMIZERS,
    clone,
    config_of,
    make_network,
    make_targets,
    numbers_of,
    problem,
    train_by_torch,
)

from fastmlp.ops._load import native_available
from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.losses import LOSSES
from fastmlp.ops.train_steps import Network, StepConfig, train_steps_

BACKENDS = ["reference", *(["native"] if native_available() else [])]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)
SIZES = [(7, 3), (7, 5, 3), (7, 33, 3), (7, 1, 1, 3), (7, 20, 9, 17, 3), (7, 6, 5, 4, 9, 3)]


def check_against_torch(backend, network, x, targets, **data):
    losses, parameters = train_by_torch(network, x, targets, **data)
    metrics = train_steps_([network], x, targets, backend=backend, **data)[0]
    torch.testing.assert_close(metrics.losses, losses, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(network.parameters, parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("sizes", [(7, 3), (7, 20, 9, 3)])
def test_every_update_is_torch_optims(options, sizes, backend):
    config = config_of(**options)
    x, targets = problem(config)
    check_against_torch(backend, make_network(sizes, config, 53), x, targets)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_every_activation_and_dropout(activation, dropout, backend):
    config = config_of(activation=activation, dropout=dropout, optimizer="adam")
    x, targets = problem(config)
    check_against_torch(backend, make_network((7, 20, 11, 3), config, 53), x, targets)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("weight_mean", [False, True])
@pytest.mark.parametrize("outputs", [1, 2, 3, 17, 70])
def test_every_loss(loss, weighted, weight_mean, outputs, backend):
    config = config_of(loss=loss, weight_mean=weight_mean, loss_scale=0.5, huber_delta=0.7)
    x, targets = problem(config, outputs=outputs)
    data = {"row_weights": torch.rand(53).double()} if weighted else {}
    if weighted and loss == "cross_entropy":
        data["class_weight"] = torch.rand(outputs).double() + 0.1
    network = make_network((7, 12, outputs), config, 53)
    check_against_torch(backend, network, x, targets, **data)


@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing(classes, weighted, backend):
    config = config_of(label_smoothing=0.2)
    x, targets = problem(config, outputs=classes)
    data = {"class_weight": torch.rand(classes).double()} if weighted else {}
    check_against_torch(backend, make_network((7, 9, classes), config, 53), x, targets, **data)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("batch", [1, 2, 7, 32, 53, 100])
def test_every_depth_and_ragged_batches(sizes, batch, backend):
    config = config_of(batch_size=batch, optimizer="adam")
    x, targets = problem(config)
    check_against_torch(backend, make_network(sizes, config, 53), x, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("each", [False, True])
def test_inputs_are_normalised_as_they_are_read(dtype, each, backend):
    config = config_of()
    x, targets = problem(config)
    x = (x * 40 + 128).clamp(0, 255).to(dtype)
    scale, shift = (torch.rand(7), torch.randn(7)) if each else (1 / 64, -2.0)
    network = make_network((7, 12, 3), config, 53)
    apart = clone(network)
    train_steps_([network], x, targets, scale=scale, shift=shift, backend=backend)
    wide = x.float() if dtype == torch.uint8 else x.double()  # bytes are scaled in float32
    train_steps_([apart], (wide * scale + shift).double(), targets, backend="reference")
    torch.testing.assert_close(numbers_of(network), numbers_of(apart), rtol=1e-10, atol=1e-10)


def test_uint8_labels_hits_and_one_column_of_targets(backend):
    config = config_of()
    x, labels = problem(config)
    first, second = make_network((7, 12, 3), config, 53), make_network((7, 12, 3), config, 53)
    one = train_steps_([first], x, labels, backend=backend)[0]
    two = train_steps_([second], x, labels.to(torch.uint8), backend=backend)[0]
    assert torch.equal(one.losses, two.losses)
    z = F.linear(F.relu(F.linear(x, *first.parameters[:2])), *first.parameters[2:])
    after = Network(first.parameters, config_of(batch_size=53), torch.arange(53), 0.0)
    hits = train_steps_([after], x, labels, backend=backend)[0].correct
    assert hits.tolist() == [(z.argmax(1) == labels).sum()]
    config = config_of(loss="squared_error")
    y = torch.randn(53, dtype=torch.float64)
    first, second = make_network((7, 12, 1), config, 53), make_network((7, 12, 1), config, 53)
    train_steps_([first], x, y, backend=backend)
    train_steps_([second], x, y[:, None], backend=backend)
    assert torch.equal(numbers_of(first), numbers_of(second))


@pytest.mark.parametrize("options", [OPTIMIZERS[3], OPTIMIZERS[9], {"dropout": 0.5}], ids=str)
def test_several_epochs_in_one_call(options, backend):
    config = config_of(**options)
    x, targets = problem(config)
    orders = [torch.randperm(53)[:49] for _ in range(3)]
    one, other = (make_network((7, 20, 9, 3), config, 53) for _ in range(2))
    losses = []
    for one.order in orders:
        losses.append(train_steps_([one], x, targets, backend=backend)[0].losses)
        one.epoch += 1
    other.order, other.epochs = torch.cat(orders), 3
    found = train_steps_([other], x, targets, backend=backend)[0].losses
    assert torch.equal(torch.cat(losses), found)
    assert torch.equal(numbers_of(one), numbers_of(other))
    # also from the middle of the second one on
    first, rest = (make_network((7, 20, 9, 3), config, 53, epochs=3) for _ in range(2))
    first.order, first.max_steps = other.order, 10
    train_steps_([first], x, targets, backend=backend)
    rest.parameters, rest.state = first.parameters, first.state
    rest.order, rest.start_step = other.order, 10
    tail = train_steps_([rest], x, targets, backend=backend)[0].losses
    assert torch.equal(tail, found[10:])
    assert torch.equal(numbers_of(rest), numbers_of(other))


@pytest.mark.parametrize("epochs", [0, 2, 54])
def test_epochs_must_have_as_many_rows_each(epochs, backend):
    config = config_of()
    x, targets = problem(config)
    network = make_network((7, 3), config, 53, epochs=epochs)
    with pytest.raises(ValueError, match="order must hold as many rows for each epoch, got 53"):
        train_steps_([network], x, targets, backend=backend)


@pytest.mark.parametrize("options", [OPTIMIZERS[3], OPTIMIZERS[9], {"dropout": 0.5}], ids=str)
def test_resumed_in_the_middle_of_an_epoch(options, backend):
    config = config_of(**options)
    x, targets = problem(config)
    whole, parts = make_network((7, 20, 3), config, 53), make_network((7, 20, 3), config, 53)
    losses = train_steps_([whole], x, targets, backend=backend)[0].losses
    found = []
    for start, steps in ((0, 2), (2, 3), (5, None)):
        parts.start_step, parts.max_steps = start, steps
        found.append(train_steps_([parts], x, targets, backend=backend)[0].losses)
    assert torch.equal(torch.cat(found), losses)
    assert torch.equal(numbers_of(whole), numbers_of(parts))


def test_a_bound_above_every_norm_changes_nothing(backend):
    configs = [config_of(), config_of(clip_norm=1e3)]
    x, targets = problem(configs[0])
    networks = [make_network((7, 9, 3), config, 53) for config in configs]
    for network in networks:
        train_steps_([network], x, targets, backend=backend)
    torch.testing.assert_close(*map(numbers_of, networks), rtol=1e-12, atol=1e-12)


def test_dropout_of_a_large_batch_on_any_number_of_threads(threads, backend):
    config = config_of(batch_size=200, dropout=0.5)
    x, targets = problem(config, rows=400)
    for count in (1, 2):
        threads(count)
        check_against_torch(backend, make_network((7, 20, 3), config, 400), x, targets)


def test_networks_together_are_what_they_are_alone(backend):
    configs = [
        config_of(batch_size=5, optimizer="adam", dropout=0.3),
        config_of(batch_size=16, momentum=0.9),
        config_of(batch_size=53, activation="tanh"),
    ]
    x, targets = problem(configs[0])
    sizes = [(7, 20, 3), (7, 3), (7, 5, 6, 3)]
    together = [
        make_network(s, c, 53, seed=i) for i, (s, c) in enumerate(zip(sizes, configs, strict=True))
    ]
    together[1].order = together[1].order[:20]
    alone = [clone(network) for network in together]
    found = train_steps_(together, x, targets, backend=backend)
    for network, same, metrics in zip(alone, together, found, strict=True):
        want = train_steps_([network], x, targets, backend=backend)[0]
        assert torch.equal(metrics.losses, want.losses)
        assert torch.equal(metrics.correct, want.correct)
        assert torch.equal(numbers_of(network), numbers_of(same))


def test_a_network_that_is_not_finite_stops_alone(backend):
    config = config_of(loss="squared_error")
    x, targets = problem(config)
    networks = [make_network((7, 9, 3), config, 53, seed=i) for i in range(2)]
    bad = networks[0].order[17]
    networks[1].order = networks[1].order[networks[1].order != bad]
    x[bad] = math.inf
    first, second = train_steps_(networks, x, targets, backend=backend)
    assert first.losses[:2].isfinite().all()
    assert not first.losses[2:].isfinite().any()
    assert second.losses.isfinite().all()
    assert all(p.isfinite().all() for network in networks for p in network.parameters)


def test_a_batch_without_weight_teaches_nothing(backend):
    config = config_of(optimizer="sgd")
    x, targets = problem(config)
    network = make_network((7, 9, 3), config, 53)
    before = numbers_of(network)
    metrics = train_steps_([network], x, targets, row_weights=torch.zeros(53), backend=backend)[0]
    assert metrics.losses.tolist() == [0.0] * 7
    assert torch.equal(numbers_of(network), before)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(53, 7, dtype=torch.int64)}, TypeError, "x must be"),
        ({"x": torch.zeros(53, 6)}, ValueError, "must have shape"),
        ({"targets": torch.full((53,), 3)}, IndexError, "from 0 to 2"),
        ({"targets": torch.zeros(53)}, TypeError, "labels"),
        ({"targets": torch.zeros(52, dtype=torch.int64)}, TypeError, "labels"),
        ({"row_weights": torch.ones(52)}, ValueError, "53 elements"),
        ({"class_weight": torch.ones(4)}, ValueError, "3 elements"),
        ({"scale": torch.ones(6)}, ValueError, "scale must"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words, backend):
    config = config_of()
    x, targets = problem(config)
    data = {"x": x, "targets": targets, **change}
    with pytest.raises(error, match=words):
        train_steps_([make_network((7, 4, 3), config, 53)], backend=backend, **data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "softplus"}, "activation must be"),
        ({"loss": "hinge"}, "loss must be"),
        ({"optimizer": "lbfgs"}, "optimizer must be"),
        ({"optimizer": "adam", "momentum": 0.9}, "are for sgd"),
        ({"dropout": 1.0}, "dropout"),
        ({"batch_size": 0}, "batch_size"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"loss": "huber", "huber_delta": 0.0}, "huber_delta"),
        ({"loss": "huber", "label_smoothing": 0.1}, "label_smoothing"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_options_out_of_range_are_refused(options, words, backend):
    with pytest.raises(ValueError, match=words):
        StepConfig(**{"batch_size": 4, **options})


def sparse_problem(config, rows=53, inputs=40):
    """Rows of which some are empty, some columns too, and the same as a dense tensor."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, inputs, generator=generator).double()
    x[torch.rand(rows, inputs, generator=generator) < 0.8] = 0
    x[::9] = 0
    x[:, 3:7] = 0
    return x.to_sparse_csr(), x, make_targets(config.loss, rows, 3)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("sizes", [(40, 3), (40, 30, 3), (40, 17, 9, 3)], ids=str)
def test_sparse_rows_are_what_they_are_as_dense_ones(options, sizes, backend):
    config = config_of(batch_size=16, **options)
    sparse, dense, targets = sparse_problem(config)
    for dtype in (torch.float64, torch.float32):
        network = make_network(sizes, config, 53)
        other = clone(network)
        got = train_steps_([network], sparse.to(dtype), targets, backend=backend)[0]
        want = train_steps_([other], dense.to(dtype), targets, backend="reference")[0]
        torch.testing.assert_close(got.losses, want.losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(numbers_of(network), numbers_of(other), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_rows_on_any_number_of_threads(threads, backend):
    config = config_of(batch_size=40, optimizer="adam")
    x, _, targets = sparse_problem(config, rows=90, inputs=300)
    found = []
    for count in (1, 2):
        threads(count)
        network = make_network((300, 60, 3), config, 90)
        train_steps_([network], x, targets, backend=backend)
        found.append(numbers_of(network))
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_what_does_not_fit_of_sparse_rows_is_refused(backend):
    config = config_of()
    x, _, targets = sparse_problem(config)
    network = make_network((40, 3), config, 53)
    for data, options, error, words in (
        (x, {"scale": 2.0}, ValueError, "sparse x must have neither scale nor shift"),
        (x.to(torch.float16), {}, TypeError, "sparse x must be float32 or float64"),
    ):
        with pytest.raises(error, match=words):
            train_steps_([network], data, targets, backend=backend, **options)
