"""Offer the data of the course as NumPy arrays, and loaders of its batches."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmlp.data.dataset import load_dataset
from fastmlp.data.sampling import sliding_rows
from fastmlp.manual.layers import class_indices

WINDOWS = ("disjoint", "sliding")
BATCH_SIZE = 100
"""Images in a batch where no number is given."""

Batch: TypeAlias = tuple[NDArray[np.float32], NDArray[Any]]


def load_data(
    data_dir: str | os.PathLike[str] | None = None, *, dataset: str = "auto"
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Return the training images of CIFAR-10, (50000, 32, 32, 3) uint8 as ``plt.imshow`` takes
    them, their labels (50000,) and the names of the classes.

    They are found or downloaded as :func:`fastmlp.data.dataset.load_dataset` says, which also lists
    the values of ``dataset``; without data and network the built-in synthetic set takes their
    place, with a warning.
    """
    found = load_dataset(dataset, data_dir)
    images = found.images.permute(0, 2, 3, 1).contiguous().numpy()
    return images, found.labels.numpy(), list(found.classes)


class Dataset:
    """Images and their labels, kept as they are.

    ``images`` (n, ...) are uint8 from 0 to 255 or floating point from 0 to 1, ``labels`` (n,)
    integers or one-hot (n, C); NumPy arrays, tensors or lists. ``ds[i]`` is (image, label); a slice
    or an array of indices gives several. Raises ValueError or TypeError for anything else.
    """

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = _array(images), _array(labels)
        if self.images.ndim < 2:
            raise ValueError(
                f"images must be (n, ...), one row for each, got shape {self.images.shape}"
            )
        _check_dtype(self.images.dtype)
        if self.labels.ndim == 2:
            hot = torch.from_numpy(self.labels)
            self.labels = class_indices(hot, tuple(hot.shape)).numpy()
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iub":
            raise TypeError(
                "labels must be (n,) integers, the classes, or one-hot (n, C), got "
                f"{self.labels.shape} {self.labels.dtype}"
            )
        if len(self.images) != len(self.labels):
            raise ValueError(
                "images and labels must be as many, got "
                f"{len(self.images)} and {len(self.labels)}; cut both at the same places"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        """Return the image and the label of an index, or those of several."""
        return self.images[index], self.labels[index]


def _array(values: Any) -> NDArray[Any]:
    """Return a contiguous array that may be written to, a view where ``values`` is one."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array: NDArray[Any] = np.ascontiguousarray(values)
    return array if array.flags.writeable else array.copy()


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8 and dtype.kind != "f":
        raise TypeError(
            f"images must be uint8, from 0 to 255, or floating point, from 0 to 1, got {dtype}"
        )


def scaled(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return images (B, ...) as rows (B, D) of float32: uint8 from 0 to 255 become 0 to 1 by one
    product, as the engines have it; floating point stays as it is. Raises TypeError for others."""
    _check_dtype(images.dtype)
    rows = images.reshape(len(images), -1).astype(np.float32)
    return rows * np.float32(1 / 255) if images.dtype == np.uint8 else rows


class Dataloader:
    """The batches of a data set, by number: ``dl[i]`` is images (B, D) float32 and labels (B,).

    With the window ``disjoint`` every image is in one batch, the last of which may be smaller. The
    window ``sliding`` is the course's own loader: item i is ``indices[i : i + B]`` for i below
    n // B, so neighbours share all images but one and most images are in none. ``dataset`` is a
    :class:`Dataset` or anything with a length whose items are (image, label). :meth:`shuffle` draws
    a new order, which ``seed`` decides; before it, images come in their own. Raises ValueError for
    a batch size below 1, another window, or no images.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = BATCH_SIZE,
        *,
        window: str = "disjoint",
        seed: int = 0,
    ) -> None:
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
        if window not in WINDOWS:
            raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window!r}")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                "dataset must be a Dataset(images, labels) or have a length and items (image, "
                f"label), got {type(dataset).__name__}"
            )
        if len(dataset) == 0:
            raise ValueError("dataset must have images, got none")
        self.dataset, self.batch_size, self.window = dataset, operator.index(batch_size), window
        self.indices = np.arange(len(dataset))
        self._random = np.random.default_rng(seed)

    def shuffle(self) -> None:
        """Put the images into a new random order."""
        self.indices = self._random.permutation(len(self.dataset))

    def __len__(self) -> int:
        """Return the number of batches."""
        images, size = len(self.indices), min(self.batch_size, len(self.indices))
        return images // size if self.window == "sliding" else -(-images // size)

    def rows(self) -> Tensor:
        """Return the images of all batches, one batch after another, as indices int64."""
        indices = torch.from_numpy(self.indices)
        return sliding_rows(indices, self.batch_size) if self.window == "sliding" else indices

    def __getitem__(self, index: int) -> Batch:
        """Return batch number ``index``, a negative one from the end; raises IndexError beyond the
        last."""
        number, count = operator.index(index), len(self)
        if not -count <= number < count:
            raise IndexError(f"batch {number} does not exist: there are {count}, 0 to {count - 1}")
        number %= count
        start = number if self.window == "sliding" else number * self.batch_size
        chosen = self.indices[start : start + self.batch_size]
        if plain_dataset(self.dataset):
            images, labels = self.dataset[chosen]
            return scaled(images), labels
        items = [self.dataset[int(i)] for i in chosen]
        images = np.stack([_array(image) for image, _ in items])
        return scaled(images), np.stack([np.asarray(label) for _, label in items])

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches in order."""
        return (self[i] for i in range(len(self)))


def plain_dataset(dataset: Any) -> bool:
    """Return whether it is a :class:`Dataset` with nothing overridden."""
    return isinstance(dataset, Dataset) and _unchanged(dataset, Dataset, "__getitem__", "__len__")


def plain_loader(loader: Any) -> bool:
    """Return whether it is a :class:`Dataloader` with nothing overridden, over such a data set."""
    names = ("__getitem__", "__len__", "__iter__", "rows")
    plain = isinstance(loader, Dataloader) and _unchanged(loader, Dataloader, *names)
    return plain and plain_dataset(loader.dataset)


def _unchanged(thing: object, own: type, *names: str) -> bool:
    return all(
        getattr(type(thing), name) is getattr(own, name) and name not in vars(thing)
        for name in names
    )


def as_loader(data: Any) -> Any:
    """Return a loader of ``data``: itself, or of a pair (images, labels) of arrays, of a
    :class:`Dataset` or of a ``torch.utils.data.Dataset``, a :class:`Dataloader` of batches of
    :data:`BATCH_SIZE`. Raises TypeError for what has no batches."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and hasattr(data[0], "shape"):
        return Dataloader(Dataset(*data))
    if isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) == 2:
        return Dataloader(Dataset(*data.tensors))
    if isinstance(data, (Dataset, torch.utils.data.Dataset)) and hasattr(data, "__len__"):
        return Dataloader(data)
    if hasattr(data, "__iter__") or (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return data
    raise TypeError(
        "data must be a loader, a pair (images, labels) or a data set, got "
        f"{type(data).__name__}; try Dataloader(Dataset(images, labels))"
    )


def batches_of(loader: Any) -> Iterator[Any]:
    """Yield the batches of a loader. One without ``__iter__`` is asked for as many as its length
    says: Python would go on until an IndexError, which slicing never raises."""
    if hasattr(loader, "__iter__"):
        yield from loader
    else:
        for number in range(len(loader)):
            yield loader[number]


def checked_batch(batch: Any, number: int, like: Tensor) -> tuple[Tensor, Any]:
    """Return images (N, D) and labels of a batch of any loader, both on the device of ``like`` and
    the images in its dtype. Raises TypeError or ValueError for what is no batch, or an empty one.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            f"a loader must give (images, labels), got {type(batch).__name__} as batch {number}"
        )
    images, labels = (part if isinstance(part, Tensor) else _array(part) for part in batch)
    if images.ndim < 2 or labels.ndim < 1 or len(images) != len(labels):
        raise ValueError(
            f"batch {number} must be as many images as labels, got shapes {tuple(images.shape)} "
            f"and {tuple(labels.shape)}; wrap a data set of single images in Dataloader"
        )
    if len(images) == 0:
        raise ValueError(
            f"batch {number} is empty, and its mean loss would be nan; check the loader's length "
            "and the slices that it takes"
        )
    if not isinstance(images, Tensor):
        images = torch.from_numpy(images if images.dtype.kind == "f" else scaled(images))
    elif not images.is_floating_point():
        images = torch.from_numpy(scaled(images.cpu().numpy()))
    labels = labels if isinstance(labels, Tensor) else torch.from_numpy(labels)
    return images.flatten(1).to(like.device, like.dtype), labels.to(like.device)
