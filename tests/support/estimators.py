"""Small fits of ``fastmlp.sklearn``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import fastmlp.sklearn as ours


def digits(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:rows] / 16, y[:rows]


def fitted(x: Any, y: Any, **options: Any) -> Any:
    return ours.MLPClassifier((12,), random_state=0, **{"max_iter": 10, **options}).fit(x, y)
