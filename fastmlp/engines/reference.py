"""Training in plain PyTorch, with none of fastmlp's kernels: what every engine is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.data.transforms import FlipShifts
from fastmlp.engines.base import copies_on_cpu
from fastmlp.engines.optimizers import OPTIMIZERS, OptimizerConfig
from fastmlp.engines.stepwise import StepEngine


def mlp_ref(parameters: Sequence[Tensor], x: Tensor, autocast: bool = False) -> Tensor:
    """Logits (N, C) of a ReLU network, in the dtype of its parameters; parameters W1 (H, I), b1
    (H,), W2, b2, ..., x (N, I). With ``autocast`` the layers run under ``torch.autocast`` in
    bfloat16."""
    layers = list(zip(parameters[0::2], parameters[1::2], strict=True))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        for weight, bias in layers[:-1]:
            x = F.relu(F.linear(x, weight, bias))
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
    """One step on the batch x (N, I), labels (N,) int64: the mean loss, a scalar, and the logits
    (N, C), both from before the update. The parameters, which require gradients, change in place.

    ``grad_average`` divides the gradients, already means over the batch, by N once more;
    ``autocast`` is that of :func:`mlp_ref`.
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
    """One epoch of SGD, or its first ``max_steps`` steps: the losses (steps,) and how many images
    were classified correctly, each image before the step that used it.

    parameters W1 (H, I), b1 (H,), ..., of any floating-point dtype, change in place; images (n, I)
    and labels (n,) int64 are visited in ``order`` (m,) int64, in batches of ``batch_size``, the
    last one perhaps smaller. ``normalize`` maps a batch of images, uint8 say, to inputs. The
    optimiser starts without momentum.
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

    def _set_up(self) -> None:
        options, tensors = self.options, [tensor.requires_grad_() for tensor in self._tensors]
        decay = options.weight_decay
        self._optimizer: torch.optim.Optimizer
        if options.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(
                tensors,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=decay,
            )
        elif options.optimizer == "adam":
            self._optimizer = torch.optim.Adam(tensors, weight_decay=decay)
        else:
            self._optimizer = torch.optim.AdamW(tensors, weight_decay=decay)

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: OptimizerConfig | None = None,
    ) -> str | None:
        return None

    def _moved(self, images: Tensor, moves: FlipShifts) -> Tensor:
        return moves.apply(images, reference=True)

    def _step(self, x: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        self._optimizer.param_groups[0]["lr"] = lr
        average, low = self.options.grad_average, self._layers_dtype == torch.bfloat16
        return train_step_ref(self._tensors, self._optimizer, x, labels, average, low)

    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = mlp_ref(self._tensors, x, self._layers_dtype == torch.bfloat16)
        return F.cross_entropy(logits, labels, reduction="sum"), logits

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        states = {name: self._optimizer.state[p] for name, p in self._parameters.items()}
        return {
            kind: copies_on_cpu(
                {name: s[key] for name, s in states.items() if s.get(key) is not None}
            )
            for kind, key in self._keys().items()
        }

    def _load_optimizer(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._optimizer.state.clear()
        for kind, key in self._keys().items():
            for name, tensor in state[kind].items():
                parameter = self._parameters[name].detach()
                # torch.optim keeps the step on the CPU
                copy = tensor.clone() if kind == "step" else tensor.to(parameter, copy=True)
                self._optimizer.state[self._parameters[name]][key] = copy

    def _keys(self) -> dict[str, str]:
        """What ``torch.optim`` calls what it keeps."""
        kinds = OPTIMIZERS[self.options.optimizer]
        return {kind: {"momentum": "momentum_buffer"}.get(kind, kind) for kind in kinds}
