"""Multi-layer perceptrons with the interface of ``sklearn.neural_network``."""

from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
