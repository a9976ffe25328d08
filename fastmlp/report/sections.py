"""The report: what the experiments found, beside what the course found, as text, tables and
pictures. Every verdict and every sentence with a figure is made from the figures."""

from __future__ import annotations

from collections.abc import Sequence
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
from fastmlp.report.html import (
    BAD,
    GOOD,
    UNSURE,
    Block,
    Box,
    Document,
    Heading,
    Mark,
    Paragraph,
    Picture,
    Points,
    Table,
)
from fastmlp.report.layer_checks import LayerCheck
from fastmlp.report.results import Material, final_findings, sweep_findings
from fastmlp.report.statistics import FAILS, HOLDS, NOISE, UNKNOWN, Stat, beside_course, shown

TITLE = "A small network on CIFAR-10: the course's experiments, done again"
KINDS = {HOLDS: GOOD, FAILS: BAD, NOISE: UNSURE, UNKNOWN: UNSURE}


def make_report(material: Material, pictures: dict[str, Path]) -> Document:
    """The document; ``pictures`` by the names that :mod:`fastmlp.report.figures` gives them."""
    document = Document(TITLE)
    if material.data.synthetic:
        document.add(
            Box(
                "This is not CIFAR-10",
                "CIFAR-10 was not there, so the built-in set of drawn shapes and textures stands "
                "in for it. The accuracies below say nothing about CIFAR-10, and cannot be "
                "compared with the course's.",
            )
        )
    if material.quick:
        document.add(
            Box(
                "A quick run",
                "It trains for far fewer epochs and with fewer seeds than the course did, so its "
                "accuracies are lower and less certain. Leave out `--quick` for the whole report.",
            )
        )
    document.add(*_in_short(material))
    document.add(*_data(material, pictures))
    document.add(*_layers(material.checks))
    document.add(*_sweeps(material, pictures))
    document.add(*_final(material, pictures))
    document.add(*_ablation(material))
    document.add(*_network(material, pictures))
    document.add(*_how(material))
    return document


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _seeds(study: Study) -> str:
    return f"{study.seeds} seed{'s' * (study.seeds != 1)}"


def _mark(verdict: str) -> Mark:
    return Mark(verdict, KINDS[verdict])


def _beside(material: Material, stat: Stat | None, course: float, study: str) -> tuple[Mark, str]:
    """A figure of a final training beside the course's."""
    epochs = material.study(study).epochs
    if material.data.synthetic:
        return Mark("not comparable", UNSURE), "other data"
    if epochs != COURSE_FINAL_EPOCHS:
        why = f"{epochs} epochs, not the course's {COURSE_FINAL_EPOCHS}"
        return Mark("not comparable", UNSURE), why
    verdict, words = beside_course(stat, course)
    names = {HOLDS: "agrees", FAILS: "differs", UNKNOWN: "cannot be said"}
    return Mark(names[verdict], KINDS[verdict]), words


def _in_short(material: Material) -> list[Block]:
    test, course = material.test("final", BEST), COURSE_TEST[BEST]
    mark, words = _beside(material, test, course, "final")
    items: list[str | tuple[Mark, str]] = [
        (
            mark,
            "Test accuracy of the course's best network, trained again with its recipe: "
            f"{shown(test)}; the course reported {_percent(course)} ({words}).",
        )
    ]
    for preset, recipe in RECIPES.items():
        verdicts = [finding.verdict for finding in sweep_findings(material, preset).values()]
        counts = [f"{v} for {verdicts.count(v)}" for v in KINDS if v in verdicts]
        items.append(
            f"Whether the course's {len(verdicts)} conclusions about hyper-parameters hold with "
            f"{recipe}: {', '.join(counts)}."
        )
    old, fixed, best = (
        material.test("ablation", ablation_label(*ABLATION[0])),
        material.test("ablation", ablation_label("shuffle", "kaiming", True)),
        material.test("network", "default"),
    )
    epochs = material.study("ablation").epochs
    items += [
        "The same training with a loader that shows every image and the usual initial weights, "
        f"nothing else changed: {shown(fixed)} after {epochs} epochs; as it was: {shown(old)}.",
        f"The same network done right: {shown(best)} after {material.study('network').epochs} "
        "epochs.",
    ]
    return [Heading("In short"), Points(items)]


def _data(material: Material, pictures: dict[str, Path]) -> list[Block]:
    split = material.data
    return [
        Heading("The data"),
        Paragraph(
            f"{material.data.name} from `{material.data.source.replace('`', '')}`: "
            f"{len(split.train.labels):,} images to train on, {len(split.val.labels):,} to choose "
            f"by and {len(split.test.labels):,} to test on, in "
            f"{len(material.data.class_names)} classes."
        ),
        Picture(pictures["classes"], "Ten training images of each class"),
    ]


