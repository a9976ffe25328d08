"""Small MLPs at full speed: fused C++ layers for PyTorch that agree with pure PyTorch."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from . import functional, manual, reference
from .backend import native_available, set_backend
from .layers import MLP, Linear, LinearReLU, ReLU, SoftmaxCrossEntropyLoss

try:
    __version__ = _version("fastmlp")
except PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "MLP",
    "Linear",
    "LinearReLU",
    "ReLU",
    "SoftmaxCrossEntropyLoss",
    "functional",
    "manual",
    "native_available",
    "reference",
    "set_backend",
]
