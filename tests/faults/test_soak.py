"""The same work again and again: memory stays flat, and the last result is the first, bit by bit.

``FASTMLP_FAULTS=all`` trains 20 seeds for 200 epochs, otherwise 4 for 3.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from support.figures import count
from support.marks import needs_native
from support.tiny import tiny_data

from fastmlp.nn import functional
from fastmlp.training.api import RunResult, fit
from fastmlp.training.config import TrainConfig

WHOLE = os.environ.get("FASTMLP_FAULTS") == "all"
SEEDS, EPOCHS, ROUNDS = (20, 200, 2000) if WHOLE else (4, 3, 60)
PAGE = os.sysconf("SC_PAGE_SIZE")
ALLOWED_GROWTH = 24 << 20
"""Bytes by which memory may grow after the third run: what allocators keep for themselves."""


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@needs_native
@pytest.mark.parametrize(
    "options",
    [{"batch_size": 8}, {"batch_size": 32, "optimizer": "adam", "dropout": 0.2}],
    ids=["blocked", "native"],
)
def test_runs_without_end(options: dict[str, object]) -> None:
    data = tiny_data(2000)

    def run(seed: int) -> RunResult:
        config = TrainConfig(hidden=(16,), epochs=EPOCHS, seed=seed, device="cpu", **options)  # type: ignore[arg-type]
        return fit(config, data)

    first, begin = run(0), 0
    for seed in range(1, SEEDS):
        run(seed)
        begin = resident() if seed == 2 else begin
    again = run(0)
    assert resident() - begin < ALLOWED_GROWTH
    assert [row.val_loss for row in again.history] == [row.val_loss for row in first.history]
    count(soaked_epochs=EPOCHS * (SEEDS + 1))


@needs_native
def test_operators_from_eight_threads_beside_other_work() -> None:
    """Every thread gets the bits that one alone gets, with both cores taken by others."""
    random = torch.Generator().manual_seed(0)
    cases = []
    for rows, inputs, outputs in ((8, 300, 40), (33, 64, 100), (200, 65, 10), (2, 700, 50)):
        x = torch.randn(rows, inputs, generator=random)
        w = torch.randn(outputs, inputs, generator=random)
        labels = torch.randint(outputs, (rows,), generator=random)
        cases.append((x, w, labels))

    def results() -> list[torch.Tensor]:
        found = []
        for x, w, labels in cases:
            leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
            y = functional.linear(*leaves, None, "relu", backend="native")
            loss = functional.cross_entropy(y, labels, backend="native")
            found += [y.detach(), *torch.autograd.grad(loss, leaves)]
        return found

    alone = results()
    differing = []

    def repeat(_: int) -> None:
        for _ in range(ROUNDS // 8):
            if not all(map(torch.equal, results(), alone)):
                differing.append(threading.get_ident())

    busy = [get_context("spawn").Process(target=_spin, daemon=True) for _ in range(2)]
    for process in busy:
        process.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(repeat, range(8)))
    finally:
        for process in busy:
            process.kill()
            process.join()
    assert not differing
    count(operator_calls_from_threads=ROUNDS // 8 * 8 * len(cases) * 4)


def _spin() -> None:
    while True:
        pass
