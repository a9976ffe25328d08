"""Small MLPs at full speed: fused C++/CUDA layers for PyTorch that agree with pure PyTorch.

Train, on rows of your own or on a known data set:

    fit(X, y)  fit(TrainConfig())  fit_many(configs)  sweep(base, values)  find_lr(X, y)
    resume(folder)  go on with a run that was stopped
    callbacks  early stopping, tables, TensorBoard
    sklearn    fastmlp.sklearn: MLPClassifier, MLPRegressor, GridSearchCV, ...

Layers with the interface of torch.nn:

    MLP  Linear  LinearReLU  ReLU  CrossEntropyLoss  functional
    replace(model), restore(model)  swap the layers of a model, and back
    set_backend, native_available   compiled kernels or their pure-PyTorch twins
    manual                          layers called by hand

>>> import fastmlp, numpy as np
>>> X = np.random.default_rng(0).normal(size=(300, 4))
>>> y = np.where(X[:, 0] > 0, "up", "down")
>>> run = fastmlp.fit(X, y, epochs=20, lr=0.01)
>>> run.predict([[1.5, 0, 0, 0], [-1.5, 0, 0, 0]]).tolist()
['up', 'down']

``help(fastmlp.fit)`` and so on tell more; the command line is ``fastmlp --help``.
"""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from fastmlp.utils.signals import end_commands_at_once as _end_commands_at_once

_end_commands_at_once()  # before the imports that take a second

from fastmlp import manual as manual
from fastmlp.nn import functional as functional
from fastmlp.nn.modules import MLP as MLP
from fastmlp.nn.modules import CrossEntropyLoss as CrossEntropyLoss
from fastmlp.nn.modules import Linear as Linear
from fastmlp.nn.modules import LinearReLU as LinearReLU
from fastmlp.nn.modules import ReLU as ReLU
from fastmlp.nn.replace import replace as replace
from fastmlp.nn.replace import restore as restore
from fastmlp.ops._load import native_available as native_available
from fastmlp.ops._load import set_backend as set_backend

if _TYPE_CHECKING:
    from fastmlp import callbacks as callbacks
    from fastmlp.sweeps.sweep import sweep as sweep
    from fastmlp.training.api import fit_many as fit_many
    from fastmlp.training.api import resume as resume
    from fastmlp.training.config import TrainConfig as TrainConfig
    from fastmlp.training.lr_finder import find_lr as find_lr
    from fastmlp.training.own_data import fit as fit

_LATER = {
    "TrainConfig": "training.config",
    "find_lr": "training.lr_finder",
    "fit": "training.own_data",
    "fit_many": "training.api",
    "resume": "training.api",
    "sweep": "sweeps.sweep",
}
"""What is imported when it is first used, by module: layers do not need the trainer."""
_LAYERS = (
    *("MLP", "CrossEntropyLoss", "Linear", "LinearReLU", "ReLU"),
    *("functional", "manual", "native_available", "replace", "restore", "set_backend"),
)


def __getattr__(name: str) -> object:
    if name == "callbacks":
        return _import_module("fastmlp.callbacks")
    if name not in _LATER:
        raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
    value: object = getattr(_import_module(f"fastmlp.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names. There is no ``__all__``: for each class in one, ``help(fastmlp)``
    would print a thousand lines that it has from ``nn.Module``."""
    return sorted([*_LAYERS, *_LATER, "callbacks", "__version__"])


try:
    __version__ = _version("fastmlp")
except _PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+unknown"
