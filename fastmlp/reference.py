"""The pure-PyTorch twin of every operator: the truth that compiled kernels are tested against.

Each ``<op>_ref`` has the signature of ``<op>`` in :mod:`fastmlp.ops`. Forward functions are
PyTorch's own; backward functions are written out, to be read beside the kernels. They run on any
device and in any floating-point dtype, and autograd goes through them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``y = act(x @ weight.T + bias)``; x (..., I), weight (O, I), bias (O,) -> y (..., O).

    As ``torch.nn.functional.linear``, followed by ``relu`` where ``activation="relu"``.
    """
    y = F.linear(x, weight, bias)
    return F.relu(y) if activation == "relu" else y


def linear_backward_ref(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dw, db) of :func:`linear_ref`; those not asked for are None.

    dy (..., O), x (..., I), weight (O, I). ``y`` (..., O), the output, is given where the
    activation was ReLU: the gradient passes where y is not <= 0 (so nan passes it).

        g = dy * [y > 0],   dx = g @ weight,   dw = g.T @ x,   db = sum over rows of g
    """
    g = dy if y is None else relu_backward_ref(dy, y)
    dx = g @ weight if output_mask[0] else None
    rows, inputs = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (g, x))
    dw = rows.t() @ inputs if output_mask[1] else None
    db = rows.sum(0) if output_mask[2] else None
    return dx, dw, db


def relu_ref(x: Tensor) -> Tensor:
    """``max(x, 0)`` elementwise, any shape; relu(nan) is nan. As ``torch.nn.functional.relu``."""
    return F.relu(x)


def relu_backward_ref(dy: Tensor, y: Tensor) -> Tensor:
    """``dx = 0 where y <= 0, else dy``; ``y`` is relu's output or, equally, its input."""
    return torch.where(y <= 0, torch.zeros_like(dy), dy)


def softmax_xent_ref(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of softmax(logits) against class indices; ``F.cross_entropy`` itself.

    logits (N, C), target (N,) int64 or uint8, weight (C,) -> scalar, or (N,) for ``"none"``.
    """
    return F.cross_entropy(
        logits,
        target,
        weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def softmax_xent_backward_ref(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dlogits (N, C) of :func:`softmax_xent_ref`; dloss is a scalar, or (N,) for ``"none"``.

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
    hot = F.one_hot(t, classes).to(logits.dtype)
    w_t = w[t]
    q = (1 - label_smoothing) * w_t[:, None] * hot + label_smoothing / classes * w
    dlogits = q.sum(1, keepdim=True) * torch.softmax(logits, 1) - q
    if reduction == "mean":
        dloss = dloss / (w_t * kept).sum()
    dlogits = dlogits * (dloss[:, None] if reduction == "none" else dloss)
    # last, so that the 0 of an ignored row outlives a division by 0 where every row is ignored
    return torch.where(kept[:, None], dlogits, torch.zeros_like(dlogits))
