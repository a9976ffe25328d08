"""Offer the data of the course as NumPy arrays, and loaders of its batches."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmlp.data.dataset import load_dataset
from fastmlp.data.sampling import sliding_rows
from fastmlp.manual.layers import class_indices, torchable
from fastmlp.manual.overrides import unchanged, watched

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


@watched("__getitem__", "__len__")
class Dataset:
    """Images and their labels, kept as they are.

    ``images`` (n, ...) are uint8 from 0 to 255 or floating point from 0 to 1, ``labels`` (n,)
    integers, also (n, 1), or one-hot (n, C); NumPy arrays, tensors or lists. ``ds[i]`` is (image,
    label); a slice or an array of indices gives several. Raises ValueError or TypeError for
    anything else; floating-point images that look like 0 to 255 get a warning.
    """

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = checked_arrays(images, labels)
        _warn_of_large(self.images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        """Return the image and the label of an index, or those of several."""
        return self.images[index], self.labels[index]


def checked_arrays(images: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images (n, ...) and labels (n,) as arrays; raise ValueError or TypeError where they
    are not what :class:`Dataset` takes."""
    images, labels = _array(images), _one_column(_array(labels))
    if images.ndim < 2:
        raise ValueError(f"images must be (n, ...), one row for each, got shape {images.shape}")
    _check_dtype(images.dtype)
    if labels.ndim == 2:
        hot = torch.from_numpy(labels)
        labels = class_indices(hot, tuple(hot.shape)).numpy()
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise TypeError(
            "labels must be (n,) integers, the classes, or one-hot (n, C), got "
            f"{labels.shape} {labels.dtype}; whole numbers become so by labels.astype(int)"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels must be as many, got {len(images)} and {len(labels)}; cut both at "
            "the same places"
        )
    return images, labels


def _array(values: Any) -> NDArray[Any]:
    """Return a contiguous array that may be written to, a view where ``values`` is one."""
    if isinstance(values, Tensor):
        values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has none
        values = values.detach().cpu().numpy()
    return torchable(np.ascontiguousarray(values))


def _one_column(labels: Any) -> Any:
    """Return labels (n, 1), an array or a tensor, as (n,): compared with predictions (n,) a column
    makes (n, n). Others stay as they are."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _warn_of_large(images: NDArray[Any]) -> None:
    """Warn of floating-point images whose first ones are whole numbers from 0 to more than 1."""
    first = images[:100]
    whole = first.dtype.kind == "f" and first.size > 0 and np.array_equal(first, first.round())
    if whole and first.min() >= 0 and first.max() > 1:
        warnings.warn(
            "floating-point images are taken as they are, and should be from 0 to 1; these reach "
            f"{first.max():g}: divide them by 255, or pass uint8",
            UserWarning,
            stacklevel=3,
        )


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8 and dtype.kind != "f":
        raise TypeError(
            f"images must be uint8, from 0 to 255, or floating point, from 0 to 1, got {dtype}; "
            "try images.astype(np.uint8)"
        )


def scaled(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return images (B, ...) as rows (B, D) of float32: uint8 from 0 to 255 become 0 to 1 by one
    product, as the engines have it; floating point stays as it is. Raises TypeError for others."""
    _check_dtype(images.dtype)
    rows = images.reshape(len(images), -1).astype(np.float32)
    return rows * np.float32(1 / 255) if images.dtype == np.uint8 else rows


