"""Softmax cross entropy and its derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._register import Operator
from fastmlp.ops.checks import check_floating, check_same_dtype, check_shape

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # as at::Reduction numbers them
_REDUCTION_NAMES = list(REDUCTIONS)


def check_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    """Raise TypeError or ValueError, in one sentence, unless the arguments fit
    :func:`cross_entropy`."""
    check_floating("logits", logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    probabilities = target.is_floating_point()
    if not probabilities and target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(
            f"target must hold class indices as int64 or uint8, got {target.dtype}; convert it "
            "with .long(), or with .float() where it holds probabilities of logits' shape"
        )
    if logits.dim() == 0:
        raise ValueError("logits must have shape (C,) or (N, C, ...), got a scalar")
    want = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else torch.Size()
    want = logits.shape if probabilities else want
    if target.shape != want:
        raise ValueError(
            f"target must have shape {tuple(want)} to fit logits {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}"
        )
    if probabilities and ignore_index >= 0:
        raise ValueError(
            f"ignore_index must not be given with probabilities as target, got {ignore_index}; "
            "give the rows to ignore probabilities of 0"
        )
    if target.device != logits.device:
        raise ValueError(f"target must be on {logits.device} like logits, got {target.device}")
    if weight is not None:
        check_same_dtype("weight", weight, "logits", logits)
        classes = logits.shape[1 if logits.dim() > 1 else 0]
        if weight.dim() != 1 or weight.shape[0] != classes:
            raise ValueError(f"weight must have shape ({classes},), got {tuple(weight.shape)}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError("weight cannot require a gradient, as in PyTorch; use weight.detach()")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of softmax(logits); shapes as :func:`fastmlp.functional.cross_entropy`.

    Raises IndexError (CPU; compiled by torch.compile, a RuntimeError) on a label that is no class;
    on CUDA that row's loss becomes nan.
    """
    shape = target.shape
    if logits.dim() != 2:  # (C,) is a batch of one, (N, C, d1, ...) one of N * d1 * ... rows
        logits = logits.movedim(1, -1) if logits.dim() > 2 else logits
        target = target.reshape(-1)
        logits = logits.reshape(target.shape[0], logits.shape[-1])
    loss = _checked_cross_entropy(
        logits, target, weight, REDUCTIONS[reduction], ignore_index, label_smoothing
    )[0]
    return loss.reshape(shape) if reduction == "none" else loss


