"""What is drawn on the pictures of a network and of a sweep, not how it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from fastmlp.engines.metrics import EpochRecord
from fastmlp.plotting.images import confusion_picture, mistakes_picture, weights_picture
from fastmlp.plotting.style import LINES
from fastmlp.plotting.sweeps import NAMED, SweepPoint, sweep_picture

NAMES = ("cat", "dog", r"s_hip $\frac{$")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they are saved; at a low resolution, which is quicker."""
    saved: list[Figure] = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: object, **kwargs: object) -> None:
        saved.append(self)
        assert kwargs.pop("dpi") == 150
        savefig(self, *args, **kwargs, dpi=20)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def points_of(container: Any) -> list[list[float]]:
    """Places and means of error bars."""
    return [[float(x), float(y)] for x, y in zip(*container.lines[0].get_data(), strict=True)]


def history(accuracy: float, epochs: int = 3) -> list[EpochRecord]:
    """It ends at ``accuracy`` in validation and 0.1 above that in training."""
    return [
        EpochRecord(i, 2.0, accuracy + 0.1, 2.5, accuracy - 0.01 * (epochs - i), 0.1, 1.0, 100.0)
        for i in range(1, epochs + 1)
    ]


def test_confusion_is_in_per_cent_of_each_true_class(tmp_path: Path, figures: list[Figure]) -> None:
    counts = torch.tensor([[3, 1, 0], [0, 10, 10], [0, 0, 0]])
    confusion_picture(counts, NAMES, "a title", tmp_path / "c.png")
    matrix, bars = figures[0].axes
    np.testing.assert_allclose(
        matrix.images[0].get_array(), [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 0]]
    )
    texts = [text.get_text() for text in matrix.texts]
    assert texts == ["75", "25", "0", "0", "50", "50", "0", "0", "0"]
    names = [name.replace("$", r"\$") for name in NAMES]  # no formula
    assert [label.get_text() for label in matrix.get_yticklabels()] == names
    assert [label.get_text() for label in matrix.get_xticklabels()] == names
    assert (matrix.get_ylabel(), matrix.get_xlabel()) == ("true class", "taken for")
    assert [bar.get_width() for bar in bars.patches] == [0.75, 0.5, 0]
    assert imread(tmp_path / "c.png").size


def test_weights_of_the_units_with_the_largest_norm(tmp_path: Path, figures: list[Figure]) -> None:
    weight = torch.zeros(5, 12)
    weight[1, 4] = -3  # of plane 1, row 0, column 0
    weight[3] = torch.linspace(-1, 0.5, 12)
    weight[4, 0] = 0.5
    weights_picture(weight, (3, 2, 2), tmp_path / "w.png", count=2)
    first, second = (axes.images[0].get_array() for axes in figures[0].axes)
    want = np.full((2, 2, 3), 0.5)
    want[0, 0, 1] = 0
    np.testing.assert_allclose(first, want)
    assert (second.min(), second.max()) == (0, 0.75)  # scaled by its own largest, 0 is grey
    assert "2 of 5" in figures[0].get_suptitle()


def test_weights_that_are_all_zero_are_grey(tmp_path: Path, figures: list[Figure]) -> None:
    weights_picture(torch.zeros(1, 4), (1, 2, 2), tmp_path / "w.png")
    np.testing.assert_array_equal(figures[0].axes[0].images[0].get_array(), 0.5)


def test_mistakes_are_the_surest_first(tmp_path: Path, figures: list[Figure]) -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None].repeat(1, 12) * 60
    labels = torch.tensor([0, 0, 1, 2])
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.7], [0.99, 0, 0.01], [0.9, 0.05, 0.05], [0, 0.6, 0.4]]
    )
    mistakes_picture(images, labels, probabilities, (3, 2, 2), NAMES, tmp_path / "m.png", count=2)
    titles = [axes.get_title() for axes in figures[0].axes if axes.images]
    assert titles == ["cat, 90.0%?\nno: dog", f"{NAMES[2]}, 70.0%?\nno: cat"]
    np.testing.assert_allclose(figures[0].axes[0].images[0].get_array(), 120 / 255)


def test_a_network_without_mistakes(tmp_path: Path, figures: list[Figure]) -> None:
    images, labels = torch.zeros(2, 12, dtype=torch.uint8), torch.tensor([0, 1])
    mistakes_picture(images, labels, torch.eye(3)[:2], (3, 2, 2), NAMES, tmp_path / "m.png")
    assert not any(axes.images for axes in figures[0].axes)


