"""Files that were made to harm, each whole by its format and digest: runs whose values cannot be,
pipes and devices in a file's place, and files that would grow to fill all memory."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import stop_after, tiny_data
from torch import Tensor

import fastmlp
from fastmlp.cli.own_data import read_rows, splits_of
from fastmlp.data import arrays
from fastmlp.data.encoding import TableEncoding
from fastmlp.data.images import read_idx, read_image_folder
from fastmlp.data.tables import MAX_COLUMNS, Table, read_table
from fastmlp.data.targets import TargetEncoding
from fastmlp.manual.files import read_weights
from fastmlp.training.api import fit, resume
from fastmlp.training.own_data import prepare
from fastmlp.training.predictor import Predictor
from fastmlp.training.run_directory import RunDirectory
from fastmlp.training.run_reader import read_run
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import locked_folder, read_bytes, write_bytes
from fastmlp.utils.formats import (
    LARGEST_JSON,
    json_bytes,
    load_tensors,
    read_json,
    read_tensors,
    tensor_bytes,
)
from fastmlp.utils.pickled import check_pickle

X = np.random.default_rng(0).normal(size=(60, 2))
HUGE = 10**400
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch's, that such tensors are a prototype
    NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on rows: ``whole``, finished, and ``stopped`` under way."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"hidden": 4, "seed": 1, "epochs": 3, "verbose": False}
    fastmlp.fit(X, X[:, 0] > 0, **options, out=str(folder / "whole"))
    fastmlp.fit(
        X, X[:, 0], **options, batch_size=8, out=str(folder / "stopped"), should_stop=stop_after(9)
    )
    return folder


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "whole", tmp_path / "whole"))


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "stopped", tmp_path / "stopped"))


def set_in(content: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


def first(tensors: dict[str, Tensor], value: object) -> dict[str, object]:
    return {**tensors, next(iter(tensors)): value}


BEST: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "nothing": lambda t: {},
    "a list": lambda t: list(t.values()),
    "too few": lambda t: dict(list(t.items())[:2]),
    "another order": lambda t: dict(reversed(t.items())),
    "meta": lambda t: first(t, torch.empty(4, 2, device="meta")),
    "scalar": lambda t: first(t, torch.tensor(1.0)),
    "empty": lambda t: first(t, torch.empty(0, 2)),
    "expanded": lambda t: first(t, torch.zeros(1).expand(4, 2)),
    "far expanded": lambda t: first(t, torch.zeros(1).expand(1 << 40)),
    "transposed": lambda t: first(t, torch.zeros(2, 4).t()),
    "sparse": lambda t: first(t, torch.zeros(4, 2).to_sparse()),
    "CSR": lambda t: first(t, torch.zeros(4, 2).to_sparse_csr()),
    "quantized": lambda t: first(
        t, torch.quantize_per_tensor(torch.zeros(4, 2), 1.0, 0, torch.qint8)
    ),
    "nested": lambda t: first(t, NESTED),
    "bool": lambda t: first(t, torch.zeros(4, 2, dtype=torch.bool)),
    "complex": lambda t: first(t, torch.zeros(4, 2, dtype=torch.complex64)),
    "float8": lambda t: first(t, torch.zeros(4, 2).to(torch.float8_e4m3fn)),
    "float64": lambda t: first(t, torch.zeros(4, 2, dtype=torch.float64)),
    "gradient": lambda t: first(t, torch.zeros(4, 2, requires_grad=True)),
    "parameter": lambda t: first(t, torch.nn.Parameter(torch.zeros(4, 2))),
    "nan": lambda t: first(t, torch.full((4, 2), torch.nan)),
    "infinite": lambda t: first(t, torch.full((4, 2), torch.inf)),
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that such tensors are a prototype
@pytest.mark.parametrize("change", BEST.values(), ids=BEST.keys())
def test_parameters_that_cannot_be(change: Callable[[Any], object], whole: Path) -> None:
    path = whole / "best.pt"
    values = read_tensors(path)
    assert set(Predictor.load(whole).predict(X)) <= {0, 1}
    path.write_bytes(tensor_bytes(change(values)))
    with pytest.raises(UserError, match=r"best\.pt is damaged.*; train the network again") as told:
        Predictor.load(whole)
    assert len(str(told.value)) < 400


STATE = {
    "float8": (("engine", "parameters", "0.weight"), torch.zeros(4, 2).to(torch.float8_e5m2)),
    "bool": (("engine", "parameters", "0.weight"), torch.zeros(4, 2, dtype=torch.bool)),
    "complex": (("engine", "exp_avg", "0.weight"), torch.zeros(4, 2, dtype=torch.complex64)),
    "nested": (("best", "0.bias"), NESTED),
    "meta": (("engine", "parameters", "0.bias"), torch.empty(4, device="meta")),
    "a negative square": (("engine", "exp_avg_sq", "0.bias"), torch.full((4,), -1.0)),
    "an unknown mean": (("engine", "exp_avg", "0.bias"), torch.full((4,), torch.nan)),
    "an infinite best": (("best", "0.bias"), torch.full((4,), torch.inf)),
    "seconds": (("seconds",), HUGE),
    "accuracy": (("history", 0, "val_acc"), HUGE),
    "steps": (("partial", "steps"), HUGE),
    "a reason to clear the screen": (("engine_reason",), "\x1b[2J"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("path", "value"), STATE.values(), ids=STATE.keys())
def test_states_that_cannot_be(path: tuple[Any, ...], value: object, stopped: Path) -> None:
    content = read_tensors(stopped / "resume.pt")
    set_in(content, path, value)
    (stopped / "resume.pt").write_bytes(tensor_bytes(content))
    (stopped / "resume.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"resume\.pt is damaged.*, so the run cannot be resumed"):
        RunDirectory(stopped).read_state()


ENCODINGS: list[tuple[tuple[Any, ...], object]] = [
    (("inputs",), []),
    (("inputs", "columns"), []),
    (("inputs", "columns"), {}),
    (("inputs", "columns", 1, "name"), "0"),
    (("inputs", "columns", 0, "name"), 5),
    (("inputs", "missing"), 5),
    (("inputs", "named"), "yes"),
    *((("inputs", "columns", 0, "mean"), value) for value in (HUGE, "x", None, float("inf"))),
    *((("inputs", "columns", 0, "deviation"), v) for v in (HUGE, 0, -1, 1e-320, float("nan"))),
    (("target", "columns", 0, "classes"), ["n"]),
    (("target", "columns", 0, "classes"), ["n", "n"]),
    (("target", "columns", 0, "classes"), [None, None]),
    (("target", "columns", 0, "classes"), "np"),
    (("target", "columns", 0, "classes"), ["0", "x"]),
    (("target", "columns", 0, "classes"), [str(i) for i in range(80_000)]),
    (("target", "columns", 0, "mean"), "x"),
    (("target", "columns", 0, "deviation"), None),
    (("target", "columns"), []),
    (("target", "task"), "regression"),
    (("target", "task"), []),
]


@pytest.mark.parametrize(("path", "value"), ENCODINGS)
def test_encodings_that_cannot_be(path: tuple[Any, ...], value: object, whole: Path) -> None:
    content = read_json(whole / "encoding.json")
    set_in(content, path, value)
    (whole / "encoding.json").write_bytes(json_bytes(content))
    with pytest.raises(UserError, match=r"encoding\.json is damaged: .*; train the network again"):
        Predictor.load(whole)


def test_columns_that_the_network_has_not(whole: Path) -> None:
    content = read_json(whole / "encoding.json")
    content["inputs"]["columns"].append({"name": "c", "mean": 0.0, "deviation": 1.0})
    (whole / "encoding.json").write_bytes(json_bytes(content))
    with pytest.raises(UserError, match=r"best\.pt is damaged: 0\.weight must be float32 of shape"):
        Predictor.load(whole)


@pytest.mark.parametrize(
    "origin",
    [
        *({}, 5, [], "text", {"data": 5}, {"data": "t.csv", "categories": 5}),
        *({"data": "t.csv", "target": 5}, {"data": "t.csv", "target": ["y", 5]}),
        *({"data": "t.csv", "target": "y", "validation": HUGE}, {"data": "t.csv", "more": 1}),
    ],
)
def test_origins_that_cannot_be(origin: object, stopped: Path) -> None:
    content = {**read_json(stopped / "encoding.json"), "origin": origin}
    (stopped / "encoding.json").write_bytes(json_bytes(content))
    with pytest.raises(UserError, match=r"does not say what file the rows are from .*; call fit"):
        splits_of(RunDirectory(stopped))


SUMMARIES: list[tuple[str, object]] = [
    *(("test_loss", "x"), ("test_accuracy", HUGE), ("epochs", -1), ("source", 5)),
    *(("best", {}), ("best", {"epoch": 1, "val_acc": "x", "val_loss": 1.0})),
]


@pytest.mark.parametrize(("name", "value"), SUMMARIES)
def test_summaries_that_cannot_be(name: str, value: object, whole: Path) -> None:
    content = {**read_json(whole / "summary.json"), name: value}
    (whole / "summary.json").write_bytes(json_bytes(content))
    with pytest.raises(UserError, match=rf"summary\.json is damaged: {name} .*; remove it"):
        read_run(whole)


METRICS = ["9" * 400, '"' + "x" * 200_000 + '"', "inf", "nan", "1e999", "-1"]


@pytest.mark.parametrize("cell", METRICS, ids=lambda cell: cell[:6])
def test_metrics_that_cannot_be(cell: str, whole: Path) -> None:
    path = whole / "metrics.csv"
    head, row, *rest = path.read_text().splitlines()
    at = head.split(",").index("seconds")
    cells = row.split(",")
    path.write_text("\n".join([head, ",".join([*cells[:at], cell, *cells[at + 1 :]]), *rest]))
    with pytest.raises(UserError, match=r"metrics\.csv is damaged: .*writes it again"):
        read_run(whole)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_run,
    "metrics.csv": read_run,
    "summary.json": read_run,
    "encoding.json": Predictor.load,
    "best.pt": Predictor.load,
    "resume.pt": lambda run: RunDirectory(run).read_state(),
}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_in_the_place_of_files(
    name: str, make: Callable[[Path], object], whole: Path
) -> None:
    (whole / name).unlink()
    (whole / "resume.previous.pt").unlink(missing_ok=True)
    make(whole / name)
    with pytest.raises(UserError, match=rf"{name} is a pipe or a device, not a file"):
        READERS[name](whole)


def test_a_table_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"t\.csv is a pipe or a device, not a file"):
        read_table(tmp_path / "t.csv")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, LARGEST_JSON + 1)
    with pytest.raises(UserError, match=r"config\.json has 33,554,433 bytes, more than the"):
        read_json(path)
    with pytest.raises(UserError, match=r"take .* bytes, more than the .* that are kept; leave"):
        json_bytes({"names": "x" * LARGEST_JSON})
    os.truncate(path, 1 << 50)  # no memory has as much
    with pytest.raises(UserError, match="there is not enough memory for them; put the right file"):
        read_bytes(path)


def test_a_lock_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"\.lock has a link"), locked_folder(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def deflated(data: bytes) -> bytes:
    """Return a zip archive with all its parts compressed."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    return packed.getvalue()


