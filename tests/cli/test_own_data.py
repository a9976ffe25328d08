"""``train --data FILE --target COLUMN`` and ``predict``: from a file to predictions in a file."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny import assert_same_run

from fastmlp.cli.predict import main as predict
from fastmlp.cli.train import main as train
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import UserError

pd = pytest.importorskip("pandas")

QUICK = ["--epochs=12", "--hidden=16", "--batch-size=16", "--lr=0.02", "--threads=1"]
QUICK += ["--device=cpu"]


@pytest.fixture(autouse=True)
def people(monkeypatch, tmp_path):
    """A folder with people.csv and its rows."""
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(200, 3)), columns=["a", "b", "c"])
    frame["town"] = np.where(random.random(200) > 0.5, "Ulm", "Bonn")
    frame["income"] = 50 + 9 * frame["a"] + 6 * (frame["town"] == "Ulm")
    frame["rich"] = np.where(frame["income"] > 53, "yes", "no")
    frame.to_csv("people.csv", index=False)
    return frame


def test_a_classification_from_a_file_to_a_file(people, capsys):
    flags = ["--data=people.csv", "--target=rich", "--categories=town", "--drop=income,b"]
    assert train([*flags, "--out=run", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "\nValidation accuracy " in out
    assert " rows/s; " in out
    assert "images" not in out
    assert predict(["run", "--data", "people.csv", "--out", "out.csv"]) == 0
    out = pd.read_csv("out.csv")
    assert list(out.columns) == ["prediction", "p(no)", "p(yes)"]
    assert (out["prediction"] == people["rich"]).mean() > 0.9
    assert ((out["p(yes)"] > 0.5) == (out["prediction"] == "yes")).all()
    np.testing.assert_allclose(out["p(no)"] + out["p(yes)"], 1, atol=1e-5)
    assert predict(["run", "--data=people.csv", "--out=out.npy"]) == 0
    assert np.load("out.npy").tolist() == out["prediction"].tolist()


def test_a_regression_of_an_npy_pair(people):
    np.save("x.npy", people[["a", "b"]].to_numpy())
    np.save("y.npy", people["income"].to_numpy())
    assert train(["--data=x.npy", "--target=y.npy", "--out=run", *QUICK]) == 0
    assert predict(["run", "--data=x.npy", "--out=out.npy"]) == 0
    assert np.corrcoef(np.load("out.npy"), people["income"])[0, 1] > 0.9
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["config"]["loss"], summary["best"]["val_acc"]) == ("squared_error", None)


@pytest.mark.parametrize(
    "target", [["--target=income, size"], ["--target=income", "--target=size"]]
)
def test_several_targets_from_a_file_to_a_file(people, target):
    people["size"] = 3 - people["b"]
    people.drop(columns=["rich", "town"]).to_csv("train.csv", index=False)
    assert train(["--data=train.csv", *target, "--out=run", *QUICK, "--epochs=40"]) == 0
    assert predict(["run", "--data=people.csv", "--out=out.csv"]) == 0
    out = pd.read_csv("out.csv")
    assert list(out.columns) == ["income", "size"]
    assert all(np.corrcoef(out[name], people[name])[0, 1] > 0.9 for name in out.columns)
    assert train(["--resume=run"]) == 0
    assert predict(["run", "--data=people.csv", "--out=out.npy"]) == 0
    np.testing.assert_allclose(np.load("out.npy"), out.to_numpy())


def test_labels_and_a_column_with_a_comma_in_its_name(people):
    people["old, tall"] = np.where(people["a"] > 0, "so", "no")
    people["wide"] = (people["b"] > 0).astype(int)
    people.drop(columns=["income", "rich", "town"]).to_csv("train.csv", index=False)
    flags = ["--data=train.csv", "--target=old, tall", "--target=wide", "--out=run"]
    assert train([*flags, *QUICK]) == 0
    assert predict(["run", "--data=people.csv", "--out=out.csv"]) == 0
    out = pd.read_csv("out.csv")
    assert list(out.columns) == ["old, tall", "wide", "p(old, tall=so)", "p(wide=1)"]
    assert (out["old, tall"] == people["old, tall"]).mean() > 0.9
    assert ((out["p(wide=1)"] > 0.5) == out["wide"]).all()


@pytest.fixture
def pictures(tmp_path):
    """A folder with 30 images for each of three classes, which differ in a bright corner."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for i, name in enumerate(("cat", "dog", "eel")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, 100, (4, 6, 3), dtype=np.uint8)
            pixels[:2, 2 * i : 2 * i + 2] += 100
            image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number:02}.png")
    return tmp_path / "pictures"