def _layers(checks: Sequence[LayerCheck]) -> list[Block]:
    passed = sum(check.passed for check in checks)
    first = checks[0].shape.split(" x ")[0]
    shown_checks = [check for check in checks if check.shape.split(" x ")[0] == first]
    others = len(checks) - len(shown_checks)
    return [
        Heading("Layer tests"),
        Paragraph(
            "Every layer, forward and backward, in float32, on random inputs and random gradients "
            f"of the output: {passed} of {len(checks)} results are right. Right means: the largest "
            "error, measured against float64, is at most twice that of `torch.nn`, or a few units "
            f"in the last place. The table shows a batch of {first}; {others} more results, on a "
            "larger batch, are in `results.json`."
        ),
        Table(
            (
                "layer",
                "result",
                "largest value",
                "ours - torch.nn",
                "our error",
                "torch.nn's error",
                "",
            ),
            [
                (
                    f"{check.layer}, {check.shape}" if check.result == "y" else "",
                    *(check.result, f"{check.largest:.3g}"),
                    *(f"{e:.1e}" for e in (check.difference, check.error, check.torch_error)),
                    Mark("right", GOOD) if check.passed else Mark("wrong", BAD),
                )
                for check in shown_checks
            ],
            ("largest value", "ours - torch.nn", "our error", "torch.nn's error"),
        ),
    ]


def _sweeps(material: Material, pictures: dict[str, Path]) -> list[Block]:
    study = material.study("sweep-course")
    base = ", ".join(f"{NAMES[name]} {value:g}" for name, value in SWEEP_BASE.items())
    epochs = f"{study.epochs} epochs"
    if study.epochs != COURSE_SWEEP_EPOCHS:
        epochs += f" (the course: {COURSE_SWEEP_EPOCHS})"
    blocks: list[Block] = [
        Heading("The four sweeps"),
        Paragraph(
            f"One hyper-parameter varies at a time, the others stay at {base}. "
            f"Each network is trained for {epochs}, with {_seeds(study)}; accuracies are those "
            "after the last epoch, mean ± standard deviation. Each sweep was done with the "
            "course's recipe and with the recipe corrected, in two things: its loader shows every "
            "image, and its weights begin as is usual. A difference counts where chance alone "
            "makes one as large in fewer than 1 of 20 cases (Welch's t test)."
        ),
    ]
    findings = {preset: sweep_findings(material, preset) for preset in RECIPES}
    for name, values in SWEEPS.items():
        blocks.append(Heading(NAMES[name][0].upper() + NAMES[name][1:], 3))
        claim = findings["course"][name].claim
        blocks.append(Paragraph(f"The course's conclusion: {claim}."))
        points: list[str | tuple[Mark, str]] = [
            (_mark(found[name].verdict), f"With {RECIPES[preset]}, {found[name].sentence}.")
            for preset, found in findings.items()
        ]
        blocks += [Points(points), _sweep_table(material, name, values)]
        for preset, recipe in RECIPES.items():
            picture = pictures[f"sweep-{preset}-{name}"]
            blocks.append(Picture(picture, f"Accuracy by {NAMES[name]}, with {recipe}"))
    return blocks


def _sweep_table(material: Material, name: str, values: Sequence[Any]) -> Table:
    parts = {"train_acc": "training", "val_acc": "validation"}
    columns = [f"{part}, {preset}" for preset in RECIPES for part in parts.values()]
    return Table(
        (NAMES[name], *columns),
        [
            (
                f"{value:g}",
                *(
                    shown(material.last(f"sweep-{preset}", sweep_label(name, value), field))
                    for preset in RECIPES
                    for field in parts
                ),
            )
            for value in values
        ],
        (NAMES[name], *columns),
    )


def _final(material: Material, pictures: dict[str, Path]) -> list[Block]:
    study = material.study("final")
    rows: list[tuple[str | Mark, ...]] = []
    for name in study.configs:
        test = material.test("final", name)
        mark, words = _beside(material, test, COURSE_TEST[name], "final")
        rows.append((name, "test", shown(test), _percent(COURSE_TEST[name]), mark, words))
    for field, part in (("train_acc", "training"), ("val_acc", "validation")):
        stat = material.last("final", BEST, field)
        about = f"about {100 * COURSE_LAST[field]:.0f} %"
        rows.append((f"{BEST}, last epoch", part, shown(stat), about, "", ""))
    return [
        Heading("The final training"),
        Paragraph(
            "The course trained its best configuration (batch 8, learning rate 0.01, no decay, "
            f"256 hidden units) for {COURSE_FINAL_EPOCHS} epochs, and two variants of it. Here "
            f"they are with its recipe, {study.epochs} epochs, {_seeds(study)}. Tested are the "
            "parameters of the epoch with the best validation accuracy."
        ),
        Table(
            ("training", "accuracy of", "here", "course", "", "difference"),
            rows,
            ("here", "course"),
        ),
        Points(
            [
                (_mark(f.verdict), f"The course: {f.claim}. Here, {f.sentence}.")
                for f in final_findings(material)
            ]
        ),
        *(
            [Picture(pictures["final"], "Loss and accuracy by epoch in the final training")]
            if "final" in pictures
            else []
        ),
    ]


