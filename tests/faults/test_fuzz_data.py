"""Files of data, configurations and runs, damaged in every way: what reads them returns something
or raises one sentence of at most 300 characters, and runs none of their code.

``FASTMLP_FUZZ=N`` damages each kind of file N times, otherwise 60 times.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cifar10_files import BATCH, binary_files, describe, make_batches, pickle_files
from support.figures import count
from support.tiny import stop_after, tiny_data

import fastmlp
from fastmlp.data import cifar10
from fastmlp.data.cifar10 import BINARY, PYTHON, Archive
from fastmlp.data.images import read_idx, read_image_folder
from fastmlp.data.tables import read_table
from fastmlp.manual.files import read_weights
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig, config_from_dict, load_config_file
from fastmlp.training.predictor import Predictor
from fastmlp.training.run_reader import read_run
from fastmlp.utils.errors import UserError, describe_os_error
from fastmlp.utils.formats import json_bytes, read_json, read_tensors, tensor_bytes

COUNT = int(os.environ.get("FASTMLP_FUZZ", "60"))
LONGEST = 300
RAN = "ran"
"""The folder that code in a file would make."""
VALUES = [None, True, -1, 10**30, 0.5, float("nan"), float("inf"), "", "x" * 9999, "\x1b[2J\n", {}]
VALUES += [[], [[[]]], {"a": [None]}]
WORDS = [b"9" * 40, b"nan", b"-1", b"1e999", b"\xff\xfe", b"\x00", b"[" * 3000, b"\r\n", b'"', b"="]
WORDS += [b"\x1b[2J", b",,,,", b"\xef\xbb\xbf", b"x" * 5000, struct.pack("<q", -1), b"\x7f" * 8]


class Evil:
    """What makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


@dataclass(frozen=True)
class Kind:
    """Files that are read together, and what reads the folder that holds them."""

    files: dict[str, bytes]
    read: Callable[[Path], object]
    damaged: tuple[str, ...] = ()
    """Those that are damaged, all where there are none."""
    error: type[Exception] = UserError


def _saved(write: Callable[[Path], object], path: Path) -> bytes:
    write(path)
    return path.read_bytes()


def _batches(archive: Archive, files: dict[str, bytes]) -> Kind:
    tiny = replace(describe(archive, b"", files), md5={})  # without the checksums that protect it
    return Kind(files, lambda folder: cifar10.read(tiny, folder), tuple(files)[:6])


def make_tables(folder: Path) -> dict[str, Kind]:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    numbers = np.random.default_rng(0).normal(size=(20, 3))
    frame = pandas.DataFrame(numbers, columns=["a", "b", "c"]).assign(d=["x", "y"] * 10)
    content = {
        "csv": _saved(lambda p: frame.to_csv(p, index=False), folder / "t.csv"),
        "parquet": _saved(frame.to_parquet, folder / "t.parquet"),
        "npz": _saved(lambda p: np.savez(p, a=numbers, b=numbers[:, 0]), folder / "t.npz"),
        "npy": _saved(lambda p: np.save(p, numbers), folder / "t.npy"),
    }
    return {
        ending: Kind({f"t.{ending}": data}, lambda at, e=ending: read_table(at / f"t.{e}"))
        for ending, data in content.items()
    }


def make_pictures(folder: Path) -> dict[str, Kind]:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    picture = _saved(lambda p: pillow.fromarray(pixels).save(p), folder / "p.png")
    images = {f"{label}/p.png": picture for label in "abc"}
    head = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 6)
    return {
        "IDX": Kind({"i": head + pixels.tobytes()}, lambda at: read_idx(at / "i")),
        "pictures": Kind(images, read_image_folder),
    }


def make_runs(folder: Path) -> dict[str, Kind]:
    config = TrainConfig(hidden=(4,), batch_size=16, epochs=2, engine="reference", threads=1)
    data = tiny_data()
    fit(config, data, out=folder / "whole")
    fit(config, data, out=folder / "stopped", should_stop=stop_after(8))
    x = np.random.default_rng(0).normal(size=(60, 2))
    fastmlp.fit(x, x[:, 0] > 0, epochs=1, hidden=4, seed=1, out=str(folder / "own"), verbose=False)
    kinds = {}
    readers: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
        "whole": (read_run, ("config.json", "metrics.csv", "summary.json")),
        "own": (Predictor.load, ("encoding.json", "best.pt", "config.json")),
        "stopped": (lambda at: resume(at, data), ("resume.pt", "config.json")),
    }
    for name, (read, damaged) in readers.items():
        files = {p.name: p.read_bytes() for p in (folder / name).iterdir() if p.suffix != ".png"}
        kinds[f"run ({name})"] = Kind(files, read, damaged)
    return kinds