def test_a_folder_of_images_to_predictions(pictures, monkeypatch):
    flags = ["--data=pictures", "--out=run", "--normalize=unit", *QUICK]
    assert train(flags) == 0
    config = RunDirectory("run").read_config()
    assert (config.dataset, config.normalize) == ("pictures", "unit")
    (pictures / "extra.png").write_bytes((pictures / "dog" / "00.png").read_bytes())
    assert predict(["run", "--data=pictures", "--out=out.csv"]) == 0
    out = pd.read_csv("out.csv")
    assert list(out.columns) == ["file", "prediction", "p(cat)", "p(dog)", "p(eel)"]
    assert len(out) == 91
    assert out["file"][0] == "extra.png"
    folders = out["file"].str.split("/").str[0].replace("extra.png", "dog")
    assert (folders == out["prediction"]).mean() > 0.9
    (pictures / "extra.png").unlink()
    assert train(["--resume=run"]) == 0
    sizes = pytest.importorskip("PIL.Image").new("RGB", (5, 5))
    Path("other").mkdir()
    sizes.save("other/a.png")
    with pytest.raises(UserError, match="other has images of 5 x 5 pixels in colour, and the net"):
        predict(["run", "--data=other", "--out=out.csv"])
    with pytest.raises(UserError, match=r"people.csv must be pixels"):
        predict(["run", "--data=people.csv", "--out=out.csv"])
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"needs PIL, which is not .*install 'fastmlp\[images"):
        train(["--data=pictures", "--out=again"])
    assert not Path("again").exists()


def test_an_npy_file_of_bytes_are_pixels():
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (80, 16), dtype=np.uint8)
    np.save("x.npy", x)
    np.save("y.npy", np.where(x[:, 3] > 127, "light", "dark"))
    flags = ["--data=x.npy", "--target=y.npy", "--out=run", *QUICK]
    assert train([*flags, "--epochs=30"]) == 0
    assert "pixels" in RunDirectory("run").read_encoding()["inputs"]
    assert predict(["run", "--data=x.npy", "--out=out.npy"]) == 0
    assert (np.load("out.npy") == np.load("y.npy")).mean() > 0.8


def test_a_run_that_was_stopped_reads_its_file_again(people, monkeypatch):
    flags = ["--data=people.csv", "--target=rich", "--categories=town", *QUICK, "--dropout=0.2"]
    assert train([*flags, "--out=whole"]) == 0
    with monkeypatch.context() as context:
        calls = iter(range(5))
        stop = lambda self: next(calls, None) is None  # noqa: E731
        context.setattr("fastmlp.training.callbacks.StopOnSignals.should_stop", stop)
        assert train([*flags, "--out=stopped"]) == 130
    assert not RunDirectory("stopped").finished
    assert train(["--resume=stopped"]) == 0
    assert_same_run(Path("whole"), Path("stopped"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=rich"], "--data is missing"),
        (["--data=people.csv"], "--target is missing"),
        (["--data=people.csv", "--target=poor"], "people.csv has no column 'poor'"),
        (["--data=people.csv", "--target=rich"], "'town' .* text 'Bonn|Ulm' in row 1;"),
        (["--data=none.csv", "--target=rich"], "none.csv does not exist"),
        (["--data=people.csv", "--target=rich", "--split=60/20/20"], "--split is for the known"),
        (
            ["--data=people.csv", "--target=rich", "--augment=flip"],
            "--augment is for images",
        ),
        (["--data=.", "--target=rich"], "--target is for a file of rows, and .* is a folder"),
        (["--data=."], "has 0 folders; a folder of images needs two or more folders"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train([*flags, "--out=run"])
    assert not (tmp_path / "run").exists()


def test_predict_says_what_it_needs(people, tmp_path):
    with pytest.raises(UserError, match="none does not exist"):
        predict(["none", "--data=people.csv", "--out=out.csv"])
    with pytest.raises(UserError, match=r"--out must end in .csv or .npy"):
        predict(["none", "--data=people.csv", "--out=out.txt"])
    flags = ["--data=people.csv", "--target=rich", "--categories=town", "--out=run"]
    train([*flags, *QUICK, "--epochs=1"])
    people.drop(columns="b").to_csv("cut.csv", index=False)
    with pytest.raises(UserError, match=r"cut.csv lacks the column 'b'"):
        predict(["run", "--data=cut.csv", "--out=out.csv"])
    for out in ("cut.csv", "linked.csv"):
        Path("linked.csv").unlink(missing_ok=True)
        os.link("run/metrics.csv", "linked.csv")
        with pytest.raises(UserError, match=f"--out {out} is read or belongs to the run"):
            predict(["run", "--data=cut.csv", f"--out={out}"])
    with pytest.raises(UserError, match="of a user whom this system does not have"):
        predict(["run", "--data=cut.csv", "--out=~nobody-of-that-name/out.csv"])
    (tmp_path / "run" / "encoding.json").write_text("{}")
    with pytest.raises(UserError, match=r"encoding.json is damaged"):
        predict(["run", "--data=people.csv", "--out=out.csv"])
    (tmp_path / "run" / "encoding.json").unlink()
    with pytest.raises(UserError, match=r"has no encoding.json"):
        predict(["run", "--data=people.csv", "--out=out.csv"])
    assert not (tmp_path / "out.csv").exists()
