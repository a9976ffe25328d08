"""Read the weights of a two-layer network from files of several makes."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmlp.data.arrays import read_arrays
from fastmlp.data.pickles import ArrayStandIn, DTypeStandIn
from fastmlp.ops.checks import FLOATING
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import read_bytes
from fastmlp.utils.formats import load_tensors

NAMES = ("w1", "b1", "w2", "b2")
WRAPPERS = ("params", "state_dict", "model_state_dict")
"""Under which names the weights lie in a larger dict."""

_ARRAY_PARTS: list[Any] = [
    (DTypeStandIn, "numpy.dtype"),
    (ArrayStandIn, "numpy.ndarray"),
    *(
        (lambda *_: ArrayStandIn(), f"numpy.{core}.multiarray._reconstruct")
        for core in ("core", "_core")
    ),
    (lambda text, _: text.encode("latin1"), "_codecs.encode"),  # bytes, to protocol 2
]
"""What an array pickles as, and what a file gets for it."""
REAL = (*FLOATING, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The dtypes of weights."""
CALLS = (
    *("numpy dtype", "_codecs encode"),
    *("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"),
)
"""What of it is called."""


def read_weights(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return w1 (D, H), b1 (H,), w2 (H, C) and b2 (C,) from a file, as tensors on the CPU.

    It holds them under these names or with a capital letter, perhaps inside ``{"params": ...}`` or
    another of :data:`WRAPPERS`, as tensors or NumPy arrays (also an .npz file), biases
    also (1, H); or it is the state dict of an ``nn.Sequential`` or an MLP of that shape, whose
    weights are transposed. ``shapes`` are what is wanted. Code in a file is never run. Raises
    OSError for a missing file and ValueError for another content.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass the file of a model, such as model.pt")
    try:
        data = read_bytes(path)
    except UserError as error:
        raise ValueError(str(error)) from error
    try:
        loaded = _unpacked(path, data)
    except Exception as error:  # damaged bytes make unpickling raise anything
        raise ValueError(
            f"{path} is damaged or no file of weights; such a file is written by torch.save of a "
            "dict of tensors or of a state_dict(), not of a whole model"
        ) from error
    found = _by_name(loaded)
    got = {n: () if value is None else tuple(value.shape) for n, value in found.items()}
    if got != dict(shapes):
        held = got if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise ValueError(f"{path} does not fit: expected {dict(shapes)}, got {held}")
    for name, value in found.items():
        if value is not None and not value.float().isfinite().all():
            raise ValueError(
                f"{path}: {name} has numbers that are not finite in float32; load another file, "
                "the network that it holds has diverged"
            )
    return found


def _unpacked(path: Path, data: bytes) -> Any:
    """Return the arrays of an .npz file, or what ``torch.save`` wrote."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        return read_arrays(path)
    with torch.serialization.safe_globals(_ARRAY_PARTS):
        return load_tensors(data, CALLS)


def _by_name(loaded: Any) -> dict[str, Tensor | None]:
    """Return the weights by our names, None for what is no tensor; other names as they are."""
    for _ in WRAPPERS:  # a dict may hold itself
        if not isinstance(loaded, Mapping):
            break
        inner = [loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping):
        return {}
    values = {str(name): _tensor(value) for name, value in loaded.items()}
    endings = [name.rpartition(".")[2] for name in values]
    if endings == ["weight", "bias", "weight", "bias"]:
        tensors = values.values()
        turned = (t.t() if t is not None and t.dim() == 2 else t for t in tensors)
        return dict(zip(NAMES, turned, strict=True))
    lower = {name.lower(): value for name, value in values.items()}
    if set(lower) != set(NAMES) or len(values) != len(NAMES):
        return values
    for name in ("b1", "b2"):
        bias = lower[name]
        if bias is not None and bias.dim() == 2 and len(bias) == 1:
            lower[name] = bias[0]
    return {name: lower[name] for name in NAMES}


def _tensor(value: Any) -> Tensor | None:
    """Return a dense tensor or an array, of real numbers, as a tensor; None for anything else."""
    if isinstance(value, ArrayStandIn):
        value = value.content
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        native = value.astype(value.dtype.newbyteorder("="), order="C")  # torch takes no other
        return torch.from_numpy(native)
    real = isinstance(value, Tensor) and value.dtype in REAL and value.layout == torch.strided
    return value if real and not value.is_nested else None
