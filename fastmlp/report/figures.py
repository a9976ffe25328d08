"""Choose the report's pictures and draw them with :mod:`fastmlp.plotting`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastmlp.data.dataset import Dataset
from fastmlp.nn.modules import MLP
from fastmlp.plotting.curves import learning_curves
from fastmlp.plotting.images import (
    confusion_picture,
    draw_samples,
    mistakes_picture,
    weights_picture,
)
from fastmlp.plotting.sweeps import SweepPoint, sweep_picture
from fastmlp.report.experiments import BEST, NAMES, RECIPES, SWEEPS, Outcome, sweep_label
from fastmlp.report.results import Material

Drawings = dict[str, Callable[[Path], object]]


def drawings(
    material: Material, dataset: Dataset, parameters: Mapping[str, Tensor] | None
) -> Drawings:
    """Return, by name, functions that each draw a picture into a PNG file of a given path.

    ``parameters`` is the ``state_dict`` of the best network, or None if all diverged.
    """
    found: Drawings = {"classes": lambda path: draw_samples(dataset, path)}
    for preset, recipe in RECIPES.items():
        for name in SWEEPS:
            found[f"sweep-{preset}-{name}"] = _sweep(material, preset, recipe, name)
    for study, network, title in (
        ("final", BEST, "the course's best network, trained with its recipe"),
        ("network", "default", "the best network of the preset default"),
    ):
        outcome = material.best_outcome(study, network)
        if outcome is not None:
            found[study] = _curves(outcome, f"{title}, seed {outcome.seed}")
    if parameters is not None and material.data.shape is not None:
        found |= _of_best(material, parameters)
    return found


def _sweep(material: Material, preset: str, recipe: str, name: str) -> Callable[[Path], object]:
    outcomes = material.outcomes[f"sweep-{preset}"]
    points = [
        SweepPoint(value, [outcome.history for outcome in outcomes[sweep_label(name, value)]])
        for value in SWEEPS[name]
    ]
    return lambda path: sweep_picture(NAMES[name], points, path, recipe)


def _curves(outcome: Outcome, title: str) -> Callable[[Path], object]:
    return lambda path: learning_curves(outcome.history, outcome.best.epoch, title, path)


def _of_best(material: Material, parameters: Mapping[str, Tensor]) -> Drawings:
    """Return the pictures of the best network: its answers to the test images and its weights."""
    data, test = material.data, material.data.test
    assert test is not None  # the built-in sets have one
    shape, names = data.shape, data.class_names
    assert shape is not None
    config = material.study("network").configs["default"]
    model = MLP([test.images.shape[1], *config.hidden, data.classes])
    model.load_state_dict(dict(parameters))
    with torch.no_grad():
        logits = model(data.normalization(config.normalize).apply(test.images))
    guesses = logits.argmax(1)
    counts = torch.bincount(test.labels * data.classes + guesses, minlength=data.classes**2)
    matrix = counts.reshape(data.classes, data.classes)
    right = float((guesses == test.labels).float().mean())
    title = f"{len(guesses):,} test images of {data.name}, {right:.1%} of them recognised"
    return {
        "confusion": lambda path: confusion_picture(matrix, names, title, path),
        "weights": lambda path: weights_picture(parameters["0.weight"], shape, path),
        "mistakes": lambda path: mistakes_picture(
            test.images, test.labels, logits.softmax(1), shape, names, path
        ),
    }
