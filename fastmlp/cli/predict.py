"""The command ``predict``: predicts raw rows with a network trained on data of one's own.

python -m fastmlp.predict RUN --data FILE --out FILE
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.cli.own_data import read_rows
from fastmlp.cli.parser import ArgumentParser
from fastmlp.data.images import read_images
from fastmlp.data.pixels import PixelEncoding, Pixels
from fastmlp.data.tables import Table
from fastmlp.training.predictor import Predictor
from fastmlp.training.run_directory import FILES
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.files import expanded, leftovers, remove_files, write_file


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raises UserError for a user's mistake."""
    options = build_parser().parse_args(argv)
    out = expanded(options.out)
    if out.suffix.lower() not in (".csv", ".npy"):
        raise UserError(f"--out must end in .csv or .npy, got {options.out!r}", EXIT_USAGE)
    _check_out(out, expanded(options.data), expanded(options.run))
    predictor = Predictor.load(options.run)
    files, rows = _read(options.data, predictor)
    remove_files(leftovers(out.parent, glob.escape(out.name)))  # of a process that was killed
    predicted = predictor.predict(rows)
    if out.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        texts = predicted.dtype == object
        np.save(buffer, predicted.astype(str) if texts else predicted, allow_pickle=False)
        write_file(out, buffer.getbuffer())
    else:
        columns = files | _columns(predictor, rows, predicted)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_file(out, text.getvalue().encode())
    print(f"The predictions of {len(rows):,} rows are in {out}")
    return 0


def _check_out(out: Path, data: Path, run: Path) -> None:
    """Raise UserError where the file to write is the one to read, or one of the run's."""
    taken = [data, *(run / name for name in FILES)]
    if out.exists() and any(path.exists() and out.samefile(path) for path in taken):
        raise UserError(f"--out {out} is read or belongs to the run; pass another file", EXIT_USAGE)


def _read(data: str, predictor: Predictor) -> tuple[dict[str, Iterable[object]], Table | Pixels]:
    """Return the rows of a file or the images of a folder, whose names are a column of their
    own."""
    inputs, folder = predictor.encoding.inputs, expanded(data)
    if not folder.is_dir() or not isinstance(inputs, PixelEncoding):
        categories = () if isinstance(inputs, PixelEncoding) else inputs.categories
        return {}, read_rows(data, categories)
    files, pixels = read_images(folder, inputs.shape[0] if inputs.shape else None)
    return {"file": [str(file.relative_to(folder)) for file in files]}, pixels


def _columns(
    predictor: Predictor, rows: Table | Pixels, predicted: NDArray[Any]
) -> dict[str, Iterable[object]]:
    """Return the columns of the file: predictions, in a classification with probabilities."""
    target = predictor.encoding.target
    several = len(target.names) > 1
    columns: dict[str, Iterable[object]] = (
        {name: column.tolist() for name, column in zip(target.names, predicted.T, strict=True)}
        if several
        else {"prediction": predicted.tolist()}
    )
    if target.task == "classification":
        names = (
            [f"p({column.name}={column.classes[1]})" for column in target.columns]
            if several
            else [f"p({name})" for name in target.classes]
        )
        shares = predictor.predict_proba(rows).T
        columns |= {name: row.tolist() for name, row in zip(names, shares, strict=True)}
    return columns


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp predict",
        description="Predicts each row of a file with the network of a run on data of your own.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    parser.add_argument(
        "--data",
        metavar="FILE|FOLDER",
        required=True,
        help="a .csv, .parquet, .npz or .npy file of rows, or a folder of images",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="the .csv file to write, with the probability of each class, or .npy, predictions",
    )
    return parser
