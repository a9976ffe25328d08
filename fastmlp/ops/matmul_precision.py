"""The argument ``matmul_precision`` of the operators: how a GPU multiplies float32."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32, TF32_ALLOWED, FMA, THREE_TF32, TF32 = range(5)
"""As csrc/plan.h has them: products as accurate as float32's; TF32 too, where it is faster; the
rest, for tests and benchmarks, leaves no choice."""


def allowed_matmul_precision() -> int:
    """Return what ``torch.backends.cuda.matmul.fp32_precision`` says, under whichever of its names
    it was set. The stable ABI does not tell C++, so every call does."""
    allowed = torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"
    return TF32_ALLOWED if allowed else FLOAT32


# torch.compiler.assume_constant_result without its import of the whole compiler: compiled code
# takes the answer for a constant, and is guarded by this setting anyway.
allowed_matmul_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def matmul_precision_of(x: Tensor) -> int:
    """Return what a product with x asks for: on a GPU what PyTorch allows; the CPU ignores it."""
    return allowed_matmul_precision() if x.is_cuda else FLOAT32


def check_matmul_precision(matmul_precision: int) -> None:
    """Raise ValueError unless it is one of the numbers above."""
    if not FLOAT32 <= matmul_precision <= TF32:
        raise ValueError(f"matmul_precision must be between 0 and {TF32}, got {matmul_precision}")