def test_a_sweep_shows_means_deviations_and_every_curve(
    tmp_path: Path, figures: list[Figure]
) -> None:
    points = [
        SweepPoint(1e-2, [history(0.5), history(0.54)]),
        SweepPoint(1e-4, [history(0.2), history(0.3)]),
        SweepPoint(1e-3, [history(0.4), history(0.4)]),
    ]
    sweep_picture("lr", points, tmp_path / "s.png", "a recipe")
    final, curves = figures[0].axes
    validation, training = final.containers
    np.testing.assert_allclose(points_of(validation), [[1e-4, 0.25], [1e-3, 0.4], [1e-2, 0.52]])
    np.testing.assert_allclose([y for _, y in points_of(training)], [0.35, 0.5, 0.62])
    deviations = [
        segment[1, 1] - segment[0, 1] for segment in validation.lines[2][0].get_segments()
    ]
    np.testing.assert_allclose(
        deviations, 2 * np.array([0.1 / 2**0.5, 0, 0.04 / 2**0.5]), atol=1e-9
    )
    assert final.get_xscale() == "log"
    assert final.get_xlabel() == "lr"
    assert [tick.get_text() for tick in final.get_xticklabels()] == ["0.01", "0.0001", "0.001"]
    assert "2 runs" in final.get_title()
    by_colour = {line.get_color(): line for line in curves.lines if line.get_linestyle() == "-"}
    np.testing.assert_allclose(by_colour[LINES[0]].get_ydata(), [0.5, 0.51, 0.52])
    np.testing.assert_allclose(by_colour[LINES[1]].get_ydata(), [0.23, 0.24, 0.25])
    names = {text.get_text(): text.get_color() for text in curves.texts}
    assert names["0.01"] == LINES[0]
    assert names["0.0001"] == LINES[1]


@pytest.mark.parametrize(
    ("values", "places", "scale", "ticks"),
    [
        ((8, 16, 100), [8, 16, 100], "log", ["8", "16", "100"]),
        ((1.0, 0.95, 0.9), [0.9, 0.95, 1.0], "linear", ["1", "0.95", "0.9"]),
        (("256", "512,256"), [0, 1], "linear", ["256", "512,256"]),
        ((0, 100), [0, 100], "linear", ["0", "100"]),
    ],
)
def test_values_stand_where_they_should(
    values: tuple[float | str, ...],
    places: list[float],
    scale: str,
    ticks: list[str],
    tmp_path: Path,
    figures: list[Figure],
) -> None:
    points = [SweepPoint(value, [history(0.4)]) for value in values]
    sweep_picture("x", points, tmp_path / "s.png")
    final = figures[0].axes[0]
    assert [x for x, _ in points_of(final.containers[0])] == places
    assert final.get_xscale() == scale
    assert [tick.get_text() for tick in final.get_xticklabels()] == ticks


def test_what_diverged_is_marked_and_counts_in_no_mean(
    tmp_path: Path, figures: list[Figure]
) -> None:
    points = [
        SweepPoint(1.0, [[], history(0.9, epochs=2), history(0.4)]),
        SweepPoint(10.0, [[], [], []], ended="stopped"),
        SweepPoint(0.1, [history(0.3), history(0.3), history(0.3)]),
    ]
    sweep_picture("lr", points, tmp_path / "s.png")
    final, curves = figures[0].axes
    np.testing.assert_allclose(points_of(final.containers[0]), [[0.1, 0.3], [1, 0.4]])
    texts = [text.get_text() for text in final.texts]
    assert texts == ["2 of 3\ndiverged", "3 of 3\nstopped"]
    crosses = [line.get_xydata().tolist() for line in curves.lines if line.get_marker() == "x"]
    assert crosses == [[[2, 0.9]]]


def test_epochs_as_the_swept_value_are_not_taken_for_divergence(
    tmp_path: Path, figures: list[Figure]
) -> None:
    points = [SweepPoint(n, [history(0.1 * n, epochs=n)]) for n in (1, 2, 4)]
    sweep_picture("epochs", points, tmp_path / "s.png")
    assert not figures[0].axes[0].texts
    bars = figures[0].axes[0].containers[0]
    np.testing.assert_allclose(points_of(bars), [[1, 0.1], [2, 0.2], [4, 0.4]])


@pytest.mark.parametrize("count", [1, 30])
def test_any_number_of_values_can_be_drawn(
    count: int, tmp_path: Path, figures: list[Figure]
) -> None:
    points = [SweepPoint(1e-4 * 1.3**i, [history(0.3 + 0.01 * i)]) for i in range(count)]
    sweep_picture("lr", points, tmp_path / "s.png")
    named = [text.get_text() for text in figures[0].axes[1].texts]
    assert len(named) == min(count, NAMED)
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_a_sweep_where_all_diverged_and_one_without_values(tmp_path: Path) -> None:
    sweep_picture("lr", [SweepPoint(1.0, [[], []])], tmp_path / "s.png")
    assert (tmp_path / "s.png").exists()
    with pytest.raises(ValueError, match="at least one value"):
        sweep_picture("lr", [], tmp_path / "s.png")


def test_names_at_the_ends_of_lines_stand_apart(tmp_path: Path, figures: list[Figure]) -> None:
    points = [SweepPoint(value, [history(0.4)]) for value in (1, 2, 3, 4)]
    sweep_picture("n", points, tmp_path / "s.png")
    axes = figures[0].axes[1]
    heights = sorted(text.xyann[1] for text in axes.texts if hasattr(text, "xyann"))
    low, high = axes.get_ylim()
    assert len(heights) == 4
    assert min(np.diff(heights)) >= 0.05 * (high - low)
