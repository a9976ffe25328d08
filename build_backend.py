"""The build backend of pyproject.toml: setuptools', but that an sdist needs no PyTorch."""

from __future__ import annotations

from typing import Any

from setuptools.build_meta import *  # noqa: F403


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """Return nothing: setup.py names torch for what is compiled."""
    return []
