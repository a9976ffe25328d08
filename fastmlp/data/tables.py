"""Read tables: columns with names, from memory or from a file. No code in a file is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import OF_NUMBERS, check_growth, read_array, read_arrays
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import expanded
from fastmlp.utils.untrusted import quoted, reason

Column = NDArray[Any]

EXACT = 1 << 53
"""Whole numbers below it are float64s that differ."""
MAX_COLUMNS = 200_000
"""More columns than this are a mistake, such as rows and columns exchanged."""
BATCH_ROWS = 1 << 14
"""Rows of a parquet file that are read at once."""
FORMATS = (".csv", ".parquet", ".npz", ".npy")
"""The files that :func:`read_table` reads, by the end of their names."""


@dataclass(frozen=True)
class Table:
    """Columns of one length by name, in their order.

    A column (n,) is float64 with nan for a missing value, or of objects: texts, numbers among them
    where the column mixes both, whole numbers that float64 does not tell apart, and None for a
    missing value. ``named`` is False where the names are only the numbers of the columns;
    ``origin`` (n,) are the rows' places in the table that they were taken from.
    """

    columns: Mapping[str, Column]
    source: str = "the data"
    named: bool = True
    origin: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.columns)

    def rows(self, indices: NDArray[np.int64] | slice) -> Table:
        """Return some of the rows."""
        chosen = {name: column[indices] for name, column in self.columns.items()}
        origin = np.arange(len(self)) if self.origin is None else self.origin
        return Table(chosen, self.source, self.named, origin[indices])

    def number(self, row: int) -> int:
        """Return the number of a row, counted from 1, as its source has it."""
        return (row if self.origin is None else int(self.origin[row])) + 1

    def split(self, names: Sequence[str]) -> tuple[Table, Table]:
        """Return the table without some columns, and with them alone; raise UserError where a
        name is missing or repeated, or no column is left."""
        for i, name in enumerate(names):
            if name not in self.columns:
                raise UserError(
                    f"{self.source} has no column {quoted(name)}; its columns are "
                    f"{listed(self.names)}.",
                    options=("target",),
                )
            if name in names[:i]:
                raise UserError(f"The target {quoted(name)} is named twice; name it once.")
        rest = {name: column for name, column in self.columns.items() if name not in names}
        if not rest:
            raise UserError(f"{self.source} has no column but the targets; add some to learn from.")
        chosen = {name: self.columns[name] for name in names}
        return replace(self, columns=rest), replace(self, columns=chosen, named=True)

    def check_named(self, option: str, names: Sequence[str]) -> None:
        """Raise UserError unless the table has each of the columns that an option names."""
        for name in names:
            if name not in self.columns:
                raise UserError(
                    f"{option} names the column {quoted(name)}, and {self.source} has only "
                    f"{listed(self.names)}.",
                    options=(option,),
                )

    def without(self, names: Sequence[str]) -> Table:
        """Return the table without some columns; raise UserError where it lacks one, where it has
        no names, and where no column is left."""
        if names and not self.named:
            raise UserError(
                f"drop names columns, and those of {self.source} have no names; leave them out of "
                "the array.",
                options=("drop",),
            )
        self.check_named("drop", names)
        rest = {name: column for name, column in self.columns.items() if name not in names}
        if not rest:
            raise UserError(
                f"drop leaves no column of {self.source}; keep some.", options=("drop",)
            )
        return replace(self, columns=rest)


def listed(names: tuple[str, ...], most: int = 12) -> str:
    """Return names as a list for a sentence, cut where there are many."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(quoted(name, 40) for name in names[:most]) + more


def as_table(data: object, source: str = "X") -> Table:
    """Return a table of NumPy or torch arrays (n, columns) or (n,), or of a pandas or polars data
    frame, whose column names are kept.

    Raises UserError for another type, another number of dimensions and a name that occurs twice.
    """
    if isinstance(data, Table):
        return data
    names = getattr(data, "columns", None)
    if names is not None:
        return _table([(str(name), data[name]) for name in names], source)  # type: ignore[index]
    array = as_array(data, source)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise UserError(
            f"{source} must be rows of columns, of two dimensions, got {array.ndim}; flatten the "
            "others."
        )
    columns = {str(i): as_column(array[:, i]) for i in range(array.shape[1])}
    return Table(columns, source, named=False)


