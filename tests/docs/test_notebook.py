"""The notebook runs from its first cell to its last, on a tenth of the built-in set."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import fastmlp

NOTEBOOK = Path(__file__).parents[2] / "examples" / "cifar10.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.exists(), reason="not run from a checkout")


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_with_its_outputs_but_for_the_images_of_cifar10() -> None:
    """They are not ours."""
    drawn = {
        call: ["image/png" in output.get("data", {}) for output in cell["outputs"]]
        for cell in cells("code")
        for call in re.findall(r"(?<!def )picture\((\w+),", "".join(cell["source"]))
    }
    ours = ("learning_curves", "confusion_picture", "weights_picture")
    assert drawn == {"draw_samples": [], "mistakes_picture": [], **{name: [True] for name in ours}}
    text = "".join(
        line
        for cell in cells("code")
        for output in cell["outputs"]
        for line in output.get("text", [])
    )
    assert "at batch 8 an epoch shows 3,757 of 30,000 images" in text
    assert "test accuracy with those parameters: 5" in text


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
