"""The report: what it says about figures made up here, and that all of them are in it."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from support.pages import Page
from support.small_set import PICTURES, TINY, small_set

from fastmlp.data.splits import split_dataset
from fastmlp.engines.metrics import EpochRecord
from fastmlp.nn.init import initial_parameters
from fastmlp.report.experiments import (
    ABLATION,
    BEST,
    FULL,
    SMALL_BATCH,
    SMALL_RATE,
    Budget,
    Outcome,
    Study,
    ablation_label,
    studies,
)
from fastmlp.report.figures import drawings
from fastmlp.report.html import Mark
from fastmlp.report.layer_checks import LayerCheck
from fastmlp.report.results import Material, make_results
from fastmlp.report.sections import in_short, make_report

RIGHT = LayerCheck("relu", "8 x 256", "dx", 1.0, 0.0, 0.0, 0.0)
WRONG = replace(RIGHT, layer="linear", error=0.1)


def outcome(seed: int, accuracy: float) -> Outcome:
    """It ends at ``accuracy`` in validation, 0.1 above in training, 0.01 below in the test."""
    values = ((1, accuracy + 0.02), (2, accuracy))
    history = [EpochRecord(e, 2.0, a + 0.1, 2.1, a, 0.1, 1.0, 10.0) for e, a in values]
    return Outcome(seed, history, accuracy - 0.01, 2.2, None)


def outcomes(study: Study, accuracies: dict[str, float]) -> dict[str, list[Outcome]]:
    """Each network as accurate as said, or 0.3; the seeds differ by 0.001."""
    return {
        name: [
            outcome(seed, accuracies.get(name, 0.3) + 0.001 * seed) for seed in range(study.seeds)
        ]
        for name in study.configs
    }


def material(budget: Budget = TINY, name: str = "cifar10", quick: bool = False) -> Material:
    """The course's conclusions hold with its recipe, but for the batch size, and none of them with
    the recipe corrected."""
    dataset = small_set(name=name)
    data = replace(split_dataset(dataset), source="a <b> `c`")
    plan = studies({}, budget)
    figures = {
        "sweep-course": {
            "lr 0.01": 0.5,
            "batch_size 100": 0.5,
            "hidden 256": 0.5,
            "lr_decay 1.0": 0.5,
        },
        "final": {BEST: 0.3549, SMALL_RATE: 0.2, SMALL_BATCH: 0.355},
        "ablation": {ablation_label(*row): 0.3 + 0.03 * i for i, row in enumerate(ABLATION)},
        "network": {"default": 0.55},
    }
    found = {study.name: outcomes(study, figures.get(study.name, {"base": 0.4})) for study in plan}
    seconds = {study.name: 1.0 for study in plan}
    return Material(data, plan, found, [RIGHT, WRONG], quick, seconds, {"device": "a <device>"})


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """Files that hold their own name in place of a picture."""
    found = {name: tmp_path / f"{name}.png" for name in PICTURES}
    for name, path in found.items():
        path.write_text(name)
    return found


def test_it_says_what_holds_and_what_does_not(pictures: dict[str, Path]) -> None:
    page = Page(make_report(material(replace(FULL, final_epochs=200)), pictures))
    text, rows = page.text, [" | ".join(row) for row in page.rows]
    assert (
        "Whether the course's 4 conclusions about hyper-parameters hold with the course's recipe: "
        "holds for 3, does not hold for 1."
    ) in text
    assert "hold with the recipe corrected: does not hold for 4." in text
    assert "holds With the course's recipe, 0.01 gives 50.10 ± 0.10 %, the next best" in text
    assert "does not hold With the course's recipe, 8 gives 30.10" in text
    assert "the best, 100, 50.10 ± 0.10 %: 20.00 points less" in text
    # the final training: 34.49 and a scatter of a tenth of a point
    assert any(
        row.startswith(f"{BEST} | test | 34.59 ± 0.10 % | 34.49 % | agrees | ") for row in rows
    )
    assert any(
        row.startswith(f"{SMALL_RATE} | test | 19.10 ± 0.10 % | 26.68 % | differs | ")
        for row in rows
    )
    assert f"{BEST}, last epoch | training | 45.59 ± 0.10 % | about 56 % |  | " in rows
    assert f"holds The course: learning rate 0.01 is better than 0.0001. Here, {BEST}" in text
    assert "within noise The course: batch 4 is better than batch 8." in text
    assert "1 of 2 results are right" in text
    assert "The usual initial weights: 35.05 ± 0.07 %, +6.00 points (initial weights alone)" in text
    assert "A loader that shows every image: 41.05 ± 0.07 %, +12.00 points (loader alone)" in text
    assert "validation, best epoch | 57.20 ± 0.16 %" in rows
    assert "validation, last epoch | 55.20 ± 0.16 %" in rows


def test_how_many_images_the_sliding_loader_shows(pictures: dict[str, Path]) -> None:
    text = Page(make_report(material(), pictures)).text
    assert "sees 14 of 60 images" in text  # 7 windows of 8
    assert "first 9 of 20" in text


def test_boxes_at_the_top_and_no_comparison_with_other_data_or_epochs(
    pictures: dict[str, Path],
) -> None:
    whole = Page(make_report(material(FULL), pictures))
    assert "aside" not in [tag for tag, _ in whole.tags]
    quick, other = material(quick=True), material(FULL, "synthetic", quick=True)
    page = Page(make_report(quick, pictures))
    assert [tag for tag, _ in page.tags].count("aside") == 1
    assert "A quick run" in page.text
    page = Page(make_report(other, pictures))
    main = [tag for tag, _ in page.tags].index("main")
    assert [tag for tag, _ in page.tags][main + 1 : main + 3] == ["h1", "aside"]
    assert "This is not CIFAR-10" in page.text
    for given in (quick, other):
        assert in_short(given)[0][0] == Mark("not comparable", "unsure")
    text = Page(make_report(material(), pictures)).text
    assert text.count("not comparable") == 4
    assert "2 epochs, not the course's 200" in text


def test_runs_that_diverged_are_told(pictures: dict[str, Path]) -> None:
    given = material(FULL)
    lost = Outcome(0, [], None, None, "The loss became nan")
    for study, network in (("sweep-course", "lr 0.01"), ("final", BEST), ("network", "default")):
        given.outcomes[study][network] = [lost, lost]
    todo = drawings(given, small_set(), None)
    page = make_report(given, {name: pictures[name] for name in todo})
    text = Page(page).text
    assert "0.01 diverged; the best is 0.001 with 30.10" in text
    assert f"{BEST} diverged." in text
    assert "reaches diverged" not in text
    assert make_results(given)["studies"]["final"]["networks"][BEST]["test_acc"] is None
    assert "network" not in todo


def test_words_from_outside_do_not_become_markup(pictures: dict[str, Path]) -> None:
    page = make_report(material(), pictures)
    assert "a &lt;device&gt;" in page
    assert "<code>a &lt;b&gt; `c`</code>" in page


def test_every_picture_is_shown_once_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, dpi=0, **k: savefig(self, *a, dpi=20, **k)
    )
    given = material(FULL)
    parameters = initial_parameters([3072, 256, 10], "kaiming", 0)
    todo = drawings(given, small_set(), parameters)
    pictures = {name: tmp_path / f"{name}.png" for name in todo}
    for name in ("classes", "sweep-course-lr", "confusion", "weights", "mistakes", "final"):
        todo[name](pictures[name])
        assert pictures[name].stat().st_size > 1000
    for name, path in pictures.items():
        path.write_text(name)
    images = [a for tag, a in Page(make_report(given, pictures)).tags if tag == "img"]
    shown = [b64decode(str(image["src"]).partition(",")[2]).decode() for image in images]
    assert sorted(shown) == sorted(todo)
    assert len(shown) == 14


def test_the_matrix_is_of_the_best_network(monkeypatch: pytest.MonkeyPatch) -> None:
    given = material()
    parameters = initial_parameters([3072, 256, 10], "kaiming", 0)
    parameters["2.weight"].zero_()
    parameters["2.bias"][3] = 1.0  # it takes everything for class 3
    seen = []
    monkeypatch.setattr("fastmlp.report.figures.confusion_picture", lambda *a: seen.append(a))
    drawings(given, small_set(), parameters)["confusion"](Path("c.png"))
    labels = given.data.test.labels
    want = torch.zeros(10, 10, dtype=torch.int64)
    want[:, 3] = torch.bincount(labels, minlength=10)
    assert torch.equal(seen[0][0], want)
    assert f"{int((labels == 3).sum()) / len(labels):.1%} of them recognised" in seen[0][2]


def test_results_hold_every_number() -> None:
    given = material()
    results = make_results(given)
    assert set(results["studies"]) == {study.name for study in given.studies}
    base = results["studies"]["sweep-course"]["networks"]["lr 0.01"]
    assert base["last_val_acc"]["mean"] == pytest.approx(0.5005)
    assert base["test_acc"]["mean"] == pytest.approx(0.4905)
    assert [run["history"]["val_acc"] for run in base["runs"]] == [[0.52, 0.5], [0.521, 0.501]]
    assert len(results["findings"]) == 10
    assert [check["passed"] for check in results["layer_checks"]] == [True, False]


def test_tables_are_as_wide_as_their_headers(pictures: dict[str, Path]) -> None:
    tables = Page(make_report(material(), pictures)).tables
    assert len(tables) == 10
    for header, *rows in tables:
        assert {len(row) for row in rows} == {len(header)}
