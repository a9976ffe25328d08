"""The NumPy program in docs/blocked-sgd.md is SGD: its text, as the page has it, is run here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmlp.engines import blocked

PAGE = Path(__file__).parents[2] / "docs" / "blocked-sgd.md"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.05},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "momentum-decay": {"momentum": 0.9, "weight_decay": 0.02},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
}
OPTIMIZER = pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
EPOCH_LR = (0.1, 0.03)
SIZES = (7, 5, 3)
State = list[list[np.ndarray]]  # of both layers: weight, bias, and their momenta


@pytest.fixture(scope="module")
def twin() -> SimpleNamespace:
    found = re.findall(
        r"<!-- twin -->\n```python\n(.*?)```\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.S
    )
    assert len(found) == 1
    names: dict[str, Any] = {}
    exec(compile(found[0], str(PAGE), "exec"), names)
    return SimpleNamespace(**names)


def problem(images: int) -> tuple[np.ndarray, np.ndarray, State]:
    inputs, hidden, classes = SIZES
    rng = np.random.default_rng(5)
    state = []
    for n, m in ((inputs, hidden), (hidden, classes)):
        shapes = ((m, n), (m,))
        state.append([rng.normal(size=s) for s in shapes] + [np.zeros(s) for s in shapes])
    return rng.normal(size=(images, inputs)), rng.integers(0, classes, images), state


def copied(state: State) -> State:
    return [[array.copy() for array in layer] for layer in state]


def torch_steps(
    x: np.ndarray, labels: np.ndarray, state: State, batch: int, options: dict[str, Any]
) -> Iterator[tuple[float, State]]:
    """Each step's loss and the state after it, by torch.optim.SGD and autograd."""
    leaves = [torch.tensor(a, requires_grad=True) for layer in state for a in layer[:2]]
    w, b, w2, b2 = leaves
    optimizer = torch.optim.SGD(leaves, lr=1.0, **options)
    for lr in EPOCH_LR:
        optimizer.param_groups[0]["lr"] = lr
        for first in range(0, len(x), batch):
            rows = slice(first, first + batch)
            hidden = F.relu(F.linear(torch.tensor(x[rows]), w, b))
            loss = F.cross_entropy(F.linear(hidden, w2, b2), torch.tensor(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = [leaf.detach().numpy().copy() for leaf in leaves]
            momenta = [optimizer.state[leaf].get("momentum_buffer") for leaf in leaves]
            kept = [np.zeros(1) if m is None else m.numpy().copy() for m in momenta]
            yield loss.item(), [[*now[i : i + 2], *kept[i : i + 2]] for i in (0, 2)]


def assert_same(ours: State, theirs: State, momentum: bool) -> None:
    for mine, torchs in zip(ours, theirs, strict=True):
        count = 4 if momentum else 2
        for a, b in zip(mine[:count], torchs[:count], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@OPTIMIZER
@pytest.mark.parametrize(("images", "batch"), [(23, 4), (24, 4), (9, 1), (7, 12)])
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_the_pages_program_is_torchs_sgd(
    twin: SimpleNamespace, images: int, batch: int, steps: int, options: dict[str, Any]
) -> None:
    x, labels, state = problem(images)
    torchs = torch_steps(x, labels, state, batch, options)
    for lr in EPOCH_LR:
        for first in range(0, images, batch * steps):
            end = min(first + batch * steps, images)
            start = copied(state)
            # Every beginning of the block is a block: so each of its steps is seen.
            for part in [*range(first + batch, end, batch), end]:
                state = copied(start)
                rows = slice(first, part)
                losses = twin.train_block(x[rows], labels[rows], batch, *state, lr=lr, **options)
                assert len(losses) == -(-(part - first) // batch)
                loss, theirs = next(torchs)
                assert losses[-1] == pytest.approx(loss, rel=1e-12)
                assert_same(state, theirs, "momentum" in options)
    assert next(torchs, None) is None


@OPTIMIZER
def test_its_table_is_the_engines(twin: SimpleNamespace, options: dict[str, Any]) -> None:
    table = twin.recurrence(9, 0.1, **options)
    engines = blocked.recurrence(9, 0.1, **options).numpy()
    np.testing.assert_allclose(table.reshape(10, 6), engines, rtol=1e-13, atol=1e-16)


def test_the_pages_formulas(twin: SimpleNamespace) -> None:
    lr, mu, decay, t = 0.1, 0.8, 0.3, np.arange(1, 8)
    ones, shrink, total = np.ones(7), 1 - lr * decay, (1 - mu**t) / (1 - mu)
    more = (1 - mu ** (t + 1)) / (1 - mu)
    buffer = [0 * ones, mu**t, mu ** (t - 1)]
    cases: list[tuple[dict[str, Any], list[np.ndarray]]] = [
        ({}, [ones, 0 * ones, -lr * ones]),
        ({"weight_decay": decay}, [shrink**t, 0 * ones, -lr * shrink ** (t - 1)]),
        ({"momentum": mu}, [ones, -lr * mu * total, -lr * total, *buffer]),
        (
            {"momentum": mu, "nesterov": True},
            [ones, -lr * mu**2 * total, -lr * more, *buffer],
        ),
    ]
    for options, columns in cases:
        table = twin.recurrence(7, lr, **options).reshape(8, 6)[1:, : len(columns)]
        np.testing.assert_allclose(table, np.stack(columns, axis=1), rtol=1e-13, atol=1e-15)


def test_the_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert pictures == ["blocked-sgd.png"]
    assert all((PAGE.parent / name).stat().st_size < 100_000 for name in pictures)
