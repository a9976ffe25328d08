"""The engine ``eager``: fastmlp's operators called one by one, without autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.base import TrainState
from fastmlp.engines.optimizers import OptimizerConfig, update_
from fastmlp.engines.stepwise import Batch, Step, StepEngine
from fastmlp.ops._load import load_error, native_available
from fastmlp.ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from fastmlp.ops.linear import linear, linear_backward


class EagerEngine(StepEngine):
    """fastmlp's compiled operators, one by one, the backward pass by hand; CPU and CUDA."""

    name = "eager"

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        super().__init__(train, normalization, device)
        self._loss_gradients: dict[tuple[int, torch.dtype], Tensor] = {}

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return why the kernels cannot run on the device or with these settings, None where they
        can."""
        if config is not None and config.beyond_plain:
            return f"it does not have {config.beyond_plain}"
        if native_available(device.type):
            return None
        error = load_error("cuda" if device.type == "cuda" else "cpu")
        why = f" ({error})" if error else ""
        return f"there are no compiled kernels for {device.type}{why}"

    @contextmanager
    def _open_epoch(self, state: TrainState, lr: float, number: int) -> Iterator[Step]:
        tensors, optimizer_state = state.tensors, state.ensure_optimizer_state()
        config = state.config

        def step(batch: Batch) -> tuple[Tensor, Tensor]:
            loss, logits, gradients = self._gradients(
                tensors, batch.x, batch.targets, config.grad_average
            )
            update_(tensors, gradients, optimizer_state, lr, config)
            return loss, logits

        yield step

    def _evaluate_batch(
        self, state: TrainState, x: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if weights is not None:
            raise ValueError("the engine has no weights of samples")
        logits = _forward(x, _cast(state.tensors, x.dtype))[-1].to(state.dtype)
        return cross_entropy(logits, labels, None, "sum"), logits

    def _gradients(
        self, tensors: list[Tensor], x: Tensor, labels: Tensor, grad_average: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the mean loss, the logits and the gradients of all parameters, the latter two in
        their dtype; the layers compute in that of ``x``."""
        layers, dtype = _cast(tensors, x.dtype), tensors[0].dtype
        activations = _forward(x, layers)
        logits = activations.pop().to(dtype)
        # Every gradient is linear in that of the loss.
        dloss = self._loss_gradient(len(labels) if grad_average else 1, dtype)
        loss, dlogits = cross_entropy_with_grad(logits, labels, dloss)
        gradients = _backward(dlogits.to(x.dtype), activations, layers)
        if x.dtype != dtype:
            gradients = [gradient.to(dtype) for gradient in gradients]
        return loss, logits, gradients

    def _loss_gradient(self, divisor: int, dtype: torch.dtype) -> Tensor:
        """Return 1 / divisor as a scalar on the device, made once."""
        key = divisor, dtype
        if key not in self._loss_gradients:
            scalar = torch.full((), 1 / divisor, dtype=dtype, device=self.device)
            self._loss_gradients[key] = scalar
        return self._loss_gradients[key]


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the parameters as the layers take them."""
    if dtype == tensors[0].dtype:
        return tensors
    return [tensor.to(dtype) for tensor in tensors]


def _forward(x: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return the input of every layer, and the logits last."""
    activations = [x]
    for i in range(0, len(tensors) - 2, 2):
        activations.append(linear(activations[-1], tensors[i], tensors[i + 1], "relu"))
    activations.append(linear(activations[-1], tensors[-2], tensors[-1], "none"))
    return activations


def _backward(dlogits: Tensor, activations: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return the gradients of all parameters, in their order; ``activations`` are the layers'
    inputs.

    The input of a layer is the ReLU output of the one before it, which masks its gradient.
    """
    gradients: list[Tensor | None] = []
    dy: Tensor | None = dlogits
    y = None
    for layer in range(len(activations) - 1, -1, -1):
        assert dy is not None  # only the first layer's inputs need no gradient
        x = activations[layer]
        dy, dw, db = linear_backward(dy, x, tensors[2 * layer], y, (layer > 0, True, True))
        gradients += [db, dw]
        y = x
    return cast("list[Tensor]", gradients[::-1])
