"""The notebook on a table runs, and says what it is stored with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fastmlp

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tabular.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.exists(), reason="not run from a checkout")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def printed(notebook):
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(o.text for o in found if o.output_type == "stream" and o.name == "stdout")


def pictures(notebook):
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in found if "image/png" in output.get("data", {})]


def numbers(line):
    return [float(word.strip("%,:")) for word in line.split() if word[0].isdigit()]


@pytest.mark.slow
def test_it_runs_as_it_is_stored(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    for module in ("sklearn", "pandas"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    package = str(Path(fastmlp.__file__).parents[1])  # the kernel is a process of its own
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell does
    assert len(pictures(notebook)) == len(pictures(stored)) == 2
    new, old = printed(notebook), printed(stored)
    assert [line.split()[0] for line in new.splitlines()] == [
        line.split()[0] for line in old.splitlines()
    ]
    assert new.splitlines()[:2] == old.splitlines()[:2]  # the rows and their parts
    run = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"best.pt", "encoding.json", "summary.json", "curves.png"} <= run
    assert "The predictions of 4 rows are in predictions.csv" in new
    alike, classes = (line for line in new.splitlines() if "false alarms" in line)
    assert numbers(classes)[0] > numbers(alike)[0]  # more of the fast ones are found
