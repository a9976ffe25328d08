"""The default training run: how long it takes and what it reaches, over several seeds.

python benchmarks/train_time.py --data-dir DIR     writes results/train.cpu.json

Wants the real CIFAR-10; every seed is one run of ``python -m fastmlp.train`` without its files.
Hyper-parameters were chosen on the validation part; the test part is used once a run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from timing import RESULTS, provenance, save

from fastmlp.training.api import fit
from fastmlp.training.data import load_splits
from fastmlp.training.presets import resolve_config


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "train.cpu.json")
    args = parser.parse_args()
    flags = {"dataset": "cifar10", "data_dir": args.data_dir, "device": "cpu"}
    data = load_splits(resolve_config(flags))
    rows = []
    for seed in range(args.seeds):
        config = resolve_config({**flags, "seed": seed})
        begin = time.perf_counter()
        run = fit(config, data)
        seconds = time.perf_counter() - begin
        assert run.test is not None
        best = max(record.val_acc for record in run.history)
        rows.append(
            {
                "seed": seed,
                "seconds": round(seconds, 2),
                "epochs": len(run.history),
                "val_accuracy": best,
                "last_val_accuracy": run.history[-1].val_acc,
                "test_accuracy": round(run.test.accuracy, 6),
                "engine": run.config.engine,
            }
        )
        print(rows[-1])
    tests = torch.tensor([row["test_accuracy"] for row in rows], dtype=torch.float64)
    print(f"test accuracy {tests.mean():.4f} +- {tests.std():.4f}")
    save(args.out, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
