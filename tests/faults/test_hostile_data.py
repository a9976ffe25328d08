"""Tables and pictures that were made to harm: pipes in their place, and files that would grow to
fill all memory, or take for ever."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp.cli.own_data import read_rows
from fastmlp.data import arrays
from fastmlp.data.encoding import TableEncoding
from fastmlp.data.images import read_idx, read_image_folder
from fastmlp.data.tables import MAX_COLUMNS, Table, read_table
from fastmlp.data.targets import TargetEncoding
from fastmlp.utils.errors import UserError


def test_a_table_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"t\.csv is a pipe or a device, not a file"):
        read_table(tmp_path / "t.csv")


def test_what_grows_beyond_all_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pillow = pytest.importorskip("PIL.Image")
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 16)
    rows = 1 << 17
    constant = arrow.table({"a": np.zeros(rows), "b": np.zeros(rows)})
    parquet.write_table(constant, tmp_path / "t.parquet")
    np.savez_compressed(tmp_path / "t.npz", a=np.zeros(rows))
    for name in ("t.parquet", "t.npz"):
        with pytest.raises(UserError, match=rf"{name} has .* bytes and would take .* in memory"):
            read_table(tmp_path / name)
    head = struct.pack(">BBBBI", 0, 0, 8, 1, rows * 8)
    (tmp_path / "i.gz").write_bytes(gzip.compress(head + bytes(rows * 8)))
    with pytest.raises(UserError, match=r"i\.gz would take far more memory than it has bytes"):
        read_idx(tmp_path / "i.gz")
    for label in "ab":
        (tmp_path / "p" / label).mkdir(parents=True)
        pillow.new("RGB", (1000, 1000)).save(tmp_path / "p" / label / "p.png")
    with pytest.raises(UserError, match=r"p\.png has .* bytes and would take 6,000,000 in memory"):
        read_image_folder(tmp_path / "p")


@pytest.mark.parametrize("dtype", ["S0", "U0", "V0", [("a", "f8"), ("b", "f8")]])
def test_items_of_no_bytes(dtype: Any, tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.dtype(dtype).descr if isinstance(dtype, list) else f"|{dtype}",
               "fortran_order": False, "shape": (1 << 27,)}
    )  # fmt: skip
    (tmp_path / "t.npy").write_bytes(head.getvalue())
    with pytest.raises(UserError, match=r"t\.npy cannot be read .*; save numbers or texts"):
        read_table(tmp_path / "t.npy")


@pytest.mark.parametrize("shape", [(0, 1 << 40), (1 << 40, 0)])
def test_no_rows_of_many_columns(shape: tuple[int, int], tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.empty(shape, np.uint8))
    with pytest.raises(UserError, match=r"t\.npy has no rows; pass a file with at least one"):
        read_table(tmp_path / "t.npy")


def test_many_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((1, MAX_COLUMNS + 1), np.uint8))
    np.savez(tmp_path / "t.npz", a=np.zeros((1, MAX_COLUMNS + 1), np.uint8))
    (tmp_path / "t.csv").write_text(",".join(map(str, range(MAX_COLUMNS + 1))) + "\n")
    for name in ("t.npy", "t.npz", "t.csv"):
        with pytest.raises(UserError, match=rf"{name} has 200,001 columns, more than the 200,000"):
            read_table(tmp_path / name)


def test_texts_of_a_parquet_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    long = "x" * 1000
    frame = pandas.DataFrame({"t": [long, None, "b"] * 50, "n": [1.0, None, 2.0] * 50})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=40)
    table = read_table(tmp_path / "t.parquet")
    assert table.columns["t"].tolist() == [long, None, "b"] * 50
    np.testing.assert_array_equal(table.columns["n"], [1.0, np.nan, 2.0] * 50)
    assert table.columns["t"][0] is table.columns["t"][3]  # once in memory
    frame.assign(l=[[1, 2]] * 150).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(UserError, match=r"has the column 'l' of the type list<.*, leave it out"):
        read_table(tmp_path / "l.parquet")


def test_numbers_that_float32_or_a_deviation_cannot_hold() -> None:
    vast = Table({"a": np.array([1e308, -1e308, 1e308])})
    with pytest.raises(UserError, match=r"Column 'a' .* numbers as large as 1e\+308, .*; divide"):
        TableEncoding.fit(vast)
    with pytest.raises(UserError, match=r"Column 'a' .* numbers as large as"):
        TargetEncoding.fit(vast, "regression")
    fitted = TableEncoding.fit(Table({"a": np.array([1.0, 2.0])}))
    with pytest.raises(UserError, match=r"'a' of the data is 1e\+300 in row 2, too far from"):
        fitted.apply(Table({"a": np.array([1.0, 1e300])}))
    close = Table({"a": np.array([0.0, 1e-170])})  # whose squares are 0
    assert np.isfinite(TargetEncoding.fit(close, "regression").apply(close)).all()


def test_pictures_that_take_longer_than_they_are_large(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    picture = pillow.effect_noise((64, 64), 50)
    picture.save(tmp_path / "b" / "p.jpg", progressive=True)
    path = tmp_path / "a" / "p.jpg"
    picture.save(path, progressive=True)
    assert len(read_image_folder(tmp_path).images) == 2
    whole = path.read_bytes()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    path.write_bytes(whole[:-2] + last * 200 + whole[-2:])
    with pytest.raises(UserError, match=r"p\.jpg cannot .* \(it has more than 100 scans\)"):
        read_image_folder(tmp_path)
    path.unlink()
    info = import_module("PIL.TiffImagePlugin").ImageFileDirectory_v2()
    info[32997] = info[32998] = 20_000  # tags that Pillow writes, then made those of tiles
    picture.save(tmp_path / "a" / "p.tif", tiffinfo=info)
    tiff = (tmp_path / "a" / "p.tif").read_bytes()
    for old, new in ((32997, 322), (32998, 323)):
        tiff = tiff.replace(struct.pack("<H", old), struct.pack("<H", new), 1)
    (tmp_path / "a" / "p.tif").write_bytes(tiff)
    with pytest.raises(UserError, match=r"p\.tif cannot .* \(it has tiles of 20000 x 20000"):
        read_image_folder(tmp_path)


def test_a_picture_that_another_program_would_read(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "p.png").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
        )
    with pytest.raises(UserError, match=r"p\.png cannot be read as an image \(cannot identify"):
        read_image_folder(tmp_path)


def npz_of(path: Path, header: bytes, data: bytes) -> None:
    """Write an .npz file of one array, compressed."""
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", head + data)


def test_arrays_of_long_texts_and_of_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 16)
    np.savez_compressed(tmp_path / "t.npz", a=np.array(["x" * 100_000, "y"]))
    with pytest.raises(UserError, match=r"t\.npz has .* bytes and would take .* in memory"):
        read_table(tmp_path / "t.npz")
    for header in (
        b"{'descr': ('<f8', (100,)), 'fortran_order': False, 'shape': (3,)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
    ):
        npz_of(tmp_path / "t.npz", header, bytes(2400))
        with pytest.raises(UserError, match=r"t\.npz cannot be read \(a\.npy has items of"):
            read_table(tmp_path / "t.npz")


def test_short_lines_and_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 16)
    names = ",".join(f"c{i}" for i in range(1000))
    (tmp_path / "t.csv").write_text(f"{names}\n" + "1\n" * 1000)
    long = arrow.table({"a": [f"{i}" + "x" * 100_000 for i in range(3)]})
    parquet.write_table(long, tmp_path / "t.parquet", use_dictionary=False, compression="zstd")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(UserError, match=rf"{name} has .* bytes and would take .* in memory"):
            read_table(tmp_path / name)


@pytest.mark.parametrize(
    "data",
    [b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, b""],
    ids=["an archive", "a header that is too deep", "nothing"],
)
def test_arrays_that_are_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.npy cannot be read"):
        read_rows(str(tmp_path / "x.npy"))


def test_an_archive_called_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"x\.npy cannot be read \(it is an \.npz file"):
        read_rows(str(tmp_path / "x.npy"))


def test_small_numbers_that_become_large_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 20)
    for kind in ("i1", "S1"):
        np.savez_compressed(tmp_path / "t.npz", a=np.zeros(1 << 18, kind))
        with pytest.raises(UserError, match=r"t\.npz has .* bytes and would take .* in memory"):
            read_table(tmp_path / "t.npz")
