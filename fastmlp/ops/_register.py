"""Register what a compiled operator needs in PyTorch (fake kernel, autograd, autocast), and call it
the quickest way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmlp.ops._load import native_available

_below_autograd = torch._C._AutoDispatchBelowAutograd
_library = torch.library.Library("fastmlp", "FRAGMENT")  # type: ignore[no-untyped-call]
_AUTOCAST_KEYS = torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCPU
) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


class Operator:
    """``torch.ops.fastmlp.<name>`` with its fake kernel (``fake``), its gradient (``setup_context``
    and ``backward``, as ``torch.library.register_autograd`` takes them) and its autocast rule.

    ``autocast`` is None, "region" (floating-point arguments are cast to the active region's dtype)
    or "float32" (to float32, as PyTorch has it for losses); float64 is always left alone.

    Calling the object takes the quickest way that is right. ``torch.ops.fastmlp.<name>`` itself
    goes through torch.library's dispatch in Python, some 7 us a call with a gradient and 3 us
    without: as much as a small layer takes. Outside torch.compile and autocast, an ordinary
    ``autograd.Function`` of the same functions stands in (it serves torch.func's grad and vmap too,
    and refuses forward mode), and without a gradient the kernel is called at once.
    """

    def __init__(
        self, name: str, fake: Any, setup_context: Any, backward: Any, autocast: str | None = None
    ) -> None:
        self._plain, self._transformable = _make_functions(self, setup_context, backward)
        if not native_available():
            return  # there is no operator to register on or to call
        self._operator: Any = getattr(torch.ops.fastmlp, name).default
        register_fake(name, fake)
        torch.library.register_autograd(
            f"fastmlp::{name}", backward, setup_context=setup_context, lib=_library
        )
        for key in ("AutocastCPU", "AutocastCUDA") if autocast else ():
            kernel = _make_autocast(self._operator, autocast == "float32")
            _library.impl(name, kernel, key, with_keyset=True)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(args[0].device.type):
            return self._operator(*args)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return self._transformable.apply(*args)  # type: ignore[no-untyped-call]
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    return self._plain.apply(*args)  # type: ignore[no-untyped-call]
        return self.kernel(*args)

    def kernel(self, *args: Any) -> Any:
        """Call the operator without autograd."""
        with _below_autograd():
            return self._operator(*args)


def _make_functions(
    operator: Operator, setup: Any, backward: Any
) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
    """Return the gradient twice: for plain autograd, and in the form that torch.func asks for,
    whose calls take 7 us longer."""

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = operator.kernel(*args)
            setup(ctx, args, output)
            return output

    class Transformable(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return operator.kernel(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup(ctx, inputs, output)

    for function in (Plain, Transformable):
        function.backward = staticmethod(backward)  # type: ignore[assignment]
    return Plain, Transformable


def register_fake(name: str, fake: Any) -> None:
    """Give ``torch.ops.fastmlp.<name>`` a fake kernel that checks devices first, since eager
    dispatch does not where meta tensors are mixed with real ones."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        devices = {str(arg.device) for arg in args if isinstance(arg, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(
                f"fastmlp::{name} wants all tensors on one device, got {', '.join(sorted(devices))}"
            )
        return fake(*args, **kwargs)

    torch.library.register_fake(f"fastmlp::{name}", checked, lib=_library)


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
