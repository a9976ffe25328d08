"""The site's pages of notebooks have every cell and every stored output."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

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


def test_links_from_page_to_page() -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    from hooks import on_page_markdown

    text = "[a](../examples/tabular.ipynb), [b](../LICENSE), [c](training.md)"
    pages = [
        SimpleNamespace(file=SimpleNamespace(src_uri=n)) for n in ("index.md", "notebooks/x.md")
    ]
    assert on_page_markdown(text, page=pages[0]) == (
        "[a](notebooks/tabular.md), b (`LICENSE`), [c](training.md)"
    )
    assert on_page_markdown("[d](../training.md)", page=pages[1]) == "[d](../training.md)"
