"""Time the whole report on real CIFAR-10, and keep its numbers without the curves.

python benchmarks/report_time.py --data-dir DIR [--out REPORT]      writes results/report.MAKE.json
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from machine import provenance, results_file, save
from timing import Watch

from fastmlp.cli.reproduce import main as reproduce


def measure(flags: list[str]) -> dict[str, Any]:
    """Make the report; return how many seconds it took. Raises SystemExit where it failed."""
    begin = time.perf_counter()
    if reproduce(flags) != 0:
        raise SystemExit("the report was not finished")
    return {"seconds": round(time.perf_counter() - begin, 1)}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs/reproduce", help="a new folder")
    args = parser.parse_args()
    if Path(args.out).exists():
        parser.error(f"{args.out} exists, so the time would not be that of a whole report")
    flags = ["--dataset", "cifar10", "--data-dir", args.data_dir, "--out", args.out]
    row = Watch().row(partial(measure, flags), again=lambda: False)
    results = json.loads((Path(args.out) / "results.json").read_text(encoding="utf-8"))
    for study in results["studies"].values():
        for network in study["networks"].values():
            del network["config"]["data_dir"]
            for run in network["runs"]:
                del run["history"]
    save(results_file("report"), {"provenance": provenance(), **row, **results})


if __name__ == "__main__":
    main()
