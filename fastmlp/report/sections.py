"""Collect what each section of the report shows, beside what the course found.

The prose stands in ``report.html.jinja``; every verdict and every sentence with a figure is made
here from the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.sampling import sliding_rows
from fastmlp.report.experiments import (
    ABLATION,
    BEST,
    COURSE_FINAL_EPOCHS,
    COURSE_LAST,
    COURSE_SWEEP_EPOCHS,
    COURSE_TEST,
    NAMES,
    RECIPES,
    SWEEP_BASE,
    SWEEPS,
    Study,
    ablation_label,
    sweep_label,
)
from fastmlp.report.html import BAD, GOOD, UNSURE, Mark, Point, Table, render
from fastmlp.report.layer_checks import LayerCheck
from fastmlp.report.results import Material, final_findings, sweep_findings
from fastmlp.report.statistics import FAILS, HOLDS, NOISE, UNKNOWN, Stat, beside_course, shown

TITLE = "A small network on CIFAR-10: the course's experiments, done again"
KINDS = {HOLDS: GOOD, FAILS: BAD, NOISE: UNSURE, UNKNOWN: UNSURE}


def make_report(material: Material, pictures: Mapping[str, Path]) -> str:
    """Return the report as an HTML page.

    ``pictures`` are PNG files by the names that :mod:`fastmlp.report.figures` gives them. Raises
    OSError for one that cannot be read.
    """
    return render(
        title=TITLE,
        data=material.data,
        quick=material.quick,
        pictures=pictures,
        recipes=RECIPES,
        short=in_short(material),
        checks=_layers(material.checks),
        sweeps=_sweeps(material),
        final=_final(material),
        ablation=_ablation(material),
        network=_network(material),
        studies=_studies(material.studies, material.seconds),
        machine=Table(("machine", ""), list(material.facts.items())),
    )


def in_short(material: Material) -> list[Point]:
    """Return the report's main findings."""
    test, course = material.test("final", BEST), COURSE_TEST[BEST]
    mark, words = _beside(material, test, course)
    items: list[Point] = [
        (
            mark,
            "Test accuracy of the course's best network, trained again with its recipe: "
            f"{shown(test)}; the course reported {_percent(course)} ({words}).",
        )
    ]
    for preset, recipe in RECIPES.items():
        verdicts = [finding.verdict for finding in sweep_findings(material, preset).values()]
        counts = ", ".join(f"{v} for {verdicts.count(v)}" for v in KINDS if v in verdicts)
        what = f"Whether the course's {len(verdicts)} conclusions about hyper-parameters hold with"
        items.append((None, f"{what} {recipe}: {counts}."))
    old, fixed, best = (
        material.test("ablation", ablation_label(*ABLATION[0])),
        material.test("ablation", ablation_label("shuffle", "kaiming", True)),
        material.test("network", "default"),
    )
    same = (
        "The same training with a loader that shows every image and the usual initial weights, "
        f"nothing else changed: {shown(fixed)} after {material.study('ablation').epochs} epochs; "
        f"as it was: {shown(old)}."
    )
    epochs = material.study("network").epochs
    right = f"The same network done right: {shown(best)} after {epochs} epochs."
    return [*items, (None, same), (None, right)]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _mark(verdict: str) -> Mark:
    return Mark(verdict, KINDS[verdict])


def _beside(material: Material, stat: Stat | None, course: float) -> tuple[Mark, str]:
    """Compare a figure of a final training with the course's."""
    epochs = material.study("final").epochs
    if material.data.synthetic:
        return Mark("not comparable", UNSURE), "other data"
    if epochs != COURSE_FINAL_EPOCHS:
        why = f"{epochs} epochs, not the course's {COURSE_FINAL_EPOCHS}"
        return Mark("not comparable", UNSURE), why
    verdict, words = beside_course(stat, course)
    names = {HOLDS: "agrees", FAILS: "differs", UNKNOWN: "cannot be said"}
    return Mark(names[verdict], KINDS[verdict]), words


def _layers(checks: Sequence[LayerCheck]) -> dict[str, Any]:
    """Show the checks of the first batch size."""
    batch = checks[0].shape.split(" x ")[0]
    shown_checks = [check for check in checks if check.shape.split(" x ")[0] == batch]
    numbers = ("largest value", "ours - torch.nn", "our error", "torch.nn's error")
    rows: list[tuple[str | Mark, ...]] = [
        (
            f"{check.layer}, {check.shape}" if check.result == "y" else "",
            *(check.result, f"{check.largest:.3g}"),
            *(f"{e:.1e}" for e in (check.difference, check.error, check.torch_error)),
            Mark("right", GOOD) if check.passed else Mark("wrong", BAD),
        )
        for check in shown_checks
    ]
    return {
        "passed": sum(check.passed for check in checks),
        "total": len(checks),
        "batch": batch,
        "others": len(checks) - len(shown_checks),
        "table": Table(("layer", "result", *numbers, ""), rows, numbers),
    }


