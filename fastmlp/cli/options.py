"""The flags of the commands, derived from the options of :class:`TrainConfig`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fastmlp.cli.parser import ArgumentParser, as_flag
from fastmlp.data.cifar10 import DIRECTORY_VARIABLE, cache_folder
from fastmlp.data.download import URL_VARIABLE
from fastmlp.training.config import OPTIONS, TrainConfig
from fastmlp.training.option_schema import NO_LAYERS, Option, written_widths

NO_DEFAULT = "%(default).0s"
"""Ends a help text: prints nothing, and keeps argparse from adding "(default: None)"."""


def add_options(
    container: argparse._ActionsContainer,
    group: str,
    defaults: TrainConfig | None = None,
    *,
    lists: bool = False,
) -> None:
    """Add a flag for each option of a group. With ``lists`` those that a sweep can vary take
    several values, with commas between them."""
    for each in OPTIONS.values():
        if each.group == group:
            add_option(container, each, defaults, lists=lists)


def add_option(
    container: argparse._ActionsContainer,
    option: Option,
    defaults: TrainConfig | None = None,
    *,
    lists: bool = False,
) -> None:
    """Add the flag of an option, whose default is that of ``defaults``."""
    kind, choices = option.constraint.kind, option.constraint.choices
    default = getattr(defaults, option.name) if defaults is not None else option.default
    help_text = option.help + _if_not_given(option.name)
    settings: dict[str, Any] = {"metavar": option.metavar, "choices": choices}
    if kind is bool:
        settings = {"action": argparse.BooleanOptionalAction}
    elif kind is tuple:
        default = written_widths(default, "-" if lists else ",")
        if lists:
            help_text += ", several of one network as 512-256"
            settings |= {"type": _list_of(_widths, "widths"), "metavar": "H[-H...][,...]"}
    elif lists and option.listed:
        metavar = f"{option.metavar}[,{option.metavar}...]"
        settings |= {"type": _list_of(kind, f"{kind.__name__} values"), "metavar": metavar}
    elif kind is not str:
        settings["type"] = kind
    elif option.constraint.parse is not None:
        settings["type"] = option.read  # refused before anything is loaded
    elif option.normalize is not None:
        settings["type"] = option.normalize
    container.add_argument(as_flag(option.name), default=default, help=help_text, **settings)


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    """Add ``--dataset --data-dir --data-url --split --test-set``, whose values are the arguments
    of :func:`load_dataset` and :func:`split_dataset` of the same names."""
    add_options(parser, "data")


def add_source_arguments(parser: argparse._ActionsContainer, dataset: bool = True) -> None:
    """Add ``--data-dir`` and ``--data-url``, and ``--dataset`` if it is wanted."""
    for name in (*(("dataset",) if dataset else ()), "data_dir", "data_url"):
        add_option(parser, OPTIONS[name])


def given_flags(parser: ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """Return the flags that stand on the command line, without any default: argparse sets a default
    only where the namespace has no such attribute yet."""
    absent = object()
    namespace = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), absent))
    values = vars(parser.parse_args(argv, namespace))
    return {name: value for name, value in values.items() if value is not absent}


def _if_not_given(name: str) -> str:
    """Return what stands for the default of an option that has none, at the end of its help."""
    if name == "data_dir":
        cache = str(cache_folder()).replace("%", "%%")  # a "%" in a path is no format of argparse
        return f"; if not given, ${DIRECTORY_VARIABLE}, then {cache}{NO_DEFAULT}"
    if name == "data_url":
        return f"; if not given, ${URL_VARIABLE}, then the official host{NO_DEFAULT}"
    return ""


def _list_of(read: Callable[[str], Any], what: str) -> Callable[[str], list[Any]]:
    def values(text: str) -> list[Any]:
        return [read(part) for part in text.split(",")]

    values.__name__ = f"list of {what}"  # argparse names it in its errors
    return values


def _widths(text: str) -> tuple[int, ...]:
    return () if text == NO_LAYERS else tuple(map(int, text.split("-")))
