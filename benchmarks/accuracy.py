"""Measure the accuracy that presets reach on CIFAR-10, over several seeds.

python benchmarks/accuracy.py --data-dir DIR PRESET...    updates results/accuracy.MAKE.json

Needs the real CIFAR-10. The seeds of a preset train side by side (``fastmlp.fit_many``), with the
results of ``python -m fastmlp.train --preset PRESET --seed N``. Hyper-parameters were chosen on the
validation part; the test part is used once a run, with the parameters that were best in validation.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import provenance, results_file, save
from timing import Watch

from fastmlp.training.api import fit_many
from fastmlp.training.data import load_splits
from fastmlp.training.presets import PRESETS, resolve_config


def measure(preset: str, seeds: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Train a preset with so many seeds; return a row of results."""
    configs = [resolve_config({**flags, "seed": seed}, preset=preset) for seed in range(seeds)]

    def tell(done: int, epochs: int) -> None:
        print(f"\r{preset}: epoch {done} of {epochs}", end="", file=sys.stderr, flush=True)

    runs = fit_many(configs, load_splits(configs[0]), on_epoch=tell)
    print(file=sys.stderr)
    row: dict[str, Any] = {
        "preset": preset,
        "hidden": list(configs[0].hidden),
        "augment": configs[0].augment,
        "epochs": configs[0].epochs,
        "engine": runs[0].config.engine,
        "seconds_of_training": round(sum(r.seconds for run in runs for r in run.history), 1),
        "seeds": [],
        "provenance": provenance(),
    }
    for run in runs:
        assert run.test is not None, run.diverged
        row["seeds"].append(
            {
                "seed": run.config.seed,
                "train_accuracy": run.history[-1].train_acc,
                "val_accuracy": max(record.val_acc for record in run.history),
                "last_val_accuracy": run.history[-1].val_acc,
                "test_accuracy": round(run.test.accuracy, 6),
            }
        )
    tests = torch.tensor([each["test_accuracy"] for each in row["seeds"]], dtype=torch.float64)
    print(f"{preset}: test accuracy {tests.mean():.4f} +- {tests.std():.4f}", flush=True)
    return row


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="+", choices=PRESETS, metavar="PRESET")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results_file("accuracy"), metavar="FILE")
    args = parser.parse_args()
    watch = Watch()
    flags = {"dataset": "cifar10", "data_dir": args.data_dir, "device": "cpu"}
    for preset in args.presets:
        row = watch.row(partial(measure, preset, args.seeds, flags), again=lambda: False)
        old = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.exists() else []
        rows = [each for each in old if each["preset"] != preset] + [row]
        rows.sort(key=lambda each: list(PRESETS).index(each["preset"]))
        save(args.out, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
