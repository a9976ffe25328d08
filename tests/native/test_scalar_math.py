"""csrc/common/scalar_math.h, and the chain's integer division, on all that they are for."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from support.native_module import internals


@pytest.fixture(scope="module", autouse=True)
def native() -> ModuleType:
    return internals()


def test_quotient_is_exact_on_all_it_is_for(native):
    a = np.arange(1 << 16, dtype=np.int32)
    for b in range(1, (1 << 10) + 1):
        assert np.array_equal(native.quotient(a, b), a // b), b


def every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16)


def test_every_float16_is_widened_exactly(native):
    want = every_half().view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(native.widen_f16(every_half()), want)
    zeros = native.widen_f16(np.array([0, 0x8000], dtype=np.uint16))
    assert list(np.signbit(zeros)) == [False, True]


def test_every_bfloat16_is_widened_exactly(native):
    bits = every_half().astype(np.uint32) << 16
    got = native.widen_bf16(every_half()).view(np.uint32)
    nan = np.isnan(bits.view(np.float32))
    np.testing.assert_array_equal(got[~nan], bits[~nan])
    assert np.isnan(got.view(np.float32)[nan]).all()


def between(values: np.ndarray) -> np.ndarray:
    """Return the finite values, the points halfway between neighbours, and their neighbours."""
    values = np.unique(values[np.isfinite(values)].astype(np.float64))
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    points = np.concatenate([values.astype(np.float32), middles])
    up, down = (np.nextafter(points, np.float32(end)) for end in (np.inf, -np.inf))
    return np.concatenate([points, up, down]).astype(np.float32)


def special_and_random() -> np.ndarray:
    random = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    special = [0x7F800000, 0x7F800001, 0x7FC00000, 0x7F7FFFFF]  # inf, nan, the largest
    special += [0x477FEFFF, 0x477FF000, 1, 0x80000000]  # about to round to inf; 0's neighbours
    return np.concatenate([random, np.array(special, dtype=np.uint32)]).view(np.float32)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_narrowing_rounds_to_nearest_even_as_torch_does(native, name):
    """At every number of the format, halfway between any two, and one float to either side."""
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[name]
    all_numbers = getattr(native, f"widen_{name}")(every_half())
    values = np.concatenate([between(all_numbers), special_and_random()])
    got = getattr(native, f"narrow_{name}")(values)
    want = torch.from_numpy(values).to(dtype)
    nan = np.isnan(values)
    np.testing.assert_array_equal(got[~nan], want.view(torch.int16).numpy().view(np.uint16)[~nan])
    assert np.isnan(getattr(native, f"widen_{name}")(got[nan])).all()


VALUES = (0.0, -1.5, 3.25, 88.0, -104.0, 3e38, -3e38, math.inf, -math.inf, math.nan)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_online_softmax_is_logsumexp_whatever_comes(native, length):
    for values in itertools.product(VALUES, repeat=length):
        softmax = native.OnlineSoftmax(values)
        row = torch.tensor(values, dtype=torch.float64)
        largest = row[~row.isnan()].max().item() if not row.isnan().all() else -math.inf
        if not row.isnan().any():
            assert softmax.max == pytest.approx(largest, rel=1e-7)
        if math.isfinite(largest) and not row.isnan().any():
            want = (row - largest).exp().sum().log().item()
            assert softmax.log_sum() == pytest.approx(want, rel=1e-6, abs=1e-7)
        else:
            assert math.isnan(softmax.log_sum())


def test_merging_is_symmetric_to_the_last_bit_and_as_good_as_adding(native):
    random = np.random.default_rng(2)
    for _ in range(500):
        values = [float(v) for v in np.float32(random.normal(0, 30, random.integers(0, 20)))]
        cut = int(random.integers(0, len(values) + 1))
        one, other = native.OnlineSoftmax(values[:cut]), native.OnlineSoftmax(values[cut:])
        ab, ba = one.merged(other), other.merged(one)
        assert (ab.max, ab.sum) == (ba.max, ba.sum)
        whole = native.OnlineSoftmax(values)
        assert ab.max == whole.max
        assert ab.sum == pytest.approx(whole.sum, rel=1e-6)
