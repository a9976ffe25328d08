"""Tables of single operators, of layers in training steps, of scikit-learn's interface, and of
epochs on tables of numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from table_parts import (
    DISTURBED,
    Results,
    bold,
    disturbed_note,
    mark,
    ours_first,
    processor,
    undisturbed,
)


def layer_table(results: Results) -> str:
    """Return how many times faster than PyTorch training steps and the passes of layers are, on one
    and on two threads."""
    steps = ["layers", "MLP", "manual"]
    passes = ["forward", "first layer", "inner layer"]
    return "\n".join(
        [
            *_ratios(results, "training step", lambda case: case != "layer", steps),
            "",
            *_ratios(results, "linear and ReLU", lambda case: case == "layer", passes),
            "",
            f"Geometric mean {results['geometric_mean']:.2f}, least {results['least']:.2f}.",
            *disturbed_note(results["rows"]),
        ]
    )


def _ratios(
    results: Results, title: str, takes: Callable[[str], bool], columns: list[str]
) -> list[str]:
    lines = [f"| {title} | batch | " + " | ".join(f"{c}, {n}" for n in (1, 2) for c in columns)]
    lines = [lines[0] + " |", "|---|---:|" + "---:|" * 2 * len(columns)]
    cases: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for row in results["rows"]:
        if takes(row["case"]):
            kind = "" if row["case"] == "layer" else f", {row['case'].removeprefix('step, ')}"
            cells = cases.setdefault((row["shape"] + kind, str(row["batch"])), {})
            for name, ratio in row["ratios"].items():
                cells[row["threads"], name] = f"{ratio:.2f}{mark(row)}"
    for labels, cells in cases.items():
        found = [cells.get((n, column), "") for n in (1, 2) for column in columns]
        lines.append("| " + " | ".join([*labels, *found]) + " |")
    return lines


def op_table(results: Results) -> str:
    """Return how many times faster than PyTorch eager each operator is."""
    passes = ["forward", "backward", "both"]
    lines = ["| operator | shape | " + " | ".join(passes) + " |", "|---|---|" + "---:|" * 3]
    cases: dict[tuple[str, str], dict[str, str]] = {}
    for row in results["rows"]:
        shape = " x ".join(map(str, row["shape"]))
        cells = cases.setdefault((row["operator"], shape), {})
        cells[row["pass"]] = f"{row['ratio']:.2f}{mark(row)}"
    for (name, shape), cells in cases.items():
        lines.append(f"| {name} | {shape} | " + " | ".join(cells[p] for p in passes) + " |")
    return "\n".join([*lines, *disturbed_note(results["rows"])])


def sklearn_table(results: Results) -> str:
    """Return seconds of scikit-learn's ``fit`` and how many times faster fastmlp's is."""
    lines = [
        "| seconds of `fit` | epochs | scikit-learn | fastmlp | times | on one core, times |",
        "|---|" + "---:|" * 5,
    ]
    for row in results["rows"]:
        theirs, ours = row["seconds"]["scikit-learn"], row["seconds"]["fastmlp"]
        cells = [row["case"], str(row["epochs"])]
        if "disturbed" in row:  # such a ratio says nothing
            cells += ["", "", DISTURBED, ""]
        else:
            cells += [f"{theirs:.3f}", f"{ours:.3f}"]
            cells += [f"{row['ratio']:.1f}", f"{row['one_core_ratio']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    all_cores, one = (
        statistics.geometric_mean(row[key] for row in undisturbed(results))
        for key in ("ratio", "one_core_ratio")
    )
    lines.append(f"| geometric mean | | | | **{all_cores:.1f}** | **{one:.1f}** |")
    return "\n".join([*lines, *disturbed_note(results["rows"])])


def sklearn_claim(results: Mapping[str, Results]) -> str:
    """Return how many times faster ``fit`` is than scikit-learn's, on the first make measured."""
    each = next(iter(results.values()))
    ratios = [row["ratio"] for row in undisturbed(each)]
    mean = statistics.geometric_mean(ratios)
    return (
        f"`fastmlp.sklearn` beside scikit-learn, whole calls of `fit`: {min(ratios):.1f} to "
        f"{max(ratios):.1f} times as fast, {mean:.1f} in geometric mean over "
        f"{len(ratios)} cases ({processor(each)})."
    )


def tabular_table(results: Results) -> str:
    """Return milliseconds per epoch, a row for each case, a column for each contender, and how much
    more many networks at once get done than one alone."""
    rows = [row for row in results["rows"] if row["models"] == 1]
    names = dict.fromkeys(name for row in rows for name in row["epoch"])
    columns = sorted(names, key=lambda name: ours_first(name)[0])
    lines = [
        "| milliseconds per epoch | " + " | ".join(map(bold, columns)) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for row in rows:
        times = {name: timing["median_us"] / 1e3 for name, timing in row["epoch"].items()}
        ours = min(ms for name, ms in times.items() if name.startswith("fastmlp"))
        cells = []
        for name in columns:
            ratio = "" if times.get(name) == ours else f" ({times.get(name, 0) / ours:.1f}x)"
            cells.append(f"{times[name]:.1f}{ratio}{mark(row)}" if name in times else "")
        lines.append(f"| {row['case']} | " + " | ".join(cells) + " |")
    many = [
        f"{row['models']} networks at once ({row['case']}) get **{row['throughput']:.2f}{mark(row)}"
        "** times as much done as one alone."
        for row in results["rows"]
        if "throughput" in row
    ]
    return "\n".join([*lines, "", *many, *disturbed_note(results["rows"])])
