"""The command ``predict``: predicts raw rows with a network trained on data of one's own.

python -m fastmlp.predict RUN --data FILE --out FILE
"""

from __future__ import annotations

import csv
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
from fastmlp.training.predictor import Encoding, Predictor
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.files import leftovers, remove_files, write_file
from fastmlp.utils.untrusted import reason


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raises UserError for a user's mistake."""
    options = build_parser().parse_args(argv)
    out = Path(options.out).expanduser()
    if out.suffix.lower() not in (".csv", ".npy"):
        raise UserError(f"--out must end in .csv or .npy, got {options.out!r}", EXIT_USAGE)
    predictor = load_predictor(options.run)
    files, rows = _read(options.data, predictor)
    remove_files(leftovers(out.parent, out.name))  # of a process that was killed
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


def _read(data: str, predictor: Predictor) -> tuple[dict[str, Iterable[object]], Table | Pixels]:
    """Return the rows of a file or the images of a folder, whose names are a column of their
    own."""
    inputs, folder = predictor.encoding.inputs, Path(data).expanduser()
    if not folder.is_dir() or not isinstance(inputs, PixelEncoding):
        return {}, read_rows(data)
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


def load_predictor(run: str | Path) -> Predictor:
    """Return the network of a run's best epoch with its encoding."""
    folder = RunDirectory(run)
    config, values = folder.read_config(), folder.read_encoding()
    try:
        encoding = Encoding.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        why = reason(repr(error))
        raise UserError(f"{folder.path / 'encoding.json'} is damaged: {why}") from error
    return Predictor(config, encoding, folder.read_best())
