"""CUDA graphs: work that is recorded once and replayed in one launch, and what runs beside it."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["CapturedGraph", "ReplayThrottle", "SideStream", "full_float32", "values_kept"]

REPLAYS_AHEAD = 2
"""Replays that may be pending when Python adds the next: enough that a GPU never idles, few enough
that an epoch stops soon."""


class CapturedGraph:
    """``work()`` as one CUDA graph on ``device``; on other devices a replay simply calls it.

    ``work`` may only read and write tensors that keep their addresses, and must not sync with the
    device. Recording runs it once, so what it changes must be filled in afterwards. It is not kept:
    what it belongs to, and keeps the recording, would make a cycle with it, whose memory on the GPU
    the garbage collector does not see.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            work()
            return
        with torch.cuda.device(device):
            # Libraries set themselves up at their first call, which must not be recorded.
            stream = _recording_stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                work()
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with (
                garbage_kept(),
                own_workspaces(),
                # What other threads do on the GPU meanwhile does not invalidate the recording.
                torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
            ):
                work()

    def replay(self, work: Callable[[], None]) -> None:
        """Run the work, the same that was recorded, on the current stream."""
        if self._graph is None:
            work()
            return
        with torch.cuda.device(self._device):
            self._graph.replay()


@contextlib.contextmanager
def values_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give the tensors, which a recording that is made inside changes, their values back."""
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(value)


@functools.cache
def _recording_stream(device: torch.device) -> Any:
    """Return the stream of a device that all recordings are made on. It is ahead of what runs
    beside it: a chain of short steps before large products."""
    return torch.cuda.Stream(device, priority=-2)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def own_workspaces() -> Iterator[None]:
    """Make what is recorded inside own the workspaces of its matrix products.

    PyTorch keeps one for each stream. One that is there already is used by the recording, and freed
    for others when PyTorch clears them, as it does when any graph is destroyed; cleared before, it
    is made anew in the recording's own memory, and, cleared afterwards, used by nobody else.
    """
    clear = torch._C._cuda_clearCublasWorkspaces  # noqa: SLF001
    clear()
    try:
        yield
    finally:
        clear()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 on a GPU without TF32 inside, whatever is allowed outside.

    Only what products ask is changed, so that it does not matter by which of PyTorch's interfaces
    TF32 was allowed.
    """
    setting = "cuda", "matmul"
    before = torch._C._get_fp32_precision_getter(*setting)  # noqa: SLF001
    torch._C._set_fp32_precision_setter(*setting, "ieee")  # noqa: SLF001
    try:
        yield
    finally:
        torch._C._set_fp32_precision_setter(*setting, before)  # noqa: SLF001


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Disable the garbage collector: destroying an unused CUDA graph while another is captured
    invalidates the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class SideStream:
    """A second stream, for work that may run beside that of the current one.

    Of what waits for a free multiprocessor a stream of lower ``priority`` number goes first; a
    :class:`CapturedGraph`'s own is -2.
    """

    def __init__(self, device: torch.device, priority: int = -1) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = _side_stream(device, priority)

    def run(self, work: Callable[[], None]) -> None:
        """Enqueue ``work()`` after what is in the current stream; run it at once where there is no
        GPU. Until :meth:`join` neither stream may need what the other computes."""
        if self._stream is None:
            work()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> None:
        """Make the current stream wait for that work."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


@functools.cache
def _side_stream(device: torch.device, priority: int) -> Any:
    """Return the one side stream of a device and a priority: PyTorch has 32 of them, and gives the
    first again to whoever asks for more, perhaps to one that waits for another."""
    return torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]


class ReplayThrottle:
    """Keep Python at most REPLAYS_AHEAD replays ahead of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: deque[torch.cuda.Event] = deque()

    def keep(self) -> None:
        """Wait until few enough replays are pending; call it after every replay."""
        if self._device.type != "cuda":
            return
        end = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        end.record(torch.cuda.current_stream(self._device))  # type: ignore[no-untyped-call]
        self._ends.append(end)
        if len(self._ends) > REPLAYS_AHEAD:
            self._ends.popleft().synchronize()  # type: ignore[no-untyped-call]
