"""The course's notebook, in both languages: the same cells, which run on the built-in set."""

from __future__ import annotations

import os
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import fastmlp

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("course.ipynb", "course.zh-TW.ipynb")
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="not run from a checkout")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def read(name):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    found = [output for cell in code(notebook) for output in cell.outputs]
    return "".join(output.text for output in found if output.output_type == "stream")


DECAY = "learning_rate_decay"


def text_of_sweeps(notebook):
    return re.findall(r"best (\w+) in validation: ", printed(notebook))


def pictures(notebook):
    found = [output for cell in code(notebook) for output in cell.outputs]
    return [output for output in found if "image/png" in output.get("data", {})]


def test_both_languages_have_the_same_cells():
    one, other = map(read, NAMES)
    assert [cell.source for cell in code(one)] == [cell.source for cell in code(other)]
    assert [cell.cell_type for cell in one.cells] == [cell.cell_type for cell in other.cells]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_with_its_outputs(name):
    notebook = read(name)
    assert len(pictures(notebook)) == 6  # none of CIFAR-10's images, which are not ours
    assert "correct prediction in 10000 test data, accuracy: " in printed(notebook)
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert "site-packages" not in text  # nor warnings
    assert all(not path.startswith("/") for path in text.split('"') if "/" in path[:1])


LAYOUTS = {  # what lies there, and what of it is installed
    "a clone of the package's name": (["fastmlp/setup.py", "fastmlp/fastmlp/nn.py"], "fastmlp"),
    "a clone of another name": (["a b/setup.py"], "a b"),
    "a wheel beside a clone": (
        ["fastmlp-1-cp310-abi3-any.whl", "c/setup.py"],
        "fastmlp-1-cp310-ab",
    ),
    "the notebook in the clone": (["../setup.py"], ".."),
    "nothing": ([], None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", [None, ModuleSpec("fastmlp", None)], ids=["none", "mere folder"])
def test_the_first_cell_finds_what_to_install(layout, spec, tmp_path, monkeypatch):
    """pip gets a path, never a bare name, which it would ask the package index for."""
    here, (files, wanted) = tmp_path / "here", LAYOUTS[layout]
    here.mkdir()
    for name in files:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("FASTMLP_CUDA", "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    source = code(read(NAMES[0]))[0].source.replace("%matplotlib inline", "")
    source, replaced = re.subn(r'%pip install -q "\{(\w+)\}"', r"installed.append(\1)", source)
    assert replaced == 1
    variables = {"installed": []}
    if wanted is None:
        with pytest.raises(AssertionError, match="put the project's folder, or its wheel, beside"):
            exec(source, variables)
    else:
        exec(source, variables)
        (path,) = variables["installed"]
        assert path.is_absolute()
        assert str(path).startswith(str((here / wanted).resolve()))


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    package = str(Path(fastmlp.__file__).parents[1])  # the kernel is a process of its own
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    notebook = read(NAMES[0])
    (loading,) = (cell for cell in notebook.cells if "load_data()" in cell.source)
    loading.source = loading.source.replace("load_data()", 'load_data(dataset="synthetic")')
    loading.source += "\nimages, labels = images[::10], labels[::10]"
    (trial,) = (cell for cell in notebook.cells if "epochs=5" in cell.source)
    trial.source = trial.source.replace("epochs=5", "epochs=1")
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell does
    assert len(pictures(notebook)) == 7
    assert text_of_sweeps(notebook) == ["learning_rate", "batch_size", "hidden_dim", DECAY]
    text = printed(notebook)
    assert text.count("All passed.") == 3
    assert "Likeliest slip: the mask is >= 0 where it should be > 0." in text
    assert "Epoch 20:" in text
    assert "correct prediction in 1000 test data, accuracy: " in text
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
