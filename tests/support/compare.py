"""The tolerance rule: an error against float64 truth of at most twice plain PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ULPS = 4
"""The floor, in units of the last place of the largest true value: what one more rounding costs."""


def assert_within_2x(
    actual: Tensor,
    torch_same_dtype: Tensor | Sequence[Tensor],
    truth: Tensor,
    scale: Tensor | None = None,
) -> None:
    """Assert ``max|actual - truth| <= 2 max|torch_same_dtype - truth| + a few ulp``.

    ``actual`` is ours, ``torch_same_dtype`` what plain PyTorch gives in the same dtype from the
    same inputs, ``truth`` what it gives in float64. nan and infinities must stand in the same
    places, but that a result may be finite where PyTorch's overflows on the way to one that fits.

    PyTorch's error is that of one order of summation, which its BLAS chose for this processor.
    Where a result has many numbers, the largest error among them hardly depends on it. Where it
    has five, as a bias has, all five may happen to round well: then twice that error is a bound
    that PyTorch itself would break on the next machine. So sums are compared with several draws
    (``support.draws``), of which the one furthest from the truth counts: one more right result
    hardly ever is twice as far off as the furthest of twelve. Large results have no more room than
    they had, as the furthest of their numbers is much the same in every draw; the factor is 2 for
    all sizes, and the floor covers one more rounding of the result itself, no more.

    In float64 PyTorch is no truer than we are, and its error against "truth" is 0: there the ulp
    are those of ``scale``, for a sum of products the sum of their magnitudes.
    """
    draws = [torch_same_dtype] if isinstance(torch_same_dtype, Tensor) else [*torch_same_dtype]
    assert actual.shape == truth.shape, f"shape {tuple(actual.shape)}, want {tuple(truth.shape)}"
    for draw in draws:
        assert draw.shape == truth.shape, f"a draw of shape {tuple(draw.shape)}"
        assert actual.dtype == draw.dtype, f"{actual.dtype}, not {draw.dtype}"
    ours, peer, truth = actual.double(), draws[0].double(), truth.double()
    assert torch.equal(ours.isnan(), peer.isnan()), "nan in other places than PyTorch's"
    infinite, too_large = peer.isinf(), truth.to(actual.dtype).isinf()
    overflown = infinite & ~too_large & ours.isfinite()  # PyTorch, on the way to a result that fits
    assert torch.equal(ours.isinf(), infinite & ~overflown), "inf in other places than PyTorch's"
    same = ours[infinite & ~overflown] == peer[infinite & ~overflown]
    assert same.all(), "inf of the other sign than PyTorch's"
    finite = ours.isfinite() & truth.isfinite()
    if not finite.any():
        return
    error = largest_error([ours[finite]], truth[finite])
    theirs = largest_error([draw.double()[finite] for draw in draws], truth[finite])
    size = truth[finite] if scale is None or actual.dtype != torch.float64 else scale
    floor = ULPS * torch.finfo(actual.dtype).eps * size.abs().max().item()
    tiny = torch.finfo(actual.dtype).smallest_normal
    assert error <= 2 * theirs + floor + tiny, (
        f"error {error:.3e} is more than twice PyTorch's {theirs:.3e} plus a floor of {floor:.1e}"
    )


def largest_error(draws: Sequence[Tensor], truth: Tensor) -> float:
    """Return the largest finite distance of any of the draws from the truth; 0 if there is none."""
    errors = torch.stack([(draw - truth).abs() for draw in draws])
    errors = errors[errors.isfinite()]
    return errors.max().item() if len(errors) else 0.0


def assert_same_gradients(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *args: Tensor
) -> None:
    """Assert that two scalar functions have the same gradients, where the arguments want one."""
    wanted = [tensor for tensor in args if tensor.requires_grad]
    mine, other = (torch.autograd.grad(f(*args), wanted) for f in (ours, theirs))
    for got, want in zip(mine, other, strict=True):
        torch.testing.assert_close(got, want)
