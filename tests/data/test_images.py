"""IDX files, CIFAR-100 and folders of images, read from tiny files, whole and damaged."""

import gzip
import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest

from fastmlp.data import images
from fastmlp.data.dataset import load_dataset
from fastmlp.data.images import load_images, read_idx, read_image_folder
from fastmlp.data.splits import split_dataset
from fastmlp.utils.errors import UserError

PICTURES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
LABELS = np.array([7, 0, 9], np.uint8)


def idx(array, code=8):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A tiny MNIST, of the checksums that the package is made to expect."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    arrays = [PICTURES, LABELS, PICTURES[:2] + 1, LABELS[:2]]
    md5 = {}
    for name, array in zip(images.IDX_SETS["mnist"].md5, arrays, strict=True):
        data = gzip.compress(idx(array), mtime=0)
        (folder / f"{name}.gz").write_bytes(data)
        md5[name] = hashlib.md5(data).hexdigest()
    tiny = replace(images.IDX_SETS["mnist"], md5=md5)
    monkeypatch.setitem(images.IDX_SETS, "mnist", tiny)
    return folder


def test_mnist_is_read_from_the_official_files(mnist):
    found = load_images("mnist", [mnist.parent / "none", mnist.parent])
    assert (found.shape, found.classes[9], found.source) == ((1, 4, 4), "9", str(mnist))
    np.testing.assert_array_equal(found.images, PICTURES.reshape(3, 16))
    assert (found.labels.dtype, found.labels.tolist()) == (np.int64, [7, 0, 9])
    np.testing.assert_array_equal(found.test_images, PICTURES[:2].reshape(2, 16) + 1)
    assert found.test_labels.tolist() == [7, 0]


def test_an_unpacked_file_is_taken(mnist):
    path = mnist / "t10k-labels-idx1-ubyte.gz"
    (mnist / "t10k-labels-idx1-ubyte").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    assert load_images("mnist", [mnist.parent]).test_labels.tolist() == [7, 0]


def test_another_file_than_the_official_one_is_named(mnist):
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(PICTURES + 1), mtime=0))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is not the official file"):
        load_images("mnist", [mnist.parent])


def test_a_missing_file_is_named(mnist):
    (mnist / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz is missing"):
        load_images("mnist", [mnist.parent])


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no fashion-mnist in .*fashion-mnist/train-images-idx3"):
        load_images("fashion-mnist", [tmp_path])


def test_idx_files_of_other_dtypes(tmp_path):
    (tmp_path / "a").write_bytes(idx(np.array([1.5, -2.0], ">f4"), 13))
    (tmp_path / "b").write_bytes(idx(np.array([[300], [-2]], ">i2"), 11))
    assert read_idx(tmp_path / "a").tolist() == [1.5, -2.0]
    assert read_idx(tmp_path / "b").tolist() == [[300], [-2]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", b"", "is no IDX file"),
        ("a", b"\0\0\x08\x03\0\0", "is cut short"),
        ("a", idx(PICTURES)[:-1], "has 63 bytes of content, not 64"),
        ("a", b"\0\0\x07\x01\0\0\0\0", "is no IDX file"),
        ("a.gz", b"no gzip", "is no whole gzip file"),
        ("a.gz", gzip.compress(idx(PICTURES), mtime=0)[:-9], "is no whole gzip file"),
    ],
    ids=["empty", "a cut head", "a cut end", "another magic number", "no gzip", "a cut gzip"],
)
def test_a_damaged_idx_file_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} {message}"):
        read_idx(tmp_path / name)


def cifar100(root):
    folder = root / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("apple\nbaby\nbear\n")
    records = np.zeros((4, 3074), np.uint8)
    records[:, 0], records[:, 1] = 9, [2, 0, 1, 2]
    records[:, 2:] = np.arange(4)[:, None]
    (folder / "train.bin").write_bytes(records.tobytes())
    (folder / "test.bin").write_bytes(records[:1].tobytes())
    return folder


def test_cifar100_has_the_fine_labels(tmp_path):
    cifar100(tmp_path)
    found = load_images("cifar100", [tmp_path])
    assert (found.classes, found.shape) == (("apple", "baby", "bear"), (3, 32, 32))
    assert found.labels.tolist() == [2, 0, 1, 2]
    assert found.images[:, 0].tolist() == found.images[:, 3071].tolist() == [0, 1, 2, 3]
    assert found.test_labels.tolist() == [2]


