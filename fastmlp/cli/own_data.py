"""The flags of a user's own data: ``--data FILE --target COLUMN``, or ``--data FOLDER`` of images
by class, and what goes with them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.cli.parser import as_flag
from fastmlp.data.arrays import read_array
from fastmlp.data.encoding import MISSING
from fastmlp.data.images import read_image_folder
from fastmlp.data.pixels import Pixels, as_rows
from fastmlp.data.splits import DataSplits
from fastmlp.data.tables import Table, read_table
from fastmlp.data.targets import TASKS
from fastmlp.training.own_data import check_same_encoding, prepare
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.files import expanded
from fastmlp.utils.untrusted import reason
from fastmlp.utils.value_checks import (
    Fields,
    check_fields,
    is_flag,
    is_name,
    is_share,
    list_of,
    one_of,
    optional,
)

NAMES = (
    *("target", "task", "categories", "drop", "missing", "keep_constant", "validation"),
    "class_weight",
)
"""The flags that go with ``--data``."""
LISTS = ("categories", "drop")
"""Those of them that name columns."""
OF_COLUMNS = ("target", "task", "categories", "drop", "missing", "keep_constant")
"""Those that do not go with a folder of images."""
OF_KNOWN_SETS = ("dataset", "data_dir", "data_url", "split", "test_set", "preset", "loader")
OF_PIXELS = ("normalize", "augment")
"""The flags that do not, or with a folder of images alone."""


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add ``--data`` and the flags that go with it."""
    add, none = group.add_argument, argparse.SUPPRESS
    add(
        "--data",
        metavar="FILE|FOLDER",
        default=none,
        help="a .csv, .parquet, .npz or .npy file of rows, or a folder with a folder of images for "
        "each class",
    )
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
    add("--drop", metavar="C[,C...]", default=none, help="columns to leave out, by name")
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
    if "data" not in found:
        raise UserError("--data is missing; pass --data FILE --target COLUMN", EXIT_USAGE)
    found["data"] = os.path.abspath(expanded(found["data"]))
    images = os.path.isdir(found["data"])
    _refuse(flags, OF_KNOWN_SETS if images else (*OF_KNOWN_SETS, *OF_PIXELS))
    if images:
        for name in OF_COLUMNS:
            if name in found:
                raise UserError(
                    f"{as_flag(name)} is for a file of rows, and {found['data']} is a folder, of "
                    "images by class; leave it out",
                    EXIT_USAGE,
                )
        return found
    if "target" not in found:
        raise UserError(
            "--target is missing; pass --data FILE --target COLUMN, or --data FOLDER with a folder "
            "of images for each class",
            EXIT_USAGE,
        )
    if len(found["target"]) == 1:
        (found["target"],) = found["target"]
    if _is_pair(found):
        found["target"] = os.path.abspath(expanded(found["target"]))
    for names in LISTS:
        if names in found:
            found[names] = [name.strip() for name in found[names].split(",")]
    return found


def as_flags(origin: dict[str, Any] | None) -> str:
    """Return the flags, with a blank before each, that :func:`origin_of` took ``origin`` from."""
    text = ""
    for name, value in (origin or {}).items():
        flag = as_flag(name)
        if value is True:
            text += f" {flag}"
            continue
        value = ",".join(value) if name in LISTS else value
        for each in value if isinstance(value, list) else [value]:
            text += f" {flag} {shlex.quote(str(each))}"
    return text


def _refuse(flags: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in flags:
            raise UserError(
                f"{as_flag(name)} is for {'images' if name in OF_PIXELS else 'the known data sets'}"
                "; leave it out with --data",
                EXIT_USAGE,
            )


def read(origin: dict[str, Any]) -> tuple[Table | Pixels, Table, dict[str, Any]]:
    """Return the rows, the targets and the options of :func:`prepare` that ``origin`` names."""
    options = {name: origin[name] for name in NAMES if name in origin and name != "target"}
    options |= {"name": Path(origin["data"]).stem}
    if "target" not in origin:
        found = read_image_folder(origin["data"])
        classes = np.array(found.classes, dtype=object)[found.labels]
        return Pixels(found.images, found.source, found.shape), Table({"class": classes}), options
    if not _is_pair(origin):
        table = read_table(origin["data"], origin.get("categories", ()))
        return *table.split(_targets(table, origin["target"])), options
    rows, targets = read_rows(origin["data"]), read_table(origin["target"])
    if len(targets) != len(rows):
        raise UserError(
            f"{origin['target']} must have targets for each of the {len(rows):,} rows, got "
            f"{len(targets):,} rows."
        )
    return rows, targets, options


def read_rows(path: str, categories: Collection[str] = ()) -> Table | Pixels:
    """Return the rows of a file, of which ``categories`` are columns; of an .npy file of uint8,
    pixels."""
    if path.lower().endswith(".npy") and os.path.isfile(path):
        rows = as_rows(read_array(path), path)
        if isinstance(rows, Pixels) and len(rows):
            return rows
    return read_table(path, categories)


def _targets(table: Table, given: str | list[str]) -> list[str]:
    """Return the columns that ``--target`` names, given once or several times; a name may have
    commas."""
    names: list[str] = []
    for each in [given] if isinstance(given, str) else given:
        names += [each] if each in table.columns else [part.strip() for part in each.split(",")]
    return names


_TEXTS = list_of(is_name, 1)
_ORIGIN: Fields = {
    "data": is_name,
    "target": optional(lambda value: is_name(value) or _TEXTS(value)),
    "task": one_of(None, *TASKS),
    "categories": optional(_TEXTS),
    "drop": optional(_TEXTS),
    "missing": one_of(None, *MISSING),
    "keep_constant": optional(is_flag),
    "validation": optional(is_share),
    "class_weight": one_of(None, "balanced"),
}
"""What ``encoding.json`` keeps of the command's flags."""


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
    try:
        check_fields("origin", {**dict.fromkeys(_ORIGIN), **origin}, _ORIGIN)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder.path / 'encoding.json'} does not say what file the rows are from "
            f"({reason(error)}); call fit(..., out=..., resume=True) with the same rows"
        ) from error
    table, target, options = read({k: v for k, v in origin.items() if v is not None})
    loss = folder.read_config().loss
    own = prepare(table, target, loss=loss, **options)
    check_same_encoding(folder, own.encoding)
    return own.splits


def _is_pair(origin: dict[str, Any]) -> bool:
    return all(str(origin[name]).lower().endswith(".npy") for name in ("data", "target"))
