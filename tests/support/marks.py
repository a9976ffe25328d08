"""Marks that several test files share."""

from __future__ import annotations

import pytest

from fastmlp.ops._load import native_available

needs_native = pytest.mark.skipif(not native_available(), reason="the extension is not built")
