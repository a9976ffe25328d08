"""What CIFAR-10 is on disk, read from tiny files: the two layouts, whole and damaged."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from support.cifar10_files import (
    BATCH,
    assert_holds,
    binary_files,
    make_batches,
    pickle_files,
    write_folder,
)

from fastmlp.data import cifar10
from fastmlp.data.cifar10 import BINARY, PYTHON
from fastmlp.utils.errors import UserError


@pytest.fixture
def batches(monkeypatch):
    """Six tiny batches, of the size that the package is made to expect."""
    monkeypatch.setattr(cifar10, "BATCH", BATCH)
    return make_batches()


def test_the_official_archives_are_known():
    assert [(a.filename, a.folder, a.size, a.sha256[:8]) for a in cifar10.ARCHIVES] == [
        ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", 170_052_171, "c4a38c50"),
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", 170_498_071, "6d958be0"),
    ]
    assert BINARY.members["data_batch_1.bin"] == cifar10.BATCH * (1 + 3072)
    assert list(PYTHON.members)[5] == "test_batch"


def python2_pickle(batch):
    """The bytes that Python 2 and NumPy 1 wrote, opcode by opcode: what torchvision unpacks."""
    images, labels = batch[b"data"], batch[b"labels"]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(M" + struct.pack("<H", len(images)) + b"M\x00\x0ct"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", images.size) + images.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


PICKLES = {
    "python 2": python2_pickle,
    "numpy 1, protocol 2": lambda batch: pickle.dumps(batch, 2).replace(
        b"numpy._core", b"numpy.core"
    ),
    "protocol 2": lambda batch: pickle.dumps(batch, 2),
    "protocol 4": lambda batch: pickle.dumps(batch, 4),
    "protocol 5": lambda batch: pickle.dumps(batch, 5),
    "text keys, array of labels": lambda batch: pickle.dumps(
        {"data": batch[b"data"], "labels": np.array(batch[b"labels"], np.uint8)}
    ),
}


@pytest.mark.parametrize("dump", PICKLES.values(), ids=PICKLES.keys())
def test_read_takes_every_writing_of_the_pickled_layout(batches, tmp_path, dump):
    folder = write_folder(tmp_path / "any name", pickle_files(batches, dump))
    assert_holds(PYTHON, folder, batches)


def test_the_hand_made_pickle_is_one(batches):
    images, labels = batches[0]
    batch = pickle.loads(
        python2_pickle({b"data": images, b"labels": labels.tolist()}), encoding="bytes"
    )
    np.testing.assert_array_equal(batch[b"data"], images)
    assert batch[b"labels"] == labels.tolist()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_read_runs_no_code_of_a_pickle(batches, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "data", pickle_files(batches))
    images, labels = batches[1]
    evil = {b"data": images, b"labels": labels.tolist(), b"more": Evil()}
    (folder / "data_batch_2").write_bytes(pickle.dumps(evil, protocol))
    with pytest.raises(UserError, match=r"data/data_batch_2 cannot be read .*posix\.mkdir"):
        cifar10.read(PYTHON, folder)
    assert not Path("evil").exists()


def damaged_batch(**changes):
    images, labels = make_batches()[0]
    return pickle.dumps({"data": images, "labels": labels.tolist()} | changes)


DAMAGED_PICKLES = {
    "cut": (damaged_batch()[:-100], "cannot be read"),
    "empty": (b"", "cannot be read"),
    "no pickle": (b"<html>", "cannot be read"),
    "no dictionary": (pickle.dumps([1]), "cannot be read"),
    "float data": (damaged_batch(data=np.zeros((BATCH, 3072))), "no uint8 array of 20 x 3,072"),
    "fewer images": (damaged_batch(data=np.zeros((9, 3072), np.uint8)), "no uint8 array"),
    "no data": (damaged_batch(data=None), "no uint8 array"),
    "no labels": (damaged_batch(labels=None), "cannot be read"),
    "float labels": (damaged_batch(labels=[0.5] * BATCH), "cannot be read"),
    "fewer labels": (damaged_batch(labels=[1, 2]), "has 2 labels, not 20"),
    "label 10": (damaged_batch(labels=[10] * BATCH), "has labels from 10 to 10, not 0 to 9"),
    "label -1": (damaged_batch(labels=[-1] * BATCH), "has labels from -1 to -1"),
}


@pytest.mark.parametrize(("content", "match"), DAMAGED_PICKLES.values(), ids=DAMAGED_PICKLES.keys())
def test_read_refuses_a_damaged_pickle_by_name(batches, tmp_path, content, match):
    folder = write_folder(tmp_path / "data", pickle_files(batches))
    (folder / "data_batch_4").write_bytes(content)
    with pytest.raises(UserError, match=f"data/data_batch_4 .*{match}"):
        cifar10.read(PYTHON, folder)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda c: c[:-1], "has 61,459 bytes, not 61,460"),
        (lambda c: c + b"x", "has 61,461 bytes, not 61,460"),
        (lambda c: b"\x0a" + c[1:], "has labels from 0 to 10, not 0 to 9"),
    ],
)
def test_read_refuses_a_damaged_binary_by_name(batches, tmp_path, damage, match):
    folder = write_folder(tmp_path / "data", binary_files(batches))
    path = folder / "test_batch.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"data/test_batch.bin {match}; put the right file there"):
        cifar10.read(BINARY, folder)


@pytest.mark.parametrize(("archive", "make"), [(BINARY, binary_files), (PYTHON, pickle_files)])
def test_read_names_a_missing_file(batches, tmp_path, archive, make):
    folder = write_folder(tmp_path / "data", make(batches))
    name = list(archive.members)[3]
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"data/{name} is missing"):
        cifar10.read(archive, folder)
