"""Time the layers where people put them: whole training steps, a student's loop, single layers.

python benchmarks/layer_time.py          about five minutes; writes results/layer_time.MAKE.json
python benchmarks/layer_time.py --quick  a third of it, writes nothing

Each row has contenders that take the same steps, which is checked first, in turn in one process, on
one and on two threads. A ratio is PyTorch's time divided by ours, the median over the turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from display import Display
from machine import provenance, results_file, save
from timing import Watch
from torch import Tensor, nn

import fastmlp
from fastmlp import functional, manual

MODELS = [
    ((64, 100, 10), 200),
    ((784, 128, 10), 128),
    ((3072, 256, 10), 8),
    ((100, 100, 2), 200),
    ((54, 128, 64, 7), 200),
    ((100, 100, 10), 32),
    ((3072, 256, 10), 128),
]
"""Layer sizes and batch sizes of the training steps."""
STUDENTS = [((3072, 256, 10), 8), ((3072, 256, 10), 128), ((64, 100, 10), 200)]
LAYERS = [(3072, 256), (784, 128), (256, 256)]
BATCHES = (1, 8, 32, 128, 512)
LEAST, MEAN = 0.97, 1.25
"""What no ratio is to be below, and the geometric mean to be above."""

Step = Callable[[], object]
Contenders = dict[str, Step]
"""PyTorch's first, then ours."""
Groups = dict[str, Contenders]
"""What is compared within a row, by name."""


def sequential(sizes: tuple[int, ...], ours: bool) -> nn.Sequential:
    """Return the same network in torch.nn's or our layers, from the same seed."""
    linear, relu = (fastmlp.Linear, fastmlp.ReLU) if ours else (nn.Linear, nn.ReLU)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [linear(fan_in, fan_out), relu()]
    return nn.Sequential(*layers[:-1])


def training_steps(sizes: tuple[int, ...], batch: int, optimizer: str) -> Groups:
    """Return a training step of torch.nn, of our layers in its place, and of the MLP."""
    x, y = torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))
    mlp = fastmlp.MLP.from_torch(sequential(sizes, ours=False))
    made: dict[str, tuple[nn.Module, nn.Module]] = {
        "torch.nn": (sequential(sizes, ours=False), nn.CrossEntropyLoss()),
        "layers": (sequential(sizes, ours=True), fastmlp.CrossEntropyLoss()),
        "MLP": (mlp, fastmlp.CrossEntropyLoss()),
    }
    return {"step": {name: _step(*pair, x, y, optimizer) for name, pair in made.items()}}


def _step(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, optimizer: str) -> Step:
    if optimizer == "sgd":
        steps: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    else:
        steps = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        steps.zero_grad()
        value: Tensor = loss(model(x), y)
        value.backward()  # type: ignore[no-untyped-call]
        steps.step()
        return value.detach()

    return step


