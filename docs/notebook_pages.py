"""Make the site's page of a notebook: its cells, and what it is stored with."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\]\(\.\./docs/")


def page_of(path: Path) -> dict[str, str | bytes]:
    """Return the files of a notebook's page, to lie in one folder: the page NAME.md and its
    pictures."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts: list[str] = []
    files: dict[str, str | bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(LINK.sub("](../", source))
            if len(parts) == 1:
                parts.append(f"This page is the notebook `examples/{path.name}`.")
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(files) + 1}.png"
                files[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the code above draws]({name})")
            else:
                parts.append(_shown(output, data))
    return {**files, f"{path.stem}.md": "\n\n".join(parts) + "\n"}


def _shown(output: dict[str, Any], data: dict[str, Any]) -> str:
    """Return what a cell printed, or the table that it ends in."""
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S)
        table = re.sub(r"<table[^>]*>", "<table>", table)  # in the site's style
        return "\n".join(line.strip() for line in table.splitlines() if line.strip())
    text = "".join(output.get("text") or data.get("text/plain", []))
    return f"```text\n{text.rstrip()}\n```"
