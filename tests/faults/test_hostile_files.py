"""Files that were made to harm, each whole by its format and digest: runs whose values cannot be,
pipes and devices in a file's place. Tables and pictures are test_hostile_data.py's."""

from __future__ import annotations

import io
import os
import shutil
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import stop_after, tiny_data
from torch import Tensor

import fastmlp
from fastmlp.cli.own_data import splits_of
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


def test_a_network_that_its_state_is_not_of(stopped: Path) -> None:
    """It is told before a network of so many parameters is made."""
    config = {**read_json(stopped / "config.json"), "hidden": [1 << 40]}
    (stopped / "config.json").write_bytes(json_bytes(config))
    with pytest.raises(
        UserError, match=r"parameters of 0\.weight must be of shape \(1099511627776"
    ):
        resume(stopped, prepare(X, X[:, 0]).splits)


def test_what_only_looks_like_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for target, kind in ((tmp_path / "pipe.csv", FileExistsError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind) as told:
            write_bytes(target, b"")
        assert told.value.filename == str(target)
