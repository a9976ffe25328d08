"""Small MLPs at full speed: fused C++ layers for PyTorch that agree with pure PyTorch."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from . import functional, manual, reference
from .backend import native_available, set_backend
from .layers import MLP, Linear, LinearReLU, ReLU, SoftmaxCrossEntropyLoss

if TYPE_CHECKING:
    from .config import TrainConfig
    from .fitting import fit, fit_many
    from .sweeping import sweep

_LATER = {
    "TrainConfig": "config",
    "fit": "fitting",
    "fit_many": "fitting",
    "sweep": "sweeping",
}
"""What is imported when it is first used, by module: layers do not need the trainer."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
    value = getattr(_import_module(f"fastmlp.{_LATER[name]}"), name)
    globals()[name] = value
    return value


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
    "TrainConfig",
    "fit",
    "fit_many",
    "functional",
    "manual",
    "native_available",
    "reference",
    "set_backend",
    "sweep",
]
