"""Writes the README's tables from benchmarks/results/*.json; no number is typed by hand.

python benchmarks/tables.py            rewrites the parts between the markers in README.md
python benchmarks/tables.py --check    fails where they are not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timing import RESULTS

from fastmlp.report.experiments import COURSE_TEST
from fastmlp.utils.files import write_text

README = Path(__file__).resolve().parent.parent / "README.md"


def epoch_table(results: dict[str, Any]) -> str:
    """Seconds an epoch takes, a row for each contender, a column for each batch size."""
    rows = results["rows"]
    names = list(rows[0]["epoch"])
    lines = [
        "| seconds per epoch | " + " | ".join(f"batch {row['batch']}" for row in rows) + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for name in names:
        cells = []
        for row in rows:
            ours = min(t["median_us"] for n, t in row["epoch"].items() if n.startswith("fastmlp"))
            mine = row["epoch"][name]["median_us"]
            ratio = "" if mine == ours else f" ({mine / ours:.1f}x)"
            cells.append(f"{mine / 1e6:.2f}{ratio}")
        lines.append(f"| {_bold(name)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _caption(results)])


def gpu_table(results: dict[str, Any]) -> str:
    """Microseconds that a step of a model takes on a GPU, a row for each contender."""
    rows = results["rows"]
    names = sorted({name for row in rows for name in row["step"]}, key=_ours_first)
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
            f"{row['step'][name]['median_us']:.1f}" if name in row["step"] else "" for row in rows
        ]
        lines.append(f"| {_bold(name)} | " + " | ".join(cells) + " |")
    course = results["course_run"]
    if course is not None:
        lines += [
            "",
            f"The course's run, {course['epochs']} epochs with a validation after each, takes "
            f"{course['seconds']:.1f} s with the engine `{course['engine']}`.",
        ]
    p = results["provenance"]
    return "\n".join(
        [
            *lines,
            "",
            f"{p['device']}, driver {p['driver']}, CUDA {p['cuda']}, torch {p['torch']}, "
            f"{p['time'][:10]}, commit {p['commit'][:9]}.",
        ]
    )


def op_table(results: dict[str, Any]) -> str:
    """How many times faster than PyTorch eager each operator is."""
    passes = ["forward", "backward", "both"]
    lines = ["| operator | shape | " + " | ".join(passes) + " |", "|---|---|" + "---:|" * 3]
    cases: dict[tuple[str, str], dict[str, float]] = {}
    for row in results["rows"]:
        shape = " x ".join(map(str, row["shape"]))
        cases.setdefault((row["operator"], shape), {})[row["pass"]] = row["ratio"]
    for (name, shape), ratios in cases.items():
        lines.append(
            f"| {name} | {shape} | " + " | ".join(f"{ratios[p]:.2f}" for p in passes) + " |"
        )
    return "\n".join([*lines, "", _caption(results)])


def train_table(results: dict[str, Any]) -> str:
    """The default run's accuracy and time."""
    rows = results["rows"]
    tests = [100 * row["test_accuracy"] for row in rows]
    seconds = statistics.median(row["seconds"] for row in rows)
    return (
        f"The default run reaches **{statistics.mean(tests):.1f} +- {statistics.stdev(tests):.1f}**"
        f" % test accuracy (mean and standard deviation over {len(rows)} seeds) in {seconds:.0f} s "
        f"for {rows[0]['epochs']} epochs.\n\n{_caption(results)}"
    )


def accuracy_table(results: dict[str, Any]) -> str:
    """What the presets reach."""
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
    note = f"Mean and standard deviation over {seeds} seeds. {_caption(results, commits)}"
    return "\n".join([*lines, "", note])


def many_table(results: dict[str, Any]) -> str:
    """What a model costs when many are trained together."""
    rows = [row for row in results["rows"] if row["axis"] == "models"]
    names = list(rows[-1]["epoch"])
    lines = [
        "| seconds per epoch and model | "
        + " | ".join(f"{row['models']} together" for row in rows)
        + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for name in names:
        seconds = [row["epoch"][name]["median_us"] / 1e6 / row["models"] for row in rows]
        lines.append(f"| {_bold(name)} | " + " | ".join(f"{s:.3f}" for s in seconds) + " |")
    return "\n".join([*lines, "", _caption(results)])


def report_table(results: dict[str, Any]) -> str:
    """The course report's test accuracies beside ours."""

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
            f"{ablation['seeds']}; default: {results['studies']['network']['seeds']}). "
            f"{_caption(results)}",
        ]
    )


def _ours_first(name: str) -> tuple[bool, str]:
    return not name.startswith("fastmlp"), name


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith("fastmlp") else name


def _caption(results: dict[str, Any], commits: Iterable[str] = ()) -> str:
    """Where, when and on what the results were made; rows may have ``commits`` of their own."""
    p = results["provenance"]
    names = [commit[:9] for commit in commits] or [p["commit"][:9]]
    return (
        f"{p['device']}, {p['threads']} threads, {p['cpu_kernels']} kernels, torch {p['torch']}, "
        f"{p['time'][:10]}, commit{'s' * (len(names) > 1)} {', '.join(names)}."
    )


TABLES = {
    "epoch": (epoch_table, "epoch_time.cpu.json"),
    "many": (many_table, "growth.cpu.json"),
    "gpu": (gpu_table, "epoch_time.cuda.json"),
    "report": (report_table, "report.cpu.json"),
    "op": (op_table, "op_time.cpu.json"),
    "train": (train_table, "train.cpu.json"),
    "accuracy": (accuracy_table, "accuracy.cpu.json"),
}


OPTIONAL = ("gpu",)
"""Tables of results that not everyone can make; where there are none, nothing stands there."""


def filled(readme: str) -> str:
    """The README's text with each table made anew between its markers."""
    for name, (render, file) in TABLES.items():
        pattern = rf"(<!-- {name} table -->\n).*?(<!-- end -->)"
        if name in OPTIONAL and not (RESULTS / file).exists():
            replacement = "\\1\\2"
        else:
            table = render(json.loads((RESULTS / file).read_text(encoding="utf-8")))
            replacement = f"\\1{table}\n\\2"  # tables hold no backslash of their own
        readme, count = re.subn(pattern, replacement, readme, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md must hold the markers of the {name} table once")
    return readme


def main() -> None:
    """Runs the script from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if args.check and new != old:
        raise SystemExit("README.md is not what the results say; run python benchmarks/tables.py")
    write_text(README, new)


if __name__ == "__main__":
    main()
