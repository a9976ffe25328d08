"""fastmlp.sklearn beside scikit-learn itself: the same losses to rounding, the same rules."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.neural_network as theirs
import torch
from scipy import sparse
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastmlp.sklearn as ours
from fastmlp.sklearn import solver as solvers
from fastmlp.sklearn.held_out import HeldOutRows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SOLVERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam-other": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "alpha": 0.5},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "sgd-plain": {"solver": "sgd", "momentum": 0.0, "alpha": 0.1, "shuffle": False},
    "sgd-classical": {
        **{"solver": "sgd", "nesterovs_momentum": False, "batch_size": 40},
        **{"learning_rate": "invscaling", "learning_rate_init": 0.1, "power_t": 0.3},
    },
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 2},
    "early stop": {"early_stopping": True, "n_iter_no_change": 2, "tol": 0.01},
}


def digits(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:rows] / 16, y[:rows]


def problem(kind: str) -> tuple[str, np.ndarray, np.ndarray, dict[str, Any]]:
    """The estimator's name, rows, targets and options of a kind of problem."""
    x, y = digits()
    if kind == "classes":
        return "MLPClassifier", x, np.array([f"digit {label}" for label in y]), {}
    if kind == "two classes":
        return "MLPClassifier", x, y > 4, {}
    if kind == "labels":
        x, y = make_multilabel_classification(200, 12, random_state=0)
        return "MLPClassifier", x, y, {}
    x, y = load_diabetes(return_X_y=True)
    if kind == "counts":
        return "MLPRegressor", x, np.round(y / 80), {"loss": "poisson"}
    y = (y - y.mean()) / y.std()
    return "MLPRegressor", x, np.stack([y, -(y**2)], 1) if kind == "numbers" else y, {}


ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
KINDS = ("classes", "two classes", "labels", "number", "numbers", "counts")


def both(name: str, **options: Any) -> list[Any]:
    return [getattr(module, name)(random_state=3, **options) for module in (theirs, ours)]


def assert_same(their: Any, our: Any, x: Any) -> None:
    np.testing.assert_allclose(our.loss_curve_, their.loss_curve_, rtol=1e-9)
    for mine, other in zip(
        our.coefs_ + our.intercepts_, their.coefs_ + their.intercepts_, strict=True
    ):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-9)
    assert (our.predict(x) == their.predict(x)).all()
    for attribute in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "loss_"):
        mine, other = getattr(our, attribute), getattr(their, attribute)
        assert mine == (other if isinstance(other, str) else pytest.approx(other, rel=1e-9))
    for attribute in ("best_loss_", "best_validation_score_", "validation_scores_"):
        mine, other = getattr(our, attribute), getattr(their, attribute)
        assert (mine is None) == (other is None)
        assert mine is None or mine == pytest.approx(other, rel=1e-9)


def fit_both(name: str, x: Any, y: Any, weights: Any = None, **options: Any) -> list[Any]:
    options = {"max_iter": 20, "hidden_layer_sizes": (12,), **options}
    return [e.fit(x, y, sample_weight=weights) for e in both(name, **options)]


