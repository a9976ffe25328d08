"""The command ``find-lr``: the learning-rate range test, a picture and a suggestion.

fastmlp find-lr --batch-size 32                          on CIFAR-10
fastmlp find-lr --data people.csv --target income        on data of your own
"""

from __future__ import annotations

import argparse
from typing import Any

from fastmlp.cli import own_data
from fastmlp.cli.options import add_options, given_flags
from fastmlp.cli.parser import ArgumentParser, picture_file
from fastmlp.training.config import TrainConfig, load_config_file
from fastmlp.training.lr_finder import find_lr
from fastmlp.training.presets import PRESETS, resolve_config


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raise UserError for a user's mistake."""
    flags = given_flags(build_parser(), argv)
    out = picture_file(flags.pop("out", "lr.png"))
    span: dict[str, Any] = {n: flags.pop(n) for n in ("low", "high", "steps") if n in flags}
    file = load_config_file(flags.pop("config")) if "config" in flags else {}
    preset = file.pop("preset", "default")
    own = own_data.origin_of(flags)
    if own is None:
        preset = flags.pop("preset", preset)
        found = find_lr(resolve_config(flags, file, preset), **span)
    else:
        table, target, options = own_data.read(own)
        found = find_lr(table, target, **{**file, **flags, **options}, **span)
    suggestion = found.suggestion
    found.plot(out)
    print(
        f"{len(found.lrs)} steps, learning rates from {found.lrs[0]:g} to {found.lrs[-1]:.2g}; the "
        f"picture is in {out}\nSuggestion: --lr {suggestion:g}"
    )
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp find-lr",
        description="Trains a fresh network for a few steps with ever larger learning rates, draws "
        "the losses and suggests a rate.",
        epilog="The other flags are those of fastmlp train: what the rate is wanted for.",
    )
    defaults, none = TrainConfig(), argparse.SUPPRESS
    add = parser.add_argument_group("range").add_argument
    add("--low", type=float, metavar="X", default=1e-6, help="the first learning rate")
    add("--high", type=float, metavar="X", default=10.0, help="the last, unless the loss explodes")
    add("--steps", type=int, metavar="N", default=200, help="the number of steps")
    add("--out", metavar="FILE", default="lr.png", help="the picture to write")
    add("--preset", choices=PRESETS, default="default", help="where values come from first")
    add("--config", metavar="FILE", default=none, help="TOML file of values, named as the flags")
    add_options(parser.add_argument_group("data"), "data", defaults)
    own_data.add_arguments(parser.add_argument_group("data of your own"))
    add_options(parser.add_argument_group("training"), "training", defaults)
    add_options(parser.add_argument_group("machine"), "machine", defaults)
    return parser
