"""The experiments: the course's configurations, and outcomes that survive being written."""

from __future__ import annotations

import json
from dataclasses import replace

from support.tiny import tiny_data

from fastmlp.report.experiments import (
    ABLATION,
    BEST,
    COURSE_BEST,
    COURSE_TEST,
    FULL,
    QUICK,
    SMALL_BATCH,
    SMALL_RATE,
    SWEEP_BASE,
    SWEEPS,
    Outcome,
    ablation_label,
    studies,
    sweep_label,
)
from fastmlp.training.api import fit, fit_many
from fastmlp.training.config import TrainConfig


def test_the_sweeps_are_the_courses() -> None:
    course, fixed, *_ = studies({"dataset": "synthetic"}, FULL)
    assert len(course.configs) == len(fixed.configs) == 9  # the base once, two more of each
    base = course.configs["base"]
    assert (base.batch_size, base.lr, base.lr_decay, base.hidden) == (16, 1e-3, 0.95, (64,))
    assert (base.epochs, base.loader, base.init) == (80, "sliding", "normal:0.8")
    for name, values in SWEEPS.items():
        assert SWEEP_BASE[name] in values
        assert COURSE_BEST[name] in values
        for value in values:
            varied = course.configs[sweep_label(name, value)]
            assert varied == replace(base, **{name: (value,) if name == "hidden" else value})
    for name, config in fixed.configs.items():
        assert config == replace(course.configs[name], loader="shuffle", init="kaiming")
        assert config.grad_average
        assert config.dataset == "synthetic"


def test_the_final_training_and_the_ablation_are_the_courses() -> None:
    plan = {study.name: study for study in studies({}, FULL)}
    best = plan["final"].configs[BEST]
    assert (best.batch_size, best.lr, best.lr_decay, best.hidden, best.epochs) == (
        *(8, 0.01, 1.0, (256,), 200),
    )
    assert plan["final"].configs[SMALL_RATE] == replace(best, lr=1e-4)
    assert plan["final"].configs[SMALL_BATCH] == replace(best, batch_size=4)
    assert set(COURSE_TEST) == set(plan["final"].configs)
    rows = [plan["ablation"].configs[ablation_label(*row)] for row in ABLATION]
    epochs = FULL.ablation_epochs
    assert rows[0] == replace(best, epochs=epochs)
    assert [(c.loader, c.init, c.grad_average) for c in rows] == list(ABLATION)
    assert len(set(rows)) == 8
    assert plan["network"].configs == {"default": TrainConfig()}
    quick = {study.name: study for study in studies({}, QUICK)}
    assert quick["network"].epochs < plan["network"].epochs
    assert [config.seed for config in plan["final"].with_seed(3)] == [3, 3, 3]


def test_outcomes_come_back_from_json_as_they_were() -> None:
    config = TrainConfig(hidden=(4,), epochs=3, batch_size=30, seed=5)
    for run in fit_many([config, replace(config, lr=1e30, lr_schedule="constant")], tiny_data()):
        outcome = Outcome.of(run)
        assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome
        assert outcome.seed == 5
        assert (outcome.diverged is None) == (outcome.test_accuracy is not None)
        assert outcome.diverged == run.diverged
    alone = fit(config, tiny_data())
    assert alone.test is not None
    assert Outcome.of(alone).test_accuracy == alone.test.accuracy
    assert Outcome.of(alone).best.val_acc == max(record.val_acc for record in alone.history)
