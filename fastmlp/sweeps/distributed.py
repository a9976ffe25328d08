"""The processes that ``torchrun`` starts, which share a sweep."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastmlp.training.config import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """``size`` processes, of which this is number ``rank``; a single one without torchrun."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """Return the group that torchrun describes, without connecting to the others."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ.get(n, d)) for n, d in zip(names, "010", strict=True)))

    @classmethod
    def join(cls) -> ProcessGroup:
        """Connect to the other processes, which all have to do so, until the process ends: PyTorch
        does not let them connect twice."""
        workers = cls.from_environment()
        if workers.size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")  # only Python objects are exchanged
            atexit.register(dist.destroy_process_group)
        return workers

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and lines."""
        return self.rank == 0

    def placed(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration, on this process's own GPU where it leaves the device open."""
        if self.size == 1 or config.device != "auto" or not torch.cuda.is_available():
            return config
        return replace(config, device=f"cuda:{self.local_rank % torch.cuda.device_count()}")

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of the items: one of every ``size``."""
        return list(items[self.rank :: self.size])

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all processes to each of them."""
        if self.size == 1:
            return items
        lists: list[Any] = [None] * self.size
        dist.all_gather_object(lists, items)
        return [item for each in lists for item in each]

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Return ``action()``, called in the first process and then in all others, which may use
        what the first has left."""
        if self.size == 1:
            return action()
        result = action() if self.is_first else None
        dist.barrier()
        return action() if result is None else result