def _sweeps(material: Material) -> dict[str, Any]:
    findings = {preset: sweep_findings(material, preset) for preset in RECIPES}
    return {
        "study": material.study("sweep-course"),
        "course_epochs": COURSE_SWEEP_EPOCHS,
        "base": ", ".join(f"{NAMES[name]} {value:g}" for name, value in SWEEP_BASE.items()),
        "all": [
            {
                "field": name,
                "title": NAMES[name],
                "claim": findings["course"][name].claim,
                "points": [
                    (_mark(found[name].verdict), f"With {RECIPES[preset]}, {found[name].sentence}.")
                    for preset, found in findings.items()
                ],
                "table": _sweep_table(material, name, values),
            }
            for name, values in SWEEPS.items()
        ],
    }


def _sweep_table(material: Material, name: str, values: Sequence[Any]) -> Table:
    parts = {"train_acc": "training", "val_acc": "validation"}
    header = (NAMES[name], *(f"{part}, {preset}" for preset in RECIPES for part in parts.values()))
    rows = [
        (
            f"{value:g}",
            *(
                shown(material.last(f"sweep-{preset}", sweep_label(name, value), field))
                for preset in RECIPES
                for field in parts
            ),
        )
        for value in values
    ]
    return Table(header, rows, header)


def _final(material: Material) -> dict[str, Any]:
    study = material.study("final")
    rows: list[tuple[str | Mark, ...]] = []
    for name in study.configs:
        test = material.test("final", name)
        mark, words = _beside(material, test, COURSE_TEST[name])
        rows.append((name, "test", shown(test), _percent(COURSE_TEST[name]), mark, words))
    for field, part in (("train_acc", "training"), ("val_acc", "validation")):
        stat = material.last("final", BEST, field)
        about = f"about {100 * COURSE_LAST[field]:.0f} %"
        rows.append((f"{BEST}, last epoch", part, shown(stat), about, "", ""))
    header = ("training", "accuracy of", "here", "course", "", "difference")
    return {
        "study": study,
        "course_epochs": COURSE_FINAL_EPOCHS,
        "table": Table(header, rows, ("here", "course")),
        "points": [
            (_mark(f.verdict), f"The course: {f.claim}. Here, {f.sentence}.")
            for f in final_findings(material)
        ],
    }


_CHANGES = {
    "loader": "A loader that shows every image",
    "initial weights": "The usual initial weights",
    "averaging": "Gradients averaged once",
}
"""What differs between the course's recipe and none of it, in the order of ``ABLATION``'s rows."""


def _ablation(material: Material) -> dict[str, Any]:
    study = material.study("ablation")
    batch = study.configs[ablation_label(*ABLATION[0])].batch_size
    course = material.test("ablation", ablation_label(*ABLATION[0]))
    effects: list[Point] = []
    for position, (name, change) in enumerate(_CHANGES.items()):
        row: list[Any] = list(ABLATION[0])
        row[position] = ABLATION[-1][position]
        changed = material.test("ablation", ablation_label(*row))
        gain = _gain(changed, course)
        effects.append((None, f"{change}: {shown(changed)}{gain} ({name} alone)."))
    figures = ("test", "training, last epoch")
    header = ("loader", "initial weights", "gradients averaged", *figures)
    rows = [
        (
            *(loader, init, "twice" if twice else "once"),
            shown(material.test("ablation", ablation_label(loader, init, twice))),
            shown(material.last("ablation", ablation_label(loader, init, twice), "train_acc")),
        )
        for loader, init, twice in ABLATION
    ]
    return {
        "study": study,
        "batch": batch,
        "seen": _seen(len(material.data.train.labels), batch),
        "seen_val": _seen(len(material.data.val.labels), batch),
        "course": shown(course),
        "effects": effects,
        "table": Table(header, rows, figures),
    }


def _seen(images: int, batch: int) -> str:
    """Say how many of the images a sliding loader shows."""
    return f"{len(set(sliding_rows(torch.arange(images), batch).tolist())):,} of {images:,}"


def _gain(stat: Stat | None, base: Stat | None) -> str:
    return "" if stat is None or base is None else f", {100 * (stat.mean - base.mean):+.2f} points"


def _network(material: Material) -> dict[str, Any]:
    study = material.study("network")
    rows = [
        ("test, parameters of the best epoch", shown(material.test("network", "default"))),
        (
            "validation, best epoch",
            shown(Stat.of([o.best.val_acc for o in material.whole("network", "default")])),
        ),
        ("validation, last epoch", shown(material.last("network", "default", "val_acc"))),
        ("training, last epoch", shown(material.last("network", "default", "train_acc"))),
    ]
    figures = "mean ± standard deviation"
    return {
        "study": study,
        "config": study.configs["default"],
        "table": Table(("accuracy", figures), rows, (figures,)),
    }


def _studies(studies: Sequence[Study], seconds: Mapping[str, float]) -> Table:
    numbers = ("networks", "seeds", "epochs", "seconds")
    rows = [
        (s.title, *(f"{n:.0f}" for n in (len(s.configs), s.seeds, s.epochs, seconds[s.name])))
        for s in studies
    ]
    return Table(("part", *numbers), rows, numbers)
