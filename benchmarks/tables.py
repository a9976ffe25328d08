"""Fill the tables of README.md and docs/*.md from benchmarks/results/*.json.

python benchmarks/tables.py            rewrites the parts between the markers
python benchmarks/tables.py --check    fails where they or the pictures are out of date

No number is typed by hand. Every table has a place for each make of processor in machine.MAKES,
measured or not. Where a page has ``<!-- NAME table -->``, a table of that name is written up to the
next ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import machine
from layer_tables import layer_table, op_table, sklearn_claim, sklearn_table, tabular_table
from machine import MAKES, measured
from pictures import out_of_date
from table_parts import (
    Results,
    bold,
    caption,
    disturbed_note,
    mark,
    ours_first,
    processor,
)

from fastmlp.report.experiments import COURSE_TEST
from fastmlp.utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
NOT_MEASURED = "not measured yet"
README_BATCHES = (4, 8, 32, 128)
README_NAMES = (
    "fastmlp blocked",
    "nn.Module + torch.optim.SGD",
    "hand-written loop in torch",
    "JAX jit(scan)",
    "scikit-learn",
)
CLAIM_PEERS = {
    "JAX jit(scan)": "JAX",
    "nn.Module + torch.optim.SGD": "`nn.Module` and `torch.optim`",
    "scikit-learn": "scikit-learn",
}


def pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(render: Callable[[Results], str], results: Mapping[str, Results]) -> str:
    """Return a table for each make, under its name, and a line for a make without results."""
    parts = []
    for make in dict.fromkeys([*MAKES, *results]):
        name = MAKES.get(make, make)
        if make in results:
            parts.append(f"**{name}**: {caption(results[make])}\n\n{render(results[make])}")
        else:
            parts.append(f"**{name}**: {NOT_MEASURED}.")
    return "\n\n".join(parts)


def claim(results: Mapping[str, Results]) -> str:
    """Return what an epoch takes at the smallest batch size of the README's table, and how many
    times longer the peers of the picture take, on the first make that was measured."""
    each = next(iter(results.values()))
    row = next(row for row in each["rows"] if row["batch"] == README_BATCHES[0])
    seconds = {name: t["median_us"] / 1e6 for name, t in row["epoch"].items()}
    ours = seconds["fastmlp blocked"]
    times = [
        f"{seconds[name] / ours:.0f} times as long with {words}"
        for name, words in CLAIM_PEERS.items()
        if name in seconds
    ]
    return (
        f"At batch {row['batch']} an epoch of {row['steps']:,} steps takes **{ours:.2f} s**; it "
        f"takes {', '.join(times)} ({processor(each)})."
    )


def epoch_summary(results: Mapping[str, Results]) -> str:
    """Return seconds per epoch in one table: a part for each make, a column for each batch size."""
    lines = [
        "| seconds per epoch | " + " | ".join(f"batch {b}" for b in README_BATCHES) + " |",
        "|---|" + "---:|" * len(README_BATCHES),
    ]
    empty, shown = " |" * len(README_BATCHES), list[dict[str, Any]]()
    for make in dict.fromkeys([*MAKES, *results]):
        if make not in results:
            lines.append(f"| *{MAKES[make]}: {NOT_MEASURED}* |{empty}")
            continue
        each = results[make]
        rows = [row for row in each["rows"] if row["batch"] in README_BATCHES]
        shown += rows
        lines.append(f"| *{processor(each)}* |{empty}")
        lines += _epoch_lines(rows, README_NAMES)
    return "\n".join([*lines, *disturbed_note(shown)])


def epoch_table(results: Results) -> str:
    """Return seconds per epoch, a row for each contender, a column for each batch size."""
    rows = results["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["epoch"]))
    return "\n".join(
        [
            "| seconds per epoch | " + " | ".join(f"batch {row['batch']}" for row in rows) + " |",
            "|---|" + "---:|" * len(rows),
            *_epoch_lines(rows, names),
            *disturbed_note(rows),
        ]
    )


def _epoch_lines(rows: list[dict[str, Any]], names: Iterable[str]) -> list[str]:
    """Rows of a table, each ratio being to the fastest of fastmlp's engines."""
    lines = []
    for name in names:
        cells = []
        for row in rows:
            if name not in row["epoch"]:
                cells.append("")
                continue
            ours = min(t["median_us"] for n, t in row["epoch"].items() if n.startswith("fastmlp"))
            mine = row["epoch"][name]["median_us"]
            ratio = "" if mine == ours else f" ({mine / ours:.1f}x)"
            cells.append(f"{mine / 1e6:.2f}{ratio}{mark(row)}")
        if any(cells):
            lines.append(f"| {bold(name)} | " + " | ".join(cells) + " |")
    return lines


