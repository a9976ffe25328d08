"""Check the parts of a classifier, which a student may replace, and call a loss as it wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastmlp.manual.files import NAMES
from fastmlp.manual.layers import SoftmaxCrossEntropy


def check_model(
    net: Any, loss_func: Any, params: Any, methods: tuple[str, ...] = ("forward", "backward")
) -> None:
    """Raise ValueError or TypeError unless ``net`` is three layers and ``loss_func`` a loss with
    these methods, and ``params`` w1 (D, H), b1 (H,), w2 (H, C) and b2 (C,), tensors of one
    floating-point dtype on one device."""
    _check_net(net, methods)
    _check_methods("loss_func", loss_func, methods)
    _check_params(params)


def _check_net(net: Any, methods: tuple[str, ...]) -> None:
    if not isinstance(net, (list, tuple)) or len(net) != 3:
        got = len(net) if isinstance(net, (list, tuple)) else type(net).__name__
        raise ValueError(
            f"net must be three layers: fully connected, ReLU, fully connected; got {got}"
        )
    for place, layer in enumerate(net):
        _check_methods(f"net[{place}]", layer, methods)
    if net[0] is net[2]:
        raise ValueError(
            "net[0] and net[2] must be two layers: each keeps what its own forward was passed"
        )


def _check_methods(name: str, layer: Any, methods: tuple[str, ...]) -> None:
    if isinstance(layer, type):
        raise TypeError(f"{name} must be a layer, {layer.__name__}(), not the class")
    for method in methods:
        if not callable(getattr(layer, method, None)):
            raise TypeError(f"{name}, a {type(layer).__name__}, has no method {method}")


def _check_params(params: Any) -> None:
    if not isinstance(params, Mapping) or set(params) != set(NAMES):
        got = ", ".join(map(str, params)) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"params must be a dict of {', '.join(NAMES)}, got {got}")
    for name, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"params[{name!r}] must be a tensor of floating-point numbers, got {got}; try "
                "torch.as_tensor(..., dtype=torch.float32)"
            )
    w1, _, _, b2 = (params[name] for name in NAMES)
    inputs, hidden = w1.shape if w1.dim() == 2 else ("D", "H")
    classes = b2.shape[0] if b2.dim() == 1 else "C"
    shapes = {name: tuple(params[name].shape) for name in NAMES}
    wanted = ((inputs, hidden), (hidden,), (hidden, classes), (classes,))
    if tuple(shapes.values()) != wanted:
        raise ValueError(
            f"params must fit each other: w1 (D, H), b1 (H,), w2 (H, C), b2 (C,), got {shapes}"
        )
    kinds = {name: f"{params[name].dtype} on {params[name].device}" for name in NAMES}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"params must be of one dtype on one device, got {kinds}")


class LossForward:
    """Calls a loss's forward with labels as it takes them. Those of a loader of arrays are arrays,
    for which alone a student's may be written (``torch.from_numpy``); others want tensors."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self._takes_arrays = not isinstance(loss, SoftmaxCrossEntropy)

    def __call__(self, y: Tensor, net_out: Any, were_tensors: bool) -> Any:
        if self._takes_arrays and not were_tensors:
            try:
                return self._loss.forward(y.cpu().numpy(), net_out)
            except (TypeError, AttributeError):
                self._takes_arrays = False
        return self._loss.forward(y, net_out)
