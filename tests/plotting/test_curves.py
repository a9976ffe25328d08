"""The learning curves: what is drawn, not how it looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.tiny import tiny_data

from fastmlp.engines.metrics import EpochRecord
from fastmlp.plotting.curves import TRAIN, VALIDATION, learning_curves
from fastmlp.training.api import fit
from fastmlp.training.config import TrainConfig


def history(epochs: int) -> list[EpochRecord]:
    return [
        EpochRecord(i, 2.0 / i, 0.3 + i / 100, 2.5 / i, 0.2 + i / 100, 0.1, 1.0, 100.0)
        for i in range(1, epochs + 1)
    ]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they are saved."""
    saved: list[Figure] = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: object, **kwargs: object) -> None:
        saved.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_both_curves_and_the_best_epoch(epochs: int, tmp_path: Path, figures: list[Figure]) -> None:
    best = max(1, epochs // 2)
    records = history(epochs)
    learning_curves(records, best, "a title", tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").shape[:2] == (630, 1500)
    loss, accuracy = figures[0].axes
    for axes, kind in ((loss, "loss"), (accuracy, "acc")):
        train, validation, line, ring = axes.lines
        assert train.get_color() == TRAIN
        assert validation.get_color() == VALIDATION
        np.testing.assert_array_equal(train.get_xdata(), np.arange(1, epochs + 1))
        for curve, part in ((train, "train"), (validation, "val")):
            want = [getattr(record, f"{part}_{kind}") for record in records]
            np.testing.assert_array_equal(curve.get_ydata(), want)
        assert set(line.get_xdata()) == {best}
        assert ring.get_xydata().tolist() == [[best, getattr(records[best - 1], f"val_{kind}")]]
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel()
        assert f"best epoch, {best}: " in axes.get_legend().get_texts()[2].get_text()
    assert figures[0].get_suptitle() == "a title"
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("title", ["r_$lr_$bs", "$", "a\\b_{c}", "\udcff"])
def test_any_folder_name_is_a_title(title: str, tmp_path: Path) -> None:
    learning_curves(history(1), 1, title, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_the_summary_is_there_where_the_picture_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("cannot draw")

    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        fit(TrainConfig(hidden=(4,), epochs=1), tiny_data(), out=tmp_path)
    assert (tmp_path / "summary.json").exists()
