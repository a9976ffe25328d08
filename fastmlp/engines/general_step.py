"""The gradients of a step with any loss, activation and option, in PyTorch's operators.

Nothing here waits for the device, so that the steps can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.ops.dropout import factors_of_rows
from fastmlp.ops.losses import LossOptions, loss_row
from fastmlp.ops.train_steps import backward_ref, forward_ref


def step_gradients(
    tensors: Sequence[Tensor],
    x: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    factors: Sequence[Tensor],
    config: OptimizerConfig,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the mean loss, the outputs (N, O) and the gradients of all parameters, clipped.

    x (N, I), in whose dtype the layers compute; targets as the loss takes them; ``weights`` (N,)
    of the rows; ``factors``, dropout's, of each hidden layer. A batch whose weights sum to 0 has
    the loss 0.
    """
    dtype = tensors[0].dtype
    layers = [tensor.to(x.dtype) for tensor in tensors]
    factors = [factor.to(x.dtype) for factor in factors]
    outputs, saved, inputs = forward_ref(layers, x, config.activation, factors)
    outputs = outputs.to(dtype)
    loss, options = loss_row(config.loss), LossOptions(label_smoothing=config.label_smoothing)
    targets = targets if loss.takes_labels else targets.to(dtype)
    shares = outputs.new_full((len(x),), 1 / len(x))  # of the rows, in the mean
    if weights is not None:
        weights = weights.to(dtype)
        total = weights.sum()
        shares = weights / total.masked_fill(total == 0, torch.inf)
    shares = shares * config.step_config(outputs.shape[1]).loss_scale
    mean = (loss.rows(outputs, targets, options) * shares).sum()
    shares = shares / len(x) if config.grad_average else shares
    g = (loss.gradient(outputs, targets, options) * shares[:, None]).to(x.dtype)
    gradients = backward_ref(layers, g, saved, inputs, config.activation, factors)
    return mean, outputs, _clipped([each.to(dtype) for each in gradients], config.clip_norm)


def summed_loss(
    tensors: Sequence[Tensor],
    x: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    config: OptimizerConfig,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the rows' losses times their weights, without dropout, and the outputs."""
    layers, dtype = [tensor.to(x.dtype) for tensor in tensors], tensors[0].dtype
    outputs = forward_ref(layers, x, config.activation)[0].to(dtype)
    loss, options = loss_row(config.loss), LossOptions(label_smoothing=config.label_smoothing)
    targets = targets if loss.takes_labels else targets.to(dtype)
    rows = loss.rows(outputs, targets, options)
    rows = rows if weights is None else rows * weights.to(dtype)
    return rows.sum() * config.step_config(outputs.shape[1]).loss_scale, outputs


def chunk_factors(
    tensors: Sequence[Tensor],
    steps: int,
    batch: int,
    first_step: Tensor,
    epoch: Tensor,
    *,
    dropout: float,
    seed: int,
) -> list[list[Tensor]]:
    """Return dropout's factors of each of ``steps`` steps from ``first_step`` on, of each hidden
    layer; ``first_step`` and ``epoch`` are int64 scalars on the device."""
    if not dropout:
        return [[] for _ in range(steps)]
    device = tensors[0].device
    rows = torch.arange(batch, device=device).repeat(steps)
    numbers = (torch.arange(steps, device=device) + first_step).repeat_interleave(batch)
    of_layers = [
        torch.split(
            factors_of_rows(
                *(rows, numbers, epoch, len(bias), dropout),
                seed=seed,
                layer=layer,
                dtype=tensors[0].dtype,
            ),
            batch,
        )
        for layer, bias in enumerate(tensors[1:-2:2])
    ]
    return [[of_layer[step] for of_layer in of_layers] for step in range(steps)]


def _clipped(gradients: list[Tensor], most: float) -> list[Tensor]:
    """Return the gradients, scaled so that the norm of all together is at most this, as
    ``torch.nn.utils.clip_grad_norm_`` does; 0 leaves them."""
    if not most:
        return gradients
    norm = torch.nn.utils.get_total_norm(gradients)
    return list(torch._foreach_mul(gradients, torch.clamp(most / (norm + 1e-6), max=1.0)))
