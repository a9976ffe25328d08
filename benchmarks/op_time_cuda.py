"""Time the operators on a GPU against PyTorch; run by ``op_time.py --device cuda``.

Two times for each call. "gpu" is what the GPU spends on it: events around calls that wait, all
launched, behind a kernel that only sleeps, so that no gap between launches counts. "host" is what a
user sees: a clock around calls and a final synchronisation. Calls go round a ring of inputs larger
than the level-2 cache. Contenders are first checked to compute the same. The three ways to multiply
float32 compete among themselves too, so as to tell whether csrc/plan.h chooses the quickest.
"""

from __future__ import annotations

import importlib
import itertools
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from display import Display
from machine import provenance, save
from timing import Timing, summarize
from torch import Tensor

from fastmlp import functional
from fastmlp.ops import linear as ops
from fastmlp.ops import matmul_precision as float32
from fastmlp.ops.activations import ACTIVATIONS, activation_backward

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYERS = [(3072, 256), (256, 10), (784, 512), (1024, 1024), (4096, 256)]
LINEAR_SHAPES = [
    (batch, inputs, outputs)
    for batch in (8, 128, 32, 1, 256)  # the most telling first, should time run out
    for inputs, outputs in LAYERS
]
LINEAR_SHAPES += [(8192, 4096, 4096)]
RELU_SHAPES = [(1 << 20,), (1 << 25,), (1 << 27,)]
CROSS_ENTROPY_SHAPES = [
    (8, 10),
    (128, 10),
    (1024, 10),
    (128, 1000),
    (8192, 32_000),
    (4096, 128_256),
]
WAYS = {
    "fastmlp by FMA": float32.FMA,
    "fastmlp by three TF32 products": float32.THREE_TF32,
    "fastmlp in TF32": float32.TF32,
}
MOST_ROWS = 256
"""Above it fastmlp leaves a product to the library, whichever way was asked for."""
DEVICE = "cuda"
CALLS = 40
"""Calls of one sample; fewer kernels than a launch queue holds."""

Function = Callable[..., Any]


@dataclass
class Case:
    """One operator at one shape: the ring of its inputs, and who computes it from them."""

    operator: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    inputs: list[tuple[Tensor, ...]]
    contenders: dict[str, Function]
    least_bytes: int
    operations: int


def compiled(f: Function) -> dict[str, Function]:
    """Return PyTorch's own three ways to run a function, by name."""
    return {
        "eager": f,
        "compile": torch.compile(f, fullgraph=True),
        "reduce-overhead": torch.compile(f, fullgraph=True, mode="reduce-overhead"),
    }


