"""The README and the pages in docs/: links, files that they name, figures, code."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import fastmlp

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import pictures
import tables

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 950


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_pictures_are_small_and_load_nothing() -> None:
    found = [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]
    assert len(found) > 4
    for picture in found:
        assert picture.stat().st_size < 150_000, picture.name
        if picture.suffix == ".svg":
            assert "url(http" not in picture.read_text(encoding="utf-8").replace('"', "")


def test_every_page_and_notebook_is_two_clicks_away() -> None:
    """In the navigation, and those for users on the first page, too."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    notebooks = [f"notebooks/{p.stem}.md" for p in (ROOT / "examples").glob("*.ipynb")]
    notebooks.remove("notebooks/course.zh-TW.md")  # which the other language links to
    lost = [page for page in (*pages, *notebooks) if f": {page}\n" not in navigation]
    assert lost == []
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    ours = re.findall(r"^      - [^:]+: ([\w/-]+)\.md$", navigation.partition("How it")[0], re.M)
    assert len(ours) > 10
    for name in ours:
        target = f"../examples/{name[10:]}.ipynb" if name.startswith("notebooks/") else f"{name}.md"
        assert f"]({target})" in first, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:fastmlp|csrc|tests|benchmarks|docs|examples)/[\w./-]*)`",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_architecture_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `([\w./]+\.\w+)` \| `(\w+)` \|", page, re.M)
    assert len(found) > 15
    for file, name in found:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), (file, name)


def test_tables_and_pictures_show_the_results() -> None:
    filled = tables.make_tables()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text, filled) == text, page.name
    assert pictures.out_of_date() == []


def test_the_readmes_example_prints_what_stands_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fastmlp.TrainConfig(dataset="synthetic", hidden=(8,), epochs=2, split="2/1/97")
    monkeypatch.setattr(fastmlp, "TrainConfig", lambda: config)
    exec(blocks(README, "python")[0], {})
    printed, shown = capsys.readouterr().out, blocks(README, "text")[0]
    assert re.sub(r"[\d.]+", "N", printed) == re.sub(r"[\d.]+", "N", shown)


def assert_mlflow_was_told(calls: list[Any], run: fastmlp.training.run.RunResult) -> None:
    """The run's options, three epochs and its network, and that it is over."""
    epochs = ["log_metrics"] * 3
    assert [call[0] for call in calls] == [
        *("start_run", "log_params", *epochs, "log_artifact", "end_run"),
    ]
    assert calls[1].args[0]["epochs"] == 3
    for call, record in zip(calls[2:5], run.history, strict=True):
        losses = {"train_loss": record.train_loss, "val_loss": record.val_loss}
        assert (call.args, call.kwargs) == ((losses,), {"step": record.epoch})
    saved = torch.load(calls[5].args[0], weights_only=True)
    assert set(saved) == set(run.best_parameters)
    assert all(torch.equal(saved[name], run.best_parameters[name]) for name in saved)


def test_the_page_on_callbacks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = types.ModuleType("mlflow")
    calls = Mock()
    for name in ("start_run", "log_params", "log_metrics", "log_artifact", "end_run"):
        setattr(told, name, getattr(calls, name))
    monkeypatch.setitem(sys.modules, "mlflow", told)
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(60, 3))
    names = {"X": rows, "y": rows[:, 0] > 0}
    pytest.importorskip("tensorboard")
    for code in blocks(ROOT / "docs" / "callbacks.md", "python"):
        exec(code, names)
        if "import mlflow" in code:
            assert_mlflow_was_told(calls.mock_calls, names["run"])
    assert len(calls.mock_calls) == 7
    assert len(list((tmp_path / "best").iterdir())) == 3
    assert (tmp_path / "lr.png").exists()


def test_the_pages_on_layers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.zeros((50, 32, 32, 3), np.uint8), np.arange(50) % 10, list("abcdefghij")
    monkeypatch.setattr("fastmlp.manual.load_data", lambda: few)
    monkeypatch.chdir(tmp_path)  # the page saves a model
    for code in blocks(ROOT / "docs" / "layers.md", "python"):
        exec(code, {})
