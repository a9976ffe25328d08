"""Dropout's random numbers: Philox4x32-10, counter-based, so that a number is a function of where
it is used and of nothing before.

J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011). ``csrc/common/philox.h``
computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Return four random words for each counter of four words; words are int64 below 2**32."""
    keys = [seed & _LOW, seed >> 32 & _LOW]
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # int64 products wrap modulo 2**64, which leaves both halves right
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> 32 & _LOW) ^ c1 ^ keys[0],
            second & _LOW,
            (first >> 32 & _LOW) ^ c3 ^ keys[1],
            first & _LOW,
        )
        keys = [(key + weyl) & _LOW for key, weyl in zip(keys, _WEYL, strict=True)]
    return c0, c1, c2, c3


def dropout_threshold(probability: float) -> int:
    """Return the number of 32-bit words below which a unit is dropped."""
    return min(round(probability * 2**32), _LOW)


def dropout_factors(
    shape: tuple[int, int],
    probability: float,
    *,
    seed: int,
    epoch: int,
    step: int,
    layer: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return what the outputs (rows, units) of a hidden layer are multiplied by: 0 with this
    ``probability``, else 1 / (1 - probability).

    A row and a unit have the same number whatever the shape. ``epoch`` < 2**24, ``layer`` < 256.
    """
    rows, units = shape
    return factors_of_rows(
        *(torch.arange(rows), torch.full((rows,), step), torch.tensor(epoch), units, probability),
        seed=seed,
        layer=layer,
        dtype=dtype,
    )


def factors_of_rows(
    rows: Tensor,
    steps: Tensor,
    epoch: Tensor,
    units: int,
    probability: float,
    *,
    seed: int,
    layer: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return :func:`dropout_factors` (n, units) of these ``rows`` (n,) of their batches, those of
    the ``steps`` (n,), in an ``epoch``, a scalar; all int64, on the device that computes them."""
    groups = -(-units // 4)
    shape = len(rows), groups
    group = torch.arange(groups, device=rows.device).expand(shape)
    row, step = (each[:, None].expand(shape) for each in (rows, steps & _LOW))
    place = ((epoch << 8 | layer) & _LOW).expand(shape)
    words = torch.stack(philox((group, row, step, place), seed), 2).reshape(len(rows), 4 * groups)
    kept = words[:, :units] >= dropout_threshold(probability)
    return kept.to(dtype) * (1 / (1 - probability))
