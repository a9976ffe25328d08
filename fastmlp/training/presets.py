"""Named configurations, and the order in which values override each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmlp.training.config import TrainConfig, config_from_dict
from fastmlp.training.option_schema import one_of

OF_SGD = ("momentum", "nesterov")
"""What a preset loses with another optimizer."""
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "course": {
        "hidden": (256,),
        "init": "normal:0.8",
        "normalize": "unit",
        "loader": "sliding",
        "batch_size": 8,
        "lr": 0.01,
        "lr_decay": 1.0,
        "lr_schedule": "constant",
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
        "grad_average": True,
        "epochs": 200,
    },
}
"""``course``: the exercise this project grew out of, as it was. Its weights begin 20 times too
large, its loader shows the same few images again and again, and its gradients, already means over
the batch, are divided by the batch size once more. ``course-fixed``: the same with the usual
initial weights and a loader that shows every image. ``sweep``: plain SGD, where sweeps begin.
``augmented``, ``wide`` and ``widest``: images flipped and shifted afresh in every epoch, which lets
the default network, and those of four and eight times its width, train for longer."""


PRESETS["course-fixed"] = {**PRESETS["course"], "init": "kaiming", "loader": "shuffle"}


PRESETS["sweep"] = {
    "hidden": (64,),
    "batch_size": 16,
    "lr": 1e-3,
    "lr_decay": 0.95,
    "lr_schedule": "constant",
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "epochs": 80,
}


PRESETS["augmented"] = {
    "augment": "flip,shift:3",
    "batch_size": 128,
    "momentum": 0.9,
    "nesterov": True,
    "lr": 0.03,
    "weight_decay": 7e-4,
    "epochs": 240,
}


PRESETS["wide"] = {**PRESETS["augmented"], "hidden": (1024,), "weight_decay": 5e-4, "epochs": 160}


PRESETS["widest"] = {
    **PRESETS["augmented"],
    "hidden": (2048,),
    "batch_size": 16,
    "momentum": 0.0,
    "nesterov": False,
    "epochs": 300,
}


def resolve_config(
    flags: Mapping[str, Any], file: Mapping[str, Any] | None = None, preset: str = "default"
) -> TrainConfig:
    """Return a configuration from the values given: flags beat the file, the file beats the
    preset. Raises :class:`UserError` for an unknown preset or key and for values that cannot be
    used."""
    one_of(PRESETS).check("preset", preset)
    given = {**(file or {}), **flags}
    named = PRESETS[preset]
    if given.get("optimizer", "sgd") != "sgd":
        named = {name: value for name, value in named.items() if name not in OF_SGD}
    return config_from_dict({**named, **given})
