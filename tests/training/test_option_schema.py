"""An option is declared once: what is derived from it agrees."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from fastmlp.cli.options import add_option
from fastmlp.cli.parser import ArgumentParser, with_flags
from fastmlp.sweeps.search_space import plan
from fastmlp.training.config import OPTIONS, TrainConfig, load_config_file
from fastmlp.training.option_schema import (
    Constraint,
    number,
    one_of,
    option,
    options_of,
    options_table,
    text,
    whole,
)
from fastmlp.utils.errors import EXIT_USAGE, UserError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "options.md"


def test_the_table_in_the_docs_is_the_options() -> None:
    assert options_table(TrainConfig()) in DOCS.read_text(encoding="utf-8")


def test_every_field_is_an_option_that_accepts_its_default() -> None:
    assert list(OPTIONS) == [field.name for field in fields(TrainConfig)]
    defaults = TrainConfig()
    for name, each in OPTIONS.items():
        value = getattr(defaults, name)
        assert each.read(value) == value
        assert each.help
        assert each.group in ("data", "training", "machine", "run")


@dataclass(frozen=True)
class Made:
    """A configuration of a test."""

    size: int = option(4, "how large", whole(1, 8), metavar="N", varied=True)
    share: float = option(0.5, "how much", number("a share", lambda v: 0 <= v <= 1), metavar="X")
    kind: str = option("a", "which", one_of(("a", "b")), machine=True)
    code: str = option("7", "a number", text("digits", parse=int))


def test_one_declaration_is_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(Made)
    assert options_table(Made()).splitlines()[2:] == [
        "| `size` | `4` | a whole number from 1 to 8 | how large | yes |",
        "| `share` | `0.5` | a share | how much |  |",
        "| `kind` | `a` | `a`, `b` | which |  |",
        "| `code` | `7` | digits | a number |  |",
    ]
    parser = ArgumentParser(prog="x")
    for each in options.values():
        add_option(parser, each, lists=True)
    assert vars(parser.parse_args([])) == {"size": 4, "share": 0.5, "kind": "a", "code": "7"}
    argv = ["--size", "1,2", "--share", "1", "--kind", "b", "--code", "12"]
    values = {"size": [1, 2], "share": 1.0, "kind": "b", "code": "12"}
    assert vars(parser.parse_args(argv)) == values
    text = " ".join(parser.format_help().split())
    assert "--size N[,N...] how large (default: 4)" in text
    assert "--kind {a,b} which (default: a)" in text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("size", 9, "size must be a whole number from 1 to 8, got 9"),
        ("size", True, "size must be a whole number from 1 to 8, got True"),
        ("share", 1.5, "share must be a share, got 1.5"),
        ("share", float("nan"), "share must be a share, got nan"),
        ("kind", "c", "kind must be one of a, b, got 'c'"),
        ("code", 7, "code must be digits, got 7"),
        ("code", "x", "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_value_that_is_not_accepted(name: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as info:
        options_of(Made)[name].read(value)
    assert (str(info.value), info.value.exit_code) == (words, EXIT_USAGE)
    assert info.value.options == (name,)


def test_the_command_line_adds_the_dashes() -> None:
    with pytest.raises(UserError) as info:
        TrainConfig(batch_size=0)
    assert str(info.value).startswith("batch_size must be a whole number")
    assert with_flags(info.value).startswith("--batch-size must be a whole number")
    with pytest.raises(UserError) as info:
        TrainConfig(lr=2.0, lr_decay=1e300)
    assert with_flags(info.value).startswith("--lr 2 times --lr-decay 1e+300 after every epoch")
    assert with_flags(UserError("lr is lr, lr_decay is not", options=("lr",))) == (
        "--lr is lr, lr_decay is not"
    )
    assert with_flags(UserError("the seed is missing")) == "the seed is missing"


@pytest.mark.parametrize("name", OPTIONS)
def test_flag_key_and_list_agree_on_every_option(name: str, tmp_path: Path) -> None:
    each, base = OPTIONS[name], TrainConfig()
    parser = ArgumentParser(prog="x")
    add_option(parser, each, base)
    shown = vars(parser.parse_args([]))
    assert list(shown) == [name]
    assert each.normalize is not None or shown[name] == getattr(base, name)
    (tmp_path / "a.toml").write_text(f"{name.replace('_', '-')} = 1\n")
    assert load_config_file(tmp_path / "a.toml") == {name: 1}
    if each.varied:
        assert plan(base, {name: [getattr(base, name)]})[1] == [base]
    else:
        with pytest.raises(UserError, match=f"{name} cannot be varied"):
            plan(base, {name: [getattr(base, name)]})


def test_what_belongs_to_the_machine_decides_nothing() -> None:
    config = TrainConfig(threads=3, device="cpu", save_every=7, data_dir="x")
    assert config.essentials() == TrainConfig().essentials()
    assert TrainConfig(seed=1).essentials() != TrainConfig().essentials()
    assert not {"threads", "device", "engine", "block_steps"} & set(config.essentials())


def test_a_constraint_checks_before_it_reads() -> None:
    def refuse(value: str) -> None:
        raise ValueError("never")

    constraint = Constraint("a text", lambda value: isinstance(value, str), parse=refuse)
    with pytest.raises(UserError, match=r"name must be a text, got None"):
        constraint.check("name", None)
    with pytest.raises(UserError, match="never"):
        constraint.check("name", "x")


def test_no_flag_shows_that_it_has_no_default() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for each in OPTIONS.values():
        add_option(parser, each, TrainConfig())
    assert "None" not in parser.format_help()