def test_a_damaged_cifar100_is_named(tmp_path):
    folder = cifar100(tmp_path)
    (folder / "test.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"test.bin has 1 bytes, no multiple of 3,074"):
        load_images("cifar100", [tmp_path])
    (folder / "test.bin").write_bytes(b"\xff" * 3074)
    with pytest.raises(UserError, match=r"test.bin has labels of 3 and above"):
        load_images("cifar100", [tmp_path])


def test_another_archive_than_the_official_one_is_refused(tmp_path):
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"tar.gz is not the official archive"):
        load_images("cifar100", [tmp_path])


def picture(path, value, mode="L", size=(3, 2)):
    pillow = pytest.importorskip("PIL.Image")
    path.parent.mkdir(exist_ok=True)
    pillow.new(mode, size, value).save(path)


def test_a_folder_of_grey_images(tmp_path):
    picture(tmp_path / "dog" / "b.png", 20)
    picture(tmp_path / "cat" / "a.png", 10)
    picture(tmp_path / "dog" / "a.png", 15)
    found = read_image_folder(tmp_path)
    assert (found.classes, found.shape) == (("cat", "dog"), (1, 2, 3))
    assert found.labels.tolist() == [0, 1, 1]
    assert found.images.tolist() == [[10] * 6, [15] * 6, [20] * 6]


def test_colours_are_planes(tmp_path):
    picture(tmp_path / "a" / "x.png", (1, 2, 3), "RGB")
    picture(tmp_path / "b" / "x.png", 9)
    found = read_image_folder(tmp_path)
    assert found.shape == (3, 2, 3)
    assert found.images.tolist() == [[1] * 6 + [2] * 6 + [3] * 6, [9] * 18]


def test_images_of_two_sizes_are_named(tmp_path):
    picture(tmp_path / "a" / "x.png", 1)
    picture(tmp_path / "b" / "y.png", 1, size=(4, 2))
    with pytest.raises(UserError, match=r"y.png is 4 x 2 pixels and .*x.png is 3 x 2"):
        read_image_folder(tmp_path)


def test_what_is_no_folder_of_images(tmp_path):
    pytest.importorskip("PIL.Image")
    with pytest.raises(UserError, match="has 0 folders"):
        read_image_folder(tmp_path)
    picture(tmp_path / "a" / "x.png", 1)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b has no images"):
        read_image_folder(tmp_path)
    (tmp_path / "b" / "y.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"y.png cannot be read as an image"):
        read_image_folder(tmp_path)


def test_a_set_of_images_is_a_data_set_to_train_on(mnist):
    found = load_dataset("mnist", mnist.parent)
    assert (found.name, found.synthetic, len(found.classes)) == ("mnist", False, 10)
    assert found.images.shape == (3, 1, 4, 4)
    parts = split_dataset(found, "50/50/0", "official")
    assert parts.test.labels.tolist() == [7, 0]
    assert parts.train.images.tolist() == [list(range(16))]


@pytest.mark.parametrize(
    ("images_", "labels"),
    [
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.uint8)),
        (np.zeros((3, 1 << 31, 0), np.uint8), np.zeros(3, np.uint8)),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, ">f4")),
        (np.zeros((3, 4, 4), np.uint8), np.full(3, -1, np.int8)),
    ],
)
def test_idx_files_that_are_no_labelled_images(images_, labels, tmp_path):
    codes = {"uint8": 8, "int8": 9, "float32": 13}
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in images.IDX_SETS["mnist"].md5:
        array = images_ if "images" in name else labels
        (folder / name).write_bytes(idx(array, codes[array.dtype.name]))
    with pytest.raises(UserError, match=r"mnist (does not hold images and as|has labels below 0)"):
        load_images("mnist", [tmp_path])


@pytest.mark.parametrize("names", [b"\xff\xfe", b"a\na\n", b"a\n" * 300])
def test_names_that_are_none(names, tmp_path):
    (tmp_path / "fine_label_names.txt").write_bytes(names)
    (tmp_path / "train.bin").write_bytes(bytes(3074))
    with pytest.raises(UserError, match=r"names\.txt does not hold the names of the classes"):
        load_images("cifar100", [tmp_path])
