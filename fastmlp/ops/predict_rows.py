"""The operators ``predict_rows`` and ``evaluate_rows``: a trained network on many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.ops._load import native_available, resolve_backend
from fastmlp.ops._register import refuse_meta, register_fake
from fastmlp.ops.activations import row_of
from fastmlp.ops.losses import LossOptions, loss_row, row_weights_of
from fastmlp.ops.rows import Rows, check_rows, check_targets
from fastmlp.ops.step_config import StepConfig, check_parameters, options_of
from fastmlp.ops.train_steps import forward_ref, has_kernels

CHUNK = 4096
"""Rows that the reference computes at once."""


class Evaluation(NamedTuple):
    """Sums over rows: ``loss`` of their weighted losses, ``weight`` of their weights (the mean loss
    is loss / weight) and ``correct``, how many are predicted right, of ``rows``."""

    loss: float
    weight: float
    correct: int
    rows: int


def predict_rows(
    parameters: Sequence[Tensor],
    x: Tensor,
    *,
    activation: str = "relu",
    rows: Tensor | None = None,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return the outputs (n, O), in the parameters' dtype, for all rows of x or those of ``rows``
    (n,) int64; :class:`~fastmlp.ops.train_steps.Rows` describes the data. For probabilities or
    expected targets, apply the loss's ``link``.
    """
    data = Rows(x, scale=scale, shift=shift)
    check_rows(data)
    check_parameters(parameters, x.shape[1])
    rows = _checked(rows, x)
    native = resolve_backend(backend, "cpu") == "native"
    if not native or not has_kernels(parameters, data, activation):
        return predict_rows_ref(parameters, data, rows, activation)
    features, columns, starts, _, _, _, *affine = data.native()
    kernel = row_of(activation).kernel
    outputs: Tensor = torch.ops.fastmlp.predict_rows(
        features, columns, starts, *affine, rows, list(parameters), kernel
    )
    return outputs


def evaluate_rows(
    parameters: Sequence[Tensor],
    x: Tensor,
    targets: Tensor,
    config: StepConfig,
    *,
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
    class_weight: Tensor | None = None,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    backend: str | None = None,
) -> Evaluation:
    """Return the loss, as ``config`` has it but without dropout, and the hits of a network on all
    rows or on those of ``rows``."""
    data = Rows(x, targets, row_weights, class_weight, scale, shift)
    check_rows(data)
    check_parameters(parameters, x.shape[1])
    check_targets(data, config, len(parameters[-1]))
    rows = _checked(rows, x)
    native = resolve_backend(backend, "cpu") == "native"
    if not native or not has_kernels(parameters, data, config.activation):
        return evaluate_rows_ref(parameters, data, rows, config)
    options = torch.tensor(options_of(config), dtype=torch.float64)
    loss, weight, correct = torch.ops.fastmlp.evaluate_rows(
        *data.native(), rows, list(parameters), options
    )
    return Evaluation(loss, weight, correct, len(rows))


def _checked(rows: Tensor | None, x: Tensor) -> Tensor:
    """Return the numbers of the rows; raises TypeError or IndexError unless x has them."""
    if rows is None:
        return torch.arange(len(x))
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"rows must be (n,) int64, got {tuple(rows.shape)} {rows.dtype}")
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(x)):
        raise IndexError(f"rows must be rows of x, 0 to {len(x) - 1}")
    return rows.contiguous()


def predict_rows_ref(
    parameters: Sequence[Tensor], data: Rows, rows: Tensor, activation: str
) -> Tensor:
    """Predict in plain PyTorch."""
    dtype = parameters[0].dtype
    outputs = [
        forward_ref(parameters, data.inputs(chunk, dtype), activation)[0]
        for chunk in torch.split(rows, CHUNK)
    ]
    return torch.cat(outputs)


def evaluate_rows_ref(
    parameters: Sequence[Tensor], data: Rows, rows: Tensor, config: StepConfig
) -> Evaluation:
    """Evaluate in plain PyTorch."""
    loss, dtype = loss_row(config.loss), parameters[0].dtype
    weight = None if data.class_weight is None else data.class_weight.to(dtype)
    options = LossOptions(weight, config.label_smoothing, config.huber_delta)
    total, weights, correct = 0.0, 0.0, 0
    for chunk in torch.split(rows, CHUNK):
        z = forward_ref(parameters, data.inputs(chunk, dtype), config.activation)[0]
        target = data.batch_targets(chunk, dtype)
        given = None if data.row_weights is None else data.row_weights[chunk]
        of_loss, of_mean = row_weights_of(loss, target, given, options, z)
        total += float((loss.rows(z, target, options) * of_loss).double().sum())
        weights += float(of_mean.double().sum())
        correct += int(loss.hits(z, target).sum())
    return Evaluation(total * config.loss_scale, weights, correct, len(rows))


def _predict_rows_fake(x: Tensor, *args: Any) -> Tensor:
    rows, parameters = args[4], args[5]
    if not parameters or rows.dim() != 1 or parameters[-1].dim() != 1:
        raise ValueError("fastmlp::predict_rows wants rows (m,) and a weight and a bias per layer")
    outputs: Tensor = parameters[0].new_empty(len(rows), len(parameters[-1]))
    return outputs


if native_available():
    register_fake("predict_rows", _predict_rows_fake)
    refuse_meta("evaluate_rows", "it returns numbers, which they do not have")
