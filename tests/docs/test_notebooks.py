"""All notebooks in examples/ are stored with outputs, and use what the reference documents."""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="not run from a checkout")
NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
TOP = {"fastmlp", "fastmlp.manual", "fastmlp.sklearn", "fastmlp.callbacks", "fastmlp.functional"}


def code(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@NOTEBOOK
def test_it_is_stored_with_outputs_and_no_noise(path: Path) -> None:
    outputs = [output for cell in code(path) for output in cell["outputs"]]
    assert any("text" in output for output in outputs)
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    assert all(len(base64.b64decode("".join(p))) < 150_000 for p in pictures)
    assert not [output for output in outputs if output.get("name") == "stderr"]  # bars, warnings
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|tmp|root|work)/|site-packages", text) == []
    assert all(cell["execution_count"] for cell in code(path))  # all were run


@NOTEBOOK
def test_it_imports_what_the_reference_has(path: Path) -> None:
    pages = (ROOT / "docs" / "api").glob("*.md")
    reference = re.findall(r"^::: ([\w.]+)$", "\n".join(p.read_text() for p in pages), re.M)
    for cell in code(path):
        lines = [
            line for line in "".join(cell["source"]).splitlines() if line.strip()[:1] not in "%!"
        ]
        for node in ast.walk(ast.parse("\n".join(lines))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                assert not [alias for alias in node.names if alias.name.startswith("_")]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] == "fastmlp":
                    assert name in TOP or name in reference, name
