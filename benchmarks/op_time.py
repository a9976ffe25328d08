"""Time every operator, forward and backward, against PyTorch eager on the same data.

python benchmarks/op_time.py                 about a minute; writes results/op_time.MAKE.json
python benchmarks/op_time.py --device cuda   on a GPU, the default where fastmlp has kernels for
                                             one; see op_time_cuda.py; writes op_time.cuda.json

Each pair is first checked to compute the same. "forward" is the function as a user calls it without
gradients, "backward" the operator (PyTorch: those that its autograd would call), "both" a forward
and a backward pass through autograd.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import op_time_cuda
import torch
import torch.nn.functional as F
from display import Display
from machine import RESULTS, provenance, results_file, save
from timing import Watch, take_turns
from torch import Tensor

from fastmlp import functional, native_available, set_backend
from fastmlp.ops import linear as ops
from fastmlp.ops.activations import activation_backward
from fastmlp.ops.cross_entropy import _cross_entropy_backward_op

LINEAR_SHAPES = [
    *[(batch, 3072, 256) for batch in (1, 8, 32, 128)],
    (128, 784, 512),
    (128, 256, 10),
    (1024, 1024, 1024),
]
RELU_SHAPES = [(1024, 1024), (8192, 1000)]
CROSS_ENTROPY_SHAPES = [(1024, 10), (128, 1000), (8192, 1000)]
TINY_SHAPES = [("linear+relu", (8, 256, 10)), ("relu", (8, 256)), ("cross entropy", (8, 10))]
"""Calls so short that what is timed is Python and PyTorch's dispatch; kept out of the mean."""

SMALL = 1 << 27
"""Multiply-adds or elements below which a case counts into the mean over the small shapes."""

Pair = tuple[Callable[[], Any], Callable[[], Any]]
"""Ours and PyTorch's, computing the same from the same tensors."""


def linear_pairs(batch: int, inputs: int, outputs: int) -> dict[str, Pair]:
    """Return the passes of relu(x w^T + b), with the gradients of x, w and b."""
    x, w = torch.randn(batch, inputs), torch.randn(outputs, inputs) / math.sqrt(inputs)
    b, dy = torch.randn(outputs), torch.randn(batch, outputs)
    y = F.relu(F.linear(x, w, b))
    xg, wg, bg = leaves = tuple(t.clone().requires_grad_() for t in (x, w, b))

    def eager_backward() -> tuple[Tensor, ...]:
        g = torch.ops.aten.threshold_backward(dy, y, 0)
        return g @ w, g.t() @ x, g.sum(0)

    def eager() -> Tensor:
        return F.relu(F.linear(xg, wg, bg))

    return {
        "forward": (
            lambda: functional.linear(x, w, b, "relu"),
            lambda: F.relu(F.linear(x, w, b)),
        ),
        "backward": (lambda: ops.linear_backward(dy, x, w, y), eager_backward),
        "both": (
            lambda: torch.autograd.grad(functional.linear(xg, wg, bg, "relu"), leaves, dy),
            lambda: torch.autograd.grad(eager(), leaves, dy),
        ),
    }


def relu_pairs(rows: int, columns: int) -> dict[str, Pair]:
    """Return the passes of relu alone."""
    x, dy = torch.randn(rows, columns), torch.randn(rows, columns)
    y, leaf = F.relu(x), x.clone().requires_grad_()
    return {
        "forward": (lambda: functional.relu(x), lambda: F.relu(x)),
        "backward": (
            lambda: activation_backward(dy, y, "relu"),
            lambda: torch.ops.aten.threshold_backward(dy, y, 0),
        ),
        "both": (
            lambda: torch.autograd.grad(functional.relu(leaf), leaf, dy),
            lambda: torch.autograd.grad(F.relu(leaf), leaf, dy),
        ),
    }


def cross_entropy_pairs(rows: int, classes: int) -> dict[str, Pair]:
    """Return the passes of mean cross entropy."""
    logits, target = torch.randn(rows, classes), torch.randint(0, classes, (rows,))
    leaf = logits.clone().requires_grad_()
    aten, one = torch.ops.aten, torch.ones(())
    _, stats, total = torch.ops.fastmlp.cross_entropy(logits, target)
    log_p = F.log_softmax(logits, 1)
    _, count = aten.nll_loss_forward(log_p, target, None, 1, -100)

    def eager_backward() -> Tensor:
        g = aten.nll_loss_backward(one, log_p, target, None, 1, -100, count)
        result: Tensor = aten._log_softmax_backward_data(g, log_p, 1, torch.float32)
        return result

    def ours_backward() -> Tensor:
        result: Tensor = _cross_entropy_backward_op(one, logits, target, stats, total)
        return result

    return {
        "forward": (
            lambda: functional.cross_entropy(logits, target),
            lambda: F.cross_entropy(logits, target),
        ),
        "backward": (ours_backward, eager_backward),
        "both": (
            lambda: torch.autograd.grad(functional.cross_entropy(leaf, target), leaf),
            lambda: torch.autograd.grad(F.cross_entropy(leaf, target), leaf),
        ),
    }


