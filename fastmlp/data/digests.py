"""Check sums of unpacked files, which show when they are read that they have changed.

They lie beside the files, in a ``SHA256SUMS`` as ``sha256sum`` writes and checks it. Folders that
something else unpacked have none, and are read as they are: ``sha256sum * > SHA256SUMS`` makes one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp.utils.errors import UserError

SUMS = "SHA256SUMS"
"""The file of a folder's digests."""
LARGEST = 1 << 20
"""Bytes of it."""


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of ``folder`` by name, {} where it has no record of them.

    Raises UserError where the record is none.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        lines = file.read(LARGEST).decode("utf-8", "replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if len(sums) != len(lines):
        raise UserError(
            f"{path} is damaged: its lines must be a SHA-256 and a name, as sha256sum writes them;"
            " delete it to read the files unchecked."
        )
    return sums


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the record of a folder that nobody uses yet."""
    with open(folder / SUMS, "x", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sums.items())
        file.flush()
        os.fsync(file.fileno())


def check_sum(path: Path, content: Any, sums: Mapping[str, str]) -> None:
    """Raise UserError where ``content``, the bytes of the file at ``path`` in any buffer, is not
    what ``sums`` says; a file that they do not name is not checked."""
    wanted = sums.get(path.name)
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
        raise UserError(
            f"{path} has changed since its SHA-256 was taken (it is another than in {SUMS});"
            " replace it, or move its folder away and run again to have it anew."
        )