@watched("__getitem__", "__len__", "__iter__", "rows")
class Dataloader:
    """The batches of a data set, by number: ``dl[i]`` is images (B, D) float32 and labels (B,).

    With the window ``disjoint`` every image is in one batch, the last of which may be smaller. The
    window ``sliding`` is the course's own loader: item i is ``indices[i : i + B]`` for i below
    n // B, so neighbours share all images but one and most images are in none. ``dataset`` is a
    :class:`Dataset`, a pair (images, labels) or anything with a length whose items are (image,
    label). :meth:`shuffle` draws a new order, which ``seed`` decides; before it, images come in
    their own. Raises ValueError for a batch size below 1, another window, or no images, and
    TypeError for what is no data set.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = BATCH_SIZE,
        *,
        window: str = "disjoint",
        seed: int = 0,
    ) -> None:
        dataset = _as_dataset(dataset)
        try:
            size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)
        except TypeError:
            size = 0
        if size < 1:
            got = repr(batch_size) if np.ndim(batch_size) == 0 else type(batch_size).__name__
            raise ValueError(f"batch_size must be an integer >= 1, got {got}")
        if window not in WINDOWS:
            raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window!r}")
        if len(dataset) == 0:
            raise ValueError("dataset must have images, got none")
        self.dataset, self.batch_size, self.window = dataset, size, window
        self.indices = np.arange(len(dataset))
        self._random = np.random.default_rng(seed)

    def shuffle(self) -> None:
        """Put the images into a new random order."""
        self.indices = self._random.permutation(len(self.dataset))

    def __len__(self) -> int:
        """Return the number of batches."""
        images = len(self.indices)
        size = max(1, min(self.batch_size, images))
        return images // size if self.window == "sliding" else -(-images // size)

    def rows(self) -> Tensor:
        """Return the images of all batches, one batch after another, as indices int64.

        ``indices`` may be replaced by any others; raises IndexError where they reach too far."""
        chosen = np.asarray(self.indices, np.int64)
        indices = torch.from_numpy(np.arange(len(self.dataset))[chosen])  # negative ones too
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


def _as_dataset(data: Any) -> Any:
    """Return a data set: a :class:`Dataset` of a pair (images, labels) of arrays or of a
    ``TensorDataset`` of both, or what has a length and items itself; raise TypeError for others."""
    if _is_pair(data):
        return Dataset(*data)
    if isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) == 2:
        return Dataset(*data.tensors)
    has_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if hasattr(data, "shape") or isinstance(data, str) or not has_items:
        raise TypeError(
            "dataset must be a Dataset(images, labels) or have a length and items (image, label), "
            f"got {type(data).__name__}"
        )
    return data


def _is_pair(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and hasattr(data[0], "shape")


def plain_dataset(dataset: Any) -> bool:
    """Return whether it is a :class:`Dataset` with nothing overridden."""
    return unchanged(dataset, Dataset)


def plain_loader(loader: Any) -> bool:
    """Return whether it is a :class:`Dataloader` with nothing overridden, over such a data set."""
    return unchanged(loader, Dataloader) and plain_dataset(loader.dataset)


def as_loader(data: Any, batch_size: int = BATCH_SIZE) -> Any:
    """Return a loader of ``data``: itself, or of a pair (images, labels) of arrays, of a
    :class:`Dataset` or of a ``torch.utils.data.Dataset``, a :class:`Dataloader` of batches of this
    size. Raises TypeError for what has no batches."""
    sets = (Dataset, torch.utils.data.Dataset)
    if _is_pair(data) or (isinstance(data, sets) and hasattr(data, "__len__")):
        return Dataloader(data, batch_size)
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


def length_of(loader: Any) -> int:
    """Return the number of batches of a loader; 0 where it does not know."""
    try:
        return len(loader)
    except TypeError:
        return 0


def checked_batch(batch: Any, number: int, like: Tensor) -> tuple[Tensor, Any]:
    """Return images (N, D) and labels of a batch of any loader, both on the device of ``like``, the
    images in its dtype and integer labels as int64.

    Raises TypeError or ValueError for what is no batch, or an empty one.
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
    if not isinstance(labels, Tensor):
        if labels.dtype.kind not in "iubf":
            raise TypeError(
                f"labels must be integers, the classes, or one-hot, got {labels.dtype} in batch "
                f"{number}"
            )
        labels = torch.from_numpy(labels)
    # int64: uint8 is a mask where it is an index, and PyTorch compares no uint16
    labels = _one_column(labels if labels.is_floating_point() else labels.long())
    return images.flatten(1).to(like.device, like.dtype), labels.to(like.device)