def make_rest(folder: Path) -> dict[str, Kind]:
    batches = make_batches()
    toml = b'epochs = 3\nlr = 0.1\nhidden = [16, 8]\nengine = "reference"\nbatch-size = 32\n'
    weights = {n: torch.randn(2, 3) for n in ("w1", "w2")} | {
        n: torch.ones(3) for n in ("b1", "b2")
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    saved = _saved(lambda p: torch.save(weights, p), folder / "w.pt")
    return {
        "CIFAR-10 binaries": _batches(BINARY, binary_files(batches)),
        "CIFAR-10 pickles": _batches(PYTHON, pickle_files(batches)),
        "TOML": Kind(
            {"c.toml": toml}, lambda at: config_from_dict(load_config_file(at / "c.toml"))
        ),
        "weights": Kind(
            {"w.pt": saved}, lambda at: read_weights(at / "w.pt", shapes), error=ValueError
        ),
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("made")
    made: dict[str, Kind] = {}
    for make in (make_tables, make_pictures, make_runs, make_rest):
        made |= make(folder)
    return made


NAMES = [
    *("csv", "parquet", "npz", "npy", "IDX", "pictures", "TOML", "weights"),
    *("CIFAR-10 binaries", "CIFAR-10 pickles", "run (whole)", "run (own)", "run (stopped)"),
]


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file that asks for more memory than it can have gets none."""
    monkeypatch.setattr(cifar10, "BATCH", BATCH)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def replaced(value: Any, draw: random.Random) -> Any:
    """Return JSON with one of its values replaced, or a key gone."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: replaced(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], replaced(value[at], draw), *value[at + 1 :]]
    if isinstance(value, torch.Tensor) and draw.random() < 0.7:
        changes = [value[:0], value.double(), value.flatten(), value * torch.nan, value.to_sparse()]
        return draw.choice(changes)
    return draw.choice(VALUES)


def resealed(path: Path, draw: random.Random) -> bytes | None:
    """Return a file of ours with other content and the digest that belongs to that."""
    if path.suffix == ".json":
        values = replaced(read_json(path), draw)
        return json_bytes(values) if isinstance(values, dict) else json.dumps(values).encode()
    if path.suffix == ".pt":
        return tensor_bytes(replaced(read_tensors(path), draw))
    return None


def damage(path: Path, draw: random.Random) -> bytes:
    """Return what the file is to hold."""
    whole = path.read_bytes()
    kind = draw.randrange(10)
    if kind < 4 and (content := resealed(path, draw)) is not None:
        return content
    if kind == 4:
        evil = Evil(path.parent / RAN)
        return draw.choice([b"", pickle.dumps(evil), pickle.dumps({"data": evil}), b"\n", b"{}"])
    if kind == 5:
        return whole[: draw.randrange(len(whole))]
    if kind == 6:
        return json.dumps(draw.choice(VALUES)).encode()
    content = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        cut = draw.choice([0, 1, 1, 4, len(content) // 2])
        content[at : at + cut] = draw.choice([draw.choice(WORDS), draw.randbytes(cut)])
    return bytes(content)


def complaint(kind: Kind, folder: Path) -> str | None:
    """Read the folder; return what a user would hold against that, or None."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind.read(folder)
    except kind.error as error:
        said = [str(error)]
    except OSError as error:  # the command line puts it so
        said = [describe_os_error(error)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for text in said:
        if not text.isprintable() or len(text.replace(str(folder), "")) > LONGEST:
            return f"not one line of {LONGEST} characters: {text!r}"
    return "code of the file was run" if (folder / RAN).exists() else None


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_told_in_a_sentence(
    name: str, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    assert set(NAMES) == set(kinds)
    kind, draw = kinds[name], random.Random(name)
    for number in range(COUNT + 1):
        folder = tmp_path / str(number)
        for file, content in kind.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        if number == 0:  # a whole one is read
            kind.read(folder)
            continue
        path = folder / draw.choice(kind.damaged or list(kind.files))
        path.write_bytes(content := damage(path, draw))
        wrong = complaint(kind, folder)
        assert wrong is None, f"{number}: {path.name} {content[:300]!r}: {wrong}"
    count(damaged_inputs=COUNT)
