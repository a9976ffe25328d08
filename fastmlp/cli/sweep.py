"""The command ``sweep``: trains many configurations side by side and compares them.

python -m fastmlp.sweep --lr 1e-2,1e-3,1e-4 --hidden 32,64,256     one at a time, from the base
python -m fastmlp.sweep --data people.csv --target income --lr 1e-2,1e-3
python -m fastmlp.sweep --lr 1e-3,1e-1 --vary random:50 --seeds 3    50 draws in between
torchrun --nproc-per-node=8 -m fastmlp.sweep ...                   shared by eight processes
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from fastmlp.cli import own_data
from fastmlp.cli.options import NO_DEFAULT, add_options, given_flags
from fastmlp.cli.parser import ArgumentParser
from fastmlp.cli.progress import Lines, make_bar
from fastmlp.data.splits import DataSplits
from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.results import SweepResult, Trial
from fastmlp.sweeps.search_space import VARY, plan, shown
from fastmlp.sweeps.sweep import sweep
from fastmlp.training.config import OPTIONS, TrainConfig, load_config_file
from fastmlp.training.own_data import configured
from fastmlp.training.presets import PRESETS, resolve_config
from fastmlp.utils.errors import EXIT_INTERRUPTED, EXIT_USAGE, UserError

RUNS = Path("runs")
"""The folder in which a sweep's folder is made when ``--out`` names none."""
REPORT_SECONDS = 10.0
"""The time between two lines where there is no terminal to draw on."""
FILE_WIDTH = 200
"""The width of a table that no terminal limits, in characters."""
LISTED = [name for name, option in OPTIONS.items() if option.listed]
"""The flags that take several values."""
ROWS = 20
"""The number of configurations in the printed table; the file has all of them."""


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raise :class:`UserError` for a user's mistake."""
    flags = given_flags(build_parser(), argv)
    if flags.get("out") == "":
        raise UserError("--out must be a folder, got an empty name", EXIT_USAGE)
    options = {name: flags.pop(name) for name in ("vary", "seeds", "halve") if name in flags}
    quiet = flags.pop("quiet", False)
    out = Path(flags.pop("out", RUNS / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"))
    own = own_data.origin_of(flags)
    base, values, data = _base_and_values(flags, own)
    plan(base, values, options.get("vary", "one"))  # refused before anything is loaded
    view = _View(quiet, base.epochs)
    with view:
        result = sweep(
            base,
            values,
            vary=options.get("vary", "one"),
            seeds=options.get("seeds", 1),
            successive_halving=options.get("halve", False),
            data=data,
            out=out,
            on_epoch=view.update,
            on_progress=view.move,
        )
    return _tell(result, out, view, own)


def _base_and_values(
    flags: dict[str, Any], own: dict[str, Any] | None
) -> tuple[TrainConfig, dict[str, list[Any]], DataSplits | None]:
    """Return the configuration to start from, the lists of more than one value and the data of
    one's own, if ``own`` names some."""
    file = load_config_file(flags.pop("config")) if "config" in flags else {}
    file_preset = file.pop("preset", "sweep")
    if own is None:
        preset = flags.pop("preset", file_preset)
    values = {name: flags.pop(name) for name in LISTED if len(flags.get(name, ())) > 1}
    single = {name: value[0] if name in LISTED else value for name, value in flags.items()}
    if single.get("nesterov") and "momentum" in values:  # which needs one above 0 in the base
        single["momentum"] = max(values["momentum"])
    if own is None:
        return resolve_config(single, file, preset), values, None
    table, target, options = own_data.read(own)
    base, data = configured(table, target, {**file, **single, **options})
    return base, values, data.splits


def _tell(result: SweepResult, out: Path, view: _View, own: dict[str, Any] | None) -> int:
    """Write the last lines and return the exit code."""
    if not ProcessGroup.from_environment().is_first:
        return EXIT_INTERRUPTED if result.interrupted else 0
    view.show(result)
    if result.interrupted:
        same = f"The same command with --out {shlex.quote(str(out))} goes on."
        view.final(f"Stopped, and everything is saved. {same}")
        return EXIT_INTERRUPTED
    best = result.best_trial
    if best.score == -math.inf:
        raise UserError("All runs diverged; try smaller values of --lr")
    settings = ", ".join(f"{name} {shown(getattr(best.config, name))}" for name in result.values)
    file = shlex.quote(str(out / "best.toml")) + own_data.as_flags(own)
    if best.config.data_dir is not None:  # which belongs to the machine, so the file lacks it
        file += f" --data-dir {shlex.quote(best.config.data_dir)}"
    view.final(
        f"Best in validation: {_mean_and_sd(best.best_val, best, result.regression)}"
        f"{' with ' if settings else ''}"
        f"{settings}. Train it with: python -m fastmlp.train --config {file}"
    )
    view.say(f"Everything is in {out}: results.csv, epochs.csv, best.toml, pictures, ...")
    return 0


class _View(Lines):
    """The display of a sweep: on a terminal a table that is drawn anew after each epoch over a bar
    that moves within it, elsewhere a line now and then."""

    def __init__(self, quiet: bool, epochs: int) -> None:
        first = ProcessGroup.from_environment().is_first
        super().__init__(sys.stdout, quiet or not first)
        width = None if sys.stdout.isatty() else FILE_WIDTH
        self._console = Console(file=sys.stdout, highlight=False, width=width)
        self._epochs = epochs
        self._live: Live | None = None
        self._bar = make_bar(self._console)
        self._task = self._bar.add_task("", total=epochs)
        self._next_line = time.monotonic() + REPORT_SECONDS

    def __enter__(self) -> _View:
        if self._console.is_terminal and self.verbose:
            self._live = Live(self._bar, console=self._console, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, result: SweepResult, epoch: int) -> None:
        """Show the result after a number of epochs."""
        self.move(epoch)
        if self._live is not None:
            self._live.update(Group(_table(result), self._bar))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + REPORT_SECONDS
            best = max(result.trials, key=lambda trial: trial.score)
            found = _mean_and_sd(best.best_val, best, result.regression)
            self.say(f"epoch {epoch}/{self._epochs}  best in validation so far {found}")

    def move(self, epochs: float) -> None:
        """Move the bar to a number of epochs, the last one perhaps under way."""
        description = f"epoch {int(epochs)}/{self._epochs}"
        self._bar.update(self._task, completed=epochs, description=description)

    def show(self, result: SweepResult) -> None:
        """Print the table as it stands."""
        if self.verbose:
            self._console.print(_table(result))


def _table(result: SweepResult) -> Table:
    ranked = sorted(result.trials, key=lambda trial: trial.score, reverse=True)
    what = "loss" if result.regression else "accuracy"
    table = Table(title=f"Validation {what}, best first", title_justify="left")
    for name in result.values:
        table.add_column(name.replace("_", " "), justify="right")
    for name in ("best", "last", "training", "state"):
        table.add_column(name, justify="right")
    for trial in ranked[:ROWS]:
        settings = [str(shown(getattr(trial.config, name))) for name in result.values]
        numbers = [
            _mean_and_sd(pair, trial, result.regression)
            for pair in (trial.best_val, trial.final_val, trial.final_train)
        ]
        table.add_row(*settings, *numbers, trial.status)
    if len(ranked) > ROWS:
        table.caption = f"and {len(ranked) - ROWS} more"
    return table


def _mean_and_sd(pair: tuple[float, float], trial: Trial, regression: bool) -> str:
    """Return an accuracy in per cent, or a loss, and its deviation where there are several runs."""
    mean, sd = pair
    if mean != mean:
        return "-"
    several = len(trial.runs) > 1
    if regression:
        return f"{mean:.4g}{f' +- {sd:.2g}' if several else ''}"
    return f"{mean:.2%}{f' +- {100 * sd:.2f}' if several else ''}"


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp sweep",
        description="Trains many configurations side by side and compares them in validation.",
        epilog="Values with commas between them are varied; a single one changes the base. A flag "
        "beats the --config file, which beats the preset; the defaults shown are those of the "
        "preset 'sweep'.",
    )
    base = resolve_config({}, preset="sweep")
    add_options(parser.add_argument_group("data"), "data")
    own_data.add_arguments(parser.add_argument_group("data of your own"))
    add = parser.add_argument_group("sweep").add_argument
    add(
        "--vary",
        metavar=VARY.replace(", ", "|").replace(" or ", "|"),
        default="one",
        help="one value at a time from the base, all combinations, or N draws in between",
    )
    add("--seeds", type=int, metavar="N", default=1, help="runs of each configuration")
    add(
        "--successive-halving",
        dest="halve",
        action="store_true",
        help="drop the worse half after an eighth, a quarter and a half of the epochs",
    )
    add("--preset", choices=PRESETS, default="sweep", help="where the base comes from")
    add("--config", metavar="FILE", help=f"TOML file of values of the base{NO_DEFAULT}")
    add(
        "--out",
        metavar="DIR",
        help="folder for the results; a sweep that is in it resumes "
        f"(default: runs/sweep-DATE-TIME){NO_DEFAULT}",
    )
    add("--quiet", action="store_true", help="only errors and the final line")
    add_options(parser.add_argument_group("training"), "training", base, lists=True)
    add_options(parser.add_argument_group("machine"), "machine")
    return parser
