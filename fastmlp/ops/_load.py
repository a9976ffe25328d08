"""Which implementation runs: the compiled kernels ("native") or pure PyTorch ("reference")."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

BACKENDS = ("native", "reference")
_is_tracing: Callable[[], bool] = torch._C._is_tracing


def _load() -> str | None:
    """Import ``fastmlp._C``, which registers the operators; return why that failed, or None."""
    try:
        importlib.import_module("fastmlp._C")
        torch.ops.fastmlp.cpu_isa()  # raises where $FASTMLP_CPU_ISA asks for too much
    except (ImportError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None


NATIVE_ERROR: str | None = _load()
"""Why the compiled extension could not be loaded, or None."""


def _load_cuda() -> str | None:
    """Import ``fastmlp._cuda``, which adds kernels to the operators, where PyTorch is a CUDA build;
    return why there are none, or None."""
    if NATIVE_ERROR is not None or torch.version.cuda is None:
        return NATIVE_ERROR or "this PyTorch is a CPU build"
    try:
        importlib.import_module("fastmlp._cuda")
    except ModuleNotFoundError:
        return (
            "fastmlp._cuda is not built; run 'pip install -e .' where there is a CUDA toolkit, or "
            "after installing the extra [cuda-build]"
        )
    except ImportError as error:
        return f"fastmlp._cuda could not be loaded ({str(error).splitlines()[0]})"
    return None


CUDA_ERROR: str | None = _load_cuda()
"""Why there are no CUDA kernels, or None where there are."""

NATIVE_DEVICES: tuple[str, ...] = tuple(
    device for device, error in (("cpu", NATIVE_ERROR), ("cuda", CUDA_ERROR)) if error is None
)
"""Device types that the compiled operators have kernels for."""


_distrust: str | None = None


def distrust(why: str) -> None:
    """Use none of the CUDA kernels in this process any more; ``why`` says what is wrong."""
    global _distrust
    _distrust = why
    _look_at_gpus.cache_clear()


def distrusted() -> str | None:
    """Return why the CUDA kernels, which could run, are not to be used; None where they are."""
    return _distrust


def _unfit_gpu() -> str | None:
    """Return why the CUDA kernels cannot run on a GPU of this machine, or None where they can."""
    return _look_at_gpus()


# torch.compile takes the answer as it is; it would look through functools.cache and trace.
_unfit_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _look_at_gpus() -> str | None:
    if _distrust is not None:
        return _distrust
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        archs = str(torch.ops.fastmlp.cuda_archs())
        capability = torch.cuda.get_device_capability(index)
        if archs and not runs_on(archs, capability):
            return (
                f"this build has code for GPUs of compute capability {archs.replace(';', ', ')}, "
                f"and the {torch.cuda.get_device_name(index)} here has "
                f"{'.'.join(map(str, capability))}; run 'pip install -e .' here to build for it, "
                "from 7.5 on"
            )
    return None


def runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Return whether what was compiled for ``archs``, as TORCH_CUDA_ARCH_LIST spells them, runs on
    a GPU: machine code on the same major and no smaller minor version, with an ``a`` on exactly
    that, and PTX on any later one (CUDA C++ Programming Guide, "Application Compatibility"). PTX of
    7.5 does not count on 8.0 and later: it lacks the kernels that are planned for these."""
    for arch in archs.split(";"):
        number = arch.removesuffix("+PTX")
        major, minor = (int(part) for part in number.rstrip("a").split("."))
        if number.endswith("a"):
            fits = (major, minor) == capability
        else:
            fits = major == capability[0] and minor <= capability[1]
            fits = fits or (arch.endswith("+PTX") and (8, 0) <= (major, minor) <= capability)
        if fits:
            return True
    return False


_default: str | None = None
_warned: set[str] = set()


def native_available(device: str = "cpu") -> bool:
    """Return whether the compiled operators have kernels for a device type ("cpu", "cuda").

    >>> import fastmlp
    >>> fastmlp.native_available("tpu")
    False
    """
    return device in NATIVE_DEVICES and (device == "cpu" or _unfit_gpu() is None)


def load_error(device: str = "cpu") -> str | None:
    """Return why there are no compiled kernels for a device type ("cpu", "cuda"), or None."""
    if device == "cpu":
        return NATIVE_ERROR
    return CUDA_ERROR or _unfit_gpu()


def set_backend(backend: str | None) -> None:
    """Set the backend that ``backend=None`` means in this process; None restores the default.

    Raises ValueError for an unknown name.

    >>> import fastmlp
    >>> fastmlp.set_backend("reference")  # pure PyTorch, from now on
    >>> fastmlp.set_backend(None)
    """
    global _default
    _check_name(backend)
    _default = backend


def resolve_backend(backend: str | None = None, device: str = "cpu") -> str:
    """Return the backend that runs on a device type where ``backend`` is asked for.

    On "meta", where only shapes are computed, it is "reference".
    ``None`` is the process's default: "native" where there are compiled kernels for the device,
    else "reference" after one warning that says why. Raises ValueError for an unknown name and
    RuntimeError where "native" is asked for by name but has no kernels for the device.
    """
    if backend is None and _default is None and native_available(device):
        return "native"  # the usual answer, before a microsecond of questions
    _check_name(backend)
    if device == "meta":  # shapes alone: PyTorch infers them, whatever computes the numbers
        return "reference"
    backend = backend or _default
    if backend == "reference" or (backend == "native" and native_available(device)):
        return backend
    if backend == "native":
        raise RuntimeError(
            f"backend 'native' is not available on {device}: {unsupported_reason(device)}; use "
            "backend='reference'"
        )
    if native_available(device):
        return "native"
    if device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"fastmlp runs the slower pure-PyTorch reference on {device}: "
            f"{unsupported_reason(device)}",
            UserWarning,
            stacklevel=5,
        )
    return "reference"


def runs_reference(backend: str | None, tensor: Tensor) -> bool:
    """Return whether :func:`resolve_backend` says "reference" for the device of ``tensor``."""
    if backend is None and _default is None and tensor.is_cpu and NATIVE_ERROR is None:
        return False  # the usual answer, before a microsecond of questions
    return resolve_backend(backend, tensor.device.type) == "reference"


def leaves_choice(tensor: Tensor) -> bool:
    """Return whether our kernels would run without anybody having asked for them, so that the
    layers may take what is quickest."""
    if _default is not None:
        return False
    return NATIVE_ERROR is None if tensor.is_cpu else tensor.is_cuda and native_available("cuda")


def is_exporting() -> bool:
    """Return whether the call is recorded by torch.export, torch.jit.trace or an exporter to ONNX:
    for use without fastmlp, so that the reference is what has to run."""
    return _is_tracing() or torch.compiler.is_exporting()


# torch.compiler.assume_constant_result without its import of the whole compiler: torch.export,
# which has compiled code made as well, makes its own.
is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unsupported_reason(device: str) -> str:
    """Return why a device type has no compiled kernels, and what to do about it."""
    if NATIVE_ERROR is not None:
        return (
            f"the compiled extension could not be loaded ({NATIVE_ERROR}), so run "
            "'pip install -e .' in the repository to build it"
        )
    why = f" ({load_error(device)})" if device == "cuda" else ""
    others = ", ".join(name for name in NATIVE_DEVICES if name != device)
    return f"this build has no kernels for {device}, only for {others}{why}"


def _check_name(backend: str | None) -> None:
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
