"""Tiny files of CIFAR-10 (20 images a batch), in its two layouts and archives, made for tests."""

import hashlib
import io
import pickle
import socket
import tarfile
from dataclasses import replace

import numpy as np
import torch

from fastmlp.data import cifar10, download
from fastmlp.data import dataset as data
from fastmlp.data.cifar10 import BINARY, PYTHON

BATCH = 20


def make_batches(seed=0):
    """Six batches of images (BATCH, 3072) uint8 and labels (BATCH,) int64; each class twice."""
    random = np.random.default_rng(seed)
    return [
        (
            random.integers(0, 256, (BATCH, 3072), dtype=np.uint8),
            random.permutation(np.arange(BATCH) % 10),
        )
        for _ in range(6)
    ]


def tiny_dataset():
    """The batches as the data set that they are read into, the last as its official test set."""
    batches = [
        (torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels))
        for images, labels in make_batches()
    ]
    images, labels = (torch.cat(parts) for parts in zip(*batches[:5], strict=True))
    return data.Dataset("cifar10", "", False, data.CIFAR10_CLASSES, images, labels, *batches[5])


def binary_files(batches):
    """name -> content, in the layout of cifar-10-batches-bin."""
    contents = [
        np.concatenate([labels[:, None].astype(np.uint8), images], 1).tobytes()
        for images, labels in batches
    ]
    return dict(zip(BINARY.members, [*contents, b"airplane\n"], strict=True))


def pickle_files(batches, dump=lambda batch: pickle.dumps(batch, protocol=4)):
    """name -> content, in the layout of cifar-10-batches-py."""
    contents = [dump({b"data": images, b"labels": labels.tolist()}) for images, labels in batches]
    return dict(zip(PYTHON.members, [*contents, pickle.dumps({})], strict=True))


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(files, folder, extra=()):
    """A .tar.gz of ``files`` in ``folder``, after the ``extra`` (TarInfo, content) members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        members = [(tarfile.TarInfo(f"{folder}/{name}"), body) for name, body in files.items()]
        for member, body in [*extra, *members]:
            if member.isreg():
                member.size = len(body)
            tar.addfile(member, io.BytesIO(body) if member.isreg() else None)
    return buffer.getvalue()


def describe(archive, content, files):
    """``archive`` with the size and the checksum of ``content`` and those of ``files``."""
    return replace(
        archive,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        members={name: len(body) for name, body in files.items()},
        md5={name: hashlib.md5(files[name]).hexdigest() for name in archive.md5 if name in files},
    )


def make_tiny(monkeypatch, batches):
    """Makes the package take tiny archives of ``batches`` for the official ones, and returns their
    contents: binary, pickled."""
    contents, archives = [], []
    for archive, files in ((BINARY, binary_files(batches)), (PYTHON, pickle_files(batches))):
        content = pack(files, archive.folder)
        contents.append(content)
        archives.append(describe(archive, content, files))
    for module in (cifar10, download, data):
        monkeypatch.setattr(module, "ARCHIVES", tuple(archives))
    monkeypatch.setattr(cifar10, "BATCH", BATCH)
    monkeypatch.delenv(download.URL_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return contents


def visible(root):
    return sorted(path.name for path in root.iterdir() if path.name != ".fastmlp.lock")


def assert_holds(archive, folder, batches):
    images, labels = cifar10.read(archive, folder)
    np.testing.assert_array_equal(images, np.concatenate([images for images, _ in batches]))
    np.testing.assert_array_equal(labels, np.concatenate([labels for _, labels in batches]))
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
