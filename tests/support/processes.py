"""Programs of the tests, run as processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import fastmlp

PACKAGE = Path(fastmlp.__file__).resolve().parents[1]
SUPPORT = Path(__file__).resolve().parent


def python_environment(**variables: str) -> dict[str, str]:
    """The environment in which a new Python finds this fastmlp and the tests' support."""
    path = os.pathsep.join([str(PACKAGE), str(SUPPORT.parent)])
    return {**os.environ, "PYTHONPATH": path, **variables}
