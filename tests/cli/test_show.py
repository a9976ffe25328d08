"""The commands ``show`` and ``compare`` say what the runs' folders hold."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny import stop_after, tiny_data

import fastmlp
from fastmlp.cli import compare, find_lr, show
from fastmlp.plotting import comparison
from fastmlp.training.api import fit
from fastmlp.training.config import TrainConfig
from fastmlp.training.run_reader import read_run
from fastmlp.utils.errors import UserError
from fastmlp.utils.formats import json_bytes, read_json

DATA = tiny_data()
CONFIG = TrainConfig(
    hidden=(4,), batch_size=30, epochs=5, lr=0.05, device="cpu", threads=1, engine="reference"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a run ``a``, of ``b``, which was stopped, and of ``sub/a``, a wider one."""
    folder = tmp_path_factory.mktemp("runs")
    fit(CONFIG, DATA, out=folder / "a")
    fit(replace(CONFIG, lr=1e-4), DATA, out=folder / "b", should_stop=stop_after(12))
    fit(replace(CONFIG, hidden=(8, 5)), DATA, out=folder / "sub" / "a")
    return folder


def test_a_run_is_read_as_it_was(runs: Path) -> None:
    with open(runs / "a" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    run = read_run(runs / "a")
    assert [str(record.val_loss) for record in run.history] == [row["val_loss"] for row in rows]
    assert run.best.epoch == run.summary["best"]["epoch"]
    assert run.state == "finished"
    assert read_run(runs / "b").state == "3/5 epochs"


def test_show(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([str(runs / "a")]) == 0
    out = capsys.readouterr().out
    summary = read_json(runs / "a" / "summary.json")
    best = summary["best"]
    assert f"best     epoch {best['epoch']}: validation loss {best['val_loss']:.4f}" in out
    assert f"accuracy {summary['test_accuracy']:.2%}, with the parameters" in out
    assert "++ training   xx validation" in out  # no colours, so signs
    assert show.main([str(runs / "b")]) == 0
    assert ", 3/5 epochs" in capsys.readouterr().out
    assert show.main(["--json", str(runs / "a")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"folder": str(runs / "a"), **summary}


def test_compare(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = [str(runs / name) for name in ("b", "a", "sub/a")]
    assert compare.main([*folders, "--out", str(tmp_path / "c.png")]) == 0
    out = capsys.readouterr().out
    header = re.findall(r"[a-z]+", next(line for line in out.splitlines() if " run " in line))
    assert header == ["run", "hidden", "lr", "best", "at", "test", "training", "state"]
    table = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│ ")][:3]
    found = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in table}
    assert set(found) == {"a", "b", "sub/a"}
    assert found["b"][:2] == ["4", "0.0001"]
    assert found["b"][-1] == "3/5 epochs"
    assert found["sub/a"][0] == "8-5"
    best = [float(cells[2].rstrip("%")) for cells in found.values()]
    assert best == sorted(best, reverse=True)
    assert best[0] == pytest.approx(
        100 * max(read_run(folder).best.val_acc for folder in folders), abs=0.01
    )
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_a_regression_is_compared_by_its_loss(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    fastmlp.fit(x, x[:, 0] * 1.5, epochs=2, out=tmp_path / "r", engine="reference")
    assert compare.main([str(tmp_path / "r")]) == 0
    assert f"{read_run(tmp_path / 'r').best.val_loss:.4g}" in capsys.readouterr().out
    assert show.main([str(tmp_path / "r")]) == 0
    assert "loss by epoch" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"Some of these runs are regressions \(r\), the others are not"
    ):
        compare.main([str(tmp_path / "r"), str(runs / "a")])


def test_the_picture_has_a_line_for_each_run(runs: Path) -> None:
    histories = {name: read_run(runs / name).history for name in ("a", "b")}
    figure = comparison.compare_runs(histories)
    loss, accuracy = figure.axes
    for axes, kind in ((loss, "loss"), (accuracy, "acc")):
        whole, dashed = axes.lines[2:4]
        assert list(whole.get_ydata()) == [getattr(r, f"val_{kind}") for r in histories["b"]]
        assert list(dashed.get_ydata()) == [getattr(r, f"train_{kind}") for r in histories["b"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_mistakes_are_one_sentence(runs: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((runs / "a" / "config.json").read_text())
    for text, words in (
        (None, "metrics.csv does not exist"),
        ("epoch,train_loss\n1,2\n", "metrics.csv is damaged: epoch 1 does not hold"),
    ):
        if text is not None:
            (damaged / "metrics.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            show.main([str(damaged)])
    with pytest.raises(
        UserError, match=r"runs.* is not the folder of a run: it has no config.json"
    ):
        compare.main([str(runs)])
    with pytest.raises(UserError, match="has no summary yet: 3/5 epochs are done"):
        show.main(["--json", str(runs / "b")])


def test_what_a_strangers_run_says_clears_no_screen(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(runs / "a", tmp_path / "a"))
    for name, changed in (
        ("summary.json", {"source": "\x1b[2J\nx" * 100_000}),
        ("config.json", {"dataset": "\x1b]0;title\x07\n" * 100_000}),
    ):
        content = read_json(folder / name)
        (folder / name).write_bytes(json_bytes({**content, **changed}))
    other = Path(shutil.copytree(runs / "a", tmp_path / "\x1b[2J"))
    for main, argv in (
        (show.main, [str(folder)]),
        (show.main, [str(other)]),
        (compare.main, [str(folder), str(other)]),
    ):
        assert main(argv) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "\x07" not in said
        assert len(max(said.splitlines(), key=len)) < 700


def test_a_picture_takes_the_place_of_nothing_else(runs: Path) -> None:
    before = (runs / "a" / "config.json").read_bytes()
    for name in ("config.json", "best.pt", "table.csv", ""):
        with pytest.raises(UserError, match=r"--out must end in \.png, \.pdf or \.svg, got"):
            compare.main([str(runs / "a"), "--out", str(runs / "a" / name)])
        with pytest.raises(UserError, match=r"--out must end in \.png, \.pdf or \.svg, got"):
            find_lr.main(["--dataset", "synthetic", "--out", str(runs / "a" / name)])
    assert (runs / "a" / "config.json").read_bytes() == before


def test_what_is_no_run_is_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match=r"is not the folder of a run: .*; it is left out"):
        assert compare.main([str(tmp_path), str(runs / "a"), str(runs)]) == 0
    assert capsys.readouterr().out.startswith("1 run, ")
    with pytest.raises(UserError, match="is not the folder of a run"):
        compare.main([str(tmp_path)])
