"""Fit the pages and docstrings of the repository to the documentation site (mkdocs)."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name a file outside docs/ in place of a link that would lead out of the site."""
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)


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
