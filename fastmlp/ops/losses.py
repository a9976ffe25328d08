"""The losses of training as rows of a table.

``csrc/common/loss.h`` is the other half of the table: the compiled kernels, in the same order.
Outputs ``z`` (n, O) are what the last layer computes, without an activation: logits, or predictions
before :attr:`Loss.link`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossOptions:
    """What a loss takes beside outputs and targets: ``class_weight`` (O,), of the outputs' dtype,
    and ``label_smoothing`` are cross_entropy's, ``huber_delta`` is huber's."""

    class_weight: Tensor | None = None
    label_smoothing: float = 0.0
    huber_delta: float = 1.0


@dataclass(frozen=True)
class Loss:
    """One row of the table; everything else that names a loss looks it up here."""

    name: str
    takes_labels: bool
    """Targets are labels (n,), int64 or uint8; otherwise numbers (n, O) of the outputs' dtype."""
    rows: Callable[[Tensor, Tensor, LossOptions], Tensor]
    """``(z, target, options) ->`` the loss of each row, summed over its outputs, (n,)."""
    gradient: Callable[[Tensor, Tensor, LossOptions], Tensor]
    """The derivative of :attr:`rows` by z, (n, O)."""
    hits: Callable[[Tensor, Tensor], Tensor]
    """``(z, target) ->`` which rows are predicted right, (n,) bool; never in a regression."""
    link: Callable[[Tensor], Tensor]
    """What makes predictions of outputs: probabilities, or the expected target."""
    kernel: int
    """Its number in ``csrc/common/loss.h``."""


def _label_shares(z: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    """Return what each class's -log p counts for in a row's cross entropy, (n, O), as torch has it
    for class weights and label smoothing."""
    smoothing = options.label_smoothing
    shares = torch.full_like(z, smoothing / z.shape[1])
    shares.scatter_add_(1, target[:, None].long(), torch.full_like(z[:, :1], 1 - smoothing))
    return shares if options.class_weight is None else shares * options.class_weight


def _cross_entropy(z: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    return -(_label_shares(z, target, options) * z.log_softmax(1)).sum(1)


def _cross_entropy_gradient(z: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    shares = _label_shares(z, target, options)
    return shares.sum(1, keepdim=True) * z.softmax(1) - shares


def _huber(z: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    return F.huber_loss(z, target, reduction="none", delta=options.huber_delta).sum(1)


def _no_hits(z: Tensor, _target: Tensor) -> Tensor:
    return torch.zeros(len(z), dtype=torch.bool, device=z.device)


_ROWS = (
    Loss(
        "cross_entropy",
        True,
        _cross_entropy,
        _cross_entropy_gradient,
        lambda z, target: z.argmax(1) == target,
        lambda z: z.softmax(1),
        0,
    ),
    Loss(
        "binary_cross_entropy",
        False,
        lambda z, y, _: F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1),
        lambda z, y, _: torch.sigmoid(z) - y,
        lambda z, y: ((z > 0) == (y > 0.5)).all(1),
        torch.sigmoid,
        1,
    ),
    Loss(
        "squared_error",
        False,
        lambda z, y, _: (z - y).square().sum(1),
        lambda z, y, _: 2 * (z - y),
        _no_hits,
        torch.clone,
        2,
    ),
    Loss(
        "huber",
        False,
        _huber,
        lambda z, y, options: (z - y).clamp(-options.huber_delta, options.huber_delta),
        _no_hits,
        torch.clone,
        3,
    ),
    Loss(
        "poisson",
        False,
        lambda z, y, _: (z.exp() - y * z).sum(1),
        lambda z, y, _: z.exp() - y,
        _no_hits,
        torch.exp,
        4,
    ),
)
LOSSES = {row.name: row for row in _ROWS}
"""The table, by name."""


def loss_row(name: str) -> Loss:
    """Return a row of the table; raises ValueError, naming them all, for another name."""
    row = LOSSES.get(name)
    if row is None:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    return row


def row_weights_of(
    loss: Loss, target: Tensor, weights: Tensor | None, options: LossOptions, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return two factors of each row, (n,), in the dtype of ``like``: of its loss, and of its part
    in the mean. They differ in the class weight, which :attr:`Loss.rows` already has."""
    of_loss = like.new_ones(len(target)) if weights is None else weights.to(like.dtype)
    if loss.takes_labels and options.class_weight is not None:
        return of_loss, of_loss * options.class_weight[target.long()]
    return of_loss, of_loss
