"""The formats of the project's own files, JSON and tensors, whose content is checked when read.

A JSON file ends in ``"sha256"``, the digest of all else in it. A file of tensors is what
:func:`torch.save` writes, a zip archive, whose comment is the digest of all before it;
:func:`torch.load` takes it like any other.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.files import read_bytes
from fastmlp.utils.pickled import check_pickle
from fastmlp.utils.untrusted import reason

DIGEST = "sha256"
LARGEST_JSON = 1 << 25
"""Bytes of a JSON file: reading one takes up to forty times as much memory."""
_MARK = b"fastmlp sha256 "
Parsed = TypeVar("Parsed")


class DamagedFileError(UserError):
    """A file does not hold what was written to it."""


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Return an object as JSON (UTF-8), with its digest; raise :class:`UserError` where that is
    longer than :data:`LARGEST_JSON`."""
    values = dict(values)
    data = (json.dumps(values | {DIGEST: _digest(values)}, indent=2) + "\n").encode()
    if len(data) > LARGEST_JSON:  # which could not be read again
        raise UserError(
            f"The names of all columns and categories take {len(data):,} bytes, more than the "
            f"{LARGEST_JSON:,} that are kept; leave columns out, or pass the rows as an array"
        )
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, without its digest.

    Raises :class:`DamagedFileError` where the digest differs, or it is no object, and
    :class:`UserError` where it cannot be read. A file without a digest is taken as it is.
    """
    try:
        values = json.loads(read_bytes(path, LARGEST_JSON).decode())
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON or too deep
        raise DamagedFileError(f"{path} is damaged: {reason(error)}") from error
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} is damaged: it does not hold a JSON object")
    if values.pop(DIGEST, None) not in (None, _digest(values)):
        raise DamagedFileError(
            f'{path} is damaged: its {DIGEST} differs; if you edited it, remove the line "{DIGEST}"'
        )
    return values


def has_digest(path: Path) -> bool:
    """Return whether a file is JSON as :func:`json_bytes` wrote it."""
    try:
        return read_bytes(path, LARGEST_JSON) == json_bytes(read_json(path))
    except (OSError, UserError):
        return False


def tensor_bytes(value: object) -> bytes:
    """Return what :func:`torch.save` writes, with its digest; in memory, because on a full disk it
    raises errors that do not say so."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    archive = buffer.getbuffer()[:-2]  # without the length of the comment, which was 0
    content = b"".join((archive, struct.pack("<H", len(_MARK) + 64), _MARK))
    return content + hashlib.sha256(content).hexdigest().encode()


def read_tensors(path: Path) -> Any:
    """Return what :func:`torch.save` wrote to a file, on the CPU; code in it is never run.

    Raises OSError where it cannot be read and :class:`DamagedFileError` where the digest differs or
    it is no such file. A file without a digest is taken as it is.
    """
    data = read_bytes(path)  # torch.load itself raises an OSError for a file cut short
    content, digest = data[:-64], data[-64:]
    if content.endswith(_MARK) and hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedFileError(f"{path} is damaged: its {DIGEST} differs")
    try:
        return load_tensors(data)
    except Exception as error:  # torch's unpickler raises any, by the byte that is wrong
        raise DamagedFileError(f"{path} is damaged") from error


def load_tensors(data: bytes, calls: Collection[str] = ()) -> Any:
    """Return what :func:`torch.save` wrote, as :func:`torch.load` reads it, on the CPU; code in it
    is never run, and nothing called but what makes tensors of the file's numbers, and ``calls``
    (:func:`~fastmlp.utils.pickled.check_pickle`). Raises any exception where it is damaged.

    It takes a small multiple of the memory of ``data``: neither the format of PyTorch before 1.6,
    nor compressed parts, nor tensors of more numbers than there are in memory.
    """
    names: set[str] = set()
    packed = io.BytesIO()  # anew, so that PyTorch's reader cannot take it for another archive
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(packed, "w") as checked:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError("torch.save compresses nothing")
            content = archive.read(part)
            if part.filename.endswith(".pkl"):
                check_pickle(content, calls)
            if part.filename in names:
                raise ValueError("it has two parts of one name")
            names.add(part.filename)
            checked.writestr(part.filename, content)
    packed.seek(0)
    value = torch.load(packed, map_location="cpu", weights_only=True)
    for tensor in _tensors_in(value):
        if tensor.device.type != "cpu":
            raise ValueError(f"a tensor is on {tensor.device}")
        if tensor.layout == torch.strided and not tensor.is_nested:
            size = tensor.numel() * tensor.element_size()
            if size > tensor.untyped_storage().nbytes():
                raise ValueError("a tensor has more numbers than there are")
    return value


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dicts, lists and tuples, which may hold themselves; of dicts
    nothing but their items is kept."""
    seen: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, OrderedDict):
            vars(value).clear()  # attributes, which could stand in for its methods
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left += dict.values(value) if isinstance(value, dict) else value


def parse_tensors(path: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    """Return what ``parse`` makes of the content of a file, see :func:`read_tensors`.

    Raises :class:`DamagedFileError` also where ``parse`` raises TypeError or ValueError, and
    :class:`UserError` where the file is missing or cannot be read.
    """
    try:
        return parse(read_tensors(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {reason(error)}") from error


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
