"""The engine ``reference``: plain PyTorch, with none of fastmlp's kernels, which every other engine
is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.data.transforms import FlipShifts
from fastmlp.engines.base import TrainState
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.stepwise import Batch, Step, StepEngine
from fastmlp.ops.activations import row_of
from fastmlp.ops.dropout import dropout_factors


def mlp_ref(
    parameters: Sequence[Tensor],
    x: Tensor,
    autocast: bool = False,
    activation: str = "relu",
    factors: Sequence[Tensor] = (),
) -> Tensor:
    """Return the outputs (N, O) of a network, in the dtype of its parameters.

    parameters W1 (H, I), b1 (H,), W2, b2, ..., x (N, I). With ``autocast`` the layers run under
    ``torch.autocast`` in bfloat16. ``factors`` (N, H), dropout's, multiply the outputs of each
    hidden layer.
    """
    act = row_of(activation).forward
    layers = list(zip(parameters[0::2], parameters[1::2], strict=True))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        for i, (weight, bias) in enumerate(layers[:-1]):
            x = act(F.linear(x, weight, bias))
            x = x * factors[i].to(x.dtype) if factors else x
        weight, bias = layers[-1]
        return F.linear(x, weight, bias).to(weight.dtype)


def train_step_ref(
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor,
    grad_average: bool = False,
    autocast: bool = False,
) -> tuple[Tensor, Tensor]:
    """Take one step on the batch x (N, I), labels (N,) int64; return the mean loss, a scalar, and
    the logits (N, C), both from before the update.

    The parameters, which require gradients, change in place. ``grad_average`` divides the
    gradients, already means over the batch, by N once more; ``autocast`` is that of
    :func:`mlp_ref`.
    """
    with torch.enable_grad():
        logits = mlp_ref(parameters, x, autocast)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss / len(labels) if grad_average else loss)
    optimizer.step()
    return loss.detach(), logits.detach()


def train_epoch_ref(
    parameters: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    batch_size: int,
    lr: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    grad_average: bool = False,
    normalize: Callable[[Tensor], Tensor] | None = None,
    max_steps: int | None = None,
) -> tuple[Tensor, int]:
    """Train one epoch of SGD, or its first ``max_steps`` steps; return the losses (steps,) and the
    number of images classified correctly, each before the step that used it.

    parameters W1 (H, I), b1 (H,), ..., of any floating-point dtype, change in place; images (n, I)
    and labels (n,) int64 are visited in ``order`` (m,) int64, in batches of ``batch_size``, the
    last one perhaps smaller. ``normalize`` maps a batch of images, uint8 say, to inputs. The
    optimizer starts without momentum.
    """
    parameters = [parameter.requires_grad_() for parameter in parameters]
    optimizer = torch.optim.SGD(
        parameters, lr, momentum, weight_decay=weight_decay, nesterov=nesterov
    )
    losses, correct = [], 0
    for rows in torch.split(order, batch_size)[:max_steps]:
        x = images[rows] if normalize is None else normalize(images[rows])
        x, y = x.to(parameters[0].dtype), labels[rows]
        loss, logits = train_step_ref(parameters, optimizer, x, y, grad_average)
        losses.append(loss)
        correct += int((logits.argmax(1) == y).sum())
    return torch.stack(losses) if losses else parameters[0].new_empty(0), correct


class ReferenceEngine(StepEngine):
    """Plain PyTorch with autograd: slower, and what the other engines are tested against."""

    name = "reference"
    general = True

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return None: it runs everywhere."""
        return None

    @contextmanager
    def _open_epoch(self, state: TrainState, lr: float, number: int) -> Iterator[Step]:
        config = state.config
        # Leaves of their own in the same memory, so that the state's tensors need no gradients.
        leaves = {name: p.detach().requires_grad_() for name, p in state.parameters.items()}
        tensors = list(leaves.values())
        optimizer = _make_optimizer(tensors, lr, config)
        _to_optimizer(optimizer, leaves, state)

        def step(batch: Batch) -> tuple[Tensor, Tensor]:
            return _take_step(tensors, optimizer, batch, config, number)

        try:
            yield step
        finally:
            _from_optimizer(optimizer, leaves, state)

    def _evaluate_batch(
        self, state: TrainState, x: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config = state.config
        outputs = mlp_ref(state.tensors, x, state.layers_dtype == torch.bfloat16, config.activation)
        rows = _row_losses(outputs, labels, config)
        return (rows if weights is None else rows * weights).sum(), outputs

    def _augmented(self, images: Tensor, flip_shifts: FlipShifts) -> Tensor:
        return flip_shifts.apply(images, reference=True)


def _take_step(
    tensors: list[Tensor],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: OptimizerConfig,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Take a step; return the mean loss and the outputs (N, O), both from before the update."""
    x, targets, weights, number = batch
    dtype = tensors[0].dtype
    factors = [
        dropout_factors(
            (len(x), len(bias)),
            config.dropout,
            seed=config.seed,
            epoch=epoch,
            step=number,
            layer=layer,
            dtype=dtype,
        ).to(x.device)
        for layer, bias in enumerate(tensors[1:-2:2])
        if config.dropout
    ]
    with torch.enable_grad():
        autocast = config.precision == "bfloat16"
        outputs = mlp_ref(tensors, x, autocast, config.activation, factors)
        rows = _row_losses(outputs, targets, config)
        if weights is None:
            loss = rows.mean()
        else:
            total = weights.sum().to(dtype)
            loss = (rows * weights).sum() / torch.where(total == 0, torch.inf, total)
        optimizer.zero_grad()
        torch.autograd.backward(loss / len(x) if config.grad_average else loss)
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(tensors, config.clip_norm)
    optimizer.step()
    return loss.detach(), outputs.detach()


def _row_losses(outputs: Tensor, targets: Tensor, config: OptimizerConfig) -> Tensor:
    """Return the loss of each row (N,), the mean over its outputs, by ``torch.nn.functional``."""
    smoothing = config.label_smoothing
    if config.loss == "cross_entropy":
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")
    targets = targets.to(outputs.dtype)
    if config.loss == "poisson":
        return F.poisson_nll_loss(outputs, targets, reduction="none").mean(1)
    losses: dict[str, Callable[..., Tensor]] = {
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "squared_error": F.mse_loss,
        "huber": F.huber_loss,
    }
    return losses[config.loss](outputs, targets, reduction="none").mean(1)


def _make_optimizer(
    tensors: list[Tensor], lr: float, config: OptimizerConfig
) -> torch.optim.Optimizer:
    decay, betas, eps = config.weight_decay, config.betas, config.eps
    if config.optimizer == "sgd":
        momentum, nesterov = config.momentum, config.nesterov
        return torch.optim.SGD(tensors, lr, momentum, nesterov=nesterov, weight_decay=decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(tensors, lr, betas, eps, decay)
    return torch.optim.AdamW(tensors, lr, betas, eps, decay)


TORCH_NAMES = {"momentum": "momentum_buffer"}
"""The kinds in :data:`OPTIMIZERS` that have another name in ``torch.optim``."""


def _to_optimizer(
    optimizer: torch.optim.Optimizer, leaves: Mapping[str, Tensor], state: TrainState
) -> None:
    """Give the optimizer the tensors of ``state``, to change in place."""
    for kind, tensors in state.optimizer_state.items():
        for name, tensor in tensors.items():
            # torch.optim wants the step on the CPU
            value = tensor.cpu() if kind == "step" else tensor
            optimizer.state[leaves[name]][TORCH_NAMES.get(kind, kind)] = value


def _from_optimizer(
    optimizer: torch.optim.Optimizer, leaves: Mapping[str, Tensor], state: TrainState
) -> None:
    """Keep in ``state`` what the optimizer has made."""
    for kind in state.optimizer_state:
        found = {
            name: optimizer.state[leaf].get(TORCH_NAMES.get(kind, kind))
            for name, leaf in leaves.items()
        }
        state.optimizer_state[kind] = {
            name: tensor.to(leaves[name].device)
            for name, tensor in found.items()
            if tensor is not None
        }
