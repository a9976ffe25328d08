"""A recording on the CPU that keeps what a CUDA graph keeps: operators and addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Listener(TorchDispatchMode):
    def __init__(self, tape: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a recording must not wait for a number")
        results = func(*args, **(kwargs or {}))
        self._tape.append((func, args, kwargs or {}, results))
        return results


class TapeGraph:
    """Stands in for :class:`~fastmlp.engines.cuda_graph.CapturedGraph`. A replay calls the
    operators that were recorded, on the tensors that they were recorded with; no Python of ``work``
    runs. What an operator makes is written to where it was when recorded."""

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        work()
        self._tape: list[tuple[Any, ...]] = []
        with _Listener(self._tape):
            work()

    def replay(self, work: Callable[[], None]) -> None:
        """Runs what was recorded, not ``work``."""
        for func, args, kwargs, before in self._tape:
            after = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
