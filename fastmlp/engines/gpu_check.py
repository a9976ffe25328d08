"""The first run on a GPU that this build has not met: its kernels are checked before they are used.

The check runs in a process of its own, as a wrong kernel can leave a process without its GPU or
without an end. What comes out is kept in the cache folder, by build, GPU, driver and PyTorch. Where
it is bad, the GPU runs PyTorch's own operators, after a warning in every process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.cifar10 import cache_folder
from fastmlp.engines.base import Engine
from fastmlp.engines.self_check import checks
from fastmlp.ops._load import distrust, native_available
from fastmlp.utils.environment import package_version
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import write_bytes
from fastmlp.utils.formats import json_bytes, read_json

SECONDS = 600
"""How long a check may take: PTX may have to be compiled first."""
_CODE = """
import sys, torch
from fastmlp.engines import registry, self_check
device = torch.device(sys.argv[1])
self_check.tell(device, registry.engines_on(device))
"""


def meet(device: torch.device, engines: Sequence[type[Engine]]) -> None:
    """Make sure that this build's kernels are right on a GPU, by a check or by an earlier one;
    where they are not, warn and use none of them on any GPU in this process."""
    if device.type != "cuda" or not torch.cuda.is_available() or not native_available("cuda"):
        return
    problems = _problems_of(device.index or 0, tuple(engines))
    if not problems:
        return
    name = torch.cuda.get_device_name(device)
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    first, what = next(iter(problems.items()))
    why = f"they failed their check on this {name}: {first}: {what}{more}"
    distrust(why)
    warnings.warn(
        f"THE CUDA KERNELS ARE NOT USED: {why}. This run goes on with PyTorch's own operators "
        "(the engine reference), which are right and slower. 'python -m fastmlp.info --check' "
        "shows all of it; please report it",
        UserWarning,
        stacklevel=2,
    )


@functools.cache
def _problems_of(index: int, engines: tuple[type[Engine], ...]) -> dict[str, str]:
    """Return what differs on a GPU, by the check's name: from the cache, or by running the
    checks."""
    device = torch.device("cuda", index)
    known = recall(device)
    if known is not None:
        return known
    print(
        f"fastmlp: the first run of this build on {torch.cuda.get_device_name(device)}: "
        "checking its kernels, once",
        file=sys.stderr,
    )
    found = _check_apart(device)
    if found is None:  # no second process can have the GPU, or there can be none
        found = {check.name: check.run() for check in checks(device, engines)}
    problems = {name: problem for name, problem in found.items() if problem}
    remember(device, problems)
    return problems


def recall(device: torch.device) -> dict[str, str] | None:
    """Return the problems that a check has found on this GPU, or None where none is known."""
    try:
        problems = read_json(_path(device))["problems"]
        return {str(name): str(problem) for name, problem in problems.items()}
    except (OSError, UserError, AttributeError, KeyError, TypeError):
        return None


def remember(device: torch.device, problems: Mapping[str, str]) -> None:
    """Keep what a check has found, where the cache folder can be written."""
    try:
        write_bytes(_path(device), json_bytes({"problems": dict(problems), **_key(device)}))
    except (OSError, UserError):
        return  # the next process checks again


def _path(device: torch.device) -> Path:
    digest = hashlib.sha256(json.dumps(_key(device), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "checks" / f"{digest[:16]}.json"


def _key(device: torch.device) -> dict[str, Any]:
    """Return what the outcome of a check depends on."""
    return {
        "build": _build_digest(),
        "gpu": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "driver": int(torch.ops.fastmlp.cuda_driver_version()),
        "torch": torch.__version__,
    }


@functools.cache
def _build_digest() -> str:
    """Return a digest of the compiled extensions."""
    digest = hashlib.sha256(package_version().encode())
    for name in ("fastmlp._C", "fastmlp._cuda"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _check_apart(device: torch.device) -> dict[str, str] | None:
    """Run the check in another process; return what it found, or None where it could not begin."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable or "", "-c", _CODE, str(device)]
    lines, end = "", f"it did not end in {SECONDS} s"
    try:
        run = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        lines, end = run.stdout, f"the process ended with code {run.returncode}"
        ended_well = run.returncode == 0
    except subprocess.TimeoutExpired as error:
        lines, ended_well = (error.stdout or b"").decode(errors="replace"), False
    except OSError:
        return None
    return _read(lines.splitlines(), "" if ended_well else end)


def _read(lines: Iterable[str], end: str) -> dict[str, str] | None:
    """Return the problems by check from what :func:`~fastmlp.engines.self_check.tell` printed,
    ``end`` as that of the check in which it ended; None where there is nothing."""
    found: dict[str, str] = {}
    begun, present = False, "the end"
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            continue  # something else printed it, or it is half a line
        begun = begun or "begun" in said
        if "problem" in said:
            found[said["check"]] = said["problem"]
        present = said.get("check", present)
    if end and begun:
        found[present] = found.get(present) or end
    return found if begun else None