def ring(make: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Return 2 to 32 inputs, together three times as large as the level-2 cache."""
    first = make()
    size = sum(t.numel() * t.element_size() for t in first)
    cache: int = torch.cuda.get_device_properties(0).L2_cache_size
    return [first, *(make() for _ in range(min(31, max(1, 3 * cache // size))))]


def linear_cases(shape: tuple[int, ...], dtype: str) -> list[Case]:
    """Return the forward and backward pass of relu(x w^T + b); ``shape`` is (batch, inputs,
    outputs)."""
    batch, inputs, outputs = shape
    options: dict[str, Any] = {"device": DEVICE, "dtype": DTYPES[dtype]}

    def make() -> tuple[Tensor, ...]:
        w = torch.randn(outputs, inputs, **options) / math.sqrt(inputs)
        return torch.randn(batch, inputs, **options), w, torch.randn(outputs, **options)

    def make_backward() -> tuple[Tensor, ...]:
        x, w, b = make()
        return torch.randn(batch, outputs, **options), x, w, F.relu(F.linear(x, w, b))

    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.relu(F.linear(x, w, b))

    def backward(dy: Tensor, x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        g = torch.ops.aten.threshold_backward(dy, y, 0)
        return g @ w, g.t() @ x, g.sum(0)

    size, weights = DTYPES[dtype].itemsize, inputs * outputs
    rows = batch * (inputs + outputs)
    ours: dict[str, Function] = {
        "fastmlp": lambda x, w, b: functional.linear(x, w, b, "relu", backend="native")
    }
    ours_backward: dict[str, Function] = {"fastmlp": ops.linear_backward}
    if dtype == "float32" and batch <= MOST_ROWS:
        for name, way in WAYS.items():
            ours[name] = partial(_forward, way)
            ours_backward[name] = partial(_backward, way)
    work = 2 * batch * weights
    head = ("linear+relu", shape, dtype)
    return [
        Case(*head, "forward", ring(make), ours | compiled(forward), size * (weights + rows), work),
        Case(
            *(*head, "backward", ring(make_backward), ours_backward | compiled(backward)),
            *(size * (2 * weights + 2 * rows), 2 * work),
        ),
    ]


RELU = ACTIVATIONS["relu"].kernel


def _forward(way: int, x: Tensor, w: Tensor, b: Tensor) -> Any:
    return torch.ops.fastmlp.linear(x, w, b, RELU, way)


def _backward(way: int, dy: Tensor, x: Tensor, w: Tensor, y: Tensor) -> Any:
    return torch.ops.fastmlp.linear_backward(dy, x, w, y, RELU, True, True, True, way)


def relu_cases(shape: tuple[int, ...], dtype: str) -> list[Case]:
    """Return the forward and backward pass of relu."""

    def make() -> tuple[Tensor, ...]:
        return tuple(torch.randn(shape, device="cuda", dtype=DTYPES[dtype]) for _ in range(2))

    def backward(dy: Tensor, y: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.threshold_backward(dy, y, 0)
        return result

    inputs, count = ring(make), math.prod(shape)
    ours: dict[str, Function] = {"fastmlp": lambda x, _: functional.relu(x, backend="native")}
    ours_backward: dict[str, Function] = {"fastmlp": partial(activation_backward, name="relu")}
    size, head = DTYPES[dtype].itemsize, ("relu", shape, dtype)
    theirs = compiled(lambda x, _: F.relu(x))
    return [
        Case(*head, "forward", inputs, ours | theirs, 2 * size * count, count),
        Case(
            *head, "backward", inputs, ours_backward | compiled(backward), 3 * size * count, count
        ),
    ]


def cross_entropy_cases(shape: tuple[int, ...], dtype: str) -> list[Case]:
    """Return both passes of mean cross entropy; ``shape`` is (rows, classes)."""

    def make() -> tuple[Tensor, ...]:
        logits = torch.randn(shape, device="cuda", dtype=DTYPES[dtype]).requires_grad_()
        return logits, torch.randint(0, shape[1], shape[:1], device="cuda")

    def both(loss_of: Function) -> Function:
        def run(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            loss = loss_of(logits, target)
            return loss, torch.autograd.grad(loss, logits)[0]

        return run

    contenders = {"fastmlp": lambda a, b: functional.cross_entropy(a, b, backend="native")}
    contenders |= compiled(F.cross_entropy) | liger_and_apex()
    count = math.prod(shape)
    return [
        Case(
            *("cross entropy", shape, dtype, "both", ring(make)),
            {name: both(f) for name, f in contenders.items()},
            *(3 * DTYPES[dtype].itemsize * count, count),
        )
    ]


def liger_and_apex() -> dict[str, Function]:
    """Return two other libraries' cross entropy, where they are installed."""
    found: dict[str, Function] = {}
    try:
        liger = importlib.import_module("liger_kernel.transformers")
        loss = liger.LigerCrossEntropyLoss()
        # It writes the gradient over the logits it is given.
        found["liger"] = lambda logits, target: loss(logits.clone(), target)
    except ImportError:
        pass
    try:
        apex = importlib.import_module("apex.contrib.xentropy").SoftmaxCrossEntropyLoss
        found["apex"] = lambda logits, target: apex.apply(logits, target).mean()
    except ImportError:
        pass
    return found


def tensors_of(result: Any) -> list[Tensor]:
    """Return a result's tensors as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def drop_different(case: Case) -> dict[str, str]:
    """Remove the contenders that fail or differ from eager; return why, by name."""
    tolerance = 1e-3 if case.dtype == "float32" else 0.05
    truth = [t.clone() for t in tensors_of(case.contenders["eager"](*case.inputs[0]))]
    dropped: dict[str, str] = {}
    for name, f in case.contenders.items():
        try:
            result = [t.clone() for t in tensors_of(f(*case.inputs[0]))]
            for got, want in zip(result, truth, strict=True):
                size = want.abs().max().clamp(min=1)
                torch.testing.assert_close(got / size, want / size, rtol=0, atol=tolerance)
        except Exception as error:  # the other contenders are still worth timing
            dropped[name] = str(error).splitlines()[0]
    for name, why in dropped.items():
        print(f"{name} left out of {case.operator} {case.shape} {case.dtype} {case.kind}: {why}")
        del case.contenders[name]
    return dropped


def calls(f: Function, inputs: list[tuple[Tensor, ...]]) -> None:
    """Call ``f`` CALLS times, going round the inputs."""
    for i in range(CALLS):
        f(*inputs[i % len(inputs)])


def host_sample(f: Function, inputs: list[tuple[Tensor, ...]]) -> float:
    """Return microseconds a call on the host's clock, synchronised at both ends."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    calls(f, inputs)
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e6 / CALLS


def gpu_sample(f: Function, inputs: list[tuple[Tensor, ...]], host_us: float) -> float:
    """Return microseconds a call between events of the GPU, behind a kernel that sleeps until all
    calls, of ``host_us`` microseconds each on the host, are launched."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(int(2000 * 1.5 * CALLS * min(host_us, 500)))  # type: ignore[no-untyped-call]
    begin.record()  # type: ignore[no-untyped-call]
    calls(f, inputs)
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    elapsed: float = begin.elapsed_time(end)  # type: ignore[no-untyped-call]
    return elapsed * 1e3 / CALLS


def measure(case: Case, samples: int) -> dict[str, dict[str, Timing]]:
    """Time every contender, a sample each in turn."""
    host: dict[str, list[float]] = {name: [] for name in case.contenders}
    gpu: dict[str, list[float]] = {name: [] for name in case.contenders}
    for f in case.contenders.values():
        calls(f, case.inputs)
    for _ in range(samples):
        for name, f in case.contenders.items():
            host[name].append(host_sample(f, case.inputs))
            gpu[name].append(gpu_sample(f, case.inputs, statistics.median(host[name])))
    return {n: {"gpu": summarize(gpu[n]), "host": summarize(host[n])} for n in case.contenders}


def copy_bandwidth() -> float:
    """Return bytes read and written in a second by a large copy on the device."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    times = [gpu_sample(target.copy_, [(source,)], 100) for _ in range(7)]
    return 2 * source.numel() * 4 / statistics.median(times) * 1e6


def row_of(case: Case, times: dict[str, dict[str, Timing]], bandwidth: float) -> dict[str, Any]:
    """Return a row of results."""

    def best_peer(kind: str) -> float:
        return min(t[kind].median_us for name, t in times.items() if name.split()[0] != "fastmlp")

    ours = times["fastmlp"]
    return {
        **{"operator": case.operator, "shape": list(case.shape), "dtype": case.dtype},
        "pass": case.kind,
        "ratio_gpu": round(best_peer("gpu") / ours["gpu"].median_us, 3),
        "ratio_host": round(best_peer("host") / ours["host"].median_us, 3),
        "of_copy_bandwidth": round(case.least_bytes / ours["gpu"].median_us * 1e6 / bandwidth, 3),
        "teraflops": round(case.operations / ours["gpu"].median_us / 1e6, 3),
        "times": times,
    }


def times_of_ours(row: dict[str, Any]) -> str:
    """Return fastmlp's time in words, for float32 with that of each of its ways to multiply."""
    times = {name: kinds["gpu"].median_us for name, kinds in row["times"].items()}
    ways = [f"{name.removeprefix('fastmlp ')} {times[name]:.1f}" for name in WAYS if name in times]
    return f"{times['fastmlp']:.1f} us" + (f" ({', '.join(ways)})" if ways else "")


def driver_version() -> str:
    """Return the version of NVIDIA's driver, or "unknown"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return "unknown"


def gpu_provenance(bandwidth: float) -> dict[str, Any]:
    """Return what a number of a GPU needs to be believed, beside :func:`machine.provenance`."""
    return {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "copy_bandwidth": bandwidth,
    }


def run(samples: int, minutes: float, out: Path) -> None:
    """Time as many of the cases as fit into the minutes and write the results.

    Raises SystemExit where fastmlp failed or computed something else than PyTorch.
    """
    torch.manual_seed(0)
    bandwidth, end = copy_bandwidth(), time.monotonic() + 60 * minutes
    print(f"{torch.cuda.get_device_name()}: copies at {bandwidth / 1e9:.0f} GB/s\n")
    print("operator shape dtype pass ratio_gpu ratio_host of_copy_bandwidth teraflops time")
    telling = 2 * len(LAYERS)  # linear first: most of a network's time
    plan: list[tuple[Callable[..., list[Case]], tuple[int, ...]]] = [
        *((linear_cases, shape) for shape in LINEAR_SHAPES[:telling]),
        *((cross_entropy_cases, shape) for shape in CROSS_ENTROPY_SHAPES),
        *((relu_cases, shape) for shape in RELU_SHAPES),
        *((linear_cases, shape) for shape in LINEAR_SHAPES[telling:]),
    ]
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    failed: list[str] = []
    try:
        with Display(60 * minutes) as display:
            for (make, shape), dtype in itertools.product(plan, DTYPES):
                name = f"{make.__name__} {shape} {dtype}"
                display.doing(name)
                if time.monotonic() > end:
                    left_out.append(name)
                    continue
                torch.compiler.reset()
                for case in make(shape, dtype):
                    dropped = drop_different(case)
                    if "fastmlp" in dropped:
                        failed.append(f"{case.operator} {shape} {dtype} {case.kind}")
                        continue
                    row = row_of(case, measure(case, samples), bandwidth)
                    rows.append({**row, "dropped": dropped})
                    words = [*map(str, list(row.values())[:-1]), times_of_ours(row)]
                    display.line(" ".join(words))
                display.advance(60 * minutes / len(plan) / len(DTYPES))
    finally:  # what was measured is kept, whatever happened
        results = {"provenance": provenance() | gpu_provenance(bandwidth), "failed": failed}
        save(out, {**results, "left_out": left_out, "rows": rows})
    if failed:
        raise SystemExit(f"fastmlp failed, or differed from PyTorch: {'; '.join(failed)}")
