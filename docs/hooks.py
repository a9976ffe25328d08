"""Fit the pages and docstrings of the repository to the documentation site (mkdocs)."""

import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

sys.path.append(str(Path(__file__).parent))

from notebook_pages import page_of

EXAMPLES = Path(__file__).parents[1] / "examples"

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
_NOTEBOOK = re.compile(r"\]\(\.\./examples/([\w-]+)\.ipynb\)")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link to a notebook's page, and name any other file outside docs/ in place of a link that
    would lead out of the site."""
    if page.file.src_uri.startswith("notebooks/"):  # whose links are the site's already
        return markdown
    return _OUTSIDE.sub(r"\1 (`\2`)", _NOTEBOOK.sub(r"](notebooks/\1.md)", markdown))


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook of examples/, with what it is stored with."""
    for path in EXAMPLES.glob("*.ipynb"):
        for name, content in page_of(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_config(config: Any) -> Any:
    """Turn the docstrings' references into links of the site."""
    options = config.plugins["mkdocstrings"].config.handlers["python"]["options"]
    options["extensions"] = [{"docs/hooks.py": {}}]
    return config


class References(griffe.Extension):
    """Replaces a docstring's ``:func:`name``` by the name in code style."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of any object."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_in_code, obj.docstring.value)


def _in_code(match: "re.Match[str]") -> str:
    short, name = match.groups()
    return f"`{name.rpartition('.')[2] if short else name}`"
