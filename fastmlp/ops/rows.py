"""Rows of data that networks are trained on, with their targets and weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmlp.ops.losses import loss_row
from fastmlp.ops.step_config import StepConfig


@dataclass(frozen=True)
class Rows:
    """Data to train on or to evaluate. Its tensors may be memory-mapped; they are read row by row.

    ``x`` (n, I) is float32, float64 or uint8; a network's inputs are x * scale + shift, of scalars
    or tensors (I,), computed in the wider of its dtype and x's floating-point one, from uint8 in
    float32. ``x`` may be sparse (``torch.sparse_csr``) float32 or float64, which is never made
    dense and has neither scale nor shift. ``targets`` are what the loss takes
    (:attr:`Loss.takes_labels`): labels (n,) int64 or uint8, or numbers, float32 or float64, (n, O),
    or (n,) where O = 1. ``row_weights`` (n,) and ``class_weight`` (O,) are float32 or float64.
    """

    x: Tensor
    targets: Tensor | None = None
    row_weights: Tensor | None = None
    class_weight: Tensor | None = None
    scale: Tensor | float | None = None
    shift: Tensor | float | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether x is a sparse tensor."""
        return self.x.layout == torch.sparse_csr

    def inputs(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the inputs (m, I) of these rows."""
        x = dense_rows(self.x, rows) if self.is_sparse else self.x[rows]
        wide = torch.promote_types(x.dtype, dtype) if x.is_floating_point() else torch.float32
        x = x.to(wide)
        x = x if self.scale is None else x * torch.as_tensor(self.scale).to(x.dtype)
        x = x if self.shift is None else x + torch.as_tensor(self.shift).to(x.dtype)
        return x.to(dtype)

    def native(self) -> tuple[Tensor | None, ...]:
        """Return x, columns, starts, targets, row_weights, class_weight, scale and shift as the
        operators take them."""
        targets = self.targets
        if targets is not None and targets.is_floating_point() and targets.dim() == 1:
            targets = targets[:, None]
        affine = [
            value
            if value is None
            else torch.as_tensor(value).double().expand(self.x.shape[1]).contiguous()
            for value in (self.scale, self.shift)
        ]
        weights = [
            value if value is None else value.double().contiguous()
            for value in (self.row_weights, self.class_weight)
        ]
        targets = targets if targets is None else targets.contiguous()
        rest = (targets, *weights, *affine)
        if not self.is_sparse:
            return (self.x.contiguous(), None, None, *rest)
        columns, starts = self.x.col_indices().int(), self.x.crow_indices().long()
        return (self.x.values().contiguous(), columns.contiguous(), starts.contiguous(), *rest)

    def batch_targets(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return labels (m,) or numbers (m, O) in this dtype."""
        assert self.targets is not None
        targets = self.targets[rows]
        if not targets.is_floating_point():
            return targets
        return (targets if targets.dim() == 2 else targets[:, None]).to(dtype)


def dense_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return these rows of a sparse tensor (n, I) as a dense one (m, I)."""
    starts = x.crow_indices().long()
    first, counts = starts[rows], starts[rows + 1] - starts[rows]
    to = torch.arange(len(rows)).repeat_interleave(counts)
    within = torch.arange(len(to)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    at = first.repeat_interleave(counts) + within
    dense = torch.zeros(len(rows), x.shape[1], dtype=x.dtype)
    return dense.index_put_((to, x.col_indices()[at].long()), x.values()[at], accumulate=True)


def check_rows(rows: Rows) -> None:
    """Raise TypeError or ValueError unless the tensors of the data fit each other."""
    x, count = rows.x, len(rows.x)
    if rows.is_sparse:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"sparse x must be float32 or float64, got {x.dtype}")
        if rows.scale is not None or rows.shift is not None:
            raise ValueError("sparse x must have neither scale nor shift")
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64, torch.uint8):
        raise TypeError(
            f"x must be (n, I) float32, float64 or uint8, got {tuple(x.shape)} {x.dtype}"
        )
    for name, tensor, length in (
        ("row_weights", rows.row_weights, count),
        ("class_weight", rows.class_weight, None),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dim() != 1:
            raise TypeError(f"{name} must have one dimension of float32 or float64")
        if length is not None and len(tensor) != length:
            raise ValueError(f"{name} must have {length} elements, got {len(tensor)}")
    for name, value in (("scale", rows.scale), ("shift", rows.shift)):
        if isinstance(value, Tensor) and tuple(value.shape) not in ((), (x.shape[1],)):
            raise ValueError(
                f"{name} must be a number or have shape ({x.shape[1]},), got {tuple(value.shape)}"
            )


def check_targets(rows: Rows, config: StepConfig, outputs: int) -> None:
    """Raise TypeError, ValueError or IndexError unless the targets are some for this loss and so
    many outputs."""
    targets, loss, count = rows.targets, loss_row(config.loss), len(rows.x)
    if targets is None:
        raise ValueError("targets are missing")
    if loss.takes_labels:
        if targets.dtype not in (torch.int64, torch.uint8) or tuple(targets.shape) != (count,):
            raise TypeError(
                f"targets must be labels ({count},) int64 or uint8 for {loss.name}, "
                f"got {tuple(targets.shape)} {targets.dtype}"
            )
        if count and not (int(targets.min()) >= 0 and int(targets.max()) < outputs):
            raise IndexError(
                f"targets must be labels from 0 to {outputs - 1}, got {int(targets.min())} to "
                f"{int(targets.max())}"
            )
    else:
        shapes = [(count, outputs)] + ([(count,)] if outputs == 1 else [])
        if (
            targets.dtype not in (torch.float32, torch.float64)
            or tuple(targets.shape) not in shapes
        ):
            raise TypeError(
                f"targets must be ({count}, {outputs}) float32 or float64 for {loss.name}, "
                f"got {tuple(targets.shape)} {targets.dtype}"
            )
    if rows.class_weight is not None:
        if not loss.takes_labels:
            raise ValueError(f"class_weight is for cross_entropy, not for {loss.name}")
        if len(rows.class_weight) != outputs:
            raise ValueError(
                f"class_weight must have {outputs} elements, got {len(rows.class_weight)}"
            )
