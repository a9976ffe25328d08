"""How a report is run: what its callback is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.small_set import no_drawings, small_set

from fastmlp.data.splits import split_dataset
from fastmlp.report import figures
from fastmlp.report.experiments import Budget, studies
from fastmlp.report.runner import Stopped, run_report
from fastmlp.utils.files import write_bytes
from fastmlp.utils.formats import json_bytes, read_json, tensor_bytes


class Record:
    """Keeps what it is told; stops the run after ``limit`` epochs."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.start: tuple[int, int, float] | None = None
        self.epochs: list[tuple[str, int, int, float]] = []
        self.drawings = 0

    def on_start(self, cached: int, parts: int, share: float) -> None:
        self.start = (cached, parts, share)

    def on_epoch(self, part: str, epoch: int, epochs: int, share: float) -> None:
        self.epochs.append((part, epoch, epochs, share))

    def on_drawing(self) -> None:
        self.drawings += 1

    def stopped(self) -> bool:
        return len(self.epochs) >= self.limit


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Record], None]:
    monkeypatch.setattr(figures, "drawings", no_drawings)
    dataset = small_set()
    plan = studies({"device": "cpu", "threads": 1}, Budget(2, 1, 2, 1, 1, 1, 2, 2))

    def run(record: Record) -> None:
        run_report(
            plan, dataset, split_dataset(dataset), tmp_path / "out", True, record, record.stopped
        )

    return run


def test_shares_grow_from_what_is_cached_to_all(run: Callable[[Record], None]) -> None:
    first = Record(limit=5)
    with pytest.raises(Stopped):
        run(first)
    assert first.start == (0, 6, 0.0)
    assert first.drawings == 0
    second = Record()
    run(second)
    assert second.start is not None
    cached, parts, share = second.start
    assert (cached, parts) == (2, 6)
    assert share == pytest.approx(first.epochs[3][3])  # two parts of two epochs
    shares = [share, *(epoch[3] for epoch in second.epochs)]
    assert shares == sorted(shares)
    assert len(set(shares)) == len(shares)
    assert shares[-1] == pytest.approx(1)
    title = "the network done right, seed 1"
    assert [epoch[:3] for epoch in second.epochs[-2:]] == [(title, 1, 2), (title, 2, 2)]
    assert second.drawings == 1
    third = Record()
    run(third)
    assert third.start == (6, 6, pytest.approx(1))
    assert third.epochs == []


def test_a_part_that_somebody_changed_is_trained_again(
    run: Callable[[Record], None], tmp_path: Path
) -> None:
    """Its digest fits, its values do not."""
    run(Record())
    parts = tmp_path / "out" / "parts"
    (sweep,), network = parts.glob("sweep-course-seed0-*"), sorted(parts.glob("network-*.pt"))[0]
    values = read_json(sweep)
    values.pop("sha256", None)
    for change in (
        lambda outcome: outcome.update(seed=1),
        lambda outcome: outcome.update(test_loss=10**400),
        lambda outcome: outcome.update(test_accuracy=None),
        lambda outcome: outcome["history"]["val_acc"].__setitem__(0, "\x1b[2J"),
        lambda outcome: outcome["history"].pop("lr"),
    ):
        changed = copy.deepcopy(values)
        change(changed["outcomes"]["base"])
        write_bytes(sweep, json_bytes(changed))
        write_bytes(network, tensor_bytes({"0.weight": torch.zeros(2, 3)}))
        again = Record()
        run(again)
        assert again.start is not None
        assert again.start[:2] == (4, 6), change
    final = Record()
    run(final)
    assert final.start == (6, 6, pytest.approx(1))
