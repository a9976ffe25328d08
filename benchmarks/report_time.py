"""The whole report on real CIFAR-10: how long it takes, and its numbers without the curves.

python benchmarks/report_time.py --data-dir DIR [--out REPORT]      writes results/report.cpu.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from timing import RESULTS, provenance, save

from fastmlp.cli.reproduce import main as reproduce


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs/reproduce", help="a folder that is not there yet")
    args = parser.parse_args()
    if Path(args.out).exists():
        parser.error(
            f"{args.out} is there already, so the time would not be that of a whole report"
        )
    begin = time.perf_counter()
    flags = ["--dataset", "cifar10", "--data-dir", args.data_dir, "--out", args.out]
    if reproduce(flags) != 0:
        raise SystemExit("the report was not finished")
    seconds = round(time.perf_counter() - begin, 1)
    results = json.loads((Path(args.out) / "results.json").read_text(encoding="utf-8"))
    for study in results["studies"].values():
        for network in study["networks"].values():
            del network["config"]["data_dir"]
            for run in network["runs"]:
                del run["history"]
    save(RESULTS / "report.cpu.json", {"provenance": provenance(), "seconds": seconds, **results})


if __name__ == "__main__":
    main()