def as_array(data: object, source: str = "X") -> NDArray[Any]:
    """Return a NumPy array of an array, tensor, series or nested lists; raise UserError where it
    makes none."""
    if isinstance(data, (str, os.PathLike)):
        raise UserError(
            f"{source} must be rows, and {quoted(data)} is a name; read the file first, as with "
            "pandas.read_csv, or train it by python -m fastmlp.train --data FILE --target COLUMN."
        )
    if hasattr(data, "detach"):
        data = data.detach().cpu()
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:  # ragged lists, or what NumPy cannot hold
        raise UserError(
            f"{source} must be an array of numbers or texts: {reason(error)}"
        ) from error
    if array.dtype == object and array.ndim == 0:
        raise UserError(
            f"{source} must be a NumPy array, a tensor, or a data frame of pandas or polars, got "
            f"{type(data).__name__}."
        )
    return array


def as_column(values: Any) -> Column:
    """Return values (n,) as :class:`Table` has its columns."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" and isinstance(values, (list, tuple)):
        array = np.array(values, dtype=object)  # which keeps numbers among texts
    if array.dtype.kind not in "fiub" and hasattr(values, "null_count"):
        array = np.array(values.to_list(), dtype=object)  # polars' own, with None for a gap
    if array.dtype.kind in "fiub":
        found = array.astype(np.float64)
        exact = array.dtype.kind not in "iu" or bool((np.abs(found) < EXACT).all())
        return found if exact else array.astype(object)
    objects = np.asarray(array, dtype=object)
    cleaned = np.array([None if _is_missing(v) else v for v in objects] or [], dtype=object)
    if all(v is None or _is_number(v) for v in cleaned):
        if any(isinstance(v, (int, np.integer)) and abs(int(v)) >= EXACT for v in cleaned):
            return cleaned
        return np.array([np.nan if v is None else float(v) for v in cleaned], dtype=np.float64)
    return np.array(
        [v if v is None or _is_number(v) else str(v) for v in cleaned.tolist()], dtype=object
    )


def is_text(column: Column) -> bool:
    """Return whether a column holds texts, at least one."""
    return column.dtype == object and any(isinstance(value, str) for value in column)


def missing(column: Column) -> NDArray[np.bool_]:
    """Return which rows of a column are missing."""
    if column.dtype == object:
        return np.array([value is None for value in column], dtype=bool)
    return np.isnan(column)


def as_numbers(column: Column) -> NDArray[np.float64]:
    """Return a column without texts as float64, nan where a value is missing."""
    if column.dtype != object:
        return column
    return np.array([np.nan if value is None else float(value) for value in column])


def read_table(path: str | os.PathLike[str], texts: Collection[str] = ()) -> Table:
    """Read a .csv, .parquet, .npz or .npy file. Of a .csv, ``texts`` are columns whose values are
    taken as they are written, whatever the others in their column look like.

    The arrays of an .npz, one dimension each, or two with columns ``NAME.0``, ``NAME.1``, ..., are
    its columns. Raises UserError for a file that is missing, of another format or damaged, and
    where its reader is not installed.
    """
    path = expanded(path)
    if not path.is_file():
        if path.is_dir():
            what = "is a folder, not a file"
        else:
            what = "is a pipe or a device, not a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; pass a file that ends in {', '.join(FORMATS)}.")
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise UserError(
            f"{path} is none of the files that are read here ({', '.join(FORMATS)}); save it as "
            "one of them."
        )
    read: dict[str, Callable[[Path], Table]] = {
        ".csv": partial(_read_csv, texts=texts),
        ".parquet": _read_parquet,
        ".npz": _read_npz,
        ".npy": _read_npy,
    }
    try:
        table = read[ending](path)
    except UserError:
        raise
    except Exception as error:  # each reader has its own errors for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's; pyarrow has one for a damaged file too
        if isinstance(error, UnicodeDecodeError):
            message = f"{path} is not a text in UTF-8 ({reason(error)}); save it as one."
            raise UserError(message) from error
        message = f"{path} cannot be read ({reason(error)}); write the file anew."
        raise UserError(message) from error
    if not table.columns or not len(table):
        raise UserError(f"{path} has no rows; pass a file with at least one.")
    return table


def needs(module: str, extra: str, what: str) -> Any:
    """Return an optional module; raise UserError, saying how to install it, where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs {module.partition('.')[0]}, which is not installed; "
            f"run: pip install 'fastmlp[{extra}]'"
        ) from error


def _table(items: list[tuple[str, object]], source: str) -> Table:
    columns: dict[str, Column] = {}
    for name, values in items:
        if name in columns:
            raise UserError(f"{source} has two columns named {quoted(name)}; rename one of them.")
        columns[name] = as_column(values)
    return Table(columns, source)


