"""The command ``train``: trains one network and keeps the run in a folder.

python -m fastmlp.train                       about a minute on two cores
python -m fastmlp.train --preset course       the exercise this project grew out of
python -m fastmlp.train --data people.csv --target income
python -m fastmlp.train --resume runs/NAME    resumes where a run stopped
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastmlp.cli import own_data
from fastmlp.cli.options import add_option, add_options, given_flags
from fastmlp.cli.parser import ArgumentParser, as_flag
from fastmlp.cli.progress import Progress, ShowRun
from fastmlp.training.api import fit, resume
from fastmlp.training.config import OPTIONS, TrainConfig, load_config_file
from fastmlp.training.own_data import fit as fit_own
from fastmlp.training.presets import PRESETS, resolve_config
from fastmlp.training.run import RunResult
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import EXIT_INTERRUPTED, EXIT_USAGE, UserError
from fastmlp.utils.files import expanded

RUNS = Path("runs")
"""The folder in which a run's folder is made when ``--out`` names none."""
RESUME_FLAGS = ("resume", "epochs", "device", "data_dir", "quiet", "json")
"""The flags that --resume allows; all else is as the run was started."""


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raise :class:`UserError` for a user's mistake."""
    flags = given_flags(build_parser(), argv)
    for name in ("out", "resume"):
        if flags.get(name) == "":
            raise UserError(f"{as_flag(name)} must be a folder, got an empty name", EXIT_USAGE)
    quiet, as_json = flags.pop("quiet", False), flags.pop("json", False)
    progress = Progress(sys.stderr if as_json else sys.stdout, quiet=quiet, bar=sys.stderr.isatty())
    if "resume" in flags:
        _check_resume_flags(flags)
        if _already_finished(flags, progress, as_json):
            return 0
        start = _resume
    else:
        start = _start
    run = start(flags, progress)
    assert run.folder is not None  # the command always has one
    if run.interrupted:
        command = f"python -m fastmlp.train --resume {shlex.quote(str(run.folder))}"
        progress.final(f"Stopped, and everything is saved. Go on with: {command}")
        return EXIT_INTERRUPTED
    _tell(run, progress)
    if as_json:
        _print_json(run.folder, run.summary)
    return 0


def _start(flags: dict[str, Any], progress: Progress) -> RunResult:
    out = flags.pop("out", None)
    file = load_config_file(flags.pop("config")) if "config" in flags else {}
    file_preset = file.pop("preset", "default")
    own = own_data.origin_of(flags)
    if own is not None:
        return _start_own(own, {**file, **flags}, out, progress)
    preset = flags.pop("preset", file_preset)
    config = resolve_config(flags, file, preset)
    with contextlib.nullcontext(out) if out is not None else _new_folder(preset) as folder:
        callbacks = [ShowRun(progress, expanded(folder))]
        return fit(config, out=folder, callbacks=callbacks, verbose=progress.verbose)


def _start_own(
    origin: dict[str, Any], values: dict[str, Any], out: str | None, progress: Progress
) -> RunResult:
    table, target, options = own_data.read(origin)
    folders = contextlib.nullcontext(out) if out is not None else _new_folder(options["name"])
    with folders as folder:
        callbacks = [ShowRun(progress, expanded(folder))]
        given = {**values, **options}
        return fit_own(table, target, **given, origin=origin, out=folder, callbacks=callbacks)


def _check_resume_flags(flags: dict[str, Any]) -> None:
    for name in flags:
        if name not in RESUME_FLAGS:
            allowed = ", ".join(as_flag(flag) for flag in RESUME_FLAGS[1:])
            raise UserError(
                f"{as_flag(name)} cannot be given with --resume, which allows only {allowed}",
                EXIT_USAGE,
            )


def _resume(flags: dict[str, Any], progress: Progress) -> RunResult:
    folder = flags.pop("resume")
    callbacks = [ShowRun(progress, expanded(folder))]
    data = own_data.splits_of(RunDirectory(folder))
    return resume(folder, data, callbacks=callbacks, verbose=progress.verbose, **flags)


