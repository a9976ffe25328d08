"""What tables share: the marks of disturbed rows, the names of contenders and machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DISTURBED = "†"
"""Marks what was measured while the machine was busy with something else."""

Results = dict[str, Any]


def ours_first(name: str) -> tuple[bool, str]:
    return not name.startswith("fastmlp"), name


def bold(name: str) -> str:
    return f"**{name}**" if name.startswith("fastmlp") else name


def mark(row: dict[str, Any]) -> str:
    return f" {DISTURBED}" if row.get("disturbed") else ""


def disturbed_note(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Lines that explain the mark, where a row has it."""
    if not any(row.get("disturbed") for row in rows):
        return []
    return ["", f"{DISTURBED} measured while the machine was busy with something else."]


def processor(results: Results) -> str:
    p = results["provenance"]
    return f"{p['device']}, {p['threads']} threads, {p['cpu_kernels']}"


def caption(results: Results) -> str:
    """Where, when and on what the results were made."""
    p = results["provenance"]
    caches = p.get("processor", {})
    sizes = [
        f"{name} {caches[key]} KiB"
        for name, key in (("L1", "l1d_kib"), ("L2", "l2_kib"))
        if caches.get(key)
    ]
    facts = [processor(results) + " kernels", *sizes, f"torch {p['torch']}", p["time"][:10]]
    return f"{', '.join(facts)}, commit {p['commit'][:9]}."


def undisturbed(results: Results) -> list[Mapping[str, Any]]:
    return [row for row in results["rows"] if "disturbed" not in row]
