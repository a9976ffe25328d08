"""Where values come from, which ones are refused, and with what words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastmlp.training.config import TrainConfig, config_from_dict, load_config_file
from fastmlp.training.presets import PRESETS, resolve_config
from fastmlp.utils.errors import EXIT_USAGE, UserError


def test_flags_beat_the_file_and_the_file_beats_the_preset() -> None:
    file = {"lr": 0.5, "epochs": 7}
    config = resolve_config({"lr": 0.25}, file, "course")
    assert (config.lr, config.epochs, config.batch_size) == (0.25, 7, 8)
    assert config.seed == TrainConfig().seed  # named nowhere
    assert resolve_config({}, {}, "default") == TrainConfig()


def test_the_course_preset_is_the_course() -> None:
    course = resolve_config({}, preset="course")
    assert (course.hidden, course.batch_size, course.epochs) == ((256,), 8, 200)
    assert (course.lr, course.lr_decay, course.lr_schedule) == (0.01, 1.0, "constant")
    assert (course.momentum, course.nesterov, course.weight_decay) == (0.0, False, 0.0)
    assert (course.normalize, course.grad_average) == ("unit", True)
    assert (course.init, course.loader) == ("normal:0.8", "sliding")
    fixed = resolve_config({}, preset="course-fixed")
    assert fixed == replace(course, init="kaiming", loader="shuffle")
    with pytest.raises(UserError, match=f"must be one of {', '.join(PRESETS)}, got 'corse'"):
        resolve_config({}, preset="corse")
    with pytest.raises(UserError, match="preset must be one of"):
        resolve_config({}, preset=["course"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = resolve_config({"hidden": "512,256", "data_dir": "x", "seed": 2**40}, preset=name)
    assert config.hidden == (512, 256)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_password_in_an_address_is_not_saved() -> None:
    config = TrainConfig(data_url="https://me:pw@host/cifar-10-binary.tar.gz?token=pw")
    assert config.to_dict()["data_url"] == "https://host/cifar-10-binary.tar.gz"


def test_dropout_is_of_the_seed() -> None:
    configs = TrainConfig(dropout=0.5, seed=3), TrainConfig(seed=3)
    assert [config.optimizer_config.seed for config in configs] == [3, 0]


def test_no_momentum_means_no_nesterov_unless_it_is_asked_for() -> None:
    assert resolve_config({"momentum": 0.0}).nesterov is False
    with pytest.raises(UserError, match="nesterov needs a momentum above 0"):
        resolve_config({"momentum": 0.0}, {"nesterov": True})
    with pytest.raises(UserError, match="nesterov needs a momentum above 0"):
        resolve_config({"nesterov": True}, preset="course")


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_momentum_is_for_sgd_alone(optimizer: str) -> None:
    words = f"momentum and nesterov are for the optimizer sgd, not {optimizer}; leave them out"
    config = TrainConfig(optimizer=optimizer, lr=1e-3)
    assert (config.momentum, config.nesterov) == (0.0, False)
    assert resolve_config({}, preset="augmented").momentum == 0.9
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert resolve_config({"optimizer": optimizer, "lr": 1e-3}) == config
    assert resolve_config({}, {"optimizer": optimizer, "lr": 1e-3}) == config
    off = {"optimizer": optimizer, "lr": 1e-3, "momentum": 0, "nesterov": False}
    assert resolve_config(off) == config
    for preset in PRESETS:
        assert resolve_config({"optimizer": optimizer}, preset=preset).momentum == 0
    for given in ({"momentum": 0.9}, {"nesterov": True}):
        with pytest.raises(UserError, match=words) as info:
            TrainConfig(**{"optimizer": optimizer, **given})
        assert info.value.exit_code == EXIT_USAGE
        with pytest.raises(UserError, match=words):
            resolve_config({"optimizer": optimizer}, given)
        with pytest.raises(UserError, match=words):
            resolve_config(given, {"optimizer": optimizer})


def test_learning_rates() -> None:
    constant = TrainConfig(lr=0.1, lr_decay=0.5, lr_schedule="constant", epochs=4)
    assert [constant.lr_at(epoch) for epoch in range(3)] == [0.1, 0.05, 0.025]
    cosine = TrainConfig(lr=0.1, lr_schedule="cosine", epochs=4)
    rates = [cosine.lr_at(epoch) for epoch in range(4)]
    assert rates == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.0146447], rel=1e-5)
    huge = TrainConfig(lr=1e-9, lr_decay=10, lr_schedule="constant", epochs=300)
    assert huge.lr_at(299) == pytest.approx(1e290)
    both = TrainConfig(lr=0.1, lr_decay=0.5, lr_schedule="cosine", epochs=4)
    assert both.lr_at(2) == pytest.approx(0.05 * 0.25)


@pytest.mark.parametrize(
    ("hidden", "widths"),
    [
        (256, (256,)),
        ("256", (256,)),
        ("512,256", (512, 256)),
        ("512, 256", (512, 256)),
        ([3, 2, 1], (3, 2, 1)),
        ([], ()),
        ((), ()),
        ("none", ()),
    ],
)
def test_widths(hidden: Any, widths: tuple[int, ...]) -> None:
    assert TrainConfig(hidden=hidden).hidden == widths


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "hidden",
            "",
            "hidden must be layer widths like 256 or 512,256, at most 1,000, or none, got ''",
        ),
        ("hidden", "256,", "hidden must be"),
        ("hidden", "a", "hidden must be"),
        ("hidden", 0, "hidden must be"),
        ("hidden", [8, True], "hidden must be"),
        ("hidden", None, "hidden must be"),
        ("batch_size", 0, "batch_size must be a whole number of at least 1, got 0"),
        ("batch_size", 8.0, "batch_size must be a whole number"),
        ("batch_size", True, "batch_size must be a whole number"),
        ("lr", 0, "lr must be a number above 0, got 0"),
        ("lr", -1.0, "lr must be"),
        ("lr", math.nan, "lr must be"),
        ("lr", math.inf, "lr must be"),
        ("lr", "fast", "lr must be a number above 0, got 'fast'"),
        ("lr_decay", 0.0, "lr_decay must be a number above 0, got 0.0"),
        (
            "lr_schedule",
            "step",
            "lr_schedule must be one of constant, cosine, one_cycle",
        ),
        ("optimizer", "lion", "optimizer must be one of sgd, adam, adamw, got 'lion'"),
        ("optimizer", None, "optimizer must be one of sgd, adam, adamw, got None"),
        ("optimizer", ["adam"], "optimizer must be one of sgd, adam, adamw, got ['adam']"),
        ("momentum", 1.0, "momentum must be a number from 0 up to, but not, 1, got 1.0"),
        ("nesterov", 1, "nesterov must be true or false, got 1"),
        ("weight_decay", -0.1, "weight_decay must be a number of at least 0, got -0.1"),
        ("precision", "half", "precision must be one of float32, bfloat16, got 'half'"),
        ("epochs", 0, "epochs must be a whole number of at least 1"),
        pytest.param("lr", 10**400, "lr must be a number above 0, got 1000", id="lr of 401 digits"),
        pytest.param(
            "lr", 16**5000, "lr must be a number above 0, got a num", id="lr of 6021 digits"
        ),
        pytest.param("momentum", 10**400, "momentum must be", id="momentum of 401 digits"),
        pytest.param(
            "hidden", [16**5000], "hidden must be layer widths", id="width of 6021 digits"
        ),
        pytest.param("hidden", "9" * 5000, "hidden must be layer widths", id="text of 5000 digits"),
        ("lr_decay", 1e300, "lr 0.02 times lr_decay 1e+300 after every epoch grows beyond all"),
        pytest.param(
            "lr_decay", 10**300, "lr 0.02 times lr_decay 1e+300", id="decay of 301 digits"
        ),
        ("seed", -1, "seed must be a whole number of at least 0, got -1"),
        ("seed", 2**63, "seed must be a whole number"),
        ("init", "zeros", "init must be kaiming, torch, xavier or normal:STD"),
        ("init", 3, "init must be the name of an initialisation, got 3"),
        ("normalize", "none", "normalize must be one of unit, standard, got 'none'"),
        ("device", "gpu", "device must be auto, cpu, cuda or cuda:<number>, got 'gpu'"),
        ("device", "cuda:", "device must be"),
        ("device", "cuda:01", "device must be"),
        ("device", "cuda:99999999999999999999", "device must be"),
        ("device", "cuda:\u0661", "device must be"),
        (
            "engine",
            "fast",
            "engine must be one of auto, blocked, native, graph, eager, reference, got 'fast'",
        ),
        ("threads", -1, "threads must be a whole number from 0 to 4096, got -1"),
        ("threads", 2**32, "threads must be a whole number from 0 to 4096, got 4294967296"),
        ("save_every", 0, "save_every must be a whole number of at least 1, got 0"),
        ("split", 60, "split must be percentages like 60/20/20, got 60"),
        ("data_dir", 3, "data_dir must be a folder, got 3"),
        ("lr_schedule", [], "lr_schedule must be one of"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(field: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as info:
        config_from_dict({field: value})
    assert str(info.value).startswith(words)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 200
    assert info.value.exit_code == EXIT_USAGE


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "course"\nbatch-size = 16\nhidden = [64, 32]\nlr = 1\n')
    values = load_config_file(path)
    assert values == {"preset": "course", "batch_size": 16, "hidden": [64, 32], "lr": 1}
    path.write_text("lr = 2", encoding="utf-8-sig")  # as Windows writes it
    assert load_config_file(path) == {"lr": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize = 8", "unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("learning_rate_decay = 8", "unknown key 'learning_rate_decay'; "),
        ("zzz = 8", "unknown key 'zzz'; fastmlp train --help shows them all"),
        ("[train]\nlr = 1", "unknown key 'train'"),
        ("lr = ", "is not valid TOML: "),
        pytest.param(f"seed = {'9' * 5000}", "is not valid TOML: ", id="5000 digits"),
        pytest.param(f"lr = {'[' * 100_000}", "is not valid TOML: ", id="deep"),
    ],
)
def test_a_wrong_toml_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError) as info:
        load_config_file(path)
    assert words in str(info.value)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    assert info.value.exit_code == EXIT_USAGE


def test_a_missing_or_unreadable_toml_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the config file .*: No such file"):
        load_config_file(tmp_path / "no.toml")
    with pytest.raises(UserError, match=r"Cannot read the config file .*: Is a directory"):
        load_config_file(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not valid TOML"):
        load_config_file(tmp_path / "binary.toml")


def test_a_configuration_from_before_the_synthetic_set_had_its_name() -> None:
    assert TrainConfig(dataset="offline") == TrainConfig(dataset="synthetic")
    assert config_from_dict({"dataset": "offline"}).dataset == "synthetic"
