"""Rows held out of training, whose score says when to stop it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastmlp.ops.losses import loss_row
from fastmlp.ops.predict_rows import predict_rows


class HeldOutRows:
    """Scores networks of one activation and loss on rows ``x`` (n, inputs), a tensor, with what
    they are fitted to, ``y`` (n, outputs), and weights (n,) or None.

    The scores are ``accuracy_score`` and ``r2_score`` of scikit-learn, which check their arguments
    for longer than a small network trains.
    """

    def __init__(
        self,
        x: Tensor,
        y: NDArray[Any],
        weights: NDArray[Any] | None,
        *,
        activation: str,
        loss: str,
        classes: int | None,
    ) -> None:
        self._x, self._y, self._weights = x, y, weights
        self._activation, self._loss = activation, loss
        self._classes = classes
        """How many, None in a regression."""

    def score(self, parameters: Sequence[Tensor]) -> float:
        """Return a classifier's accuracy or a regression's R2, nan where a prediction is not
        finite."""
        outputs = predict_rows(parameters, self._x, activation=self._activation)
        predicted = loss_row(self._loss).link(outputs).numpy()
        return self._r2(predicted) if self._classes is None else self._accuracy(predicted)

    def _accuracy(self, predicted: NDArray[Any]) -> float:
        """Count rows of which all is right."""
        if self._loss == "cross_entropy":
            hits = predicted.argmax(1) == self._y.argmax(1)
        else:
            hits = ((predicted > 0.5) == (self._y > 0.5)).all(1)
        if self._classes == 1:
            hits[:] = True
        return float(np.average(hits, weights=self._weights))

    def _r2(self, predicted: NDArray[Any]) -> float:
        """Average over outputs; one whose targets are all alike counts 1 or, missed, 0."""
        if not np.isfinite(predicted).all():
            return np.nan
        y = self._y.reshape(predicted.shape)
        weights = 1.0 if self._weights is None else self._weights[:, None]
        missed = (weights * (y - predicted) ** 2).sum(0)
        mean = np.average(y, axis=0, weights=self._weights)
        spread = (weights * (y - mean) ** 2).sum(0)
        varies = spread != 0
        scores = np.where(missed == 0, 1.0, 0.0)
        scores[varies] = 1 - missed[varies] / spread[varies]
        return float(scores.mean())
