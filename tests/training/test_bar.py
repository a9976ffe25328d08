"""A notebook shows a bar while networks are trained; nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.tiny import tiny_data

from fastmlp.sweeps.sweep import sweep
from fastmlp.training.api import fit, fit_many
from fastmlp.training.config import TrainConfig

CONFIG = TrainConfig(epochs=3, hidden=(4,), normalize="unit")
WAYS: dict[str, Callable[[], object]] = {
    "fit": lambda: fit(CONFIG, tiny_data()),
    "fit_many": lambda: fit_many([CONFIG] * 2, tiny_data()),
    "sweep": lambda: sweep(CONFIG, {"lr": [0.1, 0.01]}, data=tiny_data()),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_notebook_shows_a_bar(way, monkeypatch, capsys):
    monkeypatch.setattr("fastmlp.utils.progress.DELAY", 0)
    WAYS[way]()
    assert capsys.readouterr().err == ""
    for module in ("fastmlp.utils.progress", "fastmlp.training.callbacks"):
        monkeypatch.setattr(f"{module}.in_notebook", lambda: True)
    WAYS[way]()
    shown = capsys.readouterr().err
    assert ("training:" if way == "fit" else "training 2 networks:") in shown
    assert " left" in shown
