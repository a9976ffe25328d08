"""Estimators that train elsewhere than on the CPU: the parameter ``device``."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import sparse
from support.estimators import digits, fitted
from support.tape import TapeGraph

import fastmlp.sklearn as ours
from fastmlp.engines.recorded_steps import RecordedSteps
from fastmlp.ops.rows import Rows
from fastmlp.ops.step_config import Network

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


class _Elsewhere(RecordedSteps):
    """Steps recorded as on a GPU, of a network whose tensors are copies, as there."""

    def __init__(self, network: Network, rows: Rows) -> None:
        network.parameters = [tensor.clone() for tensor in network.parameters]
        network.state = {k: [t.clone() for t in kept] for k, kept in network.state.items()}
        super().__init__(network, rows)


@pytest.fixture
def elsewhere(monkeypatch):
    """A GPU as far as an estimator can tell."""
    monkeypatch.setattr("fastmlp.engines.recorded_steps.CapturedGraph", TapeGraph)
    monkeypatch.setattr("fastmlp.sklearn.solver.RepeatedSteps", _Elsewhere)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd", "learning_rate": "adaptive", "max_iter": 30, "tol": 1e-2},
        {"early_stopping": True, "dropout": 0.3, "batch_size": 32, "activation": "tanh"},
        {"weight_decay": 0.1, "class_weight": "balanced"},
    ],
    ids=str,
)
def test_another_device_comes_to_the_same(options, elsewhere, monkeypatch):
    x, y = digits()
    there = fitted(x, y, **options)
    model = copy.deepcopy(there)
    monkeypatch.undo()
    here = fitted(x, y, **options)
    np.testing.assert_allclose(there.loss_curve_, here.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(model.coefs_[0], here.coefs_[0], rtol=1e-7, atol=1e-10)
    assert (model.predict(x) == here.predict(x)).all()


def test_partial_fit_goes_on_from_another_device_and_from_a_pickle(elsewhere):
    x, y = digits()
    alone = ours.MLPClassifier((12,), random_state=0)
    stored = ours.MLPClassifier((12,), random_state=0)
    for _ in range(3):
        alone.partial_fit(x, y, classes=np.unique(y))
        stored = pickle.loads(pickle.dumps(stored.partial_fit(x, y, classes=np.unique(y))))
    assert alone.loss_curve_ == stored.loss_curve_
    assert all((a == b).all() for a, b in zip(alone.coefs_, stored.coefs_, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    x, y = digits(60)
    assert fitted(x, y, device="auto").loss_ == fitted(x, y).loss_
    for device, words in (
        ("cuda", "device cuda is not there: PyTorch sees no GPU; use device='cpu'"),
        ("gpu", "device must be 'cpu', 'cuda', 'cuda:1' or 'auto', got 'gpu'"),
    ):
        for solver in ("adam", "lbfgs"):
            with pytest.raises(ValueError, match=words):
                fitted(x, y, device=device, solver=solver)


def test_what_another_device_does_not_take(monkeypatch):
    x, y = digits(60)
    monkeypatch.setattr("fastmlp.sklearn.solver.resolve_device", torch.device)
    with pytest.raises(ValueError, match="sparse rows cannot be trained on meta; use device='cpu'"):
        fitted(sparse.csr_matrix(x), y, device="meta")
    with pytest.raises(ValueError, match="solver 'lbfgs' runs on the CPU alone; use device='cpu'"):
        fitted(x, y, device="meta", solver="lbfgs")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("options", [{}, {"solver": "sgd"}, {"dropout": 0.3}], ids=str)
def test_a_gpu_comes_to_the_same(options):
    x, y = digits()
    here, there = fitted(x, y, **options), fitted(x, y, device="cuda", **options)
    np.testing.assert_allclose(there.loss_curve_, here.loss_curve_, rtol=1e-9)
    assert (there.predict(x) == here.predict(x)).all()
