"""The notebook runs from its first cell to its last, on a tenth of the built-in set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import fastmlp

NOTEBOOK = Path(__file__).parents[2] / "examples" / "cifar10.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.exists(), reason="not run from a checkout")


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_outputs() -> None:
    assert len(cells("code")) > 10
    for cell in cells("code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    # the kernel is a process of its own
    package = str(Path(fastmlp.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (loading,) = (cell for cell in notebook.cells if 'load_dataset("auto")' in cell.source)
    loading.source = loading.source.replace(
        'load_dataset("auto")',
        "load_dataset('synthetic')\n"
        "dataset = replace(dataset, images=dataset.images[::10], labels=dataset.labels[::10])",
    )
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 6
    text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "at batch 8 an epoch shows 382 of 3,000 images" in text
    assert "the best learning rate is 0.1" in text or "the best learning rate is 0.01" in text
    assert list(tmp_path.iterdir()) == []
