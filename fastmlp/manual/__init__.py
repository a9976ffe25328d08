"""Offer a first course's interface: layers whose forward and backward are called by hand, the
network made of them, its data, checks and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastmlp.manual.checks import check_fully_connected, check_relu, check_softmax_cross_entropy
from fastmlp.manual.classifier import Classifier, TrainingLogs
from fastmlp.manual.course import FCL_Tests, ReLU_Tests, SCE_Tests, Softmax_CrossEntropy
from fastmlp.manual.epochs import Score
from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy
from fastmlp.manual.loader import Dataloader, Dataset, load_data

if TYPE_CHECKING:
    from fastmlp.plotting.course import plot_curves, plot_result

__all__ = [
    "Classifier",
    "Dataloader",
    "Dataset",
    "FCL_Tests",
    "FullyConnectedLayer",
    "ReLU",
    "ReLU_Tests",
    "SCE_Tests",
    "Score",
    "SoftmaxCrossEntropy",
    "Softmax_CrossEntropy",
    "TrainingLogs",
    "check_fully_connected",
    "check_relu",
    "check_softmax_cross_entropy",
    "load_data",
    "plot_curves",
    "plot_result",
]


def __getattr__(name: str) -> Any:
    """Import a picture's function when it is asked for: matplotlib takes a second."""
    if name in ("plot_curves", "plot_result"):
        from fastmlp.plotting import course

        return getattr(course, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
