"""The command ``show``: what a run has come to, with its curves, in the terminal.

fastmlp show runs/NAME          prints the results and draws the curves with characters
fastmlp show runs/NAME --open   opens the picture of the curves, too
"""

from __future__ import annotations

import json
import math
import webbrowser

from fastmlp.cli.curves import print_curves
from fastmlp.cli.parser import ArgumentParser
from fastmlp.training.option_schema import written_widths
from fastmlp.training.run_reader import RecordedRun, read_run
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import printable


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raise UserError for a user's mistake."""
    options = build_parser().parse_args(argv)
    run = read_run(options.run)
    if options.json:
        if run.summary is None:
            raise UserError(f"{run.folder} has no summary yet: {run.state} are done")
        print(json.dumps({"folder": str(run.folder), **run.summary}, indent=2))
        return 0
    for name, value in _lines(run):
        print(f"{name:9}{value}")
    if run.history:
        print()
        print_curves(
            f"{'loss' if run.history[0].regression else 'accuracy'} by epoch",
            {
                name: [(record.epoch, record.shown[i]) for record in run.history]
                for i, name in enumerate(("training", "validation"))
            },
        )
    if options.open:
        picture = run.folder / "curves.png"
        if not picture.exists():
            raise UserError(f"{picture} does not exist yet; it is drawn when the run ends")
        if not webbrowser.open(picture.resolve().as_uri()):
            raise UserError(f"There is no program to open pictures with; {picture} is the file")
    return 0


def _lines(run: RecordedRun) -> list[tuple[str, str]]:
    config, summary = run.config, run.summary
    data = printable(config.dataset)
    network = written_widths(config.hidden, "-")
    optimizer = f"{config.optimizer}, lr {config.lr:g} {config.lr_schedule}"
    lines = [
        ("run", f"{printable(str(run.folder))}, {run.state}"),
        ("data", data if summary is None else f"{data}, {printable(summary['source'])}"),
        ("network", f"hidden {network}, {config.activation}; batches of {config.batch_size}"),
        ("trained", f"with {optimizer}; engine {config.engine} on {config.device}"),
    ]
    if not run.history:
        return [*lines, ("epochs", "none done")]
    last, best = run.history[-1], run.best
    for name, record in (("best", best), ("last", last)):
        shown = f"epoch {record.epoch}: validation loss {record.val_loss:.4f}"
        if not math.isnan(record.val_acc):
            shown += f", accuracy {record.val_acc:.2%}"
        lines.append((name, shown))
    if summary is not None and summary["test_loss"] is not None:
        tested = f"loss {summary['test_loss']:.4f}"
        if summary["test_accuracy"] is not None:
            tested += f", accuracy {summary['test_accuracy']:.2%}"
        lines.append(("test", f"{tested}, with the parameters of the best epoch"))
    return [*lines, ("time", f"{run.seconds:.1f} s for {len(run.history)} epochs of training")]


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(
        prog="fastmlp show", description="Shows what a run has come to, and its curves."
    )
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    parser.add_argument("--open", action="store_true", help="open the picture of the curves, too")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead")
    return parser
