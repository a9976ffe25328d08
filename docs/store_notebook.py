"""Run a notebook of examples/ and store it with what it printed and drew, but for progress bars.

``python docs/store_notebook.py NAME.ipynb [TEXT ...]`` leaves out the pictures of cells where one
of the texts stands: CIFAR-10's images are not ours to store. It needs nbclient and ipykernel.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image


def store(path: Path, without: list[str]) -> None:
    """Run and store the notebook at ``path``."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type != "code":
            continue
        cell.outputs = printed_together(
            [output for output in cell.outputs if output.get("name") != "stderr"]
        )
        if any(text in cell.source for text in without):
            cell.outputs = [o for o in cell.outputs if "image/png" not in o.get("data", {})]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata.language_info = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def printed_together(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return outputs with what was printed in several pieces, between which a bar moved, as one."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and "stream" == output.output_type == joined[-1].output_type:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def smaller(png: str) -> str:
    """Return a picture in 256 colours; both are base64."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(256).save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    store(Path(sys.argv[1]), sys.argv[2:])