@pytest.mark.parametrize("options", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_losses_as_scikit_learn(activation, options):
    x, y = digits()
    their, our = fit_both("MLPClassifier", x, y, activation=activation, **options)
    assert_same(their, our, x)
    np.testing.assert_allclose(our.predict_proba(x), their.predict_proba(x), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target(kind, weighted, solver):
    name, x, y, options = problem(kind)
    weights = np.random.default_rng(0).random(len(x)) if weighted else None
    their, our = fit_both(name, x, y, weights, solver=solver, **options)
    assert our.loss_ == pytest.approx(their.loss_, rel=1e-9)
    if solver != "lbfgs":
        np.testing.assert_allclose(our.loss_curve_, their.loss_curve_, rtol=1e-9)
    if name == "MLPClassifier":
        assert (our.predict(x) == their.predict(x)).all()
        assert (our.classes_ == their.classes_).all()
        ours_log, theirs_log = our.predict_log_proba(x), their.predict_log_proba(x)
        np.testing.assert_allclose(ours_log, theirs_log, rtol=1e-6, atol=1e-9)
    else:
        np.testing.assert_allclose(our.predict(x), their.predict(x), rtol=1e-6, atol=1e-9)
    assert our.score(x, y, weights) == pytest.approx(their.score(x, y, weights), rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target_with_early_stopping(kind, weighted):
    name, x, y, options = problem(kind)
    weights = np.random.default_rng(0).random(len(x)) if weighted else None
    options |= {"early_stopping": True, "learning_rate_init": 0.01, "validation_fraction": 0.3}
    their, our = fit_both(name, x, y, weights, **options)
    assert len(set(their.validation_scores_)) > 3
    np.testing.assert_allclose(our.validation_scores_, their.validation_scores_, rtol=1e-9)
    np.testing.assert_allclose(our.coefs_[0], their.coefs_[0], rtol=1e-6, atol=1e-9)


def test_validation_targets_that_are_all_alike():
    x, y = digits(60)
    for name, targets in (
        ("MLPClassifier", np.zeros(60)),
        ("MLPRegressor", np.zeros(60)),
        ("MLPRegressor", np.stack([np.ones(60), y / 9], 1)),
    ):
        their, our = fit_both(name, x, targets, early_stopping=True)
        np.testing.assert_allclose(our.validation_scores_, their.validation_scores_, rtol=1e-9)


def test_the_score_of_predictions_that_are_not_finite_is_nan():
    x, y = torch.ones(3, 1, dtype=torch.float64), np.arange(3.0)
    held = HeldOutRows(x, y, None, activation="none", loss="poisson", classes=None)
    scores = [
        held.score([torch.full((1, 1), weight).double(), torch.zeros(1).double()])
        for weight in (0.0, 1000.0)
    ]
    assert scores[0] == 0.0  # the mean
    assert np.isnan(scores[1])


def test_deep_networks_in_float32():
    x, y = digits()
    options = {"hidden_layer_sizes": (20, 15, 10), "batch_size": 32, "activation": "tanh"}
    their, our = fit_both("MLPClassifier", x.astype(np.float32), y, **options)
    assert our.coefs_[0].dtype == np.float32
    np.testing.assert_allclose(our.loss_curve_, their.loss_curve_, rtol=1e-3)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_rows(form):
    x, y = digits()
    weights = np.random.default_rng(0).random(len(x))
    their, our = fit_both("MLPClassifier", form(x), y, weights, batch_size=40)
    assert_same(their, our, form(x))
    their, our = fit_both("MLPClassifier", form(x), y, weights, solver="lbfgs")
    assert our.loss_ == pytest.approx(their.loss_, rel=1e-9)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_also_after_a_pickle_and_a_copy(solver):
    x, y = digits()
    their, our = both("MLPClassifier", solver=solver)
    for part in range(6):
        rows = slice(part * 40, part * 40 + 40 + part)
        for estimator in (their, our):
            estimator.partial_fit(x[rows], y[rows], classes=np.arange(10))
        our = pickle.loads(pickle.dumps(our)) if part % 2 else copy.deepcopy(our)
    assert_same(their, our, x)


def test_a_pickle_holds_no_training_rows():
    x, y = digits(1000)
    our = fit_both("MLPClassifier", x, y, max_iter=1)[1]
    assert len(pickle.dumps(our)) < x.nbytes / 4


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "gelu", "silu"])
def test_a_module_of_torch_gives_the_same(activation):
    x, y = digits()
    our = ours.MLPClassifier((12,), activation, max_iter=3).fit(x, y)
    module = our.to_torch()
    with torch.no_grad():
        probabilities = module(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, our.predict_proba(x), rtol=1e-10)
    module[0].weight.data.zero_()  # a copy
    np.testing.assert_array_less(0, np.abs(our.coefs_[0]).max())
    with pytest.raises(ValueError, match="is not fitted yet"):
        ours.MLPRegressor().to_torch()


@pytest.mark.parametrize("options", [{"max_iter": 5}, {"tol": 0.5, "n_iter_no_change": 2}])
def test_warm_start_goes_on_where_it_stopped(options):
    x, y = digits()
    their, our = both("MLPClassifier", warm_start=True, **options)
    for _ in range(3):
        their.fit(x, y)
        our.fit(x, y)
    assert_same(their, our, x)


def test_warm_starts_with_early_stopping_keep_what_scikit_learn_keeps():
    """The best score of all fits stands; where none of a later fit's epochs reaches it, what is
    left are the parameters of its last epoch."""
    x, y = digits()
    options = {"early_stopping": True, "n_iter_no_change": 3, "tol": 0.0, "warm_start": True}
    their, our = both("MLPClassifier", hidden_layer_sizes=(12,), max_iter=200, **options)
    for rate in (0.01, 0.3):
        for estimator in (their, our):
            estimator.set_params(learning_rate_init=rate).fit(x, y)
    assert max(our.validation_scores_[-4:]) < our.best_validation_score_
    assert_same(their, our, x)
    for mine, other in zip(our.intercepts_, their.intercepts_, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_the_number_of_threads_does_not_change_a_bit(threads):
    x, y = digits()
    fitted = []
    for count in (1, 2):
        threads(count)
        fitted.append(fit_both("MLPClassifier", x, y, max_iter=3, hidden_layer_sizes=(64, 32))[1])
    for one, other in zip(fitted[0].coefs_, fitted[1].coefs_, strict=True):
        assert (one == other).all()


@pytest.mark.slow
def test_in_a_pipeline_and_a_search_on_two_processes():
    x, y = digits()
    scores = []
    for module in (theirs, ours):
        network = module.MLPClassifier((8,), max_iter=5, random_state=0)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), network),
            {"mlpclassifier__alpha": [1e-4, 1.0]},
            cv=2,
            n_jobs=2,
        ).fit(x, y)
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_allclose(scores[1], scores[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning:sklearn")
def test_what_scikit_learn_refuses_is_refused_in_its_words():
    x, y = digits(50)
    for options in ({"alpha": -1.0}, {"hidden_layer_sizes": (0,)}, {"solver": "newton"}):
        messages = []
        for estimator in both("MLPClassifier", **options):
            with pytest.raises(ValueError) as error:
                estimator.fit(x, y)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="does not support early_stopping"):
        ours.MLPClassifier(early_stopping=True).partial_fit(x, y, classes=np.arange(10))
    with pytest.raises(ValueError, match="The validation set is too small"):
        ours.MLPRegressor(early_stopping=True, validation_fraction=0.01).fit(x, y)
    for estimator in both("MLPRegressor", solver="sgd", activation="identity"):
        estimator.set_params(learning_rate_init=1e3)
        with pytest.raises(ValueError, match="non-finite parameter weights"):
            estimator.fit(1e3 * x, 1e6 * y)
    with pytest.warns(UserWarning, match="It is going to be clipped"):
        ours.MLPClassifier(batch_size=100, max_iter=1).fit(x, y)


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_too_few_iterations_are_told(capsys):
    x, y = digits(60)
    said = []
    for estimator in both("MLPClassifier", max_iter=3, verbose=True):
        with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(3\) reached"):
            estimator.fit(x, y)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].count("Iteration") == 3


