"""The flags of a user's own data: ``--data FILE --target COLUMN`` and what goes with them."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from fastmlp.cli.parser import as_flag
from fastmlp.data.encoding import MISSING
from fastmlp.data.splits import DataSplits
from fastmlp.data.tables import Table, read_table
from fastmlp.data.targets import TASKS
from fastmlp.training.own_data import prepare
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import EXIT_USAGE, UserError

NAMES = ("target", "task", "categories", "missing", "keep_constant", "validation", "class_weight")
"""The flags that go with ``--data``."""
OF_KNOWN_SETS = (
    *("dataset", "data_dir", "data_url", "split", "test_set", "preset"),
    *("normalize", "augment", "loader"),
)
"""The flags that do not."""


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add ``--data`` and the flags that go with it."""
    add, none = group.add_argument, argparse.SUPPRESS
    add("--data", metavar="FILE", default=none, help="a .csv, .parquet, .npz or .npy file of rows")
    add(
        "--target",
        metavar="COLUMN[,COLUMN...]",
        action="append",
        default=none,
        help="the column to predict, or several; for an .npy file, the .npy file of the targets",
    )
    add("--task", choices=TASKS, default=none, help="by default what the target looks like")
    add(
        "--categories",
        metavar="C[,C...]",
        default=none,
        help="columns to make one-hot, by name",
    )
    add("--missing", choices=MISSING, default=none, help="what to do about missing numbers")
    add("--keep-constant", action="store_true", default=none, help="keep columns of one value")
    add(
        "--validation",
        type=float,
        metavar="SHARE",
        default=none,
        help="the share of the rows that is held out (default: 0.2)",
    )
    add("--class-weight", choices=("balanced",), default=none, help="give all classes one weight")


def origin_of(flags: dict[str, Any]) -> dict[str, Any] | None:
    """Take the flags of a user's own data out of ``flags``; return them, None without ``--data``.

    Raises UserError where they do not go together.
    """
    found = {name: flags.pop(name) for name in ("data", *NAMES) if name in flags}
    if not found:
        return None
    for name in ("data", "target"):
        if name not in found:
            raise UserError(
                f"{as_flag(name)} is missing; pass --data FILE --target COLUMN", EXIT_USAGE
            )
    for name in OF_KNOWN_SETS:
        if name in flags:
            raise UserError(
                f"{as_flag(name)} is for the known data sets; leave it out with --data", EXIT_USAGE
            )
    found["data"] = os.path.abspath(os.path.expanduser(found["data"]))
    if len(found["target"]) == 1:
        (found["target"],) = found["target"]
    if _is_pair(found):
        found["target"] = os.path.abspath(os.path.expanduser(found["target"]))
    if "categories" in found:
        found["categories"] = [name.strip() for name in found["categories"].split(",")]
    return found


def as_flags(origin: dict[str, Any] | None) -> str:
    """Return the flags, with a blank before each, that :func:`origin_of` took ``origin`` from."""
    text = ""
    for name, value in (origin or {}).items():
        flag = as_flag(name)
        if value is True:
            text += f" {flag}"
            continue
        value = ",".join(value) if name == "categories" else value
        for each in value if isinstance(value, list) else [value]:
            text += f" {flag} {shlex.quote(str(each))}"
    return text


def read(origin: dict[str, Any]) -> tuple[Table, Table, dict[str, Any]]:
    """Return the rows, the targets and the options of :func:`prepare` that ``origin`` names."""
    options = {name: origin[name] for name in NAMES if name in origin and name != "target"}
    options |= {"name": Path(origin["data"]).stem}
    table = read_table(origin["data"])
    if not _is_pair(origin):
        return *table.split(_targets(table, origin["target"])), options
    targets = read_table(origin["target"])
    if len(targets) != len(table):
        raise UserError(
            f"{origin['target']} must have targets for each of the {len(table):,} rows, got "
            f"{len(targets):,} rows."
        )
    return table, targets, options


def _targets(table: Table, given: str | list[str]) -> list[str]:
    """Return the columns that ``--target`` names, given once or several times; a name may have
    commas."""
    names: list[str] = []
    for each in [given] if isinstance(given, str) else given:
        names += [each] if each in table.columns else [part.strip() for part in each.split(",")]
    return names


def splits_of(folder: RunDirectory) -> DataSplits | None:
    """Return the data of a run on a user's own file, read again; None for a run on a known set."""
    if not folder.has_encoding:
        return None
    origin = folder.read_encoding().get("origin")
    if origin is None:
        raise UserError(
            f"{folder.path} was trained on arrays given to fastmlp.fit, which are not in it; call "
            "fit(..., out=..., resume=True) with the same arrays"
        )
    table, target, options = read(origin)
    loss = folder.read_config().loss
    return prepare(table, target, loss=loss, **options).splits


def _is_pair(origin: dict[str, Any]) -> bool:
    return all(str(origin[name]).lower().endswith(".npy") for name in ("data", "target"))