def test_tensor_files_hold_what_they_take(whole: Path, tmp_path: Path) -> None:
    path = whole / "best.pt"
    kept = path.read_bytes()
    load_tensors(kept)
    path.write_bytes(deflated(kept))
    with pytest.raises(UserError, match=r"best\.pt is damaged; train the network again"):
        Predictor.load(whole)
    shapes = {"w1": (2, 4), "b1": (4,), "w2": (4, 2), "b2": (2,)}
    assert read_weights(_file(tmp_path / "whole.pt", kept), shapes)["w1"].shape == (2, 4)
    old = io.BytesIO()  # a format whose numbers may be missing
    torch.save(read_tensors(_file(path, kept)), old, _use_new_zipfile_serialization=False)
    for data in (deflated(kept), old.getvalue()):
        with pytest.raises(ValueError, match=r"w\.pt is damaged or no file of weights"):
            read_weights(_file(tmp_path / "w.pt", data), shapes)


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    lists: list[Any] = [torch.zeros(1)]
    for _ in range(60):  # two to the power of 60 tensors, for who follows each
        lists = [lists, lists]
    lists[0].append(lists)
    assert load_tensors(tensor_bytes(lists)) is not None


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_what_grows_beyond_all_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pillow = pytest.importorskip("PIL.Image")
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 16)
    rows = 1 << 17
    constant = arrow.table({"a": np.zeros(rows), "b": np.zeros(rows)})
    parquet.write_table(constant, tmp_path / "t.parquet")
    np.savez_compressed(tmp_path / "t.npz", a=np.zeros(rows))
    for name in ("t.parquet", "t.npz"):
        with pytest.raises(UserError, match=rf"{name} has .* bytes and would take .* in memory"):
            read_table(tmp_path / name)
    head = struct.pack(">BBBBI", 0, 0, 8, 1, rows * 8)
    (tmp_path / "i.gz").write_bytes(gzip.compress(head + bytes(rows * 8)))
    with pytest.raises(UserError, match=r"i\.gz would take far more memory than it has bytes"):
        read_idx(tmp_path / "i.gz")
    for label in "ab":
        (tmp_path / "p" / label).mkdir(parents=True)
        pillow.new("RGB", (1000, 1000)).save(tmp_path / "p" / label / "p.png")
    with pytest.raises(UserError, match=r"p\.png has .* bytes and would take 6,000,000 in memory"):
        read_image_folder(tmp_path / "p")


