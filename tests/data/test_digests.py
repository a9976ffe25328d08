"""What a disk does to unpacked data is found when it is read."""

import hashlib
import struct
import subprocess

import numpy as np
import pytest
from support.cifar10_files import (
    assert_holds,
    binary_files,
    describe,
    make_batches,
    make_tiny,
    pack,
    pickle_files,
    write_folder,
)

from fastmlp.data import cifar10, download, images
from fastmlp.data.cifar10 import BINARY, PYTHON
from fastmlp.data.digests import SUMS
from fastmlp.utils.errors import UserError


@pytest.fixture
def batches(monkeypatch):
    """Six tiny batches, of the size that the package is made to expect."""
    batches = make_batches()
    make_tiny(monkeypatch, batches)
    return batches


def flip_bit(path, byte=None, bit=3):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if byte is None else byte] ^= 1 << bit
    path.write_bytes(content)


def record(folder):
    digests = [(hashlib.sha256(path.read_bytes()), path.name) for path in folder.iterdir()]
    lines = [f"{digest.hexdigest()} *{name}\n" for digest, name in digests]
    (folder / SUMS).write_text("".join(lines))


@pytest.mark.parametrize("archive", [BINARY, PYTHON], ids=["binary", "pickled"])
def test_a_flipped_bit_in_what_was_unpacked_is_found(batches, tmp_path, archive):
    files = (binary_files if archive is BINARY else pickle_files)(batches)
    content = pack(files, archive.folder)
    path = tmp_path / archive.filename
    path.write_bytes(content)
    folder = download.unpack(describe(archive, content, files), path, tmp_path, progress=False)
    assert_holds(archive, folder, batches)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=True)
    for name in list(archive.members)[:6]:
        flip_bit(folder / name)
        with pytest.raises(UserError, match=f"{name} has changed since its SHA-256 was taken"):
            cifar10.read(archive, folder)
        flip_bit(folder / name)
    assert_holds(archive, folder, batches)


def test_a_flipped_bit_in_an_official_pickle_is_found_without_a_record(batches, tmp_path):
    files = pickle_files(batches)
    archive = describe(PYTHON, b"", files)
    folder = write_folder(tmp_path / PYTHON.folder, files)
    assert_holds(archive, folder, batches)
    flip_bit(folder / "data_batch_3")
    with pytest.raises(UserError, match="data_batch_3 is damaged, or no official file"):
        cifar10.read(archive, folder)
    # Another writing of the same data, which somebody vouches for or not, is read.
    again = write_folder(tmp_path / "again", pickle_files(batches[1:] + batches[:1]))
    assert {len(files[name]) for name in files} >= {(again / "data_batch_1").stat().st_size}
    record(again)
    assert_holds(archive, again, batches[1:] + batches[:1])


def test_the_official_digests_are_the_published_ones():
    assert list(PYTHON.md5) == list(PYTHON.members)[:6]
    assert [PYTHON.md5[name][:6] for name in PYTHON.md5] == [
        *("c99caf", "d4bba4", "54ebc0", "634d18", "482c41", "40351d"),
    ]


def test_a_folder_without_a_record_is_read_as_it_is(batches, tmp_path):
    folder = write_folder(tmp_path / "data", binary_files(batches))
    assert_holds(BINARY, folder, batches)
    folder.chmod(0o555)  # and nothing is written to it
    assert_holds(BINARY, folder, batches)
    assert not (folder / SUMS).exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"\xff\x00\n", b"0" * 64 + b" x\n", b"\n", b"A" * 64 + b"  x"),
        b"0" * 64 + b"  x\n" + b"0" * 63 + b"  y\n",  # one line of two
    ],
)
def test_a_damaged_record_is_told(batches, tmp_path, content):
    folder = write_folder(tmp_path / "data", {**binary_files(batches), SUMS: content})
    with pytest.raises(UserError, match=f"{SUMS} is damaged: .* delete it"):
        cifar10.read(BINARY, folder)


def test_other_sets_are_checked_too(tmp_path):
    labels = bytes(range(10))
    idx = {
        "images-idx3": struct.pack(">4BIII", 0, 0, 8, 3, 10, 2, 2) + bytes(40),
        "labels-idx1": struct.pack(">4BI", 0, 0, 8, 1, 10) + labels,
    }
    files = {f"{part}-{kind}-ubyte": idx[kind] for part in ("train", "t10k") for kind in idx}
    mnist = write_folder(tmp_path / "mnist", files)
    records = np.zeros((10, 3074), np.uint8).tobytes()
    names = {"fine_label_names.txt": b"a\nb\n", "train.bin": records, "test.bin": records}
    cifar100 = write_folder(tmp_path / "cifar-100-binary", names)
    for name, folder, file in (
        ("mnist", mnist, "t10k-images-idx3-ubyte"),
        ("cifar100", cifar100, "test.bin"),
    ):
        lines = [
            f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in folder.iterdir()
        ]
        (folder / SUMS).write_text("\n".join(lines))
        assert images.load_images(name, [tmp_path]).name == name
        flip_bit(folder / file)
        with pytest.raises(UserError, match=f"{file} has changed since"):
            images.load_images(name, [tmp_path])
