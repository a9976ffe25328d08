"""The command ``reproduce``: repeat the course's experiments and write a report of them.

python -m fastmlp.reproduce            about ten minutes on two cores
python -m fastmlp.reproduce --quick    a minute or two, with fewer epochs and seeds

The folder holds ``report.html``, ``results.json`` and, in ``parts``, the finished experiments, from
which the same command resumes.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from fastmlp.cli.options import add_data_arguments
from fastmlp.cli.parser import ArgumentParser
from fastmlp.data.dataset import load_dataset
from fastmlp.data.splits import split_dataset
from fastmlp.engines.registry import resolve_device
from fastmlp.report.experiments import FULL, QUICK, studies
from fastmlp.report.runner import MARKER, Stopped, run_report
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import EXIT_INTERRUPTED, EXIT_USAGE, UserError
from fastmlp.utils.files import expanded
from fastmlp.utils.signals import stop_on_signals

OUT = "runs/reproduce"
LINE_SECONDS = 10.0
"""The time between two lines without a terminal."""
_SEEDS = ("sweep_seeds", "final_seeds", "ablation_seeds", "network_seeds")


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raises UserError for a user's mistake."""
    options = build_parser().parse_args(argv)
    folder = _checked_folder(options.out)
    budget = QUICK if options.quick else FULL
    if options.seeds is not None:
        budget = replace(budget, **dict.fromkeys(_SEEDS, options.seeds))
    names = ("split", "test_set", "device", "threads")
    common = {name: getattr(options, name) for name in names}
    TrainConfig(**common)  # refuses invalid values before anything is downloaded
    device = resolve_device(options.device)
    dataset = load_dataset(options.dataset, options.data_dir, options.data_url)
    data = split_dataset(dataset, options.split, options.test_set)
    plan = studies({**common, "dataset": dataset.name, "device": str(device)}, budget)
    begin = time.perf_counter()
    try:
        with stop_on_signals() as stop, Display(sys.stderr.isatty()) as display:
            short = run_report(plan, dataset, data, folder, options.quick, display, stop)
    except Stopped:
        print(
            f"Stopped; what is finished is kept in {folder / 'parts'}. The same command "
            "resumes from there.",
            flush=True,
        )
        return EXIT_INTERRUPTED
    print()
    for mark, sentence in short:
        print(f"- {mark.text}: {sentence}" if mark else f"- {sentence}")
    seconds = time.perf_counter() - begin
    print(f"\nThe report is {folder / 'report.html'} ({seconds:.0f} s in this sitting)", flush=True)
    return 0


class Display:
    """Show how far the report is, as the :class:`fastmlp.report.runner.ReportCallback` of a run.

    With ``bar`` a bar on standard error, without it lines on standard output.
    """

    def __init__(self, bar: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            disable=not bar,
        )
        self._task = self._bar.add_task("", total=1.0, words="")
        self._part, self._before = "", 0.0
        self._began = self._last_line = time.perf_counter()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def on_start(self, cached: int, parts: int, share: float) -> None:
        """Start the clock of the time left."""
        self._before, self._began = share, time.perf_counter()
        if cached:
            print(f"{cached} of {parts} parts are there already", flush=True)
        self._bar.start()

    def on_epoch(self, part: str, epoch: int, epochs: int, share: float) -> None:
        """Move the bar; without one, write a line every ten seconds and at the end of a part."""
        words = f"epoch {epoch} of {epochs}{self._time_left(share)}"
        self._bar.update(self._task, description=part, completed=share, words=words)
        now = time.perf_counter()
        due = part != self._part or now - self._last_line > LINE_SECONDS or epoch == epochs
        if self._bar.disable and due:
            self._part, self._last_line = part, now
            print(f"{share:4.0%}  {part}: {words}", flush=True)

    def on_drawing(self) -> None:
        """Remove the bar."""
        self._close()
        print("drawing", flush=True)

    def _close(self) -> None:
        if not self._bar.disable:  # a disabled one would write an empty line
            self._bar.stop()

    def _time_left(self, share: float) -> str:
        if share - self._before < 0.01:
            return ""  # too early to tell
        spent = time.perf_counter() - self._began
        minutes, seconds = divmod(round(spent * (1 - share) / (share - self._before)), 60)
        return f", {f'{minutes} min ' if minutes else ''}{seconds} s left"


def _checked_folder(text: str) -> Path:
    """Return the folder for the report; raises UserError if it holds something else."""
    if not text:
        raise UserError("--out must be a folder, got an empty name", EXIT_USAGE)
    folder = expanded(text)
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / MARKER).exists():
        raise UserError(
            f"{folder} is there already and holds no report; pass another --out", EXIT_USAGE
        )
    return folder


def _seed_count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text):
        raise UserError(f"--seeds must be a whole number from 1 to 999, got {text}", EXIT_USAGE)
    return int(text)


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp reproduce",
        description="Repeats the course's experiments and writes a report of them.",
    )
    add_data_arguments(parser.add_argument_group("data"))
    add = parser.add_argument_group("report").add_argument
    add("--quick", action="store_true", help="fewer epochs and seeds: a minute or two%(default).0s")
    add("--out", metavar="DIR", default=OUT, help="folder for it: new, empty or of a report")
    add(
        "--seeds",
        type=_seed_count,
        metavar="N",
        help="seeds of every part; if not given, from 2 to 5, fewer with --quick%(default).0s",
    )
    add("--device", metavar="auto|cpu|cuda[:N]", default=TrainConfig.device, help="where to run")
    add("--threads", type=int, metavar="N", default=0, help="CPU threads; 0 leaves it to PyTorch")
    return parser
