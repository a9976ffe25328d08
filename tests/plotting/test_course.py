"""The course's pictures: what is drawn, not how it looks."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from fastmlp.manual import plot_curves, plot_result
from fastmlp.plotting import style


def lines(figure: Figure, panel: int) -> dict[str, list[float]]:
    axes = figure.axes[panel]
    return {str(line.get_label()): list(np.asarray(line.get_ydata())) for line in axes.lines}


def test_results_by_epoch_with_the_lowest_validation_loss_marked(tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    figure = plot_result([3, 2, 1], [10, 50, 90], [3, 1, math.nan], [9, 30, 20], target=path)
    assert lines(figure, 0)["training"] == [3, 2, 1]
    assert lines(figure, 0)["best epoch, 2: 1"] == [1]
    assert lines(figure, 1)["validation"] == [9, 30, 20]
    assert lines(figure, 1)["best epoch, 2: 30.0%"] == [30]
    assert imread(path).shape == (4.2 * 150, 10 * 150, 4)
    without = plot_result([3, 2], [10, 50], [], [])
    assert list(lines(without, 1)) == ["training"]


def test_a_number_for_each_value_is_drawn_over_the_values() -> None:
    figure = plot_curves(np.array([0.01, 0.001, 0.1]), [50, 40, 30], [33, 34, 20], name="rate")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "rate")
    assert lines(figure, 0)["validation"] == [34, 33, 20]  # from the smallest value
    assert lines(figure, 0)["best, 0.001: 34.0%"] == [34]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.01", "0.001", "0.1"]


def test_tensors_are_written_as_their_numbers() -> None:
    figure = plot_curves(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 2]), [3, torch.tensor(4.0)])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0.5", "0.25"]
    assert figure.axes[0].lines[1].get_ydata().tolist() == [4, 3]


def test_logs_of_each_value_are_drawn_by_epoch() -> None:
    figure = plot_curves(["relu", "tanh"], [[1, 2], [3, 4]], [[5, 6], [7]])  # one ended early
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[1, 2], [3, 4]]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[5, 6], [7]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["relu", "tanh"]
    many = plot_curves(range(12), [[1, 2]] * 12, [[3, 4]] * 12)
    assert len({line.get_color() for line in many.axes[0].lines}) == 12


def test_logs_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"one length, at least 1, got .*'train_acc': 1"):
        plot_result([1, 2], [1], [], [])
    with pytest.raises(ValueError, match="train_loss must be a list of numbers, got float"):
        plot_result(1.0, [1], [], [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values must be a list, got float"):
        plot_curves(0.1, [40.0], [39.0])
    with pytest.raises(ValueError, match="valid_acc must be a list, got int"):
        plot_curves([0.1], [40.0], 39)
    with pytest.raises(ValueError, match=r"as many as values, got .*'valid_acc': 1"):
        plot_curves([1, 2], [1, 2], [1])


def test_a_notebook_shows_a_figure_once_in_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    shell = SimpleNamespace(execution_count=1, config={"IPKernelApp": {}})
    display = SimpleNamespace(display=shown.append, Image=lambda data: data)
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    figure = plot_result([1], [1], [1], [1])
    assert isinstance(figure, style.Picture)
    assert [data[:4] for data in shown] == [b"\x89PNG"]
    figure._ipython_display_()  # it is the value of the cell, too
    assert len(shown) == 1
    shell.execution_count = 2
    figure._ipython_display_()
    assert len(shown) == 2
