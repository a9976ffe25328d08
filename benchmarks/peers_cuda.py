"""Train on a GPU with the same SGD, written otherwise: what fastmlp is timed against there.

As in peers.py, images are float32, normalised beforehand; here they, the labels and the parameters
are on the device, except for peers that keep their images on the host (``HOST``). The peers run on
CPU tensors too, which the tests use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import HandWritten, ModuleAndOptimizer, Parameters
from torch import Tensor

from fastmlp.engines.cuda_graph import CapturedGraph

NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


class CourseLoop(HandWritten):
    """The course's loop on a GPU: every batch is copied there from the host, every loss back."""

    HOST = True

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        device = self.w1.device
        return self.images[rows].to(device), self.labels[rows].to(device)


class CompiledModule(ModuleAndOptimizer):
    """nn.Module, its forward and backward pass compiled into CUDA graphs."""

    OPTIONS: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True}  # noqa: RUF012

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        super().__init__(parameters, images, labels, lr)
        self._loss_of = torch.compile(super().loss_of, **self.OPTIONS)

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss: Tensor = self._loss_of(x, y)
        return loss


class GraphByHand:
    """Whole steps in library calls, as an expert in torch and CUDA would write them: the matrix
    products do the updates themselves, and STEPS steps are one CUDA graph."""

    STEPS = 50

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        self.tensors = [parameters[name].clone() for name in NAMES]
        self.images, self.labels, self.lr = images, labels, lr
        self.eye = torch.eye(len(self.tensors[3]), device=images.device)
        self.loss = torch.zeros((), device=images.device)
        self.chunks: dict[tuple[int, int], tuple[Tensor, CapturedGraph]] = {}

    def epoch(self, order: Tensor, batch: int) -> float:
        order = order.to(self.images.device)
        chunk = self.STEPS * batch
        whole = len(order) - len(order) % chunk
        self.loss.zero_()
        for rows in torch.split(order[:whole], chunk) if whole else ():
            self.run(rows, self.STEPS)
        for rows in torch.split(order[whole:], batch) if whole < len(order) else ():
            self.run(rows, 1)
        return self.loss.item() / -(-len(order) // batch)

    def run(self, rows: Tensor, steps: int) -> None:
        """Take ``steps`` steps on the images ``rows``, recorded on first use."""
        key = len(rows), steps
        if key not in self.chunks:
            changing = [*self.tensors, self.loss]
            before = [tensor.clone() for tensor in changing]
            static = rows.clone()
            recording = CapturedGraph(partial(self.steps, static, steps), rows.device)
            self.chunks[key] = static, recording
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
        static, recording = self.chunks[key]
        static.copy_(rows)
        recording.replay(partial(self.steps, static, steps))

    def steps(self, rows: Tensor, steps: int) -> None:
        """Take the steps that are recorded. d and dh are the gradients times -lr, so that adding
        them is the update."""
        w1, b1, w2, b2 = self.tensors
        batch = len(rows) // steps
        rate = self.lr / batch
        labels = self.labels[rows]
        hot = self.eye[labels] * rate
        logs = []
        for x, right in zip(
            torch.split(self.images[rows], batch), torch.split(hot, batch), strict=True
        ):
            h = torch._addmm_activation(b1, x, w1.t())  # with a ReLU
            log = F.log_softmax(torch.addmm(b2, h, w2.t()), 1)
            d = torch.sub(right, log.exp(), alpha=rate)
            dh = torch.ops.aten.threshold_backward(d @ w2, h, 0)
            w2.addmm_(d.t(), h)
            b2.add_(d.sum(0))
            w1.addmm_(dh.t(), x)
            b1.add_(dh.sum(0))
            logs.append(log)
        self.loss.sub_(torch.cat(logs).gather(1, labels[:, None]).sum() / batch)

    def parameters(self) -> Parameters:
        return dict(zip(NAMES, self.tensors, strict=True))


class JaxModels:
    """JAX: an epoch as one jitted lax.scan over its steps, vmapped over the models where there are
    several; data on the device, products in full float32."""

    def __init__(
        self, models: Sequence[Parameters], images: Tensor, labels: Tensor, lr: float
    ) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others use the GPU too
        import jax
        import jax.numpy as jnp

        if images.is_cuda and jax.default_backend() != "gpu":
            raise RuntimeError("jax sees no GPU")
        jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]

        def loss(p: Any, x: Any, y: Any) -> Any:
            w1, b1, w2, b2 = p
            logits = jnp.maximum(x @ w1.T + b1, 0) @ w2.T + b2
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

        def epoch(p: Any, order: Any, images: Any, labels: Any) -> Any:
            def step(p: Any, rows: Any) -> Any:
                value, grad = jax.value_and_grad(loss)(p, images[rows], labels[rows])
                return jax.tree.map(lambda w, g: w - lr * g, p, grad), value

            return jax.lax.scan(step, p, order)

        self.several = len(models) > 1
        self.run = jax.jit(jax.vmap(epoch, (0, 0, None, None)) if self.several else epoch)
        self.asarray = jnp.asarray
        stacked = [torch.stack([model[name].cpu() for model in models]) for name in NAMES]
        self.p = tuple(jnp.asarray((t if self.several else t[0]).numpy()) for t in stacked)
        self.images, self.labels = (jnp.asarray(t.cpu().numpy()) for t in (images, labels))

    def epoch(self, orders: Sequence[Tensor], batch: int) -> None:
        """Train all models on their orders, which are of whole batches."""
        rows = torch.stack(list(orders)).reshape(len(orders), -1, batch).to(torch.int32).numpy()
        order = self.asarray(rows if self.several else rows[0])
        self.p, losses = self.run(self.p, order, self.images, self.labels)
        np.asarray(losses)  # waits, and reads them

    def parameters(self) -> list[Parameters]:
        """Return the parameters of each model."""
        arrays = [np.array(p) if self.several else np.array(p)[None] for p in self.p]
        return [
            {name: torch.from_numpy(a[i]) for name, a in zip(NAMES, arrays, strict=True)}
            for i in range(len(arrays[0]))
        ]


@dataclass(frozen=True)
class CudaPeer:
    """A peer's class, the package that it needs, and the most models that it is timed with."""

    kind: Any
    package: str = "torch"
    most_models: int = 1000


CUDA_PEERS = {
    "the course's loop": CudaPeer(CourseLoop, most_models=1),
    "nn.Module + fused SGD": CudaPeer(ModuleAndOptimizer, most_models=1),
    "torch.compile reduce-overhead": CudaPeer(CompiledModule, most_models=1),
    "whole step by hand, 50 in a CUDA graph": CudaPeer(GraphByHand),
    "JAX jit(scan), vmap over models": CudaPeer(JaxModels, "jax"),
}
"""By name. Those that are timed with one model only take as long for each of many."""
