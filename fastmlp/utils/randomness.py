"""Derive random numbers from a seed and their purpose."""

from __future__ import annotations

import numpy as np
import torch


def seeded_generator(*stream: int) -> torch.Generator:
    """Return a generator independent of those of other streams: a seed and a purpose."""
    state = np.random.SeedSequence(stream).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
