"""Fixtures and marks that every test file shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastmlp import native_available, set_backend

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads of several that wait for each other take many times as long.
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A GPU is not for several processes at once, and a single file is not worth a second one."""
    files = [argument for argument in config.args if Path(argument.split("::")[0]).is_file()]
    return 0 if torch.cuda.is_available() or 0 < len(files) <= 2 else None


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


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    """The layers run our kernels, also where their default would take PyTorch's operators as the
    quicker ones, which tests/nn/test_quickest.py is about."""
    if native_available():
        set_backend("native")
    yield
    set_backend(None)


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
