"""Small MLPs at full speed: fused C++/CUDA layers for PyTorch that agree with pure PyTorch."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from fastmlp import manual
from fastmlp.nn import functional
from fastmlp.nn.modules import MLP, CrossEntropyLoss, Linear, LinearReLU, ReLU
from fastmlp.nn.replace import replace, restore
from fastmlp.ops._load import native_available, set_backend

if TYPE_CHECKING:
    from fastmlp.sweeps.sweep import sweep
    from fastmlp.training.api import fit_many
    from fastmlp.training.config import TrainConfig
    from fastmlp.training.lr_finder import find_lr
    from fastmlp.training.own_data import fit

_LATER = {
    "TrainConfig": "training.config",
    "find_lr": "training.lr_finder",
    "fit": "training.own_data",
    "fit_many": "training.api",
    "sweep": "sweeps.sweep",
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
    "CrossEntropyLoss",
    "Linear",
    "LinearReLU",
    "ReLU",
    "TrainConfig",
    "find_lr",
    "fit",
    "fit_many",
    "functional",
    "manual",
    "native_available",
    "replace",
    "restore",
    "set_backend",
    "sweep",
]
