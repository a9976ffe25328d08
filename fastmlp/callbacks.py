"""Callbacks of ``fit``, ``fit_many`` and ``sweep``; see :mod:`fastmlp.training.callbacks`."""

from fastmlp.training.callbacks import Callback, EarlyStopping, StopWhen
from fastmlp.training.loggers import (
    CSVLogger,
    JSONLogger,
    ModelCheckpoint,
    PrintEpochs,
    TensorBoard,
)

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "JSONLogger",
    "ModelCheckpoint",
    "PrintEpochs",
    "StopWhen",
    "TensorBoard",
]