@pytest.mark.parametrize("dtype", ["S0", "U0", "V0", [("a", "f8"), ("b", "f8")]])
def test_items_of_no_bytes(dtype: Any, tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.dtype(dtype).descr if isinstance(dtype, list) else f"|{dtype}",
               "fortran_order": False, "shape": (1 << 27,)}
    )  # fmt: skip
    (tmp_path / "t.npy").write_bytes(head.getvalue())
    with pytest.raises(UserError, match=r"t\.npy cannot be read .*; save numbers or texts"):
        read_table(tmp_path / "t.npy")


@pytest.mark.parametrize("shape", [(0, 1 << 40), (1 << 40, 0)])
def test_no_rows_of_many_columns(shape: tuple[int, int], tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.empty(shape, np.uint8))
    with pytest.raises(UserError, match=r"t\.npy has no rows; pass a file with at least one"):
        read_table(tmp_path / "t.npy")


def test_many_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((1, MAX_COLUMNS + 1), np.uint8))
    np.savez(tmp_path / "t.npz", a=np.zeros((1, MAX_COLUMNS + 1), np.uint8))
    (tmp_path / "t.csv").write_text(",".join(map(str, range(MAX_COLUMNS + 1))) + "\n")
    for name in ("t.npy", "t.npz", "t.csv"):
        with pytest.raises(UserError, match=rf"{name} has 200,001 columns, more than the 200,000"):
            read_table(tmp_path / name)


