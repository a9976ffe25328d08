"""The experiments of the report: which networks are trained, how long and how often, and what the
course's report found with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from fastmlp.engines.metrics import EpochRecord
from fastmlp.training.config import TrainConfig
from fastmlp.training.presets import resolve_config
from fastmlp.training.run import RunResult

RECIPES = {"course": "the course's recipe", "course-fixed": "the recipe corrected"}
"""Presets, and how they are called."""
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
"""The course report's conclusions: the best of each sweep."""
COURSE_TEST = {BEST: 0.3449, SMALL_RATE: 0.2668, SMALL_BATCH: 0.3542}
COURSE_LAST = {"train_acc": 0.56, "val_acc": 0.33}
"""About, at the end of the final training."""
COURSE_FINAL_EPOCHS, COURSE_SWEEP_EPOCHS = 200, 80


@dataclass(frozen=True)
class Budget:
    """How many epochs and seeds the parts of the report take; None: what the preset says."""

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
    """Networks that belong together, by name, each trained with the seeds 0, 1, ..."""

    name: str
    title: str
    configs: dict[str, TrainConfig]
    seeds: int

    @property
    def epochs(self) -> int:
        """Of each of its networks."""
        return next(iter(self.configs.values())).epochs

    def with_seed(self, seed: int) -> list[TrainConfig]:
        """Its configurations, in order, with this seed."""
        return [replace(config, seed=seed) for config in self.configs.values()]


def studies(common: Mapping[str, Any], budget: Budget) -> list[Study]:
    """All trainings of the report; ``common`` are the fields of :class:`TrainConfig` that say on
    which data and which machine."""
    final = {"epochs": budget.final_epochs}
    network = {} if budget.network_epochs is None else {"epochs": budget.network_epochs}
    return [
        *(
            Study(
                f"sweep-{preset}",
                f"four sweeps with {recipe}",
                _sweep_configs({**common, "epochs": budget.sweep_epochs}, preset),
                budget.sweep_seeds,
            )
            for preset, recipe in RECIPES.items()
        ),
        Study(
            "final",
            "final training and its variants",
            {
                name: resolve_config({**common, **final, **values}, preset="course")
                for name, values in FINAL.items()
            },
            budget.final_seeds,
        ),
        Study(
            "ablation",
            "what of the recipe costs how much",
            _ablation_configs({**common, "epochs": budget.ablation_epochs}),
            budget.ablation_seeds,
        ),
        Study(
            "network",
            "the network done right",
            {"default": resolve_config({**common, **network})},
            budget.network_seeds,
        ),
    ]


def sweep_label(name: str, value: object) -> str:
    """The name, in its study, of the network where ``name`` has another value than in the base."""
    return "base" if SWEEP_BASE[name] == value else f"{name} {value}"


def _sweep_configs(common: Mapping[str, Any], preset: str) -> dict[str, TrainConfig]:
    return {
        sweep_label(name, value): resolve_config(
            {**common, **SWEEP_BASE, name: value}, None, preset
        )
        for name, values in SWEEPS.items()
        for value in values
    }


ABLATION = tuple(product(("sliding", "shuffle"), ("normal:0.8", "kaiming"), (True, False)))
"""Loader, initial weights, whether gradients are averaged twice; from the course's recipe to none
of it."""


def ablation_label(loader: str, init: str, grad_average: bool) -> str:
    """The name of a row of the ablation in its study."""
    return f"{loader}, {init}, averaged {'twice' if grad_average else 'once'}"


def _ablation_configs(common: Mapping[str, Any]) -> dict[str, TrainConfig]:
    return {
        ablation_label(*row): resolve_config(
            {**common, **dict(zip(("loader", "init", "grad_average"), row, strict=True))},
            preset="course",
        )
        for row in ABLATION
    }


@dataclass(frozen=True)
class Outcome:
    """What came of one training. Accuracies are shares, 0 to 1; the test is that of the parameters
    with the best validation accuracy, None where the run diverged."""

    seed: int
    history: list[EpochRecord]
    test_accuracy: float | None
    test_loss: float | None
    diverged: str | None

    @classmethod
    def of(cls, run: RunResult) -> Outcome:
        """A finished run's."""
        test = run.test if run.diverged is None else None
        accuracy, loss = (test.accuracy, test.loss) if test else (None, None)
        return cls(run.config.seed, run.history, accuracy, loss, run.diverged)

    @property
    def best(self) -> EpochRecord:
        """The epoch with the highest validation accuracy; there must be one."""
        return max(self.history, key=lambda record: record.val_acc)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the history by columns."""
        columns = [column.name for column in fields(EpochRecord)]
        history = {name: [getattr(record, name) for record in self.history] for name in columns}
        return {**asdict(replace(self, history=[])), "history": history}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_dict`; raises KeyError, TypeError or ValueError for another."""
        history = values["history"]
        rows = zip(*(history[column.name] for column in fields(EpochRecord)), strict=True)
        return cls(**{**values, "history": [EpochRecord(*row) for row in rows]})


Outcomes = dict[str, dict[str, list[Outcome]]]
"""By study and network: an outcome for each seed."""
