"""The project's own files: a bit that flipped is noticed, and the rest reads as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastmlp.utils.errors import UserError
from fastmlp.utils.formats import (
    DamagedFileError,
    has_digest,
    json_bytes,
    read_json,
    read_tensors,
    tensor_bytes,
)

VALUES = {"lr": 0.1, "hidden": [3, 4], "name": "a b", "none": None}


def flipped(data: bytes, step: int) -> list[bytes]:
    """Copies of ``data``, each with one other bit, every ``step`` bits."""
    copies = []
    for bit in range(0, 8 * len(data), step):
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        copies.append(bytes(copy))
    return copies


def test_a_flipped_bit_in_json(tmp_path: Path) -> None:
    path, refused = tmp_path / "a.json", 0
    path.write_bytes(json_bytes(VALUES))
    assert read_json(path) == VALUES
    assert has_digest(path)
    for data in flipped(path.read_bytes(), 1):
        path.write_bytes(data)
        assert not has_digest(path)
        try:
            found = read_json(path)
        except DamagedFileError:
            refused += 1
        else:  # white space, or the name of the digest
            assert {key: found[key] for key in VALUES} == VALUES
    assert refused > 0.85 * 8 * len(json_bytes(VALUES))


def test_a_flipped_bit_in_tensors(tmp_path: Path) -> None:
    path, refused = tmp_path / "a.pt", 0
    values = {"weight": torch.randn(3, 4), "numbers": [1, 2.5]}
    data = tensor_bytes(values)
    copies = flipped(data, 5)
    for copy in copies:
        path.write_bytes(copy)
        try:
            found = read_tensors(path)
        except DamagedFileError:
            refused += 1
        else:  # the mark before the digest
            assert torch.equal(found["weight"], values["weight"])
            assert found["numbers"] == values["numbers"]
    assert refused > 0.98 * len(copies)


def test_torch_reads_what_we_write_and_the_other_way_round(tmp_path: Path) -> None:
    values = {"weight": torch.randn(300, 40)}
    (tmp_path / "ours.pt").write_bytes(tensor_bytes(values))
    torch.save(values, tmp_path / "torch.pt")
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mmap)
        assert torch.equal(loaded["weight"], values["weight"])
    assert torch.equal(read_tensors(tmp_path / "torch.pt")["weight"], values["weight"])


def test_a_file_that_the_user_edited(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(json_bytes(VALUES).replace(b"0.1", b"0.3"))
    with pytest.raises(UserError, match='if you edited it, remove the line "sha256"'):
        read_json(path)
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps(values))
    assert read_json(path)["lr"] == 0.3
    assert not has_digest(path)