def check_same(pair: Pair) -> None:
    """Raise AssertionError unless both of a pair give the same to float32's accuracy."""
    with torch.no_grad() if not torch.is_grad_enabled() else torch.enable_grad():
        ours, theirs = pair[0](), pair[1]()
    for a, b in zip(_tensors(ours), _tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def run(seconds: float) -> list[dict[str, Any]]:
    """Time every case; return a row for each operator, shape and pass."""
    make: dict[str, Callable[..., dict[str, Pair]]] = {
        "linear+relu": linear_pairs,
        "relu": relu_pairs,
        "cross entropy": cross_entropy_pairs,
    }
    cases = [
        *(("linear+relu", shape) for shape in LINEAR_SHAPES),
        *(("relu", shape) for shape in RELU_SHAPES),
        *(("cross entropy", shape) for shape in CROSS_ENTROPY_SHAPES),
        *TINY_SHAPES,
    ]
    rows: list[dict[str, Any]] = []
    watch = Watch()
    expected = 2 * seconds + 0.5  # and the watch
    with Display(3 * len(cases) * expected) as display:
        display.line(
            f"{'operator':15}{'shape':18}{'pass':10}"
            f"{'fastmlp us':>12}{'PyTorch us':>12}{'ratio':>8}"
        )
        for name, shape in cases:
            for kind, pair in make[name](*shape).items():
                display.doing(f"{name} {'x'.join(map(str, shape))} {kind}")
                check_same(pair)
                measure = partial(_measure, name, shape, kind, pair, seconds)
                rows.append(watch.row(measure, tell=display.line))
                display.line(_line(rows[-1]))
                display.advance(expected)
    return rows


def _measure(
    name: str, shape: tuple[int, ...], kind: str, pair: Pair, seconds: float
) -> dict[str, Any]:
    with torch.set_grad_enabled(kind == "both"):
        times = take_turns({"fastmlp": pair[0], "torch": pair[1]}, seconds=seconds)
    ratio = times["torch"].median_us / times["fastmlp"].median_us
    size = (
        "tiny" if (name, shape) in TINY_SHAPES else "small" if math.prod(shape) < SMALL else "large"
    )
    row = {"operator": name, "shape": list(shape), "pass": kind, "size": size}
    return {**row, "ratio": round(ratio, 3), **times}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['operator']:15}{'x'.join(map(str, row['shape'])):18}{row['pass']:10}"
        f"{row['fastmlp'].median_us:12.1f}{row['torch'].median_us:12.1f}{row['ratio']:8.2f}"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=0.5, help="time for each contender")
    add("--device", choices=["cpu", "cuda"], help="default: cuda where fastmlp has kernels for it")
    add("--samples", type=int, default=9, help="with --device cuda")
    add("--minutes", type=float, default=60.0, help="with --device cuda: at most")
    add("--out", type=Path, metavar="FILE", help="default: results/op_time.MAKE.json")
    args = parser.parse_args()
    set_backend("native")  # our kernels, also where the layers would take PyTorch's operators
    gpu = torch.cuda.is_available() and native_available("cuda")
    if (args.device or ("cuda" if gpu else "cpu")) == "cuda":
        out = args.out or RESULTS / "op_time.cuda.json"
        op_time_cuda.run(args.samples, args.minutes, out)
        return
    torch.manual_seed(0)
    rows = run(args.seconds)
    small = [row["ratio"] for row in rows if row["size"] == "small"]
    mean = math.exp(sum(math.log(ratio) for ratio in small) / len(small))
    least = min(row["ratio"] for row in rows if row["size"] != "tiny")
    print(
        f"\ngeometric mean over the small shapes {mean:.2f}; lowest ratio {least:.2f}, tiny aside"
    )
    head = {"provenance": provenance(), "geometric_mean_small": round(mean, 3), "least": least}
    save(args.out or results_file("op_time"), {**head, "rows": rows})


if __name__ == "__main__":
    main()
