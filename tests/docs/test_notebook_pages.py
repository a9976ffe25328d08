"""The site's pages of notebooks have every cell and every stored output."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="not run from a checkout")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_everything_is_there(path: Path) -> None:
    from notebook_pages import page_of

    files = page_of(path)
    page = files.pop(f"{path.stem}.md")
    assert isinstance(page, str)
    assert all(isinstance(file, bytes) and file.startswith(b"\x89PNG") for file in files.values())
    assert re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)[-len(files) :] == list(files)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    place = 0
    for cell in cells:
        source = "".join(cell["source"]).replace("](../docs/", "](../")
        place = page.index(source, place)
        for output in cell.get("outputs", []):
            place = page.index("".join(output.get("text", [])).rstrip(), place)
    for link in re.findall(r"\]\(\.\./([\w-]+\.md)", page):
        assert (ROOT / "docs" / link).exists(), link
    assert "<style" not in page
    assert "<table " not in page
