"""csrc/cuda/linear_tiles.cuh, linear_engines.cuh: who holds what of a tile, and where it lies.

Shared memory has 32 banks of 4 bytes. A warp's threads that access different words of one bank do
so one after the other; 16 bytes a thread are accessed by eight threads at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from support.native_module import internals, missing

THREADS, WARP, BANKS, WORD, PACK, COLUMNS = 128, 32, 32, 4, 16, 64
NAMES = ("fma", "bfloat16_fma", "bfloat16", "tf32")

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(params=[16, 32, 64], scope="module")
def rows(request: Any) -> int:
    return request.param


@pytest.fixture(params=NAMES)
def maps(request: Any, rows: int) -> Any:
    return dict(internals().engines(rows))[request.param]


@pytest.fixture(params=["bfloat16", "tf32"])
def tensor_cores(request: Any, rows: int) -> Any:
    return dict(internals().engines(rows))[request.param]


def tiles(maps: Any) -> Iterable[tuple[int, Any, Any]]:
    """Yield rows, byte offsets and fetches of the tile of a and of that of b."""
    return ((maps.rows, maps.a, maps.a_fetches), (COLUMNS, maps.b, maps.b_fetches))


def conflicts(offsets: Iterable[int]) -> int:
    """Return the most words of one bank that are accessed at once."""
    words = {offset // WORD for offset in offsets}
    return max(Counter(word % BANKS for word in words).values())


def test_every_element_has_a_place_of_its_own(maps):
    for rows, offsets, _ in tiles(maps):
        places = [at for row in offsets for at in row]
        assert (len(offsets), len(offsets[0])) == (rows, maps.depth)
        assert len(set(places)) == rows * maps.depth
        assert all(at % maps.element == 0 for at in places)


def test_lines_of_elements_keep_packs_together_and_aligned(maps):
    pack = PACK // maps.element
    for _, offsets, _ in tiles(maps):
        lines = offsets if maps.row_lines else list(zip(*offsets, strict=True))
        for line in lines:
            for first in range(0, len(line), pack):
                begin = line[first]
                assert begin % PACK == 0
                neighbours = [begin + e * maps.element for e in range(pack)]
                assert list(line[first : first + pack]) == neighbours


def test_the_threads_fetch_every_element_of_a_tile_once(maps):
    pack = PACK // maps.element
    for rows, _, fetches in tiles(maps):
        for along_k, threads in fetches:
            got = Counter(
                (row, k + e) if along_k else (row + e, k)
                for packs in threads
                for row, k in packs
                for e in range(pack)
            )
            want = {(row, k) for row in range(rows) for k in range(maps.depth)}
            assert set(got) == want
            assert set(got.values()) == {1}


def test_neighbouring_threads_fetch_neighbours_of_a_line(maps):
    """So that a warp reads whole sectors of 32 bytes."""
    pack = PACK // maps.element
    for rows, _, fetches in tiles(maps):
        for along_k, threads in fetches:
            per_line = (maps.depth if along_k else rows) // pack
            for t in range(THREADS - 1):
                for here, there in zip(threads[t], threads[t + 1], strict=False):
                    step = [b - a for a, b in zip(here, there, strict=True)]
                    if (t + 1) % per_line:
                        assert step == ([0, pack] if along_k else [pack, 0])


def test_the_threads_hold_every_result_once(maps):
    got = Counter(place for results in maps.results for place in results)
    assert set(got) == {(row, col) for row in range(maps.rows) for col in range(COLUMNS)}
    assert set(got.values()) == {1}


def test_a_warp_reads_a_fragment_from_all_banks(tensor_cores):
    """Four neighbours, of 4 bytes, of each of eight rows."""
    maps = tensor_cores
    for warp in range(0, THREADS, WARP):
        lanes = maps.fragments[warp : warp + WARP]
        for k0 in range(0, maps.depth, 16 if maps.element == 2 else 8):
            for other in (0, 8 if maps.element == 2 else 4):
                if maps.element == 2:  # two neighbours in one register
                    at = [(row, col, k0 + pair + other) for row, col, pair in lanes]
                else:
                    at = [(row, col, (k0 ^ pair // 2) ^ other) for row, col, pair in lanes]
                assert conflicts(maps.a[row][k] for row, _, k in at) == 1
                assert conflicts(maps.b[col][k] for _, col, k in at) == 1
                assert len({maps.a[row][k] // WORD for row, _, k in at}) == WARP


def test_a_fragment_reads_each_k_of_its_rows_once(tensor_cores):
    """A lane's two registers of a row of b, over a group's four lanes and over the steps."""
    maps = tensor_cores
    seen: Counter[tuple[int, int]] = Counter()
    for row, _, pair in maps.fragments[:WARP]:
        for k0 in range(0, maps.depth, 16 if maps.element == 2 else 8):
            if maps.element == 2:
                seen.update((row, k0 + pair + e) for e in (0, 1, 8, 9))
            else:
                seen.update((row, (k0 ^ pair // 2) ^ e) for e in (0, 4))
    assert set(seen) == {(row, k) for row in range(8) for k in range(maps.depth)}
    assert set(seen.values()) == {1}


def test_tf32_packs_are_stored_without_conflicts_along_k_and_two_to_a_bank_along_the_rows(rows):
    maps = dict(internals().engines(rows))["tf32"]
    for _, offsets, fetches in tiles(maps):
        for along_k, threads in fetches:
            for i in range(len(threads[0])):
                if along_k:  # eight threads store 16 bytes each at once
                    for first in range(0, THREADS, 8):
                        packs = [t[i] for t in threads[first : first + 8] if i < len(t)]
                        words = [offsets[r][k + e] for r, k in packs for e in range(4)]
                        assert conflicts(words) == 1
                    continue
                for first in range(0, THREADS, WARP):  # a number each, four times
                    packs = [t[i] for t in threads[first : first + WARP] if i < len(t)]
                    for e in range(4):
                        assert conflicts(offsets[r + e][k] for r, k in packs) <= 2
