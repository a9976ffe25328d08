"""The data set and the loaders of the course."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.course import pictures

from fastmlp.data import dataset as datasets
from fastmlp.data.transforms import make_normalization
from fastmlp.manual import Dataloader, Dataset, load_data


def numbered(n: int) -> Dataset:
    """Images (n, 4, 4, 3) uint8 that hold their numbers, which are their labels, too."""
    labels = np.arange(n)
    return Dataset(labels[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3).astype("u1"),
                   labels)  # fmt: skip


def test_load_data_gives_arrays_as_imshow_takes_them(monkeypatch):
    small = datasets.Dataset(
        *("tiny", "memory", False, ("cat", "dog")),
        *(torch.arange(2 * 12, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([1, 0])),
        *(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([0])),
    )
    monkeypatch.setattr("fastmlp.manual.loader.load_dataset", lambda name, folder: small)
    images, labels, classes = load_data()
    assert (images.shape, images.dtype, images.flags.c_contiguous) == ((2, 2, 2, 3), np.uint8, True)
    assert images[0, 1, 0].tolist() == [2, 6, 10]  # red, green, blue of one pixel
    assert (labels.tolist(), classes) == ([1, 0], ["cat", "dog"])


def test_real_images_are_found(cifar10_dir, monkeypatch):
    monkeypatch.setenv("FASTMLP_DATA", str(cifar10_dir))
    images, labels, classes = load_data()
    assert images.shape == (50000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [5000] * 10
    assert classes == list(datasets.CIFAR10_CLASSES)


def test_without_data_and_network_the_synthetic_set_takes_its_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("FASTMLP_CIFAR10_URL", "http://127.0.0.1:9/x/cifar-10-binary.tar.gz")
    monkeypatch.setattr(datasets.synthetic, "generate", lambda n, seed: (
        np.zeros((n, 3, 32, 32), np.uint8), np.arange(n) % 10))  # fmt: skip
    images, labels, classes = load_data()
    assert (images.shape, labels.shape, len(classes)) == ((50000, 32, 32, 3), (50000,), 10)
    assert "synthetic" in capsys.readouterr().err


def test_a_data_set_keeps_its_images():
    images, labels = (t.numpy() for t in pictures(5))
    data = Dataset(images, labels)
    assert len(data) == 5
    image, label = data[3]
    assert np.array_equal(image, images[3])
    assert label == labels[3]
    with pytest.raises(IndexError):
        data[5]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "images and labels must be as many, got 3 and 2"),
        (np.zeros((2, 2), int), [0, 1], "images must be uint8, .* got int64"),
        (np.zeros(2), [0, 1], r"images must be \(n, ...\), one row for each, got shape \(2,\)"),
        (np.zeros((2, 2)), [0.5, 1], r"labels must be \(n,\) integers, .*float64"),
        (np.zeros((2, 2)), [[0.5], [1]], r"labels must be \(n,\) integers, .*float64"),
        (np.zeros((2, 2)), ["a", "b"], r"labels must be \(n,\) integers"),
    ],
)
def test_a_data_set_refuses_what_is_none(images, labels, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Dataset(images, labels)


def test_by_default_every_image_comes_once_and_the_last_batch_may_be_small():
    loader = Dataloader(numbered(23), batch_size=5)
    for _ in range(2):
        assert len(loader) == 5
        assert [len(labels) for _, labels in loader] == [5, 5, 5, 5, 3]
        assert sorted(np.concatenate([labels for _, labels in loader])) == list(range(23))
        for images, labels in loader:
            assert images.shape == (len(labels), 48)
            assert images.dtype == np.float32
            assert np.allclose(images, labels[:, None] / 255, rtol=1e-6)
        before = loader.indices.tolist()
        loader.shuffle()
        assert loader.indices.tolist() != before
    assert loader[0][0].shape[0] == 5
    assert loader[-1][1].tolist() == loader[4][1].tolist()
    assert len(Dataloader(numbered(23))[0][0]) == 23  # a default, cut to what there is


def test_the_sliding_window_is_the_courses():
    loader = Dataloader(numbered(23), batch_size=5, window="sliding")
    for _ in range(2):
        assert len(loader) == 4
        for i, (images, labels) in enumerate(loader):
            assert labels.tolist() == loader.indices[i : i + 5].tolist()
            assert np.allclose(images[:, 0] * 255, labels)
        joined = np.concatenate([labels for _, labels in loader])
        assert loader.rows().tolist() == joined.tolist()
        loader.shuffle()
    assert len(Dataloader(numbered(3), batch_size=5, window="sliding")[0][1]) == 3


def test_a_loop_over_a_loader_ends_and_numbers_beyond_it_are_refused():
    for window in ("disjoint", "sliding"):
        loader = Dataloader(numbered(23), 5, window=window)
        for number in (len(loader), -len(loader) - 1):
            with pytest.raises(IndexError, match=f"batch {number} does not exist"):
                loader[number]


def test_a_pair_of_arrays_is_a_data_set():
    images, labels = pictures(7)
    wanted = Dataloader(Dataset(images, labels), 4)
    tensors = torch.utils.data.TensorDataset(images, labels)
    for pair in ((images, labels), [images.numpy(), labels.numpy()], tensors):
        loader = Dataloader(pair, 4)
        assert isinstance(loader.dataset, Dataset)
        for mine, theirs in zip(loader[1], wanted[1], strict=True):
            assert np.array_equal(mine, theirs)


def test_arrays_of_another_byte_order_are_taken():
    images, labels = (t.numpy() for t in pictures(7))
    foreign = Dataset((images / 255).astype(">f4"), labels.astype(">i4"))
    for mine, theirs in zip(
        foreign[:], Dataset((images / 255).astype("<f4"), labels)[:], strict=True
    ):
        assert mine.dtype.isnative
        assert np.array_equal(mine, theirs)


def test_labels_in_a_column_and_images_of_bfloat16_are_taken():
    for column in (np.array([[2], [0]]), torch.tensor([[2], [0]], dtype=torch.uint8)):
        data = Dataset(torch.tensor([[0.5, 1], [0.25, 0]], dtype=torch.bfloat16), column)
        assert data.labels.tolist() == [2, 0]
        assert data.images.tolist() == [[0.5, 1], [0.25, 0]]


def test_floating_point_images_that_reach_255_get_a_warning(recwarn):
    images = numbered(9).images
    with pytest.warns(UserWarning, match="these reach 8: divide them by 255, or pass uint8"):
        Dataset(images.astype(np.float32), np.arange(9))
    recwarn.clear()
    for fine in (images, images / 255, images - 4.0, images / 3.3):
        Dataloader(Dataset(fine, np.arange(9)))
    assert not recwarn.list


@pytest.mark.parametrize(
    "indices",
    [list(range(23))[::-1], np.arange(23)[::-1], torch.arange(22, -1, -1), np.arange(-1, -24, -1)],
    ids=["list", "reversed view", "tensor", "negative"],
)
def test_a_student_may_set_the_order(indices):
    loader = Dataloader(numbered(23), batch_size=5)
    loader.indices = indices
    assert loader.rows().tolist() == list(range(23))[::-1]
    assert loader[1][1].tolist() == [17, 16, 15, 14, 13]


def test_an_order_that_reaches_too_far_or_is_empty_is_told():
    loader = Dataloader(numbered(3), 2)
    loader.indices = np.array([0, 3])
    with pytest.raises(IndexError, match="3 is out of bounds"):
        loader.rows()
    loader.indices = []
    assert len(loader) == 0


def test_images_are_scaled_as_an_engine_scales_them():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(64, 2, 2, 3)
    rows = torch.from_numpy(images).flatten(1)
    wanted = make_normalization("unit", rows).apply(rows)
    batch = torch.from_numpy(Dataloader(Dataset(images, np.zeros(64, int)), 64)[0][0])
    assert torch.equal(batch, wanted)
    assert (batch.min(), batch.max()) == (0, 1)


def test_items_of_another_data_set_are_stacked():
    class Own:
        def __len__(self) -> int:
            return 7

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return np.full((2, 2, 3), i, np.uint8), i

    images, labels = Dataloader(Own(), 4)[1]
    assert (images.shape, labels.tolist()) == ((3, 12), [4, 5, 6])
    assert np.allclose(images * 255, labels[:, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"window": "moving"}, "window must be one of disjoint, sliding, got 'moving'"),
        ({"dataset": []}, "dataset must have images, got none"),
        ({"dataset": 5}, "dataset must be a Dataset.* got int"),
        ({"dataset": np.zeros((5, 2))}, "dataset must be a Dataset.* got ndarray"),
        ({"batch_size": np.arange(5)}, "batch_size must be an integer >= 1, got ndarray"),
    ],
)
def test_a_loader_refuses_what_cannot_be_meant(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Dataloader(**{"dataset": numbered(5), **options})
