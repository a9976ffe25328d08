"""The operators ``predict_rows`` and ``evaluate_rows`` against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_within_2x
from support.steps import config_of, make_parameters, make_targets, torch_loss

from fastmlp.ops._load import native_available
from fastmlp.ops.activations import ACTIVATIONS, row_of
from fastmlp.ops.losses import LOSSES, loss_row
from fastmlp.ops.predict_rows import evaluate_rows, predict_rows

BACKENDS = ["reference", *(["native"] if native_available() else [])]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)
SIZES = [(7, 3), (7, 20, 3), (7, 1, 33, 3), (7, 5, 6, 7, 8, 3)]


def forward(parameters, x, activation="relu"):
    h = x.to(parameters[0].dtype)
    for i in range(0, len(parameters), 2):
        h = F.linear(h, *parameters[i : i + 2])
        h = row_of(activation).module()(h) if i + 2 < len(parameters) else h
    return h


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [0, 1, 47, 500])
def test_outputs(sizes, count, backend):
    parameters, x = make_parameters(sizes), torch.randn(count, 7)
    got = predict_rows(parameters, x, backend=backend)
    torch.testing.assert_close(got, forward(parameters, x), rtol=1e-10, atol=1e-10)
    rows = torch.randint(0, max(count, 1), (count // 2,))
    some = predict_rows(parameters, x, rows=rows, backend=backend)
    torch.testing.assert_close(some, got[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_outputs_are_as_close_as_pytorchs(activation, backend):
    parameters, x = make_parameters((40, 60, 50, 9)), torch.randn(300, 40)
    narrow = [p.float() for p in parameters]
    truth = forward([p.double() for p in narrow], x, activation)
    got = predict_rows(narrow, x, activation=activation, backend=backend)
    assert_within_2x(got, forward(narrow, x, activation), truth)


def test_inputs_are_normalised(backend):
    parameters = make_parameters((7, 9, 3))
    x = torch.randint(0, 256, (60, 7), dtype=torch.uint8)
    scale, shift = torch.rand(7), torch.randn(7)
    got = predict_rows(parameters, x, scale=scale, shift=shift, backend=backend)
    want = forward(parameters, (x.float() * scale + shift).double())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_evaluation(loss, outputs, weighted, backend):
    smoothing = 0.1 if loss == "cross_entropy" else 0.0
    config = config_of(loss=loss, loss_scale=0.5, label_smoothing=smoothing, dropout=0.5)
    parameters, x = make_parameters((7, 12, outputs)), torch.randn(230, 7)
    targets = make_targets(loss, 230, outputs)
    weights = torch.rand(230).double() if weighted else None
    classes = None
    if weighted and loss == "cross_entropy":
        classes = torch.rand(outputs).double() + 0.1
    rows = torch.randperm(230)[:211]
    got = evaluate_rows(
        *(parameters, x, targets, config),
        rows=rows,
        row_weights=weights,
        class_weight=classes,
        backend=backend,
    )
    z, target = forward(parameters, x[rows]), targets[rows]
    each = torch_loss(config, z, target, classes)
    factors = torch.ones(211).double() if weights is None else weights[rows]
    parts = factors if classes is None else factors * classes[target]
    assert got.loss == pytest.approx(float((each * factors).sum()) * 0.5, rel=1e-10)
    assert got.weight == pytest.approx(float(parts.sum()), rel=1e-12)
    assert (got.correct, got.rows) == (int(loss_row(loss).hits(z, target).sum()), 211)


def test_rows_that_x_lacks_are_refused(backend):
    with pytest.raises(IndexError, match="rows of x"):
        predict_rows(
            make_parameters((7, 3)), torch.zeros(5, 7), rows=torch.tensor([5]), backend=backend
        )


def test_the_operators_refuse_rows_and_columns_that_x_lacks(backend):
    """The second line, behind the checks in Python."""
    if backend == "reference":
        pytest.skip("it has no second line")
    predict, parameters = torch.ops.fastmlp.predict_rows, make_parameters((7, 3))
    x = torch.zeros(5, 7)
    for row in (5, -1):
        with pytest.raises(RuntimeError, match="rows must be rows of x"):
            predict(x, None, None, None, None, torch.tensor([row]), parameters, 0)
    values, starts, rows = torch.ones(2), torch.tensor([0, 1, 2]), torch.tensor([0])
    for column in (7, -1):
        columns = torch.tensor([0, column], dtype=torch.int32)
        with pytest.raises(RuntimeError, match="columns must be of inputs"):
            predict(values, columns, starts, None, None, rows, parameters, 0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("sizes", [(40, 3), (40, 30, 3)], ids=str)
def test_sparse_rows(sizes, backend):
    parameters = make_parameters(sizes)
    x = torch.randn(250, 40)
    x[torch.rand(250, 40) < 0.9] = 0
    rows = torch.randint(0, 250, (120,))
    sparse = x.to_sparse_csr()
    got = predict_rows(parameters, sparse, rows=rows, backend=backend)
    want = forward(parameters, x[rows])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    config = config_of(activation="relu")
    targets = make_targets("cross_entropy", 250, 3)
    found = evaluate_rows(parameters, sparse, targets, config, rows=rows, backend=backend)
    losses = F.cross_entropy(want, targets[rows], reduction="sum")
    assert found.loss == pytest.approx(float(losses), rel=1e-12)
    assert found.correct == int((want.argmax(1) == targets[rows]).sum())
