"""Define the experiments of the report and what the course's report found with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from fastmlp.engines.metrics import EpochRecord
from fastmlp.training.checkpoint import epochs_of
from fastmlp.training.config import TrainConfig
from fastmlp.training.presets import resolve_config
from fastmlp.training.run import RunResult
from fastmlp.utils.value_checks import (
    Fields,
    check_fields,
    is_count,
    is_finite,
    is_list,
    is_object,
    is_share,
    is_text,
    optional,
)

RECIPES = {"course": "the course's recipe", "course-fixed": "the recipe corrected"}
"""Presets and their names in the text."""
SWEEP_BASE: dict[str, Any] = {"batch_size": 16, "lr": 1e-3, "lr_decay": 0.95, "hidden": 64}
SWEEPS: dict[str, tuple[Any, ...]] = {
    "lr": (1e-2, 1e-3, 1e-4),
    "batch_size": (8, 16, 100),
    "hidden": (32, 64, 256),
    "lr_decay": (1.0, 0.95, 0.9),
}
NAMES = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "hidden": "number of hidden units",
    "lr_decay": "learning-rate decay",
}
FINAL: dict[str, dict[str, Any]] = {
    "batch 8, lr 0.01": {},
    "batch 8, lr 0.0001": {"lr": 1e-4},
    "batch 4, lr 0.01": {"batch_size": 4},
}
"""The course's final training, with 256 hidden units and no decay, and its variants."""
BEST, SMALL_RATE, SMALL_BATCH = FINAL

COURSE_BEST = {"lr": 1e-2, "batch_size": 8, "hidden": 256, "lr_decay": 1.0}
"""The best value of each sweep according to the course's report."""
COURSE_TEST = {BEST: 0.3449, SMALL_RATE: 0.2668, SMALL_BATCH: 0.3542}
COURSE_LAST = {"train_acc": 0.56, "val_acc": 0.33}
"""Approximate accuracies at the end of the final training."""
COURSE_FINAL_EPOCHS, COURSE_SWEEP_EPOCHS = 200, 80


@dataclass(frozen=True)
class Budget:
    """The epochs and seeds of each part of the report; None leaves the epochs to the preset."""

    sweep_epochs: int
    sweep_seeds: int
    final_epochs: int
    final_seeds: int
    ablation_epochs: int
    ablation_seeds: int
    network_epochs: int | None
    network_seeds: int


FULL = Budget(80, 3, 200, 3, 30, 2, None, 5)
"""About ten minutes on two cores."""
QUICK = Budget(6, 3, 20, 2, 4, 1, 12, 2)
"""A minute or two."""


@dataclass(frozen=True)
class Study:
    """Networks that are compared with each other, by name, each trained with seeds 0, 1, ..."""

    name: str
    title: str
    configs: dict[str, TrainConfig]
    seeds: int

    @property
    def epochs(self) -> int:
        """The epochs of each network."""
        return next(iter(self.configs.values())).epochs

    def with_seed(self, seed: int) -> list[TrainConfig]:
        """Return the configurations, in order, with this seed."""
        return [replace(config, seed=seed) for config in self.configs.values()]


def studies(common: Mapping[str, Any], budget: Budget) -> list[Study]:
    """Return all experiments; ``common`` holds TrainConfig's fields of data and machine."""

    def config(values: Mapping[str, Any], epochs: int, preset: str = "course") -> TrainConfig:
        return resolve_config({**common, "epochs": epochs, **values}, preset=preset)

    sweeps = {
        preset: {
            sweep_label(name, value): config(
                {**SWEEP_BASE, name: value}, budget.sweep_epochs, preset
            )
            for name, values in SWEEPS.items()
            for value in values
        }
        for preset in RECIPES
    }
    final = {name: config(values, budget.final_epochs) for name, values in FINAL.items()}
    ablation = {
        ablation_label(*row): config(
            dict(zip(("loader", "init", "grad_average"), row, strict=True)), budget.ablation_epochs
        )
        for row in ABLATION
    }
    epochs = {} if budget.network_epochs is None else {"epochs": budget.network_epochs}
    network = {"default": resolve_config({**common, **epochs})}
    ablated, right = "what of the recipe costs how much", "the network done right"
    return [
        *(
            Study(
                f"sweep-{preset}", f"four sweeps with {recipe}", sweeps[preset], budget.sweep_seeds
            )
            for preset, recipe in RECIPES.items()
        ),
        Study("final", "final training and its variants", final, budget.final_seeds),
        Study("ablation", ablated, ablation, budget.ablation_seeds),
        Study("network", right, network, budget.network_seeds),
    ]


def sweep_label(name: str, value: object) -> str:
    """Return the name of a sweep's network that differs from the base in one value at most."""
    return "base" if SWEEP_BASE[name] == value else f"{name} {value}"


ABLATION = tuple(product(("sliding", "shuffle"), ("normal:0.8", "kaiming"), (True, False)))
"""(loader, initial weights, averaged twice), from the course's recipe to none of it."""


def ablation_label(loader: str, init: str, grad_average: bool) -> str:
    """Return the name of a network of the ablation."""
    return f"{loader}, {init}, averaged {'twice' if grad_average else 'once'}"


@dataclass(frozen=True)
class Outcome:
    """The result of one training, accuracies as shares from 0 to 1.

    Tested are the parameters of the best validation accuracy; None means that the run diverged.
    """

    seed: int
    history: list[EpochRecord]
    test_accuracy: float | None
    test_loss: float | None
    diverged: str | None

    @classmethod
    def of(cls, run: RunResult) -> Outcome:
        """Summarise a finished run."""
        test = run.test if run.diverged is None else None
        accuracy, loss = (test.accuracy, test.loss) if test else (None, None)
        return cls(run.config.seed, run.history, accuracy, loss, run.diverged)

    @property
    def best(self) -> EpochRecord:
        """The epoch of the highest validation accuracy; raises ValueError without epochs."""
        return max(self.history, key=lambda record: record.val_acc)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, the history by columns."""
        columns = [column.name for column in fields(EpochRecord)]
        history = {name: [getattr(record, name) for record in self.history] for name in columns}
        return {**asdict(replace(self, history=[])), "history": history}

    @classmethod
    def from_dict(cls, values: object) -> Outcome:
        """Invert :meth:`to_dict`; raises ValueError for anything else."""
        columns = check_fields("an outcome", values, _OUTCOME)
        names = [column.name for column in fields(EpochRecord)]
        history = check_fields("its history", columns["history"], dict.fromkeys(names, is_list))
        rows = zip(*(history[name] for name in names), strict=True)
        epochs = epochs_of([dict(zip(names, row, strict=True)) for row in rows])
        outcome = cls(**{**columns, "history": epochs})
        missing = {outcome.test_accuracy is None, outcome.test_loss is None}
        if missing != {outcome.diverged is not None} or not (epochs or outcome.diverged):
            raise ValueError("an outcome must be tested, or have diverged")
        return outcome


_OUTCOME: Fields = {
    "seed": is_count,
    "history": is_object,
    "test_accuracy": optional(is_share),
    "test_loss": optional(is_finite),
    "diverged": optional(is_text),
}


Outcomes = dict[str, dict[str, list[Outcome]]]
"""One outcome for each seed, by study and network."""
