"""``MLPClassifier`` and ``MLPRegressor``: scikit-learn's own, trained by fastmlp's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import sklearn.neural_network as theirs
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from fastmlp.sklearn.trained import ACTIVATIONS, Trained

COMMON: dict[str, list[Any]] = {
    "activation": [StrOptions(set(ACTIVATIONS))],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "weight_decay": [None, Interval(Real, 0, None, closed="left")],
    "callbacks": [None, "array-like"],
    "device": [str],
}
"""What values the parameters may have that scikit-learn's estimators lack, or have otherwise."""


class MLPClassifier(Trained, theirs.MLPClassifier):  # type: ignore[misc]
    """``sklearn.neural_network.MLPClassifier``, trained by fastmlp's kernels.

    Parameters, attributes and results are scikit-learn's: with the same ``random_state`` it draws
    the same weights and orders, and its losses differ by rounding alone. Beyond those:

    ``activation``: also ``"gelu"``, ``"silu"`` and ``"leaky_relu"``.
    ``dropout``: share of hidden units that are left out of a training step, at least 0, below 1.
    ``weight_decay``: AdamW's decoupled decay (Loshchilov and Hutter, 2019), in place of ``alpha``'s
    penalty; for the solver adam.
    ``class_weight``: a dict from class to weight, or ``"balanced"``, which stands for
    ``n_samples / (n_classes * count)``; with several labels a list of dicts.
    ``callbacks``: functions that get the estimator after each epoch of sgd or adam; where one
    returns True, training stops.
    ``device``: where sgd and adam train, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``, a GPU
    where there is one. On a GPU rows are dense, results agree with the CPU's to rounding, and a fit
    raises ValueError where there is none.

    >>> from fastmlp.sklearn import MLPClassifier
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((16,), max_iter=400, tol=0, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.95
    True
    """

    if TYPE_CHECKING:

        def predict_proba(self, X: Any) -> NDArray[Any]: ...

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **theirs.MLPClassifier._parameter_constraints,  # noqa: SLF001
        **COMMON,
        "class_weight": [None, StrOptions({"balanced"}), dict, list],
    }

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        weight_decay: float | None = None,
        class_weight: Mapping[Any, float] | Sequence[Mapping[Any, float]] | str | None = None,
        callbacks: Sequence[Callable[[Any], Any]] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.device = device


class MLPRegressor(Trained, theirs.MLPRegressor):  # type: ignore[misc]
    """``sklearn.neural_network.MLPRegressor``, trained by fastmlp's kernels.

    Parameters, attributes and results are scikit-learn's: with the same ``random_state`` it draws
    the same weights and orders, and its losses differ by rounding alone. Beyond those it has what
    :class:`MLPClassifier` has, but for ``class_weight``.

    >>> from fastmlp.sklearn import MLPRegressor
    >>> X = [[0.0], [0.5], [1.0], [1.5]]
    >>> model = MLPRegressor(solver="lbfgs", random_state=0).fit(X, [0.0, 1.0, 2.0, 3.0])
    >>> round(float(model.predict([[0.75]])[0]), 1)
    1.5
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **theirs.MLPRegressor._parameter_constraints,  # noqa: SLF001
        **COMMON,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        weight_decay: float | None = None,
        callbacks: Sequence[Callable[[Any], Any]] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            loss=loss,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.callbacks = callbacks
        self.device = device
