"""The page on troubleshooting has every message of the sources, and what to do about it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastmlp
from fastmlp.cli.main import main
from fastmlp.data.tables import read_table
from fastmlp.engines.registry import choose_engine, resolve_device
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import UserError, describe_device_error, describe_os_error

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "docs"), str(ROOT)]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="not run from a checkout")

import message_finder  # noqa: E402
import messages  # noqa: E402


def every_message() -> list[message_finder.Message]:
    paths = {
        p for patterns in messages.TOPICS.values() for each in patterns for p in ROOT.glob(each)
    }
    return [m for path in sorted(paths) for m in message_finder.Module(ROOT, path).messages()]


def test_the_page_is_what_the_sources_say() -> None:
    page = messages.PAGE.read_text(encoding="utf-8")
    assert messages.filled(page) == page, "run python docs/messages.py"


def test_all_of_the_build_and_of_what_the_commands_pass_on_is_read() -> None:
    named = {
        p for patterns in messages.TOPICS.values() for each in patterns for p in ROOT.glob(each)
    }
    layers = ("cli", "data", "training", "utils", "sweeps", "engines")
    wanted = {path for layer in layers for path in (ROOT / "fastmlp" / layer).glob("*.py")}
    assert wanted | set(ROOT.glob("*.py")) <= named
    kinds = [UserError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {
        k.__name__ for k in kinds if k.__module__.startswith("fastmlp.")
    } <= message_finder.SENTENCES


SOURCE = """
LEAST = 3
def check(path, kind):
    if kind == 1:
        raise UserError(f"{path} is no file" + f"; pass one of {LEAST:,} or more")
    what = "is red" if kind == 2 else "is blue"
    if kind < 4:
        raise _refusal(path, f"{what} and {kind + 1} long")
    try:
        warnings.warn(f"{path.name} is old; write it anew", stacklevel=2)
    except ValueError as error:
        raise ValueError("it holds no numbers at all") from error
    error = UserError("this one is kept; leave it")
    raise NotImplementedError("only for a programmer to see")
class Reader:
    def refused(self, why):
        return UserError(f"{self.path} was refused: {why}; try again")
    def read(self):
        self.error = self.refused("it is late")
def _refusal(path, problem):
    return UserError(f"{path} {problem}; paint it")
"""


def test_each_way_to_say_something_is_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE, encoding="utf-8")
    found = set(message_finder.Module(tmp_path, tmp_path / "module.py").messages())
    wanted = {
        ("PATH is no file; pass one of 3 or more", True),
        ("PATH is red and KIND long; paint it", True),
        ("PATH is blue and KIND long; paint it", True),
        ("NAME is old; write it anew", True),
        ("it holds no numbers at all", False),
        ("this one is kept; leave it", True),
        ("PATH was refused: it is late; try again", True),
    }
    assert {(m.text, m.whole) for m in found} == wanted
    assert "write it anew" in {messages.parts(m)[1] for m in found if m.whole}
    with pytest.raises(ValueError, match="does not say what to do in 'it holds no numbers"):
        messages.parts(next(m for m in found if not m.whole))


X = np.arange(40.0).reshape(20, 2)
Y = np.arange(20) % 2
MISTAKES = {
    "no targets": lambda: fastmlp.fit(X),
    "unknown option": lambda: fastmlp.fit(X, Y, learning=1),
    "weights of classes": lambda: fastmlp.fit(X, Y + 0.5, class_weight="balanced"),
    "a constant column": lambda: fastmlp.fit(X * [1, 0], Y),
    "a category": lambda: fastmlp.fit(X.astype(str), Y),
    "diverged": lambda: fastmlp.fit(X, Y, lr=1e30, optimizer="sgd", epochs=9),
    "no file": lambda: read_table("nothing.csv"),
    "no run": lambda: RunDirectory("nothing").read_config(),
    "nesterov": lambda: fastmlp.TrainConfig(momentum=0, nesterov=True),
    "no engine": lambda: choose_engine("graph", torch.device("cpu")),
    "no gpu": lambda: resolve_device("cuda:99"),
    "nothing to vary": lambda: fastmlp.sweep(fastmlp.TrainConfig(), {"epochs": [1, 2]}),
    "no command": lambda: main(["tarin"]),
    "no shape": lambda: main(["info", "--shape", "8"]),
    "no rows": lambda: main(["train", "--data", "nothing.npy", "--target", "y"]),
    "no folder": lambda: main(["train", "--data-dir", "nothing"]),
}
CATCH_ALL = ("MESSAGE ", "NAME must be WANTED", "ERROR")


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_what_a_user_sees_is_on_the_page(
    mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, SystemExit)) as caught:
        mistake()
    sentence = str(caught.value)
    if isinstance(caught.value, SystemExit):
        sentence = capsys.readouterr().err.removeprefix("fastmlp: error: ").strip()
        sentence = re.sub(r"^--(\w+)-", r"\1_", sentence)  # the flags of options
    fits = [m for m in every_message() if m.whole and re.fullmatch(m.pattern, sentence)]
    fits = [m for m in fits if not m.text.startswith(CATCH_ALL)]
    assert fits, sentence
    page = messages.PAGE.read_text(encoding="utf-8")
    assert all(f"`{messages.parts(m)[0]}`" in page for m in fits)


def test_what_the_system_and_pytorch_say_is_on_the_page() -> None:
    page = messages.PAGE.read_text(encoding="utf-8")
    told = [describe_os_error(OSError(28, "", "x")), describe_device_error(MemoryError())]
    for sentence in told:
        fits = [m for m in every_message() if m.whole and re.fullmatch(m.pattern, sentence or "")]
        assert any(f"`{messages.parts(m)[0]}`" in page for m in fits), sentence
