"""What a user imports: the public names, their help and examples, and their types."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import python_environment

import fastmlp
import fastmlp.callbacks

NAMES = {
    *("MLP", "CrossEntropyLoss", "Linear", "LinearReLU", "ReLU", "functional", "manual"),
    *("native_available", "replace", "restore", "set_backend", "__version__"),
    *("TrainConfig", "callbacks", "find_lr", "fit", "fit_many", "resume", "sweep"),
}


def documented() -> Iterator[tuple[str, object]]:
    """Yield everything public with its name, but for the course's layers."""
    for name in sorted(NAMES - {"__version__", "functional", "manual", "callbacks"}):
        yield f"fastmlp.{name}", getattr(fastmlp, name)
    modules = [("fastmlp.callbacks", fastmlp.callbacks.__all__)]
    functions = ("activation", "cross_entropy", "linear", "linear_relu", "relu")
    modules.append(("fastmlp.functional", list(functions)))
    if importlib.util.find_spec("sklearn"):
        module = importlib.import_module("fastmlp.sklearn")
        modules.append((module.__name__, module.__all__))
    for module, names in modules:
        for name in names:
            holder = fastmlp.functional if module.endswith("functional") else None
            holder = holder or importlib.import_module(module)
            yield f"{module}.{name}", getattr(holder, name)


def test_dir_is_the_public_names() -> None:
    assert set(dir(fastmlp)) == NAMES
    assert all(hasattr(fastmlp, name) for name in NAMES)
    functions = {
        name
        for name, value in vars(fastmlp.functional).items()
        if inspect.isfunction(value)
        and value.__module__ == "fastmlp.nn.functional"
        and not name.startswith("_")
    }
    assert functions == {n.rpartition(".")[2] for n, _ in documented() if "functional" in n}


def test_help_is_short_and_names_them_all() -> None:
    text = pydoc.plain(pydoc.render_doc(fastmlp))
    assert len(text.splitlines()) < 80
    described = text.partition("PACKAGE CONTENTS")[0]
    assert [name for name in NAMES - {"__version__"} if name not in described] == []


@pytest.mark.parametrize(
    ("name", "value"), [("fastmlp", fastmlp), *documented()], ids=lambda v: v if v is str else None
)
def test_the_examples_run(
    name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.endswith("TensorBoard"):
        pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)  # some write files
    text = inspect.getdoc(value) or ""
    names = {} if value is fastmlp else {value.__name__: value}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert test.examples, f"the docstring of {name} has no example"
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


PROGRAM = """
import fastmlp
import numpy as np
import torch
from fastmlp.callbacks import CSVLogger, EarlyStopping
from fastmlp.sklearn import MLPClassifier, MLPRegressor

X = np.zeros((10, 3))
run = fastmlp.fit(X, X[:, 0], epochs=3, callbacks=[EarlyStopping(3), CSVLogger("a.csv")])
reveal_type(run)
reveal_type(fastmlp.fit(fastmlp.TrainConfig()))
reveal_type(run.history[0].val_loss)
reveal_type(run.model)
reveal_type(run.best_parameters)
found = fastmlp.sweep({"epochs": 3}, {"lr": [0.1]}, data=(X, X[:, 0]))
reveal_type(found)
reveal_type(found.best)
reveal_type(fastmlp.fit_many([fastmlp.TrainConfig(hidden=(3,), lr=0.1)]))
reveal_type(fastmlp.find_lr(X, X[:, 0]).suggestion)
reveal_type(fastmlp.MLP([3, 4, 2]))
reveal_type(fastmlp.MLP([3, 4, 2])(torch.zeros(1, 3)))
reveal_type(fastmlp.Linear(3, 2)(torch.zeros(1, 3)))
reveal_type(fastmlp.functional.relu(torch.zeros(3)))
reveal_type(fastmlp.replace(torch.nn.Sequential()))
reveal_type(fastmlp.native_available())
classifier = MLPClassifier(hidden_layer_sizes=(4,)).fit(X, X[:, 0])
reveal_type(classifier)
reveal_type(classifier.predict(X).ndim)
reveal_type(classifier.predict_proba(X).ndim)
reveal_type(classifier.score(X, X[:, 0]))
reveal_type(MLPRegressor().fit(X, X[:, 0]))
reveal_type(fastmlp.__version__)
fastmlp.TrainConfig(batch_size="8")  # the one mistake
"""
ROOT = Path(fastmlp.__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_users_type_checker_sees_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("this is not a checkout, whose mypy_cache spares reading torch anew")
    (tmp_path / "program.py").write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "program.py")],
        cwd=ROOT,
        env=python_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = run.stdout.splitlines()
    errors = [line for line in lines if "error:" in line and "program.py" in line]
    assert len(errors) == 1, run.stdout + run.stderr
    assert 'Argument "batch_size" to "TrainConfig" has incompatible type "str"' in errors[0]
    revealed = re.findall(r'Revealed type is "(.*)"', run.stdout)
    assert len(revealed) == PROGRAM.count("reveal_type(")
    assert [text for text in revealed if re.search(r"\bAny\b", text)] == []
