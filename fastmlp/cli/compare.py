"""The command ``compare``: a table and the curves of several runs.

fastmlp compare runs/A runs/B runs/C                 in the terminal
fastmlp compare runs/* --out comparison.png          and as a picture
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastmlp.cli.curves import print_curves
from fastmlp.cli.parser import ArgumentParser, picture_file
from fastmlp.training.option_schema import shown, written_widths
from fastmlp.training.run_reader import RecordedRun, read_run
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.untrusted import printable

FILE_WIDTH = 160
"""Characters of a table in a file."""
CURVES = 6
"""The number of runs, the best, whose curves the terminal shows: as many as it has colours."""


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raise UserError for a user's mistake."""
    options = build_parser().parse_args(argv)
    out = None if options.out is None else picture_file(options.out)
    runs = _read_runs(list(dict.fromkeys(options.runs)))
    runs = sorted((run for run in runs if run.history), key=_score, reverse=True)
    if not runs:
        raise UserError("None of these runs has finished an epoch; there is nothing to compare")
    regressions = {run.history[0].regression for run in runs}
    if len(regressions) > 1:
        raise UserError(
            f"Some of these runs are regressions ({_regressions(runs)}), the others are not; "
            "compare one kind",
            EXIT_USAGE,
        )
    (regression,) = regressions
    names = short_names([run.folder for run in runs])
    width = None if sys.stdout.isatty() else FILE_WIDTH
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(_table(runs, names, regression))
    print_curves(
        f"validation {'loss' if regression else 'accuracy'} by epoch",
        {
            name: [(record.epoch, record.shown[1]) for record in run.history]
            for name, run in zip(names[:CURVES], runs, strict=False)
        },
    )
    if out is not None:
        from fastmlp.plotting.comparison import compare_runs  # matplotlib takes a second

        histories = {name: run.history for name, run in zip(names, runs, strict=True)}
        compare_runs(histories, out)
        print(f"The picture is in {options.out}")
    return 0


def _read_runs(paths: list[str]) -> list[RecordedRun]:
    """Return the runs in these folders, leaving out with a warning what is none, as a sweep's is in
    ``runs/*``; raise UserError where none is left."""
    runs: list[RecordedRun] = []
    for i, path in enumerate(paths):
        try:
            runs.append(read_run(path))
        except UserError as error:
            if not runs and i + 1 == len(paths):
                raise
            warnings.warn(f"{error}; it is left out", stacklevel=2)
    return runs


def _score(run: RecordedRun) -> float:
    return run.best.score


def _regressions(runs: Sequence[RecordedRun]) -> str:
    return ", ".join(short_names([run.folder for run in runs if run.history[0].regression]))


def differing(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the names of the options that are not the same in all runs and decide results."""
    values = [run.config.essentials() for run in runs]
    return [name for name in values[0] if any(v[name] != values[0][name] for v in values)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, without the path that all of them have in common."""
    if len({folder.name for folder in folders}) == len(folders):
        return [printable(folder.name or folder) for folder in folders]
    whole = [os.path.abspath(folder) for folder in folders]
    common = os.path.commonpath(whole)
    return [printable(os.path.relpath(folder, common)) for folder in whole]


def _table(runs: Sequence[RecordedRun], names: Sequence[str], regression: bool) -> Table:
    options = differing(runs)
    what = "loss" if regression else "accuracy"
    table = Table(
        title=f"{len(runs)} run{'s' * (len(runs) > 1)}, the best in validation {what} first"
    )
    table.title_justify = "left"
    table.add_column("run", overflow="fold")
    for name in (
        *(o.replace("_", " ") for o in options),
        "best",
        "at",
        "test",
        "training",
        "state",
    ):
        table.add_column(name, justify="right")
    for name, run in zip(names, runs, strict=True):
        settings = [_written(getattr(run.config, option)) for option in options]
        best = run.best
        tested = (run.summary or {}).get("test_loss" if regression else "test_accuracy")
        table.add_row(
            escape(name),
            *settings,
            _number(best.shown[1], regression),
            f"epoch {best.epoch}",
            _number(math.nan if tested is None else tested, regression),
            f"{run.seconds:.1f} s",
            run.state,
        )
    return table


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return written_widths(value, "-")
    return escape(printable(value)) if isinstance(value, str) else shown(value)


def _number(value: float, regression: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4g}" if regression else f"{value:.2%}"


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp compare",
        description="Compares runs: what differs in their options, what came of it, their curves.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run")
    parser.add_argument(
        "--out", metavar="FILE", help="draw the curves into this PNG file, too%(default).0s"
    )
    return parser
