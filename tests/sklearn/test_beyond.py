"""What fastmlp.sklearn has beyond scikit-learn: parameters, and fits side by side."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import numpy as np
import pytest
import sklearn
import sklearn.model_selection as selection
import sklearn.neural_network as theirs
import torch
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from support.estimators import digits, fitted

import fastmlp.sklearn as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Stochastic Optimizer"),
]


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_every_parameter_of_scikit_learns_with_its_default(name):
    their, our = (
        inspect.signature(getattr(module, name).__init__).parameters for module in (theirs, ours)
    )
    for parameter, value in their.items():
        assert our[parameter].default == value.default
        assert our[parameter].kind == value.kind
    assert list(our)[: len(their)] == list(their)


@pytest.mark.parametrize("activation", ["gelu", "silu", "leaky_relu"])
def test_lbfgs_has_the_gradient_of_every_activation(activation):
    """Its parameters are a minimum by torch's autograd too."""
    x, y = digits(60)
    our = fitted(x, y, activation=activation, solver="lbfgs", alpha=0.1, max_iter=2000, tol=1e-6)
    module = our.to_torch()
    squares = sum(p.square().sum() for name, p in module.named_parameters() if "weight" in name)
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))
    loss = loss + 0.05 * squares / len(x)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(our.loss_, rel=1e-9)
    assert max(float(p.grad.abs().max()) for p in module.parameters()) < 2e-4  # at first 0.05


def test_class_weights_are_weights_of_rows():
    x, y = digits()
    y = (y == 3).astype(int)
    balanced = compute_sample_weight("balanced", y)
    for solver in ("adam", "sgd", "lbfgs"):
        want = ours.MLPClassifier((12,), random_state=0, max_iter=5, solver=solver)
        want.fit(x, y, sample_weight=balanced)
        got = fitted(x, y, max_iter=5, solver=solver, class_weight="balanced")
        np.testing.assert_allclose(got.coefs_[0], want.coefs_[0], rtol=1e-9, atol=1e-12)
    own = np.random.default_rng(0).random(len(x))
    want = ours.MLPClassifier((12,), random_state=0, max_iter=5)
    got = ours.MLPClassifier((12,), random_state=0, max_iter=5, class_weight="balanced")
    want.fit(x, y, sample_weight=balanced * own)
    got.fit(x, y, sample_weight=own)
    np.testing.assert_allclose(got.coefs_[0], want.coefs_[0], rtol=1e-9, atol=1e-12)
    once = fitted(x, y, class_weight={0: 1.0, 1: 9.0})
    never = fitted(x, y)
    assert once.predict(x).sum() > never.predict(x).sum()
    with pytest.raises(ValueError, match="partial_fit sees some: give a dict"):
        ours.MLPClassifier(class_weight="balanced").partial_fit(x, y, classes=[0, 1])


def test_dropout_is_drawn_from_random_state_and_left_out_of_predictions():
    x, y = digits()
    one, same, without = (fitted(x, y, dropout=p) for p in (0.5, 0.5, 0.0))
    other = ours.MLPClassifier((12,), random_state=1, max_iter=10, dropout=0.5).fit(x, y)
    assert (one.coefs_[0] == same.coefs_[0]).all()
    assert not (one.coefs_[0] == other.coefs_[0]).all()
    assert one.loss_ > without.loss_
    assert (one.predict_proba(x) == one.predict_proba(x)).all()
    # an epoch in parts draws other units in each
    parts = ours.MLPClassifier((12,), random_state=0, dropout=0.5, shuffle=False)
    losses = [parts.partial_fit(x, y, classes=np.arange(10)).loss_ for _ in range(2)]
    assert parts._optimizer._epochs == 2
    assert losses[0] != losses[1]


def test_weight_decay_is_adamws():
    x, y = digits(200)
    our = fitted(x, y, weight_decay=0.3, max_iter=3, shuffle=False, batch_size=50, epsilon=1e-30)
    module = fitted(x, y, max_iter=1, learning_rate_init=1e-300).to_torch()  # the first weights
    weights = [p for name, p in module.named_parameters() if "weight" in name]
    biases = [p for name, p in module.named_parameters() if "bias" in name]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.3, eps=1e-30)
    for _ in range(3):
        for rows in range(0, 200, 50):
            logits = module(torch.from_numpy(x[rows : rows + 50]))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[rows : rows + 50]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    np.testing.assert_allclose(our.coefs_[0].T, weights[0].detach(), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="weight_decay is for the solver 'adam'"):
        fitted(x, y, solver="sgd", weight_decay=0.1)


