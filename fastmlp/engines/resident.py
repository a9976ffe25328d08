"""One copy of a tensor on each device, however many engines use it there."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For each original, by device: its version and a weak reference to the copy of that version."""


def resident(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``, contiguous: the very same copy at each call as long as one
    is in use, and the tensor itself where it lies there already. Do not write to it."""
    if tensor.device == device:
        return tensor.contiguous()
    copies = _copies.setdefault(tensor, {})  # type: ignore[no-untyped-call]
    version, reference = copies.get(device, (None, None))
    copy: Tensor | None = reference() if version == tensor._version else None
    if copy is None:
        copy = tensor.to(device).contiguous()
        copies[device] = tensor._version, weakref.ref(copy)
    return copy
