"""Searches and cross-validations whose fits run side by side, each on a thread of its own.

Small networks gain little from several threads each, and processes would copy the data and start
PyTorch anew. The kernels run without Python's lock, so that threads keep all cores busy; each fit
gives the bits that it gives alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import sklearn.model_selection as theirs
import torch
from joblib import parallel_config


@contextlib.contextmanager
def side_by_side(n_jobs: int | None = None) -> Iterator[None]:
    """Run what scikit-learn does in parallel as ``n_jobs`` threads, by default as many as PyTorch
    has, and each fit of ours within it on one::

        with side_by_side():
            BaggingClassifier(MLPClassifier(), n_estimators=50).fit(X, y)

    An ``n_jobs`` that the estimator or function itself is given comes first.

    >>> from fastmlp.sklearn import MLPClassifier, side_by_side
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import BaggingClassifier
    >>> with side_by_side():
    ...     bag = BaggingClassifier(MLPClassifier((4,), max_iter=5), n_estimators=3)
    ...     bag = bag.fit(*load_iris(return_X_y=True))
    >>> len(bag.estimators_)
    3
    """
    threads = torch.get_num_threads()
    with parallel_config(backend="threading", n_jobs=threads if n_jobs is None else n_jobs):
        torch.set_num_threads(1)  # new threads take it over
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _SideBySide:
    """A search that fits its candidates side by side, and the best one on all threads."""

    n_jobs: int | None

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Search as the class of scikit-learn does; see there."""
        self._threads = torch.get_num_threads()
        try:
            with side_by_side(self.n_jobs):
                return super().fit(X, y, **params)  # type: ignore[misc]
        finally:
            del self._threads


def _then_all_threads(search: Callable[..., None]) -> Callable[..., None]:
    """Return a class's ``_run_search`` after which threads are as many as before: what is left is
    the fit of the best one."""

    @functools.wraps(search)  # scikit-learn looks at its parameters
    def run_search(self: Any, *args: Any, **kwargs: Any) -> None:
        search(self, *args, **kwargs)
        torch.set_num_threads(self._threads)

    return run_search


class GridSearchCV(_SideBySide, theirs.GridSearchCV):  # type: ignore[misc]
    """``sklearn.model_selection.GridSearchCV``, all candidates and folds side by side.

    Parameters, attributes and results are scikit-learn's; ``n_jobs`` counts threads, and None
    stands for as many as PyTorch has. For estimators of :mod:`fastmlp.sklearn`, alone or in a
    pipeline.

    >>> from fastmlp.sklearn import GridSearchCV, MLPClassifier
    >>> from sklearn.datasets import load_iris
    >>> model = MLPClassifier((4,), solver="lbfgs", max_iter=50, random_state=0)
    >>> search = GridSearchCV(model, {"alpha": [1e-4, 1e4]}, cv=2).fit(*load_iris(return_X_y=True))
    >>> search.best_params_
    {'alpha': 0.0001}
    """

    _run_search = _then_all_threads(theirs.GridSearchCV._run_search)  # noqa: SLF001


class RandomizedSearchCV(_SideBySide, theirs.RandomizedSearchCV):  # type: ignore[misc]
    """``sklearn.model_selection.RandomizedSearchCV``, as :class:`GridSearchCV`.

    >>> from fastmlp.sklearn import MLPClassifier, RandomizedSearchCV
    >>> from sklearn.datasets import load_iris
    >>> model = MLPClassifier((4,), solver="lbfgs", max_iter=50, random_state=0)
    >>> search = RandomizedSearchCV(model, {"alpha": [1e-4, 1e-3, 1e-2]}, n_iter=2, cv=2)
    >>> len(search.fit(*load_iris(return_X_y=True)).cv_results_["params"])
    2
    """

    _run_search = _then_all_threads(theirs.RandomizedSearchCV._run_search)  # noqa: SLF001


def cross_validate(estimator: Any, X: Any, y: Any = None, **params: Any) -> dict[str, Any]:
    """Return what ``sklearn.model_selection.cross_validate`` returns, the folds side by side.

    >>> from fastmlp.sklearn import MLPClassifier, cross_validate
    >>> from sklearn.datasets import load_iris
    >>> model = MLPClassifier((4,), solver="lbfgs", max_iter=50, random_state=0)
    >>> len(cross_validate(model, *load_iris(return_X_y=True), cv=3)["test_score"])
    3
    """
    with side_by_side(params.get("n_jobs")):
        scores: dict[str, Any] = theirs.cross_validate(estimator, X, y, **params)
    return scores


def cross_val_score(estimator: Any, X: Any, y: Any = None, **params: Any) -> Any:
    """Return what ``sklearn.model_selection.cross_val_score`` returns, the folds side by side.

    >>> from fastmlp.sklearn import MLPClassifier, cross_val_score
    >>> from sklearn.datasets import load_iris
    >>> model = MLPClassifier((4,), solver="lbfgs", max_iter=50, random_state=0)
    >>> bool(cross_val_score(model, *load_iris(return_X_y=True), cv=3).mean() > 0.5)
    True
    """
    with side_by_side(params.get("n_jobs")):
        return theirs.cross_val_score(estimator, X, y, **params)