def test_ctrl_c_keeps_what_is_there(monkeypatch):
    x, y = digits(60)
    epochs = solvers.EpochSolver.epochs
    calls = []

    def interrupted(self, orders):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return epochs(self, orders)

    monkeypatch.setattr(solvers.EpochSolver, "epochs", interrupted)
    monkeypatch.setattr(solvers, "SECONDS_AT_ONCE", 0.0)
    our = ours.MLPClassifier(max_iter=9)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        our.fit(x, y)
    assert our.n_iter_ == len(our.loss_curve_) == 2
    assert our.predict(x).shape == (60,)


def test_rows_that_may_not_be_written_to_are_no_trouble():
    x, y = digits(60)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        our = ours.MLPClassifier(max_iter=2).fit(x, y)
        our.predict(x)


def test_the_kernels_do_the_steps(monkeypatch):
    x, y = digits(60)
    calls = []
    native = torch.ops.fastmlp.train_steps_

    def counted(*args):
        calls.append(int(args[-1][0, -1]))  # epochs
        return native(*args)

    monkeypatch.setattr(torch.ops.fastmlp, "train_steps_", counted)
    monkeypatch.setattr(solvers, "SECONDS_AT_ONCE", 100.0)
    for options, epochs in (
        ({"max_iter": 4}, [1, 3]),
        ({"max_iter": 9, "tol": 9.0, "n_iter_no_change": 3}, [1, 4]),  # the fifth may end it
        ({"max_iter": 3, "callbacks": [lambda _: False]}, [1, 1, 1]),
        ({"max_iter": 3, "early_stopping": True}, [1, 1, 1]),
        ({"max_iter": 3, "solver": "sgd", "learning_rate": "invscaling"}, [1, 1, 1]),
        ({"max_iter": 3, "solver": "sgd", "learning_rate": "adaptive"}, [1, 2]),
    ):
        calls.clear()
        ours.MLPClassifier(random_state=0, **options).fit(x, y)
        assert calls == epochs


@parametrize_with_checks([ours.MLPClassifier(), ours.MLPRegressor()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)