def _already_finished(flags: dict[str, Any], progress: Progress, as_json: bool) -> bool:
    """Return whether the run to resume is at its end and is not to be made longer, and say so."""
    folder = RunDirectory(flags["resume"])
    if not folder.finished:
        return False
    config = folder.read_config()
    if flags.get("epochs", config.epochs) != config.epochs:
        return False
    summary = folder.read_summary()
    longer = "" if config.lr_schedule != "constant" else "; a larger --epochs trains it longer"
    progress.final(
        f"The run in {folder.path} is finished: {summary['epochs']} epochs, "
        f"{_result(summary)}{longer}"
    )
    if as_json:
        _print_json(folder.path, summary)
    return True


def _tell(run: RunResult, progress: Progress) -> None:
    """Write the last lines of a run."""
    summary, best = run.summary, run.summary["best"]
    synthetic = ", on the built-in set and not CIFAR-10" if summary["synthetic"] else ""
    progress.say("")
    if summary["test_accuracy"] is None:
        result = _result(summary)
        progress.final(
            f"{result[0].upper()}{result[1:]} after epoch {best['epoch']} of {summary['epochs']}"
        )
    else:
        progress.final(
            f"Test accuracy {summary['test_accuracy']:.2%} (loss {summary['test_loss']:.4f}, "
            f"{summary['test_images']:,} {progress.unit}{synthetic}) after epoch "
            f"{best['epoch']} of {summary['epochs']}, the best in validation "
            f"({best['val_acc']:.2%})"
        )
    progress.say(
        f"Trained in {_duration(summary['train_seconds'])} at "
        f"{summary['images_per_s']:,.0f} {progress.unit}/s; "
        f"{_duration(summary['total_seconds'])} in all"
    )
    progress.say(f"Everything is in {run.folder}: best.pt, last.pt, metrics.csv, curves.png, ...")
    if summary["synthetic"]:
        progress.say(
            "Warning: this run used the built-in synthetic set, not CIFAR-10; its accuracies say "
            "nothing about CIFAR-10."
        )


def _result(summary: dict[str, Any]) -> str:
    """Return the accuracy or loss that a summary has, on the test part where there is one."""
    if summary["test_accuracy"] is not None:
        return f"test accuracy {summary['test_accuracy']:.2%}"
    if summary["test_loss"] is not None:
        return f"test loss {summary['test_loss']:.4f}"
    best = summary["best"]
    if best["val_acc"] is None:
        return f"validation loss {best['val_loss']:.4f}"
    return f"validation accuracy {best['val_acc']:.2%} (loss {best['val_loss']:.4f})"


def _print_json(folder: Path, summary: dict[str, Any]) -> None:
    print(json.dumps({"folder": str(folder), **summary}, indent=2), flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def _new_folder(preset: str) -> Iterator[Path]:
    """Make a folder named after the preset and the time, which no other process has; remove it
    again where nothing was written into it."""
    name = f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    RUNS.mkdir(parents=True, exist_ok=True)
    for count in itertools.count(1):
        path = RUNS / (name if count == 1 else f"{name}-{count}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp train",
        description="Trains a small network, on CIFAR-10 or data of your own, and keeps everything "
        "in a run folder.",
        epilog="A flag beats the --config file, which beats the preset; the defaults shown are "
        "those of the preset 'default'.",
    )
    defaults = TrainConfig()
    add_options(parser.add_argument_group("data"), "data", defaults)
    own_data.add_arguments(parser.add_argument_group("data of your own"))
    _add_run_arguments(parser.add_argument_group("run"))
    add_options(parser.add_argument_group("training"), "training", defaults)
    add_options(parser.add_argument_group("machine"), "machine", defaults)
    return parser


def _add_run_arguments(group: argparse._ArgumentGroup) -> None:
    # These have no default to show; SUPPRESS keeps "(default: None)" out of the help.
    add, none = group.add_argument, argparse.SUPPRESS
    add("--preset", choices=PRESETS, default="default", help="where values come from first")
    add("--config", metavar="FILE", default=none, help="TOML file of values, named as the flags")
    add(
        "--out",
        metavar="DIR",
        default=none,
        help="folder for the run, new or empty (default: runs/PRESET-DATE-TIME)",
    )
    add("--resume", metavar="RUN", default=none, help="resume the run in this folder")
    add_option(group, OPTIONS["save_every"])
    add("--quiet", action="store_true", default=none, help="only errors and the final line")
    add(
        "--json",
        action="store_true",
        default=none,
        help="a JSON summary on standard output at the end, all else on standard error",
    )