def student_steps(sizes: tuple[int, ...], batch: int) -> Groups:
    """Return a step of a student's own torch code, and of the layers of fastmlp.manual."""
    inputs, hidden, classes = sizes
    x, y = torch.randn(batch, inputs), torch.randint(classes, (batch,))

    def parameters() -> list[Tensor]:
        random = torch.Generator().manual_seed(0)
        w1, w2 = (torch.randn(shape, generator=random) / 30 for shape in (sizes[:2], sizes[1:]))
        return [w1, torch.zeros(hidden), w2, torch.zeros(classes)]

    def update(values: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
        for value, gradient in zip(values, gradients, strict=True):
            value -= 1e-3 * gradient

    theirs, ours = parameters(), parameters()

    def student() -> Tensor:
        w1, b1, w2, b2 = theirs
        z = x @ w1 + b1
        h = torch.clamp(z, min=0)
        out = h @ w2 + b2
        p = torch.softmax(out, 1)
        loss = -torch.log(p[torch.arange(batch), y]).mean()
        g = p.clone()
        g[torch.arange(batch), y] -= 1
        g /= batch
        gh = (g @ w2.t()) * (z > 0)
        update(theirs, (x.t() @ gh, gh.sum(0), h.t() @ g, g.sum(0)))
        return loss

    first, relu, second = (
        manual.FullyConnectedLayer(grad_average=False),
        manual.ReLU(),
        manual.FullyConnectedLayer(grad_average=False),
    )
    loss_layer = manual.SoftmaxCrossEntropy()

    def by_hand() -> Tensor:
        w1, b1, w2, b2 = ours
        out = second.forward(relu.forward(first.forward(x, w1, b1)), w2, b2)
        _, loss = loss_layer.forward(y, out)
        dw2, db2 = second.backward(loss_layer.backward())
        dw1, db1 = first.backward(relu.backward(second.dx))
        update(ours, (dw1, db1, dw2, db2))
        return torch.as_tensor(loss)

    return {"step": {"student": student, "manual": by_hand}}


def layer_passes(inputs: int, outputs: int, batch: int) -> Groups:
    """Return the passes of one layer with ReLU: forward, and both with the gradient of the
    parameters, as a first layer has it, or of x, too."""
    x, w = torch.randn(batch, inputs), torch.randn(outputs, inputs) / math.sqrt(inputs)
    b, dy = torch.randn(outputs), torch.randn(batch, outputs)
    wg, bg, xg = (t.clone().requires_grad_() for t in (w, b, x))

    def theirs(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.relu(F.linear(x, w, b))

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional.linear(x, w, b, "relu")

    def gradients(layer: Callable[..., Tensor], leaves: tuple[Tensor, ...], x: Tensor) -> Step:
        return lambda: torch.autograd.grad(layer(x, wg, bg), leaves, dy)

    return {
        "forward": {"torch.nn": lambda: theirs(x, w, b), "fastmlp": lambda: ours(x, w, b)},
        "first layer": {
            "torch.nn": gradients(theirs, (wg, bg), x),
            "fastmlp": gradients(ours, (wg, bg), x),
        },
        "inner layer": {
            "torch.nn": gradients(theirs, (wg, bg, xg), xg),
            "fastmlp": gradients(ours, (wg, bg, xg), xg),
        },
    }


def cases() -> list[tuple[dict[str, Any], Callable[[], Groups]]]:
    """Return all rows: what they are, and a function that makes their contenders."""
    found: list[tuple[dict[str, Any], Callable[[], Groups]]] = []

    def add(case: str, sizes: tuple[int, ...], batch: int, make: Callable[[], Groups]) -> None:
        shape = "-".join(map(str, sizes))
        found.append(({"case": case, "shape": shape, "batch": batch}, make))

    for sizes, batch in MODELS:
        add("step, SGD", sizes, batch, partial(training_steps, sizes, batch, "sgd"))
    add("step, Adam", *MODELS[-1], partial(training_steps, *MODELS[-1], "adam"))
    for sizes, batch in STUDENTS:
        add("student's loop", sizes, batch, partial(student_steps, sizes, batch))
    for sizes in LAYERS:
        for batch in BATCHES:
            add("layer", sizes, batch, partial(layer_passes, *sizes, batch))
    return found


def check_same(contenders: Contenders) -> None:
    """Raise AssertionError unless all give the same, over three calls, to float32's accuracy."""
    for _ in range(3):
        first, *others = (_tensors(step()) for step in contenders.values())
        for other in others:
            for a, b in zip(first, other, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def measure(what: dict[str, Any], groups: Groups, seconds: float) -> dict[str, Any]:
    """Return the row of a case: the median time of PyTorch in each group, and the ratio to it of
    everything else."""
    microseconds, ratios = {}, {}
    for group, contenders in groups.items():
        reference, *ours = contenders
        turns = _turns(contenders, seconds)
        microseconds[group] = round(statistics.median(turns[reference]), 2)
        for name in ours:
            pairs = zip(turns[reference], turns[name], strict=True)
            key = group if len(groups) > 1 else name
            ratios[key] = round(statistics.median(a / b for a, b in pairs), 3)
    return {**what, "threads": torch.get_num_threads(), "us": microseconds, "ratios": ratios}


def _turns(contenders: Contenders, seconds: float) -> dict[str, list[float]]:
    """Return the microseconds of a call of each, turn by turn."""
    calls = {}
    for name, step in contenders.items():
        step()
        begin = time.perf_counter()
        step()
        calls[name] = max(1, round(3e-4 / max(time.perf_counter() - begin, 1e-7)))
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns[next(iter(turns))]) < 7:
        for name, step in contenders.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                step()
            turns[name].append((time.perf_counter() - begin) / calls[name] * 1e6)
    return turns


def run(seconds: float, threads: list[int]) -> list[dict[str, Any]]:
    """Time every case on each number of threads, each group of contenders for ``seconds``."""
    rows: list[dict[str, Any]] = []
    every = cases()
    expected = [seconds * (3 if what["case"] == "layer" else 1) + 1.0 for what, _ in every]
    with Display(sum(expected) * len(threads)) as display:
        for count in threads:
            torch.set_num_threads(count)
            watch = Watch()
            for (what, make), takes in zip(every, expected, strict=True):
                torch.manual_seed(0)
                groups = make()
                for contenders in groups.values():
                    check_same(contenders)
                row = watch.row(partial(measure, what, groups, seconds), tell=display.line)
                rows.append(row)
                display.line(_line(row))
                display.advance(takes)
    return rows


def _line(row: dict[str, Any]) -> str:
    microseconds = " ".join(f"{value:.0f}" for value in row["us"].values())
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
    return (
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ' '} {row['case']:16}"
        f"{row['shape']:13}batch {row['batch']:<5}{microseconds} us   {ratios}"
    )


def in_short(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the geometric mean and the least of the ratios of rows that nothing disturbed."""
    ratios = [r for row in rows if "disturbed" not in row for r in row["ratios"].values()]
    mean = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else math.nan
    return {"geometric_mean": round(mean, 3), "least": min(ratios, default=math.nan)}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a short time for each, no file")
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = run(0.15 if options.quick else 0.5, [1, 2])
    short = in_short(rows)
    mean, least = short["geometric_mean"], short["least"]
    print(f"\ngeometric mean {mean:.2f} (wanted {MEAN}), least {least:.2f} (wanted {LEAST})")
    if not options.quick or options.out:
        results = {"provenance": provenance(), **short, "rows": rows}
        save(options.out or results_file("layer_time"), results)


if __name__ == "__main__":
    main()