def _ablation(material: Material) -> list[Block]:
    study = material.study("ablation")
    batch = study.configs[ablation_label(*ABLATION[0])].batch_size
    train, val = (len(p.labels) for p in (material.data.train, material.data.val))
    seen, seen_val = (len(set(sliding_rows(torch.arange(n), batch).tolist())) for n in (train, val))
    course = material.test("ablation", ablation_label(*ABLATION[0]))
    effects = []
    for position, (name, change) in enumerate(_CHANGES.items()):
        row: list[Any] = list(ABLATION[0])
        row[position] = ABLATION[-1][position]
        changed = material.test("ablation", ablation_label(*row))
        effects.append(f"{change}: {shown(changed)}{_gain(changed, course)} ({name} alone).")
    return [
        Heading("What explains the course's figures"),
        Paragraph(
            "Running its recipe again on the real data found these reasons; the initial weights "
            "are inferred, not confirmed."
        ),
        Points(
            [
                "Its loader is a sliding window: batch number i is the "
                f"{batch} shuffled images from number i on. So an epoch at batch {batch} sees "
                f"{seen:,} of {train:,} images, each about {batch} times in a row, and validation "
                f"measures the first {seen_val:,} of {val:,}.",
                "Its weights begin as 0.8 times a normal distribution, about 30 times as large as "
                "is usual for 3,072 inputs, its biases at zero (inferred).",
                "Its gradients, already means over a batch, are averaged over it once more: the "
                f"learning rate is in truth {batch} times smaller than it says.",
                "Its pixels are divided by 255 and not centred.",
            ]
        ),
        Paragraph(
            f"The table changes the first three, alone and together ({study.epochs} epochs, "
            f"{_seeds(study)}); all else is as in the course's final "
            f"training. The recipe as it was: {shown(course)}. With one thing changed:"
        ),
        Points(effects),
        Table(
            ("loader", "initial weights", "gradients averaged", "test", "training, last epoch"),
            [
                (
                    *(loader, init, "twice" if twice else "once"),
                    *(
                        shown(material.test("ablation", label)),
                        shown(material.last("ablation", label, "train_acc")),
                    ),
                )
                for loader, init, twice in ABLATION
                for label in [ablation_label(loader, init, twice)]
            ],
            ("test", "training, last epoch"),
        ),
    ]


_CHANGES = {
    "loader": "A loader that shows every image",
    "initial weights": "The usual initial weights",
    "averaging": "Gradients averaged once",
}


def _gain(stat: Stat | None, base: Stat | None) -> str:
    return "" if stat is None or base is None else f", {100 * (stat.mean - base.mean):+.2f} points"


def _network(material: Material, pictures: dict[str, Path]) -> list[Block]:
    study = material.study("network")
    config = study.configs["default"]
    whole = [o for o in material.outcomes["network"]["default"] if o.test_accuracy is not None]
    rows = [
        ("test, parameters of the best epoch", shown(material.test("network", "default"))),
        ("validation, best epoch", shown(Stat.of([o.best.val_acc for o in whole]))),
        ("validation, last epoch", shown(material.last("network", "default", "val_acc"))),
        ("training, last epoch", shown(material.last("network", "default", "train_acc"))),
    ]
    blocks: list[Block] = [
        Heading("The same network done right"),
        Paragraph(
            f"The preset `default`: the same {config.hidden[0]} hidden units, true gradients, "
            f"{config.init} initial weights, normalised inputs, every image once an epoch; batch "
            f"{config.batch_size}, momentum {config.momentum:g}, weight decay "
            f"{config.weight_decay:g}, a learning rate of {config.lr:g} that falls as a cosine, "
            f"all chosen on validation. {study.epochs} epochs, {_seeds(study)}."
        ),
        Table(("accuracy", "mean ± standard deviation"), rows, ("mean ± standard deviation",)),
    ]
    captions = {
        "network": "Loss and accuracy by epoch of the best network",
        "confusion": "What each class of test images was taken for",
        "weights": "First-layer weights as small images",
        "mistakes": "The most confident mistakes on the test images",
    }
    for name, alt in captions.items():
        if name in pictures:
            blocks.append(Picture(pictures[name], alt))
    return blocks


def _how(material: Material) -> list[Block]:
    rows = [
        (
            s.title,
            str(len(s.configs)),
            str(s.seeds),
            str(s.epochs),
            f"{material.seconds[s.name]:.0f}",
        )
        for s in material.studies
    ]
    return [
        Heading("How this was made"),
        Table(
            ("part", "networks", "seeds", "epochs", "seconds"),
            rows,
            ("networks", "seeds", "epochs", "seconds"),
        ),
        Table(("machine", ""), list(material.facts.items())),
    ]
