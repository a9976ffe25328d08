"""Time the default training run and measure the accuracy that it reaches, over several seeds.

python benchmarks/train_time.py --data-dir DIR     writes results/train.MAKE.json

Needs the real CIFAR-10; every seed is one run of ``python -m fastmlp.train`` without its files.
Hyper-parameters were chosen on the validation part; the test part is used once a run.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import provenance, results_file, save
from timing import Watch

from fastmlp.data.splits import DataSplits
from fastmlp.training.api import fit
from fastmlp.training.data import load_splits
from fastmlp.training.presets import resolve_config


def measure(flags: dict[str, Any], seed: int, data: DataSplits) -> dict[str, Any]:
    """Train with a seed; return a row of results."""
    config = resolve_config({**flags, "seed": seed})
    begin = time.perf_counter()
    run = fit(config, data)
    seconds = time.perf_counter() - begin
    assert run.test is not None
    return {
        "seed": seed,
        "seconds": round(seconds, 2),
        "epochs": len(run.history),
        "val_accuracy": max(record.val_acc for record in run.history),
        "last_val_accuracy": run.history[-1].val_acc,
        "test_accuracy": round(run.test.accuracy, 6),
        "engine": run.config.engine,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results_file("train"), metavar="FILE")
    args = parser.parse_args()
    flags = {"dataset": "cifar10", "data_dir": args.data_dir, "device": "cpu"}
    data = load_splits(resolve_config(flags))
    rows, watch = [], Watch()
    for seed in range(args.seeds):
        rows.append(watch.row(partial(measure, flags, seed, data)))
        print(rows[-1], flush=True)
    tests = torch.tensor([row["test_accuracy"] for row in rows], dtype=torch.float64)
    print(f"test accuracy {tests.mean():.4f} +- {tests.std():.4f}")
    save(args.out, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
