"""The notebook of scikit-learn's interface runs, and is stored with what it printed and drew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fastmlp

NOTEBOOK = Path(__file__).parents[2] / "examples" / "scikit-learn.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.exists(), reason="not run from a checkout")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def outputs(notebook, kind):
    """The outputs of a kind, in order: text that was printed, or PNG images."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "text":
        return "".join(output.text for output in found if output.output_type == "stream")
    return [output for output in found if "image/png" in output.get("data", {})]


@pytest.mark.slow
def test_it_runs_as_it_is_stored(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    package = str(Path(fastmlp.__file__).parents[1])  # the kernel is a process of its own
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert "site-packages" not in NOTEBOOK.read_text(encoding="utf-8")  # nor warnings
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell does
    assert len(outputs(notebook, "images")) == len(outputs(stored, "images")) == 2
    lines = [outputs(each, "text").splitlines() for each in (notebook, stored)]
    assert [line.split(":")[0] for line in lines[0]] == [line.split(":")[0] for line in lines[1]]
    (difference,) = (line for line in lines[0] if line.startswith("largest difference"))
    assert float(difference.split(": ")[1].split()[0]) < 1e-9
