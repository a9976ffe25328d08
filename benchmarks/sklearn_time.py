"""Time whole ``fit`` calls of fastmlp.sklearn beside scikit-learn's own, on all cores and on one.

python benchmarks/sklearn_time.py        writes results/sklearn.MAKE.json, in some five minutes

Both have the same parameters and random_state and so take the same steps, which is checked first;
then they take turns. The search is GridSearchCV of each, scikit-learn's on as many processes as
there are cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import sklearn.neural_network as theirs
import torch
from machine import provenance, results_file, save
from scipy import sparse
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    make_classification,
    make_regression,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits
from timing import Watch

import fastmlp.sklearn as ours
from fastmlp.data.dataset import load_dataset
from fastmlp.data.splits import split_dataset


@dataclass(frozen=True)
class Case:
    """A data set, scaled, and what differs from an estimator's defaults; ``epochs`` are run."""

    name: str
    load: Callable[[], tuple[Any, Any]]
    estimator: str = "MLPClassifier"
    epochs: int = 20
    options: dict[str, Any] = field(default_factory=dict)
    dtype: type = np.float64
    slow: bool = False
    """Whether one round is enough: its calls take seconds."""


def covertype_like() -> tuple[Any, Any]:
    """Return as many rows, columns and classes as the forest covertypes."""
    x, y = make_classification(
        581_012, 54, n_informative=20, n_classes=7, n_clusters_per_class=2, random_state=0
    )
    return x, y


def texts_like() -> tuple[Any, Any]:
    """Return rows as sparse as texts: 20 classes, 20,000 words, 80 of them in a row."""
    random = np.random.default_rng(0)
    x = sparse.random(4000, 20_000, density=0.004, format="csr", random_state=0)
    return x, random.integers(0, 20, 4000)


def images() -> tuple[Any, Any]:
    """Return the training part of CIFAR-10, or of the synthetic set where that is not found."""
    train = split_dataset(load_dataset("auto", download=False), "60/20/20").train
    return train.images.numpy(), train.labels.numpy()


digits = partial(load_digits, return_X_y=True)
SMALL = {"batch_size": 32}
CASES = (
    Case("digits, 1,797 x 64", digits, epochs=50),
    Case("digits, float32", digits, epochs=50, dtype=np.float32),
    Case("digits, batch 32", digits, options=SMALL),
    Case("digits, batch 32, float32", digits, options=SMALL, dtype=np.float32),
    Case("breast cancer, 569 x 30", partial(load_breast_cancer, return_X_y=True), epochs=100),
    Case("diabetes, 442 x 10", partial(load_diabetes, return_X_y=True), "MLPRegressor", 200),
    Case(
        "regression, 20,640 x 8",
        partial(make_regression, 20_640, 8, noise=10.0, random_state=0),
        *("MLPRegressor", 10),
    ),
    Case("sparse, 4,000 x 20,000, 0.4 %", texts_like, epochs=3),
    Case("7 classes, 581,012 x 54", covertype_like, epochs=1, slow=True),
    Case("images, 30,000 x 3,072, float32", images, epochs=2, dtype=np.float32, slow=True),
)
GRID = {
    "hidden_layer_sizes": [(50,), (100,)],
    "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
    "learning_rate_init": [1e-3, 3e-3, 1e-2],
}


def problem(case: Case) -> tuple[Any, Any]:
    """Return the case's rows, each column standardised unless they are sparse, and its targets."""
    x, y = case.load()
    if not sparse.issparse(x):
        x = x.astype(case.dtype)
        spread = x.std(0)
        x = (x - x.mean(0)) / np.where(spread > 0, spread, 1)
    return x, (y - y.mean()) / y.std() if case.estimator == "MLPRegressor" else y


def turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, in turns, the first of which is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: round(statistics.median(times[1:]), 4) for name, times in seconds.items()}


def compared(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Return the contenders' seconds and ratio on all cores and on one."""
    seconds = turns(contenders, rounds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        one_core = turns(contenders, rounds)
    torch.set_num_threads(threads)
    return {
        "seconds": seconds,
        "ratio": round(seconds["scikit-learn"] / seconds["fastmlp"], 2),
        "one_core_ratio": round(one_core["scikit-learn"] / one_core["fastmlp"], 2),
    }


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Check that both take the same steps, time them, and return a row of results."""
    x, y = problem(case)
    options = {"max_iter": case.epochs, "n_iter_no_change": case.epochs, "tol": 0.0, **case.options}
    makers = {
        "fastmlp": partial(getattr(ours, case.estimator), random_state=0, **options),
        "scikit-learn": partial(getattr(theirs, case.estimator), random_state=0, **options),
    }
    mine, other = (make().fit(x, y).loss_curve_ for make in makers.values())
    np.testing.assert_allclose(mine, other, rtol=1e-6 if x.dtype == np.float64 else 1e-2)
    fits: dict[str, Callable[[], Any]] = {
        name: partial(lambda make: make().fit(x, y), make) for name, make in makers.items()
    }
    return {"case": case.name, "epochs": case.epochs, **compared(fits, 1 if case.slow else rounds)}


def measure_search(rounds: int) -> dict[str, Any]:
    """Time a search of 24 candidates by 5 folds over digits."""
    x, y = problem(CASES[0])
    options: dict[str, Any] = {"max_iter": 20, "random_state": 0}

    def mine() -> Any:
        search = ours.GridSearchCV(ours.MLPClassifier(**options), GRID, cv=5)
        return search.fit(x, y).cv_results_["mean_test_score"]

    def other() -> Any:
        network = theirs.MLPClassifier(**options)
        search = GridSearchCV(network, GRID, cv=5, n_jobs=torch.get_num_threads())
        return search.fit(x, y).cv_results_["mean_test_score"]

    np.testing.assert_allclose(mine(), other(), atol=0.01)
    found = compared({"fastmlp": mine, "scikit-learn": other}, rounds)
    return {"case": "GridSearchCV, 24 candidates x 5 folds, digits", "epochs": 20, **found}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results_file("sklearn"), metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the processes of scikit-learn's search
    rows, watch = [], Watch()
    for case in CASES:
        rows.append(watch.row(partial(measure, case, args.rounds)))
        print(rows[-1], flush=True)
    rows.append(watch.row(partial(measure_search, args.rounds)))
    print(rows[-1], flush=True)
    versions = {"scikit-learn": sklearn.__version__}
    save(args.out, {"provenance": {**provenance(), **versions}, "rows": rows})


if __name__ == "__main__":
    main()
