"""What the tests of csrc/plan.h share: GPUs, and how many examples are drawn."""

from __future__ import annotations

from hypothesis import settings

H100 = 132
"""Its multiprocessors."""

HOPPER, AMPERE, TURING = (90, 227 << 10), (80, 163 << 10), (75, 64 << 10)
"""Compute capabilities, and the bytes of shared memory that a block may ask for."""

EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True)
