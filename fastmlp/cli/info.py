"""Say what was built, what runs here, and why not.

python -m fastmlp.info                      versions, kernels, devices, engines
python -m fastmlp.info --shape 8,3072,256   what computes a layer of that shape, and why
python -m fastmlp.info --check              whether all operators and engines are right here
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from typing import Any

import torch

from fastmlp import __version__
from fastmlp.cli.parser import ArgumentParser
from fastmlp.engines.gpu_check import remember
from fastmlp.engines.registry import (
    ENGINES,
    choose_engine,
    engine_for,
    engines_on,
    passed_over_gpu,
    resolve_device,
)
from fastmlp.engines.self_check import checks
from fastmlp.ops._load import load_error, native_available, unsupported_reason
from fastmlp.ops.backend_choice import linear_reason
from fastmlp.ops.matmul_precision import allowed_matmul_precision
from fastmlp.utils.errors import EXIT_FAILURE, EXIT_USAGE, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def collect(shapes: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Return what the command prints as plain data; ``shapes`` are (batch, inputs, outputs)."""
    built = load_error() is None
    device = resolve_device("auto")
    engine, reason = choose_engine("auto", device)
    reason += passed_over_gpu("auto")
    return {
        "fastmlp": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "native": {
            "built": built,
            "why_not": load_error(),
            "devices": [name for name in ("cpu", "cuda") if native_available(name)],
            "cpu_kernels": torch.ops.fastmlp.cpu_isa() if built else None,
        },
        "cpu": {"threads": torch.get_num_threads(), "machine": platform.machine()},
        "cuda": {
            "devices": _gpus(),
            "kernels": native_available("cuda"),
            "kernels_why_not": load_error("cuda"),
            "why_not": _why_no_cuda(),
        },
        "engines": {
            name: engine_for(name, device).unsupported_reason(device) or f"runs on {device.type}"
            for name in ENGINES
        },
        "auto": {"device": str(device), "engine": engine.name, "reason": reason},
        "plans": _plans(shapes, device) if built else {},
    }


def _plans(shapes: list[tuple[int, int, int]], device: torch.device) -> dict[str, str]:
    def plan(*args: Any) -> str:
        if device.type != "cuda" or not native_available("cuda"):
            kernels = str(torch.ops.fastmlp.linear_plan(*args))
            reason = linear_reason(*args)
            return f"PyTorch's operators ({reason}); asked for: {kernels}" if reason else kernels
        gpu = torch.cuda.get_device_properties(device)
        described = gpu.multi_processor_count, 10 * gpu.major + gpu.minor
        return str(
            torch.ops.fastmlp.linear_plan_cuda(*args, *described, allowed_matmul_precision())
        )

    return {
        f"{batch} x {inputs} -> {outputs}, {name}": plan(batch, inputs, outputs, dtype)
        for batch, inputs, outputs in shapes
        for name, dtype in DTYPES.items()
    }


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _why_no_cuda() -> str | None:
    """Return why fastmlp cannot use a GPU here, or None if it can."""
    if native_available("cuda") and torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this PyTorch is a CPU build"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return f"{unsupported_reason('cuda')}; on a GPU the reference backend and engine run"


def render(info: dict[str, Any]) -> str:
    """Format the data of :func:`collect` as lines of text."""
    native, cuda, auto = info["native"], info["cuda"], info["auto"]
    kernels = (
        f"built; CPU kernels for {native['cpu_kernels']}"
        if native["built"]
        else f"not there: {native['why_not']}"
    )
    gpus = ", ".join(cuda["devices"]) or "no GPU"
    gpus += "; CUDA kernels built" if cuda["kernels"] else ""
    rows = [
        ("fastmlp", f"{info['fastmlp']} with torch {info['torch']}, Python {info['python']}"),
        ("extension", kernels),
        ("cpu", f"{info['cpu']['machine']}, {info['cpu']['threads']} threads"),
        ("cuda", gpus if cuda["why_not"] is None else f"{gpus}; {cuda['why_not']}"),
        *((f"engine {name}", state) for name, state in info["engines"].items()),
        ("auto", f"{auto['engine']} on {auto['device']} ({auto['reason']})"),
        *((f"layer {shape}", plan) for shape, plan in info["plans"].items()),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)


def check(devices: list[torch.device]) -> int:
    """Check every operator and engine on the devices, a line each, and return the exit code."""
    begin, wrong, count = time.perf_counter(), [], 0
    for device in devices:
        problems = {}
        if why := load_error(device.type):
            print(f"{device}: PyTorch's operators alone ({why})")
        for each in checks(device, engines_on(device)):
            problem = each.run()
            count += 1
            print(f"{device!s:8}{each.name:72}{problem or 'ok'}", flush=True)
            if problem:
                problems[each.name] = problem
        wrong += [f"{name} on {device}" for name in problems]
        if device.type == "cuda" and native_available("cuda"):
            remember(device, problems)
    seconds = f"{time.perf_counter() - begin:.1f} s"
    if not wrong:
        print(f"all {count} are right ({seconds})")
        return 0
    print(f"fastmlp: error: {len(wrong)} of {count} differ: {'; '.join(wrong)}", file=sys.stderr)
    return EXIT_FAILURE


LARGEST_SIZE = 1 << 40
"""As the planner has it."""


def _parse_shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(re.fullmatch(r"\s*\d{1,18}\s*", part) for part in parts):
        raise UserError(
            f"--shape must be BATCH,INPUTS,OUTPUTS like 8,3072,256, got {text!r}", EXIT_USAGE
        )
    batch, inputs, outputs = (int(part) for part in parts)
    if max(batch, inputs, outputs) > LARGEST_SIZE:
        raise UserError(f"--shape must have sizes of at most 2^40, got {text!r}", EXIT_USAGE)
    return batch, inputs, outputs


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raises UserError for a user's mistake."""
    args = build_parser().parse_args(argv)
    if args.check:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return check([torch.device("cpu"), *(torch.device("cuda", i) for i in range(gpus))])
    shapes = [_parse_shape(text) for text in args.shape or ["8,3072,256", "1024,1024,1024"]]
    info = collect(shapes)
    print(json.dumps(info, indent=2) if args.json else render(info))
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(prog="fastmlp info", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape",
        action="append",
        metavar="BATCH,INPUTS,OUTPUTS",
        default=None,
        help="say what computes a layer of this shape; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare all operators and engines with PyTorch, on the CPU and on each GPU",
    )
    return parser
