"""Describe the machine that a number was measured on, and name the file that it belongs to.

Results of a CPU are kept for each make of processor: ``results/epoch_time.amd.json`` beside
``results/epoch_time.intel.json``. Results of a GPU are in ``results/*.cuda.json``.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastmlp
from fastmlp.utils.environment import device_name
from fastmlp.utils.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MAKES = {"amd": "AMD", "intel": "Intel"}
"""Makes of processor that every table has a place for."""
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}


def make() -> str:
    """Return the make of this machine's processor as result files spell it, such as "amd"."""
    vendor = _cpuinfo("vendor_id")
    return VENDORS.get(vendor, vendor.lower() or platform.machine().lower() or "unknown")


def results_file(name: str) -> Path:
    """Return where the results of the benchmark ``name`` on this processor are kept."""
    return RESULTS / f"{name}.{make()}.json"


def measured(name: str) -> dict[str, dict[str, Any]]:
    """Return the results of a benchmark on CPUs by make, those of MAKES first."""
    found = {path.name.split(".")[1]: path for path in RESULTS.glob(f"{name}.*.json")}
    found.pop("cuda", None)
    order = [*MAKES, *sorted(set(found) - set(MAKES))]
    return {
        make: json.loads(found[make].read_text(encoding="utf-8")) for make in order if make in found
    }


def processor() -> dict[str, Any]:
    """Return the CPU's make, model, instruction set of our kernels, and caches in KiB of one core,
    which are None where the system does not tell them."""
    return {
        "make": make(),
        "model": device_name(torch.device("cpu")),
        "isa": torch.ops.fastmlp.cpu_isa(),
        "l1d_kib": _cache_kib(1),
        "l2_kib": _cache_kib(2),
    }


def provenance() -> dict[str, Any]:
    """Return what a number needs to be believed: machine, versions, commit, time."""
    return {
        "device": device_name(torch.device("cpu")),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": torch.ops.fastmlp.cpu_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastmlp": fastmlp.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all; dataclasses become objects."""
    write_text(path, json.dumps(results, indent=1, default=asdict) + "\n")
    print(f"\nwritten to {path}")


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
    return found[0] if found else ""


def _cache_kib(level: int) -> int | None:
    """The size of the first core's data or unified cache of a level."""
    for index in sorted(CACHES.glob("index*")):
        try:
            facts = {n: (index / n).read_text().strip() for n in ("level", "type", "size")}
        except OSError:
            continue
        if facts["level"] == str(level) and facts["type"] in ("Data", "Unified"):
            return int(facts["size"].removesuffix("K"))
    return None


def _git(*args: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *args]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip()