def _checked_cross_entropy(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    try:
        result: tuple[Tensor, Tensor, Tensor] = _cross_entropy_op(*args)
    except RuntimeError as error:  # the stable ABI has no other kind
        if "is out of bounds" in str(error):
            raise IndexError(str(error).splitlines()[0]) from None
        raise
    return result


def cross_entropy_with_grad(
    logits: Tensor, target: Tensor, dloss: Tensor | None = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Return the mean loss () and its gradient (N, C) at once, for training loops without autograd.
    ``dloss`` () multiplies the gradient; None is 1."""
    options = None, REDUCTIONS["mean"], ignore_index
    loss, stats, total = _checked_cross_entropy(logits, target, *options)
    dloss = torch.ones_like(loss) if dloss is None else dloss
    return loss, _cross_entropy_backward_op(dloss, logits, target, stats, total, *options)


def _check_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> None:
    """Raise unless the arguments fit the operator, which takes (N, C) and class indices only."""
    if not 0 <= reduction < len(_REDUCTION_NAMES):
        raise ValueError(f"reduction must be 0, 1 or 2, got {reduction}")
    if logits.dim() != 2 or target.is_floating_point():
        raise ValueError(
            f"logits must have shape (N, C) and target class indices (N,), got {logits.dim()} "
            f"dimensions and {target.dtype}"
        )
    fixed = None if weight is None else weight.detach()
    check_cross_entropy(logits, target, fixed, _REDUCTION_NAMES[reduction], -100, label_smoothing)


def _stats_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _cross_entropy_fake(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _stats_dtype(logits)
    loss = logits.new_empty(target.shape if reduction == REDUCTIONS["none"] else ())
    stats = logits.new_empty((logits.shape[0], 2), dtype=dtype)
    return loss, stats, logits.new_empty((), dtype=dtype)


def _cross_entropy_composition(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """As cross_entropy_ref, of operators that torch.vmap takes."""
    target = target.long()
    kept = target != ignore_index
    t = torch.where(kept, target, 0)
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    log_p = logits.log_softmax(1)
    loss = (label_smoothing - 1) * w[t] * log_p.gather(1, t[:, None])[:, 0]
    if label_smoothing > 0:
        loss = loss - label_smoothing / logits.shape[1] * (w * log_p).sum(1)
    loss = torch.where(kept, loss, torch.zeros_like(loss))
    if reduction != REDUCTIONS["none"]:
        loss = loss.sum()
    if reduction == REDUCTIONS["mean"]:
        loss = loss / _total_weight(logits, target, weight, ignore_index)
    stats_dtype = _stats_dtype(logits)
    rows = logits.detach().to(stats_dtype)
    most = rows.amax(1)
    stats = torch.stack([most, (rows - most[:, None]).exp().sum(1).log()], 1)
    return loss, stats, _total_weight(rows, target, weight, ignore_index).to(stats_dtype)


def _cross_entropy_setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    logits, target, weight, *ctx.options = inputs  # all six, defaults filled in
    _, stats, total_weight = output
    ctx.save_for_backward(logits, target, stats, total_weight, weight)
    ctx.mark_non_differentiable(stats, total_weight)


def _cross_entropy_backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dlogits = _cross_entropy_backward_op(dloss, *ctx.saved_tensors, *ctx.options)
    return dlogits, None, None, None, None, None


_cross_entropy_op = Operator(
    "cross_entropy",
    _check_cross_entropy,
    _cross_entropy_fake,
    _cross_entropy_composition,
    _cross_entropy_setup_context,
    _cross_entropy_backward,
    autocast="float32",
)


def _check_cross_entropy_backward(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    total_weight: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    *options: Any,
) -> None:
    _check_cross_entropy(logits, target, weight, reduction, *options)
    check_same_dtype("dloss", dloss, "logits", logits)
    check_shape("dloss", dloss, target.shape if reduction == REDUCTIONS["none"] else (), "target")
    check_shape("stats", stats, (logits.shape[0], 2), "logits")
    if (
        not stats.is_contiguous()
        or total_weight.numel() != 1
        or {stats.dtype, total_weight.dtype} != {_stats_dtype(logits)}
    ):
        raise ValueError("stats and total_weight must be those that cross_entropy returned")


def _cross_entropy_backward_fake(dloss: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _cross_entropy_backward_composition(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    total_weight: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    return cross_entropy_backward_ref(
        dloss, logits, target, weight, _REDUCTION_NAMES[reduction], ignore_index, label_smoothing
    )


_cross_entropy_backward_op = Operator(
    "cross_entropy_backward",
    _check_cross_entropy_backward,
    _cross_entropy_backward_fake,
    _cross_entropy_backward_composition,
)


def cross_entropy_ref(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of softmax(logits) against class indices or probabilities;
    ``F.cross_entropy`` itself.

    logits (N, C), target (N,) int64 or uint8, or probabilities (N, C), weight (C,) -> scalar, or
    (N,) for ``"none"``.
    """
    return F.cross_entropy(
        logits,
        target,
        weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def cross_entropy_backward_ref(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dlogits (N, C) of :func:`cross_entropy_ref`; dloss is a scalar, or (N,) for ``"none"``.

    With p = softmax(logits), w the class weights, s the smoothing and t the target of a row,

        loss = (1-s) w_t (-log p_t) + (s/C) sum_c w_c (-log p_c)
        dlogits_j = dloss * [ ((1-s) w_t + (s/C) sum_c w_c) p_j - (1-s) w_t [j=t] - (s/C) w_j ]

    ignored rows give 0, and ``"mean"`` divides by the sum of w_t over the rows that count.
    """
    classes = logits.shape[1]
    w = logits.new_ones(classes) if weight is None else weight
    target = target.long()  # as uint8, a label of 156 would equal an ignore_index of -100
    kept = target != ignore_index
    t = torch.where(kept, target, 0)
    hot = (t[:, None] == torch.arange(classes, device=t.device)).to(logits.dtype)
    w_t = w[t]
    q = (1 - label_smoothing) * w_t[:, None] * hot + label_smoothing / classes * w
    logits = torch.where(kept[:, None], logits, torch.zeros_like(logits))
    dlogits = q.sum(1, keepdim=True) * torch.softmax(logits, 1) - q
    if reduction == "mean":
        dloss = dloss / _total_weight(logits, target, weight, ignore_index)
    dlogits = dlogits * (dloss[:, None] if reduction == "none" else dloss)
    # last, so that the 0 of an ignored row outlives a division by 0 where every row is ignored
    return torch.where(kept[:, None], dlogits, torch.zeros_like(dlogits))


def _total_weight(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> Tensor:
    """Return what "mean" divides by: the sum of the targets' class weights."""
    target = target.long()
    kept = target != ignore_index
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    return (w[torch.where(kept, target, 0)] * kept).sum()