def test_callbacks_see_each_epoch_and_stop():
    x, y = digits()
    seen = []

    def watch(estimator):
        seen.append(estimator.loss_curve_[-1])
        return len(seen) == 4

    our = fitted(x, y, callbacks=[watch])
    assert our.n_iter_ == 4
    assert seen == our.loss_curve_
    assert sklearn.clone(our).callbacks == [watch]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "swish"}, "The 'activation' parameter of MLPClassifier must be a str"),
        ({"dropout": 1.0}, "The 'dropout' parameter of MLPClassifier must be a float in"),
        ({"class_weight": "even"}, "The 'class_weight' parameter of MLPClassifier must be"),
        ({"solver": "lbfgs", "dropout": 0.5}, "dropout and weight_decay are for the solvers"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fitted(*digits(50), **options)


def assert_same_results(*searches):
    want, got = (search.cv_results_ for search in searches)
    assert list(want) == list(got)
    for key in want:
        if key.startswith("param"):
            assert list(got[key]) == list(want[key])
        elif "time" not in key:
            np.testing.assert_array_equal(got[key], want[key])  # nan counts as nan


GRID = {"alpha": [1e-4, 1.0], "hidden_layer_sizes": [(8,), (5, 4)], "solver": ["adam", "lbfgs"]}


@pytest.mark.parametrize("refit", [True, False])
def test_a_search_side_by_side_is_scikit_learns_search(refit, threads):
    x, y = digits(150)
    threads(3)
    found = []
    for module in (selection, ours):
        search = module.GridSearchCV(
            ours.MLPClassifier(max_iter=4, random_state=0),
            GRID,
            cv=3,
            refit=refit,
            return_train_score=True,
        ).fit(x, y)
        found.append(search)
    assert torch.get_num_threads() == 3
    assert_same_results(*found)
    assert found[0].best_params_ == found[1].best_params_
    if refit:
        one, two = (search.best_estimator_.coefs_[0] for search in found)
        assert (one == two).all()


def worst_f1(results):
    return int(np.argmin(results["mean_test_f1_macro"]))


NO_DECAY = {"weight_decay": [0.1], "solver": ["sgd", "adam"]}  # sgd refuses it
SEARCHES: dict[str, dict[str, Any]] = {
    "scores": {"scoring": ["accuracy", "f1_macro"], "refit": "f1_macro"},
    "refit": {"scoring": ["accuracy", "f1_macro"], "refit": worst_f1, "return_train_score": True},
    "groups": {"cv": selection.GroupKFold(3)},
    "splits": {"cv": list(selection.ShuffleSplit(4, random_state=0).split(np.zeros(150)))},
    "failures": {"param_grid": NO_DECAY},
    "error score": {"param_grid": NO_DECAY, "error_score": -1.0},
    "callbacks": {"param_grid": {"callbacks": [None, [lambda network: network.n_iter_ == 2]]}},
    "all cores": {"n_jobs": -1},
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_every_option_of_a_search(options):
    x, y = digits(150)
    found = []
    for module in (selection, ours):
        network = ours.MLPClassifier((5,), max_iter=4, random_state=0)
        search = module.GridSearchCV(
            network, **{"param_grid": {"alpha": [1e-4, 1.0]}, "cv": 3, **options}
        )
        found.append(search.fit(x, y, groups=np.arange(150) % 7))
    assert_same_results(*found)
    assert found[0].best_index_ == found[1].best_index_
    assert (found[0].predict(x) == found[1].predict(x)).all()


@pytest.mark.parametrize("options", [{}, {"resource": "max_iter", "max_resources": 9}], ids=str)
def test_halving_side_by_side(options):
    x, y = digits(150)
    searches = [
        selection.HalvingGridSearchCV(
            *(ours.MLPClassifier((5,), max_iter=4, random_state=0), {"alpha": [1e-4, 1e-2, 10.0]}),
            **{"cv": 2, "random_state": 0, "min_resources": "smallest", **options},
        )
        for _ in range(2)
    ]
    searches[0].fit(x, y)
    with ours.side_by_side():
        searches[1].fit(x, y)
    assert_same_results(*searches)


def test_side_by_side_is_threads_of_one_thread_each(threads, monkeypatch):
    x, y = digits(100)
    threads(2)
    seen = set()
    fit = ours.MLPClassifier.fit

    def watched(self, *args, **kwargs):
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(ours.MLPClassifier, "fit", watched)
    network = ours.MLPClassifier((5,), max_iter=2, random_state=0)
    scores = ours.cross_val_score(network, x, y, cv=3)
    assert seen == {(False, 1)}
    assert list(scores) == list(selection.cross_val_score(network, x, y, cv=3))
    assert ours.cross_validate(network, x, y, cv=3, return_estimator=True)["estimator"][2].t_ > 0
    seen.clear()
    ours.RandomizedSearchCV(network, {"alpha": [0.1, 1.0]}, n_iter=2, cv=2).fit(x, y)
    assert seen == {(False, 1), (True, 2)}  # the best one has all threads
    with pytest.raises(ValueError, match="n_splits"):
        ours.cross_val_score(network, x, y, cv=1)
    assert torch.get_num_threads() == 2


def test_in_scikit_learns_company():
    x, y = digits(200)
    network = ours.MLPClassifier((16,), max_iter=30, random_state=0, learning_rate_init=0.02)
    calibrated = CalibratedClassifierCV(network, cv=2).fit(x, y)
    assert log_loss(y, calibrated.predict_proba(x)) < 1
    with ours.side_by_side():
        bag = BaggingClassifier(network, n_estimators=3, random_state=0).fit(x, y)
    assert bag.score(x, y) > 0.9
    alone = BaggingClassifier(network, n_estimators=3, random_state=0).fit(x, y)
    assert (bag.predict_proba(x) == alone.predict_proba(x)).all()
    importances = permutation_importance(network.fit(x, y), x[:50], y[:50], n_repeats=1)
    assert importances.importances_mean.max() > 0
    sizes = selection.learning_curve(network, x, y, train_sizes=[0.5, 1.0], cv=2)[0]
    assert list(sizes) == [50, 100]
    halving = selection.HalvingGridSearchCV(network, {"alpha": [1e-4, 1e3]}, cv=2, random_state=0)
    assert halving.fit(x, y).best_params_ == {"alpha": 1e-4}
    assert "MLPClassifier" in network._repr_html_()


def test_metadata_is_routed():
    x, y = digits(120)
    weights = np.random.default_rng(0).random(len(x))
    with sklearn.config_context(enable_metadata_routing=True):
        network = ours.MLPClassifier((5,), max_iter=3, random_state=0)
        network.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        search = ours.GridSearchCV(make_pipeline(scaler, network), {}, cv=2, error_score="raise")
        search.fit(x, y, sample_weight=weights)
    scaled = StandardScaler().fit_transform(x)
    want = ours.MLPClassifier((5,), max_iter=3, random_state=0).fit(scaled, y, weights)
    assert (search.best_estimator_[-1].coefs_[0] == want.coefs_[0]).all()


def test_sparse_rows_in_a_search():
    x, y = digits(100)
    search = ours.GridSearchCV(ours.MLPClassifier((5,), max_iter=2), {"alpha": [0.1]}, cv=2)
    assert search.fit(sparse.csr_matrix(x), y).predict(x).shape == (100,)


@pytest.mark.slow
def test_on_several_machines_by_dask():
    """Two workers, each a process of its own, stand for machines."""
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")
    import joblib

    x, y = digits(100)
    network = ours.MLPClassifier((5,), max_iter=3, random_state=0)
    grid = {"alpha": [1e-4, 1e-2, 1.0]}
    want = selection.GridSearchCV(network, grid, cv=2).fit(x, y)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        got = selection.GridSearchCV(network, grid, cv=2).fit(x, y)
    assert list(got.cv_results_["mean_test_score"]) == list(want.cv_results_["mean_test_score"])