def test_texts_of_a_parquet_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    long = "x" * 1000
    frame = pandas.DataFrame({"t": [long, None, "b"] * 50, "n": [1.0, None, 2.0] * 50})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=40)
    table = read_table(tmp_path / "t.parquet")
    assert table.columns["t"].tolist() == [long, None, "b"] * 50
    np.testing.assert_array_equal(table.columns["n"], [1.0, np.nan, 2.0] * 50)
    assert table.columns["t"][0] is table.columns["t"][3]  # once in memory
    frame.assign(l=[[1, 2]] * 150).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(UserError, match=r"has the column 'l' of the type list<.*, leave it out"):
        read_table(tmp_path / "l.parquet")


def test_numbers_that_float32_or_a_deviation_cannot_hold() -> None:
    vast = Table({"a": np.array([1e308, -1e308, 1e308])})
    with pytest.raises(UserError, match=r"Column 'a' .* numbers as large as 1e\+308, .*; divide"):
        TableEncoding.fit(vast)
    with pytest.raises(UserError, match=r"Column 'a' .* numbers as large as"):
        TargetEncoding.fit(vast, "regression")
    fitted = TableEncoding.fit(Table({"a": np.array([1.0, 2.0])}))
    with pytest.raises(UserError, match=r"'a' of the data is 1e\+300 in row 2, too far from"):
        fitted.apply(Table({"a": np.array([1.0, 1e300])}))
    close = Table({"a": np.array([0.0, 1e-170])})  # whose squares are 0
    assert np.isfinite(TargetEncoding.fit(close, "regression").apply(close)).all()


def made_by(pickle: bytes) -> bytes:
    """Return a file of tensors with this pickle, and a digest that is right."""
    content = io.BytesIO(tensor_bytes({}))
    whole = io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(whole, "w") as new:
        for part in old.infolist():
            is_pickle = part.filename.endswith("data.pkl")
            new.writestr(part.filename, pickle if is_pickle else old.read(part))
    return whole.getvalue()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


