"""Multi-layer perceptrons with the interface of ``sklearn.neural_network``, and searches and
cross-validations that fit many of them side by side."""

from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor
from fastmlp.sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    side_by_side,
)

__all__ = [
    "GridSearchCV",
    "MLPClassifier",
    "MLPRegressor",
    "RandomizedSearchCV",
    "cross_val_score",
    "cross_validate",
    "side_by_side",
]