def _read_csv(path: Path, texts: Collection[str]) -> Table:
    pandas = needs("pandas", "tables", "A csv file")
    header = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = header.iloc[0].tolist()
    _check_names(names, path)
    # a line may be shorter than the header, and has all its columns then
    wanted = OF_NUMBERS * len(names) * _count_lines(path)
    check_growth(path, path.stat().st_size, wanted)
    kinds = {name: str for name in texts if name in names}
    frame = pandas.read_csv(path, low_memory=False, index_col=False, dtype=kinds)
    return _table([(str(name), frame[name]) for name in frame.columns], str(path))


def _count_lines(path: Path) -> int:
    count = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            count += max(block.count(b"\n"), block.count(b"\r"))
    return count + 1


def _read_parquet(path: Path) -> Table:
    parquet = needs("pyarrow.parquet", "tables", "A parquet file")
    types = needs("pyarrow.types", "tables", "A parquet file")
    arrow = needs("pyarrow", "tables", "A parquet file")
    schema = parquet.read_schema(path)
    _check_names(schema.names, path)
    for field in schema:
        if types.is_nested(field.type):
            raise UserError(
                f"{path} has the column {quoted(field.name)} of the type {reason(field.type)}; a "
                "column must be of numbers or texts, leave it out."
            )
    # a text that stands in many rows is in memory once
    texts = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
    file = parquet.ParquetFile(path, read_dictionary=texts)
    held = file.metadata
    parts = [held.row_group(i) for i in range(held.num_row_groups)]
    rows = max(held.num_rows, sum(part.num_rows for part in parts))
    length, wanted = path.stat().st_size, OF_NUMBERS * rows * len(schema.names)
    check_growth(path, length, wanted + sum(part.total_byte_size for part in parts))
    batches = []
    for batch in file.iter_batches(BATCH_ROWS):  # what the file says of its size need not be true
        batches.append(batch)
        wanted += batch.nbytes
        check_growth(path, length, wanted)
    table = arrow.Table.from_batches(batches, schema=batches[0].schema if batches else schema)
    items: list[tuple[str, object]] = [
        (name, _parquet_column(column))
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return _table(items, str(path))


def _parquet_column(column: Any) -> Column:
    if hasattr(column.type, "value_type"):  # texts by number, None for a gap
        chunks = [
            np.array([*part.dictionary.to_pylist(), None], dtype=object)[
                part.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            ]
            for part in column.chunks
        ]
        return np.concatenate(chunks) if chunks else np.empty(0, dtype=object)
    if column.null_count == 0:
        return column.to_pandas()  # type: ignore[no-any-return]
    return np.array(column.to_pylist(), dtype=object)


def _read_npz(path: Path) -> Table:
    items: list[tuple[str, object]] = []
    for name, array in read_arrays(path).items():
        if array.ndim == 1:
            items.append((name, array))
        elif array.ndim == 2:
            _check_count(array.shape[1], path)
            items += [(f"{name}.{i}", array[:, i]) for i in range(array.shape[1])]
        else:
            raise UserError(
                f"{path} has an array {quoted(name)} of {array.ndim} dimensions; one or two are "
                "columns of a table."
            )
    lengths = {name: len(np.asarray(values)) for name, values in items}
    if len(set(lengths.values())) > 1:
        (first, a), *rest = lengths.items()
        other, b = next((name, n) for name, n in rest if n != a)
        raise UserError(
            f"{path} has {a:,} rows in {quoted(first)} and {b:,} in {quoted(other)}; all need as "
            "many."
        )
    return _table(items, str(path))


def _read_npy(path: Path) -> Table:
    array = read_array(path)
    if array.ndim == 2:
        _check_count(array.shape[1] if len(array) else 0, path)
    return as_table(array if array.size else array[:0].reshape(0), str(path))


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise UserError for too many columns, and for two of one name."""
    _check_count(len(names), path)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path} has two columns named {quoted(name)}; rename one of them.")
        seen.add(name)


def _check_count(columns: int, path: Path) -> None:
    if columns > MAX_COLUMNS:
        raise UserError(
            f"{path} has {columns:,} columns, more than the {MAX_COLUMNS:,} that a table can have; "
            "keep those that matter."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number, np.bool_))


def _is_missing(value: object) -> bool:
    """Return whether a cell is None, nan, or pandas' NA or NaT, which do not equal themselves."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
