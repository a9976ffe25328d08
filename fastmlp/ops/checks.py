"""The checks of arguments that all operators share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes that have kernels."""


_PLAIN = (Tensor, Parameter)


def is_foreign(tensor: object, other: object = None) -> bool:
    """Return whether an argument has a class that decides itself what PyTorch's functions do to it
    (``__torch_function__``, ``__torch_dispatch__``), and so knows PyTorch's functions only."""
    if type(tensor) in _PLAIN and (other is None or type(other) in _PLAIN):
        return False  # at little cost
    return any(
        type(value) not in _PLAIN and hasattr(type(value), "__torch_function__")
        for value in (tensor, other)
    )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is one of a floating-point dtype that has kernels."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}; "
            "convert it with .float()"
        )


def check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError or ValueError unless both tensors have the same dtype and device."""
    if not isinstance(tensor, Tensor) or tensor.dtype != other.dtype:
        check_floating(name, tensor)
        if not torch.is_autocast_enabled(other.device.type):
            raise TypeError(
                f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}"
            )
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], to_fit: str) -> None:
    """Raise ValueError unless ``tensor`` has ``shape``, which ``to_fit`` is what it has to fit."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must have shape {tuple(shape)} to fit {to_fit}, got {tuple(tensor.shape)}"
        )
