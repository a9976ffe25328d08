"""The case table that all operators are tested on: shapes with their reasons, layouts, dtypes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LinearCase:
    """x (batch, inputs) times weight (outputs, inputs)."""

    batch: int
    inputs: int
    outputs: int
    reason: str

    def __str__(self) -> str:
        return f"{self.batch}x{self.inputs}x{self.outputs}"


LINEAR_CASES = (
    LinearCase(8, 3072, 256, "the first layer of the network this is for"),
    LinearCase(8, 256, 10, "its last layer: fewer outputs than a vector has lanes"),
    LinearCase(1, 1, 1, "the smallest"),
    LinearCase(1, 33, 50, "one row, odd tails in both other directions"),
    LinearCase(2, 16, 48, "whole vectors and whole tiles in every instruction set"),
    LinearCase(5, 17, 3, "half a tile of rows, one more element than a vector"),
    LinearCase(9, 15, 4, "one row more than a tile, one element less than a vector"),
    LinearCase(17, 1040, 7, "more than one block of the inner dimension, with a tail"),
    LinearCase(100, 65, 131, "several tiles in each direction, all ragged; 65 > a sum's block"),
    LinearCase(129, 10, 300, "a batch above 128 with a short inner dimension"),
    LinearCase(300, 64, 1, "one output: rows are what there is to share among threads"),
    LinearCase(513, 40, 30, "a batch that goes to the BLAS"),
    LinearCase(0, 5, 3, "no rows"),
    LinearCase(3, 0, 4, "nothing to sum: the bias alone"),
    LinearCase(3, 4, 0, "no outputs"),
)


@dataclass(frozen=True)
class ActivationCase:
    """A row of the table of activations."""

    name: str
    exact: bool
    """Its results are PyTorch's bit for bit: no function whose last bits are a matter of taste."""

    def __str__(self) -> str:
        return self.name


ACTIVATION_CASES = (
    ActivationCase("none", True),
    ActivationCase("relu", True),
    ActivationCase("leaky_relu", True),
    ActivationCase("tanh", False),
    ActivationCase("sigmoid", False),
    ActivationCase("gelu", False),
    ActivationCase("silu", False),
)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t()


def _offset(tensor: Tensor) -> Tensor:
    """A view that starts one element into its storage, hence misaligned, with a row to spare."""
    big = tensor.new_full((tensor.shape[0] + 1, tensor.shape[1] + 3), 7.0)
    view = big[1:, 1 : tensor.shape[1] + 1]
    view.copy_(tensor)
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "transposed": _transposed,
    "offset": _offset,
    "every other": lambda tensor: tensor.repeat_interleave(2, 1)[:, ::2],
}
"""Ways in which the same matrix can lie in memory."""


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal random values, drawn in float64 so that all dtypes see (nearly) the same."""
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def small_integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Integers in [-2, 2]: sums of their products are exact in every order and dtype, so that a
    wrong index cannot hide behind a tolerance."""
    return torch.randint(-2, 3, shape).to(dtype)