DEEP = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40))
STORAGE = b"ctorch\nFloatStorage\n(K\x0ctR"
CALLED = {
    "memory of nobody": b"\x80\x02ctorch\nFloatTensor\n(K\x04K\x03tR.",
    "a storage of nobody": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00tR.",
    "gigabytes": b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 8 << 30) + b"\x85R.",
    "a key of a trillion parts": b"\x80\x02)q\x00" + DEEP + b"}h\x28Ns.",
    "such a key in a call": b"\x80\x02ccollections\nOrderedDict\n)q\x00" + DEEP + b"h\x28\x85R.",
    "an encoding": b"\x80\x02c_codecs\nencode\n" + text("\u4e00") + text("punycode") + b"\x86R.",
    "a change of a list": b"\x80\x02]}b.",
    "a string of many": b"\x80\x02T\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("pickle", CALLED.values(), ids=CALLED.keys())
def test_calls_that_make_no_tensor_of_the_file(pickle: bytes, whole: Path) -> None:
    (whole / "best.pt").write_bytes(made_by(pickle))
    with pytest.raises(UserError, match=r"best\.pt is damaged; train the network again"):
        Predictor.load(whole)


def test_more_dicts_than_a_file_of_tensors_has(tmp_path: Path) -> None:
    many = b"\x80\x02](" + b"}" * 1_000_000 + b"e."
    with pytest.raises(ValueError, match="it has too many dicts, lists and tuples"):
        check_pickle(many)


def test_more_bytes_than_the_file_has(tmp_path: Path) -> None:
    once = b"c_codecs\nencode\nh\x00h\x01\x86R"
    pickle = b"\x80\x02" + text("a" * 1000) + b"q\x00" + text("latin1") + b"q\x01](" + once * 9
    path = _file(tmp_path / "w.pt", made_by(pickle + b"e."))
    with pytest.raises(ValueError, match=r"w\.pt is damaged or no file of weights"):
        read_weights(path, {})


def test_two_parts_of_one_name(whole: Path) -> None:
    data = io.BytesIO((whole / "best.pt").read_bytes())
    with zipfile.ZipFile(data, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, archive.read(name))
    (whole / "best.pt").write_bytes(data.getvalue())
    with pytest.raises(UserError, match=r"best\.pt is damaged"):
        Predictor.load(whole)


@pytest.mark.parametrize("format_", [torch.ones(1), torch.ones(2), True, "1"], ids=str)
def test_a_format_that_is_no_number(format_: object, stopped: Path) -> None:
    content = {**read_tensors(stopped / "resume.pt"), "format": format_}
    (stopped / "resume.pt").write_bytes(tensor_bytes(content))
    (stopped / "resume.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"resume\.pt is damaged: it has another format"):
        RunDirectory(stopped).read_state()


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 5e-324])
def test_losses_that_cannot_be_computed_with(value: float, stopped: Path, tmp_path: Path) -> None:
    content = read_tensors(stopped / "resume.pt")
    content["history"][0]["val_loss"] = value
    (stopped / "resume.pt").write_bytes(tensor_bytes(content))
    (stopped / "resume.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"resume\.pt is damaged: val_loss of epoch 1 cannot be"):
        RunDirectory(stopped).read_state()


def test_a_sweeps_key_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "resume-0.pt").write_bytes(tensor_bytes({"[" * 100_000: {}}))
    base = fastmlp.TrainConfig(hidden=(4,), epochs=1)
    with pytest.raises(UserError, match=r"resume-0\.pt is damaged: .*, so the sweep cannot go on"):
        fastmlp.sweep(base, {"lr": [0.1]}, data=tiny_data(), out=tmp_path)


def test_a_runs_file_does_not_say_whom_to_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fastmlp.TrainConfig(hidden=(4,), epochs=2, engine="reference")
    fit(run, tiny_data(), out=tmp_path / "run", should_stop=stop_after(3))
    (tmp_path / "other").mkdir()
    config = read_json(tmp_path / "run" / "config.json")
    config |= {"dataset": "cifar10", "data_dir": str(tmp_path / "other"), "data_url": "http://x/y"}
    (tmp_path / "run" / "config.json").write_bytes(json_bytes(config))
    monkeypatch.setattr("fastmlp.data.http_client.build_opener", lambda *_: pytest.fail("called"))
    with pytest.raises(UserError, match=r"downloading is off; run python -m fastmlp.data download"):
        resume(tmp_path / "run")
    assert not list((tmp_path / "other").iterdir())


