"""Whatever ``torch.ops.fastmlp.*`` is called with: no crash, no endless loop, no memory that nobody
wrote, no change of what is only read; a call that is refused is refused in one sentence.

``FASTMLP_FUZZ=N`` makes N calls of each operator, otherwise 150.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support import native_fuzz
from support.figures import count
from support.marks import needs_native
from support.native_calls import FOR_A_GPU, Calls
from support.processes import SUPPORT, python_environment

pytestmark = needs_native
COUNT = int(os.environ.get("FASTMLP_FUZZ", "150"))


def test_every_operator_has_calls() -> None:
    for name in native_fuzz.operators():
        assert hasattr(Calls, name), f"support/native_calls.py makes no call of {name}"


def make_calls(fill: int) -> list[dict[str, Any]]:
    """Make the calls in a process of their own, whose new memory holds ``fill``; return them and
    how each ended."""
    program = [sys.executable, str(SUPPORT / "native_fuzz.py"), "0", str(COUNT)]
    memory = {"MALLOC_PERTURB_": str(fill), "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    run = subprocess.run(
        program, env=python_environment(**memory), capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines, run.stderr[-2000:]
    assert run.returncode == 0, f"{run.returncode} from {lines[-1]}\n{run.stderr[-4000:]}"
    return [{**call, **end} for call, end in zip(lines[::2], lines[1::2], strict=True)]


def test_nothing_is_let_in() -> None:
    """Two processes whose fresh memory holds different bytes come to the same bits."""
    with ThreadPoolExecutor() as pool:
        once, again = pool.map(make_calls, (0x55, 0x9F))
    assert len(once) == COUNT * len(native_fuzz.operators())
    for one, other in zip(once, again, strict=True):
        assert one["wrong"] is None, one
        assert one == other, f"{one}\nand then\n{other}"
    right = [call for call in once if " 0: " in call["call"]]
    for call in right:  # those that no one has changed
        missing = call["call"].split()[0] in FOR_A_GPU
        assert call["ended"].startswith("returned") or missing, call
    count(native_calls=len(once))