def gpu_table(results: Results) -> str:
    """Return microseconds per step and model on a GPU, a row for each contender."""
    rows = results["rows"]
    names = sorted({name for row in rows for name in row["step"]}, key=ours_first)
    heads = [
        f"batch {row['batch']}, hidden {row['hidden']}"
        + (f", {row['models']} models" if row["models"] > 1 else "")
        for row in rows
    ]
    lines = [
        "On a GPU (`python benchmarks/epoch_time.py --device cuda`), all contenders with the same",
        "steps to do, their images on the device but for the course's loop:",
        "",
        "| microseconds per step and model | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for name in names:
        cells = [
            f"{row['step'][name]['median_us']:.1f}{mark(row)}" if name in row["step"] else ""
            for row in rows
        ]
        lines.append(f"| {bold(name)} | " + " | ".join(cells) + " |")
    lines += disturbed_note(rows)
    course = results["course_run"]
    if course is not None:
        lines += [
            "",
            f"The course's run, {course['epochs']} epochs with a validation after each, takes "
            f"{course['seconds']:.1f} s with the engine `{course['engine']}`.",
        ]
    return "\n".join([*lines, "", _gpu_caption(results["provenance"])])


def gpu_op_table(results: Results) -> str:
    """Return how many times faster than the fastest peer each shape of linear+relu is on a GPU."""
    cells: dict[str, dict[tuple[str, str], str]] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in results["rows"]:
        if row["operator"] == "linear+relu":
            shape, column = " x ".join(map(str, row["shape"])), (row["dtype"], row["pass"])
            cells.setdefault(shape, {})[column] = f"{row['ratio_gpu']:.2f}"
            ratios.setdefault(column, []).append(row["ratio_gpu"])
    columns = list(ratios)
    lines = [
        "| linear+relu | " + " | ".join(" ".join(column) for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for shape, row in cells.items():
        lines.append(f"| {shape} | " + " | ".join(row.get(c, "") for c in columns) + " |")
    means = [f"**{statistics.geometric_mean(ratios[c]):.2f}**" for c in columns]
    lines.append("| geometric mean | " + " | ".join(means) + " |")
    return "\n".join([*lines, "", _gpu_caption(results["provenance"])])


def _gpu_caption(p: Mapping[str, Any]) -> str:
    return (
        f"{p['device']}, driver {p['driver']}, CUDA {p['cuda']}, torch {p['torch']}, "
        f"{p['time'][:10]}, commit {p['commit'][:9]}."
    )


def ablation_table(results: Results) -> str:
    """Return what the slips of the course's recipe cost, each alone and together."""
    study = results["studies"]["ablation"]
    lines = [
        "| loader | initial weights | divided by N | training, % | test, % |",
        "|---|---|---|---:|---:|",
    ]
    for name, network in study["networks"].items():
        loader, init, averaged = name.split(", ")
        found = network["test_acc"]
        cells = [loader, init, averaged.removeprefix("averaged ")]
        cells.append(f"{100 * network['last_train_acc']['mean']:.1f}")
        cells.append(f"{100 * found['mean']:.1f} +- {100 * found['sd']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    runs = f"{study['epochs']} epochs, mean and standard deviation over {study['seeds']} seeds."
    return "\n".join([*lines, "", runs])


def train_table(results: Results) -> str:
    """Return the default run's accuracy and time in a sentence."""
    rows = results["rows"]
    tests = [100 * row["test_accuracy"] for row in rows]
    seconds = statistics.median(row["seconds"] for row in rows)
    return (
        f"The default run reaches **{statistics.mean(tests):.1f} +- {statistics.stdev(tests):.1f}**"
        f" % test accuracy (mean and standard deviation over {len(rows)} seeds) in {seconds:.0f} s "
        f"for {rows[0]['epochs']} epochs."
    )


def fit_output(results: Mapping[str, Results]) -> str:
    """Return what the README's example prints, from the first seed of the default run."""
    row = next(iter(results.values()))["rows"][0]
    return (
        f"```text\n{row['test_accuracy']:.1%} of the test images after {row['epochs']} epochs\n```"
    )


def accuracy_table(results: Results) -> str:
    """Return the accuracies that the presets reach."""
    lines = ["| preset | network | epochs | validation, % | test, % |", "|---|---|---:|---:|---:|"]
    for row in results["rows"]:
        cells = []
        for name in ("val_accuracy", "test_accuracy"):
            values = [100 * each[name] for each in row["seeds"]]
            cells.append(f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}")
        network = "-".join(map(str, [3072, *row["hidden"], 10]))
        lines.append(
            f"| `{row['preset']}` | {network} | {row['epochs']} | {cells[0]} | {cells[1]} |"
        )
    seeds = len(results["rows"][0]["seeds"])
    commits = dict.fromkeys(row["provenance"]["commit"] for row in results["rows"])
    names = ", ".join(commit[:9] for commit in commits)
    note = f"Mean and standard deviation over {seeds} seeds. Commits: {names}."
    return "\n".join([*lines, "", note])


def many_table(results: Results) -> str:
    """Return what a model costs when several are trained together."""
    rows = [row for row in results["rows"] if row["axis"] == "models"]
    names = list(rows[-1]["epoch"])
    lines = [
        "| seconds per epoch and model | "
        + " | ".join(f"{row['models']} together" for row in rows)
        + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for name in names:
        cells = [
            f"{row['epoch'][name]['median_us'] / 1e6 / row['models']:.3f}{mark(row)}"
            for row in rows
        ]
        lines.append(f"| {bold(name)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *disturbed_note(rows)])


def report_table(results: Results) -> str:
    """Return the course report's test accuracies beside ours."""

    def percent(stat: dict[str, float | None]) -> str:
        assert stat["mean"] is not None
        spread = "" if stat["sd"] is None else f" +- {100 * stat['sd']:.2f}"
        return f"{100 * stat['mean']:.2f}{spread}"

    final = results["studies"]["final"]
    lines = ["| test accuracy, % | course report | reproduced |", "|---|---:|---:|"]
    for name, course in COURSE_TEST.items():
        ours = percent(final["networks"][name]["test_acc"])
        lines.append(f"| {name} | {100 * course:.2f} | {ours} |")
    ablation = results["studies"]["ablation"]
    fixed = percent(ablation["networks"]["shuffle, kaiming, averaged twice"]["test_acc"])
    right = percent(results["studies"]["network"]["networks"]["default"]["test_acc"])
    lines += [
        f"| batch 8, lr 0.01, correct loader and initial weights, {ablation['epochs']} epochs "
        f"| | {fixed} |",
        f"| the default preset | | {right} |",
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Mean and standard deviation over {final['seeds']} seeds (corrected: "
            f"{ablation['seeds']}; default: {results['studies']['network']['seeds']}).",
        ]
    )


def faults_claim(results: Results) -> str:
    """Return in a sentence what was done to break runs, none of which was lost."""
    f = results["figures"]
    return (
        f"Runs, sweeps, predictions and reports were killed at {f['operations_killed']:,} file "
        f"operations and {f['killed_processes']:,} random moments, and lost the disk at "
        f"{f['operations_failed']:,} operations: all went on to the same bits. Of "
        f"{f['damaged_inputs']:,} damaged files and {f['native_calls']:,} wild calls of operators "
        "none crashed."
    )


BLOCKS: dict[str, tuple[Callable[[Results], str], str]] = {
    "epochs": (epoch_table, "epoch_time"),
    "many": (many_table, "growth"),
    "report": (report_table, "report"),
    "ablation": (ablation_table, "report"),
    "op": (op_table, "op_time"),
    "layer": (layer_table, "layer_time"),
    "sklearn": (sklearn_table, "sklearn"),
    "tabular": (tabular_table, "tabular_time"),
    "train": (train_table, "train"),
    "accuracy": (accuracy_table, "accuracy"),
}
"""Tables with a block for each make, and the benchmark whose results they show."""


def make_tables() -> dict[str, str]:
    """Return the text of every table, by name; that of the GPU is empty until it was measured."""
    tables = {name: blocks(render, measured(stem)) for name, (render, stem) in BLOCKS.items()}
    return {
        **tables,
        "claim": claim(measured("epoch_time")),
        "epoch": epoch_summary(measured("epoch_time")),
        "sklearn-claim": sklearn_claim(measured("sklearn")),
        "fit": fit_output(measured("train")),
        "faults": _if_measured(faults_claim, "faults", ""),
        "gpu": _if_measured(gpu_table, "epoch_time"),
        "gpu-op": _if_measured(gpu_op_table, "op_time"),
    }


def _if_measured(render: Callable[[Results], str], stem: str, kind: str = ".cuda") -> str:
    path = machine.RESULTS / f"{stem}{kind}.json"
    return render(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ""


def filled(page: str, tables: Mapping[str, str]) -> str:
    """Return a page's text with each table written anew between its markers.

    Raises KeyError for a marker of a table that does not exist.
    """

    def fill(marker: re.Match[str]) -> str:
        table = tables[marker[2]]
        return f"{marker[1]}{table}\n{marker[3]}" if table else f"{marker[1]}{marker[3]}"

    pattern = r"(<!-- ([\w-]+) table -->\n).*?(<!-- end -->)"
    return re.sub(pattern, fill, page, flags=re.DOTALL)


def main() -> None:
    """Run the script from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    tables, stale = make_tables(), []
    found: set[str] = set()
    for page in pages():
        old = page.read_text(encoding="utf-8")
        found |= set(re.findall(r"<!-- ([\w-]+) table -->", old))
        new = filled(old, tables)
        if new != old and args.check:
            stale.append(page.name)
        elif new != old:
            write_text(page, new)
    if missing := set(tables) - found:
        raise SystemExit(f"no page has the markers of these tables: {', '.join(sorted(missing))}")
    if stale:
        raise SystemExit(f"{', '.join(stale)} out of date; run python benchmarks/tables.py")
    if args.check and (stale := out_of_date()):
        raise SystemExit(f"{', '.join(stale)} out of date; run python benchmarks/pictures.py")


if __name__ == "__main__":
    main()
