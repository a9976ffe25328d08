"""Pickled batches are read without being run: whatever a file holds costs what its bytes do."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import resource
import time

import numpy as np
import pytest
from support.figures import count

from fastmlp.data.pickles import PickleError, read_dictionary

BATCH = {
    "data": np.arange(60, dtype=np.uint8).reshape(5, 12),
    "labels": [3, 1, 4, 1, 255],
    "name": "ümlaut",
    b"raw": b"\x00\xff",
    "transposed": np.arange(6, dtype=">i4").reshape(2, 3).T,
}


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol):
    found = read_dictionary(io.BytesIO(pickle.dumps(BATCH, protocol)))
    assert list(found) == ["data", "labels", "name", "raw", "transposed"]
    for key, value in BATCH.items():
        got = found[key if isinstance(key, str) else key.decode()]
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got, value)
            assert got.dtype == value.dtype
        else:
            assert got == value


class Evil:
    def __reduce__(self):
        return (print, ("run",))


HEAD = b"\x80\x02}U\x01a"  # the beginning of {"a": ...}


def nested(depth: int) -> bytes:
    """A tuple of two tuples of two tuples ..., whose hash takes 2^depth steps."""
    return b"(" + b"I1\n" + b"t" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(depth))


def doubled(depth: int) -> bytes:
    """A list of two lists of two lists ..., whose text has 2^depth characters."""
    return b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(depth))


def array_state(shape: bytes, content: bytes) -> bytes:
    """An array that is given a state of this shape and content."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01"
        + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U"
        + bytes([len(content)])
        + content
        + b"tb"
    )


ATTACKS = {
    "a call": pickle.dumps({"data": Evil()}),
    "a call by an old name": b"\x80\x02}U\x01acposix\nsystem\nU\x02ls\x85Rs.",
    "another dtype": b"\x80\x02}U\x01acnumpy\ndtype\nU\x01OK\x00K\x01\x87Rs.",
    "a dtype that is built into another": (
        b"\x80\x02}U\x01acnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tbs."
    ),
    "a huge memo": b"\x80\x02}r\xff\xff\xff\x7fU\x01aK\x01s.",
    "a huge length": b"\x80\x04}\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a hash that takes for ever": b"\x80\x02}" + nested(60) + b"K\x01s.",
    "a list that takes for ever": b"\x80\x02}U\x06labels" + nested(60) + b"s.",
    "a list of itself": b"\x80\x02}U\x06labels]q\x00h\x00as.",
    "more content than there is": b"\x80\x02}U\x01a"
    + array_state(b"M\xff\xff\x85", b"abc")
    + b"s.",
    "a negative shape": HEAD + array_state(b"J\xff\xff\xff\xff\x85", b"abc") + b"s.",
    "bytes without end": (
        b"\x80\x02}U\x01a(c_codecs\nencode\nX\xff\x00\x00\x00"
        + b"a" * 255
        + b"q\x00U\x06latin1\x86R"
        + b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 100
        + b"ts."
    ),
    "a name that takes for ever": b"\x80\x04" + doubled(40) + b"h\x28\x8c\x01a\x93.",
    "a text that takes for ever": b"\x80\x02" + doubled(40) + b"c_codecs\nencode\nh\x28\x85R.",
    "a long key again and again": (
        b"\x80\x03B\x00\x00\x10\x00" + b"a" * (1 << 20) + b"q\x00}" + b"h\x00Ns" * 9999 + b"."
    ),
    "a long byte order again and again": (
        b"\x80\x03B\x00\x00\x10\x00"
        + b"a" * (1 << 20)
        + b"q\x00cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + b"(K\x03h\x00tb" * 9999
        + b"."
    ),
    "no dictionary": pickle.dumps([1]),
    "half of one": pickle.dumps(BATCH)[:200],
    "nothing": b"",
}


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
def test_what_no_data_needs_is_refused_at_once(content, capsys):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    try:
        found = read_dictionary(io.BytesIO(content))
    except PickleError:
        pass
    else:
        # a dtype's other fields say nothing here, and neither does a number in the memo
        assert content in (ATTACKS["a huge memo"],), found
        assert found == {"a": 1}
    assert time.process_time() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert capsys.readouterr().out == ""


def test_any_damage_is_an_error_of_ours_or_a_dictionary():
    """``FASTMLP_FUZZ=N`` damages N times, otherwise 3,000: at most 300 MB and 2 s each."""
    inputs = int(os.environ.get("FASTMLP_FUZZ", "3000"))
    memory, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    good = [pickle.dumps(BATCH, protocol) for protocol in range(6)]
    draw = random.Random(0)
    for _ in range(inputs):
        content = bytearray(draw.choice(good))
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(content))
            content[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
        begin = time.process_time()
        with contextlib.suppress(PickleError):
            assert isinstance(read_dictionary(io.BytesIO(bytes(content))), dict)
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 << 10
    count(damaged_inputs=inputs)
