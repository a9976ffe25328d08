"""Fixtures and marks that every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``cuda`` are skipped where there is no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("cuda"):  # its keywords hold folder names too
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random inputs are the same in every run."""
    torch.manual_seed(20)


@pytest.fixture
def threads() -> object:
    """Calls ``threads(n)`` to set torch's thread count; it is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder that $FASTMLP_DATA names, where it holds the real CIFAR-10; else a skip."""
    folder = Path(os.environ.get("FASTMLP_DATA", ""))
    if not (folder / "cifar-10-batches-bin" / "data_batch_1.bin").is_file():
        pytest.skip("FASTMLP_DATA does not hold CIFAR-10")
    return folder
