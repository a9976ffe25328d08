"""Random numbers that are a function of a seed and of what they are used for."""

from __future__ import annotations

import numpy as np
import torch


def seeded_generator(*stream: int) -> torch.Generator:
    """Independent random numbers for each seed and what it is used for."""
    state = np.random.SeedSequence(stream).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
