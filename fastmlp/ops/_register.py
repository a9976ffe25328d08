"""Register what a compiled operator needs in PyTorch (fake kernel, derivatives, batching and
autocast rules), and call it the quickest way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._library.utils import fill_defaults
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils.flop_counter import register_flop_formula

from fastmlp.ops._load import native_available

_below_autograd = torch._C._AutoDispatchBelowAutograd
_library = torch.library.Library("fastmlp", "FRAGMENT")  # type: ignore[no-untyped-call]
_AUTOCAST_KEYS = torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCPU
) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


class Operator:
    """``torch.ops.fastmlp.<name>`` with its fake kernel (``fake``), derivatives and autocast rule.

    ``check`` raises where the arguments' shapes, dtypes and options do not fit, as the compiled
    kernels do, before any of the others sees them. ``composition`` computes the same by
    differentiable operators of PyTorch. It stands in under ``torch.vmap``, where a forward-mode
    derivative is asked for, and, for an operator without ``backward``, where a gradient is.
    ``setup_context`` and ``backward`` are the gradient, as ``torch.library.register_autograd``
    takes them. ``autocast`` is None, "region" (floating-point arguments are cast to the active
    region's dtype) or "float32" (as PyTorch has it for losses); float64 is always left alone.
    ``flops`` counts from the arguments, tensors given as shapes.

    Calling the object takes the quickest way that is right: torch's dispatch into Python costs some
    7 us a call with a gradient and 3 us without, as much as a small layer. Where no transform, no
    compiler and no autocast is at work it is left out.
    """

    def __init__(
        self,
        name: str,
        check: Callable[..., None],
        fake: Callable[..., Any],
        composition: Callable[..., Any],
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        *,
        autocast: str | None = None,
        flops: Callable[..., int] | None = None,
    ) -> None:
        def checked(*args: Any) -> Any:
            check(*args)
            return composition(*args)

        self._composition = checked
        self._gradient = None
        if setup_context is not None and backward is not None:
            self._gradient = _make_function(self, setup_context, backward)
        if not native_available():
            return  # there is no operator to register on or to call
        packet = getattr(torch.ops.fastmlp, name)
        self._operator: Any = packet.default
        register_fake(name, fake, check)
        _implement(name, self._autograd_kernel, "Autograd")
        _implement(name, lambda _keyset, *args: checked(*args), "FuncTorchBatched")
        for key in ("AutocastCPU", "AutocastCUDA") if autocast else ():
            _implement(name, _make_autocast(self._operator, autocast == "float32"), key)
        if flops is not None:
            register_flop_formula(packet)(flops)

    def __call__(self, *args: Any) -> Any:
        return self._operator(*args) if is_transformed() else self._with_gradient(*args)

    def kernel(self, *args: Any) -> Any:
        """Call the operator without autograd."""
        with _below_autograd():
            return self._operator(*args)

    def _with_gradient(self, *args: Any) -> Any:
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor):
                    needed = arg.requires_grad
                else:
                    needed = isinstance(arg, list) and any(map(_requires_grad, arg))
                if needed:
                    if self._gradient is None:
                        return self._composition(*args)
                    return self._gradient.apply(*args)
        return self.kernel(*args)

    def _autograd_kernel(self, _keyset: Any, *args: Any) -> Any:
        # The dispatcher leaves out arguments that have their default values.
        args, _ = fill_defaults(self._operator._schema, args, {})  # type: ignore[no-untyped-call]
        if any(_has_tangent(each) for arg in args for each in _flat(arg)):
            return self._composition(*args)
        with enable_single_level_autograd_function():  # torch.func calls this for each level
            return self._with_gradient(*args)


def is_transformed() -> bool:
    """Return whether a compiler, autocast, torch.func or forward-mode differentiation is at work,
    which torch's dispatch has to see."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _make_function(operator: Operator, setup: Any, backward: Any) -> Any:
    """Return the gradient of one level of autograd; torch.func stacks the levels itself."""

    class Gradient(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            if torch._C._are_functorch_transforms_active():
                # Outer levels record what happens in here.
                with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                    output = operator.kernel(*args)
            else:
                output = operator.kernel(*args)
            setup(ctx, args, output)
            return output

    Gradient.backward = staticmethod(backward)  # type: ignore[assignment, method-assign]
    return Gradient


def is_asked_for(ctx: Any, index: int) -> bool:
    """Return whether the backward pass under way wants the gradient of an input: ``autograd.grad``
    may have been asked for others alone, which ``needs_input_grad`` does not tell."""
    if not ctx.needs_input_grad[index]:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[index][0]))
    except (AttributeError, RuntimeError):  # under torch.func, or a leaf in autograd.grad
        return True


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_tangent(value: Any) -> bool:
    # Not forward_ad.unpack_dual: while torch.compile traces, Python does not know of the level.
    return isinstance(value, Tensor) and torch._VF._unpack_dual(value, level=0)[1] is not None


def _implement(name: str, kernel: Any, key: str) -> None:
    _library.impl(name, kernel, key, with_keyset=True)  # type: ignore[no-untyped-call]


def register_fake(name: str, fake: Any, check: Callable[..., None] | None = None) -> None:
    """Give ``torch.ops.fastmlp.<name>`` a fake kernel behind ``check``.

    Devices are checked first, since eager dispatch does not where meta tensors are mixed with real
    ones, and tensors, since it takes None for one.
    """
    schema = getattr(torch.ops.fastmlp, name).default._schema.arguments
    tensors = [isinstance(arg.type, torch.TensorType) for arg in schema]

    def checked(*args: Any, **kwargs: Any) -> Any:
        for arg, value, is_tensor in zip(schema, args, tensors, strict=False):
            if is_tensor and value is None:
                raise TypeError(f"{arg.name} must be a tensor, got None")
        lists = [arg if isinstance(arg, (list, tuple)) else [arg] for arg in args]
        devices = {str(arg.device) for some in lists for arg in some if isinstance(arg, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(
                f"fastmlp::{name} wants all tensors on one device, got {', '.join(sorted(devices))}"
            )
        if check is not None:
            check(*args, **kwargs)
        return fake(*args, **kwargs)

    torch.library.register_fake(f"fastmlp::{name}", checked, lib=_library)


def refuse_meta(name: str, why: str) -> None:
    """Make ``torch.ops.fastmlp.<name>`` raise NotImplementedError on meta tensors: what it returns
    follows from their numbers."""

    def refused(_keyset: Any, *_args: Any) -> Any:
        raise NotImplementedError(f"fastmlp::{name} cannot run on meta tensors: {why}")

    _implement(name, refused, "Meta")


def _make_autocast(operator: Any, to_float32: bool) -> Any:
    """Return a kernel for the autocast keys, which casts and continues with autograd."""

    def kernel(_keyset: Any, *args: Any) -> Any:
        dtype = torch.float32 if to_float32 else torch.get_autocast_dtype(args[0].device.type)

        def cast(value: Any) -> Any:
            eligible = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if eligible and value.dtype != torch.float64 else value

        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return operator(*[cast(arg) for arg in args])

    return kernel
