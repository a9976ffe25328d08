"""How long a training epoch takes: 30,000 images through 3072-256-10 with plain SGD.

python benchmarks/epoch_time.py            times all contenders, writes results/epoch_time.cpu.json

fastmlp's engines start from the uint8 images, as its users do; the peers get them as float32,
normalised beforehand. All are first checked to reach the same parameters after 64 steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from peers import OPTIONAL, HandWritten, ModuleAndOptimizer, Parameters, Peer
from timing import RESULTS, provenance, save, summarize
from torch import Tensor

from fastmlp.data import Normalization, Part, make_normalization
from fastmlp.engine_base import SgdOptions
from fastmlp.engines import ENGINES
from fastmlp.fitting import initial_parameters

IMAGES, INPUTS, CLASSES = 30_000, 3072, 10
LR = 0.01
COURSE, MODULE = "hand-written loop in torch", "nn.Module + torch.optim.SGD"


class EnginePeer:
    """One of fastmlp's engines, as a peer."""

    def __init__(
        self, name: str, parameters: Parameters, part: Part, norm: Normalization, batch: int
    ) -> None:
        options = SgdOptions(batch_size=batch)
        self.engine = ENGINES[name](parameters, part, norm, options, torch.device("cpu"))

    def epoch(self, order: Tensor, batch: int) -> float:
        return self.engine.train_epoch(order, LR).loss

    def parameters(self) -> Parameters:
        return self.engine.parameters_state()


def random_part() -> Part:
    """Random images: the time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, INPUTS), dtype=torch.uint8, generator=generator)
    return Part(images, torch.randint(0, CLASSES, (IMAGES,), generator=generator))


def contenders(part: Part, hidden: int, batch: int) -> dict[str, Peer]:
    """All that can run here, from the same parameters."""
    norm = make_normalization("unit", part.images)
    parameters = initial_parameters([INPUTS, hidden, CLASSES], "kaiming", seed=0)
    images = norm.apply(part.images)
    names = [n for n, engine in ENGINES.items() if not engine.why_not(torch.device("cpu"))]
    engines = {
        f"fastmlp {name}": EnginePeer(name, parameters, part, norm, batch)
        for name in names
        if name != "reference"
    }
    optional: dict[str, Peer] = {
        name: peer(parameters, images, part.labels, LR)
        for name, (package, peer) in OPTIONAL.items()
        if importlib.util.find_spec(package)
    }
    return {
        **engines,
        MODULE: ModuleAndOptimizer(parameters, images, part.labels, LR),
        COURSE: HandWritten(parameters, images, part.labels, LR),
        **optional,
    }


def check_same(part: Part, hidden: int, batch: int) -> None:
    """Raises AssertionError unless all contenders agree after 64 steps."""
    order = torch.randperm(IMAGES)[: 64 * batch]
    results = {}
    for name, peer in contenders(part, hidden, batch).items():
        peer.epoch(order, batch)
        results[name] = peer.parameters()
    reference = results[MODULE]
    for parameters in results.values():
        for key, want in reference.items():
            torch.testing.assert_close(parameters[key], want, rtol=1e-3, atol=1e-5)


def run(part: Part, hidden: int, batch: int, rounds: int) -> dict[str, Any]:
    """Times whole epochs, the contenders in turn; returns a row of results."""
    check_same(part, hidden, batch)
    peers = contenders(part, hidden, batch)
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds + 1):  # the first one warms up
        order = torch.randperm(IMAGES)
        for name, peer in peers.items():
            begin = time.perf_counter()
            peer.epoch(order, batch)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    times = {name: summarize([s * 1e6 for s in values]) for name, values in seconds.items()}
    print(f"\nbatch {batch}, hidden {hidden}: s per epoch (us per step)")
    fastest = min(t.median_us for name, t in times.items() if name.startswith("fastmlp"))
    steps = -(-IMAGES // batch)
    for name, t in times.items():
        print(
            f"  {name:30}{t.median_us / 1e6:8.3f}  ({t.median_us / steps:8.1f})"
            f"{t.median_us / fastest:8.2f}x"
        )
    return {"batch": batch, "hidden": hidden, "steps": steps, "epoch": times}


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8, 32, 128])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each that are timed")
    parser.add_argument("--out", type=Path, default=RESULTS / "epoch_time.cpu.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    part = random_part()
    rows = [run(part, args.hidden, batch, args.rounds) for batch in args.batch]
    save(args.out, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
