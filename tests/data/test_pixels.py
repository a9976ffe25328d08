"""Rows of pixels: what is taken for them, and their encoding."""

import json

import numpy as np
import pytest
import torch

from fastmlp.data.pixels import PixelEncoding, Pixels, as_pixels, as_rows
from fastmlp.data.tables import Table
from fastmlp.data.transforms import make_normalization
from fastmlp.utils.errors import UserError

BYTES = np.random.default_rng(0).integers(0, 256, (20, 12), dtype=np.uint8)


@pytest.mark.parametrize("data", [BYTES, torch.from_numpy(BYTES), Pixels(BYTES)])
def test_bytes_are_pixels_and_are_not_copied(data):
    rows = as_rows(data)
    assert isinstance(rows, Pixels)
    assert np.shares_memory(rows.values, BYTES)
    assert rows.rows(np.array([3, 1])).values.tolist() == BYTES[[3, 1]].tolist()


@pytest.mark.parametrize("data", [BYTES.astype(float), BYTES.astype(np.int8), BYTES[:, 0]])
def test_all_else_is_a_table(data):
    assert isinstance(as_rows(data), Table)
    with pytest.raises(UserError, match=r"X must be pixels, an array \(n, features\) of uint8"):
        as_pixels(data)


def test_the_encoding_normalises_as_the_engines_do():
    encoding = PixelEncoding.fit(Pixels(BYTES, shape=(3, 2, 2)))
    encoding = PixelEncoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert (encoding.shape, len(encoding.means)) == ((3, 2, 2), 3)
    for name in ("unit", "standard"):
        ours, engines = encoding.normalization(name), make_normalization(name, torch.tensor(BYTES))
        torch.testing.assert_close(ours.scale, engines.scale, rtol=0, atol=0)
        torch.testing.assert_close(ours.shift, engines.shift, rtol=0, atol=0)
    assert encoding.apply(Pixels(BYTES)) is BYTES
    with pytest.raises(
        UserError, match="X has rows of 5 pixels, and the network was trained on 12"
    ):
        encoding.apply(Pixels(BYTES[:, :5]))
    with pytest.raises(ValueError, match="a mean and a deviation for each channel"):
        PixelEncoding.from_dict({**encoding.to_dict(), "means": [1.0]})
    with pytest.raises(ValueError, match="shape of the inputs cannot be"):
        PixelEncoding.from_dict({**encoding.to_dict(), "shape": [3, 4]})
    with pytest.raises(ValueError, match="three sizes of 12 pixels"):
        PixelEncoding.from_dict({**encoding.to_dict(), "shape": [3, 4, 5]})
