"""Where PyTorch's own operators are quicker than ours, so that the layers take those.

The bounds are measured (``benchmarks/layer_time.py``, ``op_time.py`` on a GPU). A node of autograd
written in Python costs some 20 us more than one of PyTorch's; where a product is large, or
PyTorch's kernels are slow, ours save more. It is the layers' default alone that chooses:
``backend="native"`` is always our kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmlp.ops._load import leaves_choice

LARGE_PRODUCT = 1 << 24
"""Multiply-adds that take so long that a node written in Python does not count."""
FEW_ROWS, LARGE_WEIGHT = 16, 1 << 17
"""Up to so many rows, but for a single one, PyTorch's products with so large a weight are slow."""
FEW_CLASSES, MANY_ROWS, LARGE_LOGITS = 32, 256, 100_000
"""PyTorch goes through the logits row by row, which takes long where there are many short rows."""

GPU_MOST_ROWS = 256
GPU_MOST_PRODUCTS, GPU_MOST_PRODUCTS_16_BITS = 1 << 29, (1 << 23) - 1
"""Up to so many rows and multiply-adds our own kernels run on a GPU, as csrc/plan.h has it. Beyond,
our operator asks the library, as PyTorch's does, which takes the host half the time."""

_DTYPES = (torch.float32, torch.float64)  # in the others, PyTorch's kernels are slow or none


def linear_reason(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> str | None:
    """Return why a layer is quicker by PyTorch's operators on the CPU; None where it is not."""
    if dtype not in _DTYPES or rows * inputs * outputs >= LARGE_PRODUCT:
        return None
    if 1 < rows <= FEW_ROWS and inputs * outputs >= LARGE_WEIGHT:
        return None
    return "small: autograd's overhead counts for more than the kernels"


def is_linear_of_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether the layers take PyTorch's operators. Shapes that do not fit are left to
    PyTorch to refuse, but for those that it would take and fastmlp does not."""
    on_gpu = x.is_cuda
    if (x.dtype not in _DTYPES and not on_gpu) or weight.dim() != 2 or not leaves_choice(x):
        return False
    outputs, size = len(weight), weight.numel()
    if bias is not None and (bias.dim() != 1 or bias.numel() != outputs):
        return False
    if on_gpu:
        return x.dtype == torch.float64 or _is_large_on_gpu(x, size, size // max(outputs, 1))
    if size < LARGE_WEIGHT:  # at little cost
        return x.numel() * outputs < LARGE_PRODUCT
    inputs = size // outputs
    return linear_reason(x.numel() // inputs, inputs, outputs, x.dtype) is not None


def _is_large_on_gpu(x: Tensor, size: int, inputs: int) -> bool:
    rows = x.numel() // max(inputs, 1)
    most = GPU_MOST_PRODUCTS if x.dtype == torch.float32 else GPU_MOST_PRODUCTS_16_BITS
    return rows > GPU_MOST_ROWS or max(rows, 1) * size > most


def is_relu_of_pytorch(x: Tensor) -> bool:
    """Return whether the layers take PyTorch's ReLU, which is the quicker at any size."""
    return leaves_choice(x) and (x.dtype in _DTYPES or x.is_cuda)


def is_cross_entropy_of_pytorch(logits: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Return whether the layers take PyTorch's loss for logits (N, C) and class indices (N,)."""
    if not (isinstance(logits, Tensor) and isinstance(target, Tensor)) or not leaves_choice(logits):
        return False
    if logits.dtype not in _DTYPES or target.dtype != torch.int64:
        return False
    if not (logits.is_cpu and target.is_cpu):  # a label that is no class would end a GPU's process
        return False
    if weight is not None or logits.dim() != 2 or target.dim() != 1:
        return False
    rows, classes = logits.shape
    return rows < MANY_ROWS if classes < FEW_CLASSES else rows * classes < LARGE_LOGITS
