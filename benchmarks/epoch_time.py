"""How long a training epoch takes: 30,000 images through 3072-256-10 with plain SGD.

python benchmarks/epoch_time.py            times all contenders, writes results/epoch_time.cpu.json
python benchmarks/epoch_time.py --grow     how the time grows, writes results/growth.cpu.json
python benchmarks/epoch_time.py --device cuda      on a GPU, writes results/epoch_time.cuda.json

fastmlp's engines start from the uint8 images, as its users do; the peers get them as float32,
normalised beforehand. All are first checked to reach the same parameters after 64 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

import epoch_time_cuda
import torch
from contenders import (
    OURS,
    Contender,
    Task,
    available,
    check_all,
    time_epochs,
)
from timing import RESULTS, provenance, save

MODULE = "nn.Module + torch.optim.SGD"
GROWTH = {
    "batch": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
    "hidden": [16, 32, 64, 128, 256, 512],
    "models": [1, 2, 4, 8, 16, 32],
}
GROWTH_BASE = {
    "batch": {"hidden": 256},
    "hidden": {"batch": 8},
    "models": {"hidden": 64, "batch": 16},
}
GROWING = [f"{OURS}blocked", MODULE]


def sgemm_rate() -> float:
    """GFLOP/s of PyTorch's own product of two large float32 matrices, the best of ten."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    seconds = []
    for _ in range(11):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return float(2 * n**3 / min(seconds[1:]) / 1e9)


def run(contenders: list[Contender], task: Task, rounds: int, sgemm: float) -> dict[str, Any]:
    """Times whole epochs; returns a row of results."""
    check_all(contenders, task)
    times = time_epochs(contenders, task, rounds)
    steps = -(-task.images // task.batch) * task.models
    print(f"\nbatch {task.batch}, hidden {task.hidden}, models {task.models}:")
    print(f"  {'':30}{'s/epoch':>8}   us/step")
    fastest = min(t.median_us for name, t in times.items() if name.startswith(OURS))
    rates = {name: task.flop / t.median_us / 1e3 for name, t in times.items()}
    for name, t in times.items():
        print(
            f"  {name:30}{t.median_us / 1e6:8.3f}  ({t.median_us / steps:8.1f})"
            f"{t.median_us / fastest:8.2f}x{rates[name]:8.1f} GFLOP/s, "
            f"{rates[name] / sgemm:.0%} of sgemm",
            flush=True,
        )
    return {
        "batch": task.batch,
        "hidden": task.hidden,
        "models": task.models,
        "steps": steps,
        "epoch": times,
        "gflop_per_s": {name: round(rate, 1) for name, rate in rates.items()},
    }


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8, 32, 128])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each that are timed")
    parser.add_argument("--grow", action="store_true", help="time by batch, hidden size, models")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, default=6.0, help="with --device cuda: at most")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cuda":
        out = args.out or RESULTS / "epoch_time.cuda.json"
        epoch_time_cuda.run("cuda:0", max(args.rounds, 5), out, args.minutes)
        return
    sgemm = sgemm_rate()
    print(f"sgemm: {sgemm:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    if args.grow:
        names = [name for name in GROWING if name in available()]
        tasks = {
            axis: [Task(**{**GROWTH_BASE[axis], axis: value}) for value in values]
            for axis, values in GROWTH.items()
        }
        out = args.out or RESULTS / "growth.cpu.json"
    else:
        names = available()
        tasks = {"batch": [Task(batch, args.hidden) for batch in args.batch]}
        out = args.out or RESULTS / "epoch_time.cpu.json"
    rows = []
    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(Contender(name)) for name in names]
        for axis, each in tasks.items():
            for task in each:
                rows.append({"axis": axis, **run(contenders, task, args.rounds, sgemm)})
    save(out, {"provenance": {**provenance(), "sgemm_gflop_per_s": round(sgemm, 1)}, "rows": rows})


if __name__ == "__main__":
    main()