def test_pictures_that_take_longer_than_they_are_large(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    picture = pillow.effect_noise((64, 64), 50)
    picture.save(tmp_path / "b" / "p.jpg", progressive=True)
    path = tmp_path / "a" / "p.jpg"
    picture.save(path, progressive=True)
    assert len(read_image_folder(tmp_path).images) == 2
    whole = path.read_bytes()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    path.write_bytes(whole[:-2] + last * 200 + whole[-2:])
    with pytest.raises(UserError, match=r"p\.jpg cannot .* \(it has more than 100 scans\)"):
        read_image_folder(tmp_path)
    path.unlink()
    info = import_module("PIL.TiffImagePlugin").ImageFileDirectory_v2()
    info[32997] = info[32998] = 20_000  # tags that Pillow writes, then made those of tiles
    picture.save(tmp_path / "a" / "p.tif", tiffinfo=info)
    tiff = (tmp_path / "a" / "p.tif").read_bytes()
    for old, new in ((32997, 322), (32998, 323)):
        tiff = tiff.replace(struct.pack("<H", old), struct.pack("<H", new), 1)
    (tmp_path / "a" / "p.tif").write_bytes(tiff)
    with pytest.raises(UserError, match=r"p\.tif cannot .* \(it has tiles of 20000 x 20000"):
        read_image_folder(tmp_path)


def test_a_picture_that_another_program_would_read(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "p.png").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
        )
    with pytest.raises(UserError, match=r"p\.png cannot be read as an image \(cannot identify"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("attribute", ["items", "values", "keys"])
def test_methods_of_dicts_are_not_replaced(attribute: str, whole: Path) -> None:
    """nan in a dict that says it has no items."""
    parameters = OrderedDict(read_tensors(whole / "best.pt"))
    for tensor in parameters.values():
        tensor.fill_(float("nan"))
    setattr(parameters, attribute, OrderedDict)
    (whole / "best.pt").write_bytes(tensor_bytes(parameters))
    with pytest.raises(UserError, match=r"best\.pt is damaged"):
        Predictor.load(whole)


def npz_of(path: Path, header: bytes, data: bytes) -> None:
    """Write an .npz file of one array, compressed."""
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", head + data)


def test_arrays_of_long_texts_and_of_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 16)
    np.savez_compressed(tmp_path / "t.npz", a=np.array(["x" * 100_000, "y"]))
    with pytest.raises(UserError, match=r"t\.npz has .* bytes and would take .* in memory"):
        read_table(tmp_path / "t.npz")
    for header in (
        b"{'descr': ('<f8', (100,)), 'fortran_order': False, 'shape': (3,)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
    ):
        npz_of(tmp_path / "t.npz", header, bytes(2400))
        with pytest.raises(UserError, match=r"t\.npz cannot be read \(a\.npy has items of"):
            read_table(tmp_path / "t.npz")


def test_short_lines_and_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 16)
    names = ",".join(f"c{i}" for i in range(1000))
    (tmp_path / "t.csv").write_text(f"{names}\n" + "1\n" * 1000)
    long = arrow.table({"a": [f"{i}" + "x" * 100_000 for i in range(3)]})
    parquet.write_table(long, tmp_path / "t.parquet", use_dictionary=False, compression="zstd")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(UserError, match=rf"{name} has .* bytes and would take .* in memory"):
            read_table(tmp_path / name)


@pytest.mark.parametrize(
    "data",
    [b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, b""],
    ids=["an archive", "a header that is too deep", "nothing"],
)
def test_arrays_that_are_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.npy cannot be read"):
        read_rows(str(tmp_path / "x.npy"))


def test_an_archive_called_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"x\.npy cannot be read \(it is an \.npz file"):
        read_rows(str(tmp_path / "x.npy"))


def test_a_network_that_its_state_is_not_of(stopped: Path) -> None:
    """It is told before a network of so many parameters is made."""
    config = {**read_json(stopped / "config.json"), "hidden": [1 << 40]}
    (stopped / "config.json").write_bytes(json_bytes(config))
    with pytest.raises(
        UserError, match=r"parameters of 0\.weight must be of shape \(1099511627776"
    ):
        resume(stopped, prepare(X, X[:, 0]).splits)


def test_small_numbers_that_become_large_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "ALWAYS", 1 << 20)
    for kind in ("i1", "S1"):
        np.savez_compressed(tmp_path / "t.npz", a=np.zeros(1 << 18, kind))
        with pytest.raises(UserError, match=r"t\.npz has .* bytes and would take .* in memory"):
            read_table(tmp_path / "t.npz")


def test_what_only_looks_like_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for target, kind in ((tmp_path / "pipe.csv", FileExistsError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind) as told:
            write_bytes(target, b"")
        assert told.value.filename == str(target)
