"""The tolerance rule: an error against float64 truth of at most twice plain PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ULPS = 4
"""The floor, in units of the last place of the largest true value: what one more rounding costs."""


def assert_within_2x(
    actual: Tensor, torch_same_dtype: Tensor, truth: Tensor, scale: Tensor | None = None
) -> None:
    """Asserts ``max|actual - truth| <= 2 max|torch_same_dtype - truth| + a few ulp``.

    ``actual`` is ours, ``torch_same_dtype`` what plain PyTorch gives in the same dtype from the
    same inputs, ``truth`` what it gives in float64. nan and infinities must stand in the same
    places. In float64 itself PyTorch is no truer than we are, and its error against "truth" is 0:
    there the ulp are those of ``scale``, for a sum of products the sum of their magnitudes.
    """
    assert actual.shape == truth.shape, f"shape {tuple(actual.shape)}, want {tuple(truth.shape)}"
    assert actual.dtype == torch_same_dtype.dtype, f"{actual.dtype}, not {torch_same_dtype.dtype}"
    ours, theirs, truth = actual.double(), torch_same_dtype.double(), truth.double()
    assert torch.equal(ours.isnan(), theirs.isnan()), "nan in other places than PyTorch's"
    infinite = theirs.isinf()
    assert torch.equal(ours.isinf(), infinite), "inf in other places than PyTorch's"
    assert torch.equal(ours[infinite], theirs[infinite]), "inf of the other sign than PyTorch's"
    finite = theirs.isfinite() & truth.isfinite()
    if not finite.any():
        return
    ours, theirs, truth = ours[finite], theirs[finite], truth[finite]
    error, peer = (ours - truth).abs().max().item(), (theirs - truth).abs().max().item()
    size = truth if scale is None or actual.dtype != torch.float64 else scale
    floor = ULPS * torch.finfo(actual.dtype).eps * size.abs().max().item()
    tiny = torch.finfo(actual.dtype).smallest_normal
    assert error <= 2 * peer + floor + tiny, (
        f"error {error:.3e} is more than twice PyTorch's {peer:.3e} plus a floor of {floor:.1e}"
    )


def assert_same_gradients(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *args: Tensor
) -> None:
    """Of two scalar functions, for the arguments that require one."""
    wanted = [tensor for tensor in args if tensor.requires_grad]
    mine, other = (torch.autograd.grad(f(*args), wanted) for f in (ours, theirs))
    for got, want in zip(mine, other, strict=True):
        torch.testing.assert_close(got, want)
