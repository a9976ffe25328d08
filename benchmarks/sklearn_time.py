"""Time whole ``fit`` calls of fastmlp.sklearn beside scikit-learn's own.

python benchmarks/sklearn_time.py        writes results/sklearn.MAKE.json, in some five minutes

Both have the same parameters and random_state and so take the same steps, which is checked first;
then they take turns.
"""

from __future__ import annotations

import argparse
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
from machine import provenance, results_file, save
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    make_classification,
    make_regression,
)
from sklearn.exceptions import ConvergenceWarning
from timing import Watch

import fastmlp.sklearn as ours


@dataclass(frozen=True)
class Case:
    """A data set, scaled, and what differs from an estimator's defaults; ``epochs`` are run."""

    name: str
    load: Callable[[], tuple[Any, Any]]
    estimator: str = "MLPClassifier"
    epochs: int = 20
    options: dict[str, Any] = field(default_factory=dict)


def covertype_like(rows: int = 100_000) -> tuple[Any, Any]:
    """Return rows of as many columns and classes as the forest covertypes."""
    x, y = make_classification(
        rows, 54, n_informative=20, n_classes=7, n_clusters_per_class=2, random_state=0
    )
    return x, y


CASES = (
    Case("digits, 1,797 x 64", partial(load_digits, return_X_y=True), epochs=50),
    Case("digits, batch 32", partial(load_digits, return_X_y=True), options={"batch_size": 32}),
    Case("breast cancer, 569 x 30", partial(load_breast_cancer, return_X_y=True), epochs=100),
    Case("diabetes, 442 x 10", partial(load_diabetes, return_X_y=True), "MLPRegressor", 200),
    Case(
        "regression, 20,640 x 8",
        partial(make_regression, 20_640, 8, noise=10.0, random_state=0),
        *("MLPRegressor", 10),
    ),
    Case("7 classes, 100,000 x 54", covertype_like, epochs=3, options={"tol": 0.0}),
)


def problem(case: Case) -> tuple[Any, Any]:
    """Return the case's rows, each column standardised, and its targets."""
    x, y = case.load()
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 0, spread, 1)
    return x, (y - y.mean()) / y.std() if case.estimator == "MLPRegressor" else y


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Check that both take the same steps, time them in turns, and return a row of results."""
    x, y = problem(case)
    options = {"max_iter": case.epochs, "n_iter_no_change": case.epochs, **case.options}
    seconds: dict[str, list[float]] = {"fastmlp": [], "scikit-learn": []}
    curves = {}
    for _ in range(rounds + 1):
        for name, module in (("fastmlp", ours), ("scikit-learn", theirs)):
            estimator = getattr(module, case.estimator)(random_state=0, **options)
            begin = time.perf_counter()
            estimator.fit(x, y)
            seconds[name].append(time.perf_counter() - begin)
            curves[name] = estimator.loss_curve_
    np.testing.assert_allclose(curves["fastmlp"], curves["scikit-learn"], rtol=1e-6)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        **{"case": case.name, "epochs": case.epochs},
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["scikit-learn"] / medians["fastmlp"], 2),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results_file("sklearn"), metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows, watch = [], Watch()
    for case in CASES:
        rows.append(watch.row(partial(measure, case, args.rounds)))
        print(rows[-1], flush=True)
    versions = {"scikit-learn": sklearn.__version__}
    save(args.out, {"provenance": {**provenance(), **versions}, "rows": rows})


if __name__ == "__main__":
    main()
