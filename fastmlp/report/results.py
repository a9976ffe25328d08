"""Hold what the report is made from, draw its conclusions, and export the numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastmlp.data.splits import DataSplits
from fastmlp.report.experiments import (
    COURSE_BEST,
    FINAL,
    NAMES,
    RECIPES,
    SWEEPS,
    Outcome,
    Outcomes,
    Study,
    sweep_label,
)
from fastmlp.report.layer_checks import LayerCheck
from fastmlp.report.statistics import Finding, Stat, best_of, higher


@dataclass(frozen=True)
class Material:
    """The data, the experiments and their outcomes."""

    data: DataSplits
    studies: list[Study]
    outcomes: Outcomes
    checks: list[LayerCheck]
    quick: bool
    seconds: dict[str, float]
    """The training time of each study, cached parts with the time they took at first."""
    facts: dict[str, str]
    """The machine and the versions."""

    def study(self, name: str) -> Study:
        """Return a study by its name."""
        return next(study for study in self.studies if study.name == name)

    def test(self, study: str, network: str) -> Stat | None:
        """Return the test accuracy of the best epochs over the seeds that did not diverge."""
        outcomes = self.outcomes[study][network]
        return Stat.of([o.test_accuracy for o in outcomes if o.test_accuracy is not None])

    def whole(self, study: str, network: str) -> list[Outcome]:
        """Return the outcomes of the seeds that did not diverge."""
        return [o for o in self.outcomes[study][network] if o.test_accuracy is not None]

    def last(self, study: str, network: str, field: str) -> Stat | None:
        """Return ``train_acc`` or ``val_acc`` after the last epoch, over the seeds that did not
        diverge."""
        outcomes = self.whole(study, network)
        return Stat.of([getattr(outcome.history[-1], field) for outcome in outcomes])

    def best_outcome(self, study: str, network: str) -> Outcome | None:
        """Return the outcome of the highest validation accuracy, or None if all diverged."""
        outcomes = self.whole(study, network)
        return max(outcomes, key=lambda outcome: outcome.best.val_acc, default=None)


def make_results(material: Material) -> dict[str, Any]:
    """Return every number of the report as plain data for JSON."""
    return {
        "data": {
            "name": material.data.name,
            "synthetic": material.data.synthetic,
            "fingerprint": material.data.fingerprint,
        },
        "quick": material.quick,
        "facts": material.facts,
        "findings": [
            {"recipe": preset, **asdict(finding)}
            for preset in RECIPES
            for finding in sweep_findings(material, preset).values()
        ]
        + [asdict(finding) for finding in final_findings(material)],
        "layer_checks": [{**asdict(check), "passed": check.passed} for check in material.checks],
        "studies": {
            study.name: {
                "title": study.title,
                "epochs": study.epochs,
                "seeds": study.seeds,
                "seconds": material.seconds[study.name],
                "networks": {
                    name: _network_results(material, study, name) for name in study.configs
                },
            }
            for study in material.studies
        },
    }


def _network_results(material: Material, study: Study, name: str) -> dict[str, Any]:
    def numbers(stat: Stat | None) -> dict[str, Any] | None:
        return None if stat is None else asdict(stat)

    return {
        "config": study.configs[name].to_dict(),
        "test_acc": numbers(material.test(study.name, name)),
        "last_train_acc": numbers(material.last(study.name, name, "train_acc")),
        "last_val_acc": numbers(material.last(study.name, name, "val_acc")),
        "runs": [outcome.to_dict() for outcome in material.outcomes[study.name][name]],
    }


def sweep_findings(material: Material, preset: str) -> dict[str, Finding]:
    """Judge the course's conclusions, by hyper-parameter, on the last validation accuracies."""
    study = f"sweep-{preset}"
    return {
        name: best_of(
            NAMES[name],
            values,
            [material.last(study, sweep_label(name, value), "val_acc") for value in values],
            COURSE_BEST[name],
        )
        for name, values in SWEEPS.items()
    }


def final_findings(material: Material) -> list[Finding]:
    """Judge how the variants of the final training compare."""
    best, rate, batch = ((name, material.test("final", name)) for name in FINAL)
    return [
        higher("learning rate 0.01 is better than 0.0001", best, rate),
        higher("batch 4 is better than batch 8", batch, best),
    ]
