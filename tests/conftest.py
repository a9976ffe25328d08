"""Fixtures and marks that every test file shares."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastmlp import native_available, set_backend

# Started in the background, or by nohup, this process ignores signals that tests send, and so would
# the programs that they start; a handler is not handed on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads of several that wait for each other take many times as long.
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 1 << 30:
    # Runs in tests save thousands of small files; on a disk they mostly wait for it.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A GPU is not for several processes at once, nor are one or two files worth a second one."""
    files = [Path(argument.split("::")[0]).is_file() for argument in config.args]
    return 0 if torch.cuda.is_available() or (all(files) and len(files) <= 2) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that none is left for one process at the end. Where there is no
    GPU, a test marked ``cuda`` is skipped as one case: its others would only take time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU")
    kept, skipped = [], set()
    for item in items:
        if item.get_closest_marker("cuda"):  # its keywords hold folder names too
            test = item.nodeid.partition("[")[0]
            if test in skipped:
                continue
            skipped.add(test)
            item.add_marker(skip)
        kept.append(item)
    items[:] = kept


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random inputs are the same in every run."""
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    """The layers run our kernels, also where their default would take PyTorch's operators as the
    quicker ones, which tests/nn/test_backend_choice.py is about."""
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
