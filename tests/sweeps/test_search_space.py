"""Which configurations a sweep tries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fastmlp.sweeps.search_space import plan, shown
from fastmlp.training.config import TrainConfig
from fastmlp.training.presets import resolve_config
from fastmlp.utils.errors import EXIT_USAGE, UserError

BASE = resolve_config({"hidden": 64, "lr": 1e-3, "batch_size": 16}, preset="sweep")
VALUES: dict[str, list[Any]] = {"lr": [1e-2, 1e-3], "hidden": [32, 64, "512,256"]}


def settings(configs: list[TrainConfig], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(config, name) for name in names) for config in configs]


def test_one_at_a_time() -> None:
    base, configs = plan(BASE, VALUES)
    assert base == BASE == configs[0]
    assert settings(configs, "lr", "hidden") == [
        (1e-3, (64,)),
        (1e-2, (64,)),
        (1e-3, (32,)),
        (1e-3, (512, 256)),
    ]
    assert all(replace(c, lr=1e-3, hidden=(64,)) == BASE for c in configs)


def test_the_four_sweeps_of_the_course() -> None:
    values = {
        "lr": [1e-2, 1e-3, 1e-4],
        "batch_size": [8, 16, 100],
        "hidden": [32, 64, 256],
        "lr_decay": [1.0, 0.95, 0.9],
    }
    base, configs = plan(resolve_config({}, preset="sweep"), values)
    assert settings([base], "batch_size", "lr", "lr_decay", "hidden") == [(16, 1e-3, 0.95, (64,))]
    assert len(configs) == 9
    assert len(plan(base, values, "grid")[1]) == 81


def test_a_grid_is_all_combinations() -> None:
    _, configs = plan(BASE, VALUES, "grid")
    assert settings(configs, "lr", "hidden") == [
        (lr, hidden) for lr in (1e-2, 1e-3) for hidden in ((32,), (64,), (512, 256))
    ]


@pytest.mark.parametrize("vary", ["one", "grid"])
def test_the_base_takes_the_first_value_where_its_own_is_not_listed(vary: str) -> None:
    base, configs = plan(BASE, {"lr": [0.5, 0.25], "batch_size": [8, 16]}, vary)
    assert (base.lr, base.batch_size) == (0.5, 16)
    assert replace(base, lr=1e-3) == BASE
    expected = {(0.5, 16), (0.25, 16), (0.5, 8)} | ({(0.25, 8)} if vary == "grid" else set())
    assert set(settings(configs, "lr", "batch_size")) == expected
    assert len(configs) == len(expected)


def test_every_configuration_once() -> None:
    _, configs = plan(BASE, {"lr": [1e-3, 0.001, 1e-2, 1e-2], "hidden": [64, "64", (64,), [8]]})
    assert settings(configs, "lr", "hidden") == [(1e-3, (64,)), (1e-2, (64,)), (1e-3, (8,))]
    assert plan(BASE, {}) == (BASE, [BASE])
    assert plan(BASE, {}, "grid") == (BASE, [BASE])
    assert plan(BASE, {}, "random:5") == (BASE, [BASE])


def test_random_draws_lie_between_evenly_in_the_logarithm() -> None:
    values = {"lr": [1e-1, 1e-4], "hidden": [16, 256], "batch_size": [8, 100], "lr_decay": [0.9, 1]}
    _, configs = plan(BASE, values, "random:400")
    assert 395 <= len(configs) <= 400
    for config in configs:
        assert 1e-4 <= config.lr <= 1e-1
        assert float(f"{config.lr:.6g}") == config.lr
        assert len(config.hidden) == 1
        assert 16 <= config.hidden[0] <= 256
        assert 8 <= config.batch_size <= 100
        assert 0.9 <= config.lr_decay <= 1
    for count, low, high in (
        ([c.lr for c in configs], 1e-4, 1e-1),
        ([c.hidden[0] for c in configs], 16, 256),
    ):
        middle = math.sqrt(low * high)
        assert 160 < sum(value < middle for value in count) < 240
    assert len(set(settings(configs, "hidden"))) > 50


def test_random_is_a_function_of_the_seed() -> None:
    def draw(base: TrainConfig, count: int = 10) -> list[TrainConfig]:
        return plan(base, {"lr": [1e-4, 1e-1]}, f"random:{count}")[1]

    assert draw(BASE) == draw(BASE)
    assert draw(BASE, 20)[:10] == draw(BASE)
    other = draw(replace(BASE, seed=1))
    assert not set(settings(other, "lr")) & set(settings(draw(BASE), "lr"))
    assert {config.seed for config in other} == {1}


def test_random_takes_one_of_the_list_where_there_is_nothing_between() -> None:
    values = {"hidden": ["64", "512,256"], "init": ["kaiming", "torch"], "momentum": [0, 0.9]}
    _, configs = plan(BASE, values, "random:60")
    assert set(settings(configs, "hidden")) == {((64,),), ((512, 256),)}
    assert set(settings(configs, "init")) == {("kaiming",), ("torch",)}
    assert set(settings(configs, "momentum")) == {(0,), (0.9,)}


def test_random_keeps_to_the_interval_to_the_last_digit() -> None:
    assert settings(plan(BASE, {"lr": [1 / 3]}, "random:3")[1], "lr") == [(1 / 3,)]
    low, high = 0.12345678, 0.12345679
    for config in plan(BASE, {"lr": [high, low]}, "random:20")[1]:
        assert low <= config.lr <= high
    assert settings(plan(BASE, {"batch_size": [17]}, "random:9")[1], "batch_size") == [(17,)]


def test_no_momentum_means_no_nesterov() -> None:
    base = resolve_config({"momentum": 0.9, "nesterov": True}, preset="default")
    for values in ([0.0, 0.9], [0.9, 0], [0, 0.5]):
        for vary in ("one", "grid", "random:20"):
            configs = plan(base, {"momentum": values}, vary)[1]
            found = set(settings(configs, "momentum", "nesterov"))
            assert found == {(value, value > 0) for value in values}, (values, vary)


MISTAKES: list[Any] = [
    (
        {"epochs": [1, 2]},
        "one",
        "epochs cannot be varied, only hidden, init, normalize, augment, batch_size, beta1, beta2, "
        "label_smoothing, dropout, clip_norm, lr, lr_decay, lr_schedule, momentum, "
        "weight_decay can; give it one value",
    ),
    ({"learning_rate": [1]}, "one", "learning_rate cannot be varied, only hidden,"),
    ({"lr": []}, "grid", "lr has no values to try; give at least one"),
    ({"lr": [1e-3, -1]}, "one", "lr must be a number above 0, got -1"),
    ({"lr": 0.1}, "one", "lr must be a list of values to try, got 0.1"),
    ({"hidden": "64,32"}, "one", "hidden must be a list of values to try, got '64,32'"),
    ({"batch_size": [8, 1.5]}, "one", "batch_size must be a whole number of at least 1, got 1.5"),
    ({"hidden": ["64;32"]}, "one", "hidden must be layer widths"),
    ({"init": ["kaiming", "he"]}, "one", "init must be kaiming, torch, xavier or normal:STD"),
    ({"augment": ["spin"]}, "one", "augment must be none, flip, shift:N"),
    ({"lr": [1]}, "grd", "vary must be one, grid or random:N, N from 1 to 100000, got 'grd'"),
    ({"lr": [1]}, "random", "vary must be one, grid or random:N"),
    ({"lr": [1]}, "random:0", "vary must be one, grid or random:N"),
    ({"lr": [1]}, "random:-3", "vary must be one, grid or random:N"),
    ({"lr": [1]}, "random:100001", "vary must be one, grid or random:N"),
    ({"lr": [1]}, "Random:3", "vary must be one, grid or random:N"),
]


@pytest.mark.parametrize(("values", "vary", "words"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence(values: dict[str, Any], vary: str, words: str) -> None:
    with pytest.raises(UserError) as info:
        plan(BASE, values, vary)
    assert words in str(info.value)
    assert "\n" not in str(info.value)
    assert info.value.exit_code == EXIT_USAGE


def test_values_as_a_person_writes_them() -> None:
    assert [shown(v) for v in ((64,), (512, 256), 0.1, 8, "kaiming")] == [
        *(64, "512-256", 0.1, 8, "kaiming"),
    ]


def test_a_grid_beyond_all_memory_is_refused_before_it_is_made() -> None:
    values = {
        name: [(i + 1) / 1000 for i in range(500)] for name in ("lr", "lr_decay", "weight_decay")
    }
    with pytest.raises(UserError, match=r"at most 100,000 runs, .* would have 125,000,000; try"):
        plan(BASE, values, "grid")
    assert len(plan(BASE, values)[1]) == 1 + 3 * 499
