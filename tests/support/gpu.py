"""Operators run on a GPU, their inputs between bands of sentinels."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


class Gpu:
    """Runs operators on a GPU: new tensors are poisoned with nan, inputs stand between bands of
    sentinels and may not change. ($FASTMLP_NO_POISON: a sanitizer looks for unwritten memory.)"""

    def __init__(self, device: str = "cuda:0") -> None:
        self.device = device
        self._inputs: list[tuple[Tensor, Tensor]] = []
        self._poison = not os.environ.get("FASTMLP_NO_POISON")

    def place(self, tensor: Tensor) -> Tensor:
        """A copy in the same strides, as far from a multiple of 16 bytes."""
        if tensor.numel() == 0:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device
            )
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in steps)
        flat = tensor.cpu().as_strided((extent,), (1,), tensor.storage_offset())
        size = extent * tensor.element_size()
        begin = BAND + tensor.data_ptr() % 16
        buffer = torch.full((size + 2 * BAND + 16,), 0xA5, dtype=torch.uint8)
        buffer[begin : begin + size] = flat.contiguous().view(torch.uint8)
        there = buffer.to(self.device)
        self._inputs.append((buffer, there))
        inside = there[begin : begin + size].view(tensor.dtype)
        return inside.as_strided(tensor.shape, tensor.stride())

    def run(self, name: str, *args: Any) -> Any:
        """The operator's result, on the CPU."""
        torch.use_deterministic_algorithms(self._poison, warn_only=True)
        try:
            return copied(getattr(torch.ops.fastmlp, name)(*args))
        finally:
            torch.use_deterministic_algorithms(False)

    def check_inputs(self) -> None:
        for before, there in self._inputs:
            assert torch.equal(there.cpu(), before), "an input or its bands changed"


BAND = 512
"""Bytes of sentinels before and after every input."""


def copied(result: Any) -> Any:
    return result.cpu() if isinstance(result, Tensor) else tuple(t.cpu() for t in result)
