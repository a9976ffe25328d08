"""The engines by name, and the choice among them, which always says why.

``blocked`` runs whole blocks of exact SGD steps as large matrix products; ``native`` runs the steps
of any network and optimizer in one call of C++; ``graph`` records many steps of fastmlp's operators
as one CUDA graph; ``eager`` runs them one by one, without autograd; ``reference`` is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.base import Engine
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.blocked_cuda import BlockedCudaEngine
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.gpu_check import meet
from fastmlp.engines.graph import GraphEngine
from fastmlp.engines.native import NativeEngine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.ops._load import distrusted, load_error, native_available
from fastmlp.utils.errors import UserError

__all__ = [
    "ENGINES",
    "BlockedCudaEngine",
    "BlockedEngine",
    "EagerEngine",
    "EnginePool",
    "GraphEngine",
    "NativeEngine",
    "ReferenceEngine",
    "choose_engine",
    "engine_for",
    "engines_on",
    "resolve_device",
]

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (BlockedEngine, NativeEngine, GraphEngine, EagerEngine, ReferenceEngine)
}
"""By name, fastest first: ``auto`` chooses the first that runs on the device."""

_ON_CUDA: dict[str, type[Engine]] = {"blocked": BlockedCudaEngine}


def engine_for(name: str, device: torch.device) -> type[Engine]:
    """Return the class of one of :data:`ENGINES` on the device."""
    return _ON_CUDA.get(name, ENGINES[name]) if device.type == "cuda" else ENGINES[name]


def engines_on(device: torch.device) -> list[type[Engine]]:
    """Return the class of each of :data:`ENGINES` on the device."""
    return [engine_for(name, device) for name in ENGINES]


def choose_engine(
    name: str,
    device: torch.device,
    sizes: Sequence[int] | None = None,
    config: OptimizerConfig | None = None,
    train: Subset | None = None,
) -> tuple[type[Engine], str]:
    """Return the engine that ``name`` ("auto" or one of :data:`ENGINES`) means for a network of
    these layer sizes with this optimizer on this data, and why. On a GPU that this build has not
    met, its kernels are checked first.

    Raises :class:`UserError` where an engine asked for by name cannot run.
    """
    meet(device, engines_on(device))
    if name != "auto":
        asked = engine_for(name, device)
        reason = _unsupported(asked, device, sizes, config, train)
        if reason is not None:
            raise UserError(f"The engine {name} cannot run here: {reason}; try --engine auto")
        return asked, "asked for by name"
    passed_over: list[str] = []
    for engine in engines_on(device):
        reason = _unsupported(engine, device, sizes, config, train)
        if reason is None:
            return engine, "; ".join(["the fastest that runs here", *passed_over])
        passed_over.append(f"not {engine.name}, because {reason}")
    raise AssertionError("the reference engine runs everywhere")


def _unsupported(
    engine: type[Engine],
    device: torch.device,
    sizes: Sequence[int] | None,
    config: OptimizerConfig | None,
    train: Subset | None,
) -> str | None:
    reason = engine.unsupported_reason(device, sizes, config)
    return engine.unsupported_data(train) if reason is None and train is not None else reason


class EnginePool:
    """The engines on one training set, one for each kind, device and normalization, made on first
    use and shared by all networks that train on them."""

    def __init__(self, train: Subset) -> None:
        self._train = train
        self._engines: dict[tuple[type[Engine], torch.device, str], Engine] = {}

    def get(self, kind: type[Engine], normalization: Normalization, device: torch.device) -> Engine:
        """Return the engine; normalizations are known by their names."""
        key = kind, device, normalization.name
        if key not in self._engines:
            self._engines[key] = kind(self._train, normalization, device)
        return self._engines[key]


def resolve_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu", "cuda" or "cuda:1" means here; auto is a GPU that our
    kernels run on, else the CPU, whose engines are several times faster than PyTorch on a GPU; or a
    GPU where there are no kernels at all, or wrong ones, as has turned out on it.

    Raises :class:`UserError` where there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        usable = native_available("cuda") or not native_available() or distrusted() is not None
        fits = count > 0 and usable
        return torch.device("cuda", 0) if fits else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if count == 0:
            raise UserError(f"device {name} is not there: PyTorch sees no GPU; use --device cpu")
        if device.index >= count:
            raise UserError(f"device {name} is not there: the last GPU is cuda:{count - 1}")
    return device


def passed_over_gpu(name: str) -> str:
    """Return, to be added to a reason, why the device "auto" is not the GPU that is there; empty
    where there is none or another device was named."""
    if name != "auto" or not torch.cuda.is_available() or resolve_device("auto").type == "cuda":
        return ""
    return f"; not the GPU, because {load_error('cuda')}"
