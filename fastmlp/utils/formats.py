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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.untrusted import reason

DIGEST = "sha256"
_MARK = b"fastmlp sha256 "
Parsed = TypeVar("Parsed")


class DamagedFileError(UserError):
    """A file does not hold what was written to it."""


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Return an object as JSON (UTF-8), with its digest."""
    values = dict(values)
    return (json.dumps(values | {DIGEST: _digest(values)}, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, without its digest.

    Raises :class:`DamagedFileError` where the digest differs, or it is no object, and
    :class:`UserError` where it cannot be read. A file without a digest is taken as it is.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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
        return path.read_bytes() == json_bytes(read_json(path))
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
    data = path.read_bytes()  # torch.load itself raises an OSError for a file cut short
    content, digest = data[:-64], data[-64:]
    if content.endswith(_MARK) and hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedFileError(f"{path} is damaged: its {DIGEST} differs")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises any, by the byte that is wrong
        raise DamagedFileError(f"{path} is damaged") from error


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
