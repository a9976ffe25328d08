"""The engines that take one step after the other: ``eager``, fastmlp's operators called one by one
without autograd, and ``reference``, plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fastmlp.engines.base import copies_on_cpu
from fastmlp.engines.optimizers import OPTIMIZERS, OptimizerConfig, update_
from fastmlp.engines.stepwise import StepEngine
from fastmlp.ops._load import load_error, native_available
from fastmlp.ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from fastmlp.ops.linear import linear, linear_backward

if TYPE_CHECKING:
    pass


class EagerEngine(StepEngine):
    """fastmlp's compiled operators, one by one, the backward pass by hand; CPU and CUDA."""

    name = "eager"

    def _set_up(self) -> None:
        self._kept: dict[str, list[Tensor]] = {}
        self._dlosses: dict[int, Tensor] = {}

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: OptimizerConfig | None = None,
    ) -> str | None:
        if native_available(device.type):
            return None
        why = f" ({load_error()})" if load_error() else ""
        return f"there are no compiled kernels for {device.type}{why}"

    def _step(self, x: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        loss, logits, gradients = self._gradients(x, labels)
        self._begin()
        update_(self._tensors, gradients, self._kept, lr, self.options)
        return loss, logits

    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._forward(x, self._cast())[-1].to(self._tensors[0].dtype)
        return cross_entropy(logits, labels, None, "sum"), logits

    def _gradients(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The mean loss, the logits and the gradients of all parameters."""
        tensors, dtype = self._cast(), self._tensors[0].dtype
        activations = self._forward(x, tensors)
        logits = activations.pop().to(dtype)
        count = len(labels) if self.options.grad_average else 1
        if count not in self._dlosses:
            self._dlosses[count] = torch.full((), 1 / count, dtype=dtype, device=x.device)
        # every gradient is linear in this one
        loss, dlogits = cross_entropy_with_grad(logits, labels, self._dlosses[count])
        gradients = self._backward(dlogits.to(x.dtype), activations, tensors)
        if x.dtype != dtype:
            gradients = [gradient.to(dtype) for gradient in gradients]
        return loss, logits, gradients

    def _cast(self) -> list[Tensor]:
        """The parameters as the layers take them."""
        if self._layers_dtype == self._tensors[0].dtype:
            return self._tensors
        return [tensor.to(self._layers_dtype) for tensor in self._tensors]

    def _forward(self, x: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """The input of every layer, and the logits last."""
        activations = [x]
        for i in range(0, len(tensors) - 2, 2):
            activations.append(linear(activations[-1], tensors[i], tensors[i + 1], "relu"))
        activations.append(linear(activations[-1], tensors[-2], tensors[-1], "none"))
        return activations

    def _backward(
        self, dlogits: Tensor, activations: list[Tensor], tensors: list[Tensor]
    ) -> list[Tensor]:
        """The gradients of all parameters, in their order; ``activations`` are the layers' inputs.

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

    def _begin(self) -> None:
        """Makes what the optimiser keeps, where there is nothing yet: zeros are where it begins."""
        options = self.options
        if self._kept or (options.optimizer == "sgd" and not options.momentum):
            return
        self._kept = {
            kind: [
                torch.zeros((), dtype=torch.float32, device=self.device)
                if kind == "step"
                else torch.zeros_like(tensor)
                for tensor in self._tensors
            ]
            for kind in OPTIMIZERS[options.optimizer]
        }

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        return {
            kind: copies_on_cpu(dict(zip(self._parameters, self._kept[kind], strict=True)))
            if kind in self._kept
            else {}
            for kind in OPTIMIZERS[self.options.optimizer]
        }

    def _load_optimizer(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._kept = {}
        if any(state.values()):
            self._begin()
            self._fill(state)

    def _fill(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for kind, tensors in self._kept.items():
            for name, tensor in zip(self._parameters, tensors, strict=True):
                tensor.copy_(state[kind][name])
