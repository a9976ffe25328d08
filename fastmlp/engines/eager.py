"""The engines that take one step after the other: ``eager``, fastmlp's operators called one by one
without autograd, and ``reference``, plain PyTorch."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops import _load as backend
from fastmlp.ops import linear as ops
from fastmlp.data.transforms import Moves
from fastmlp.data.dataset import Part
from fastmlp.engines.base import (
    OPTIMIZERS,
    Engine,
    Epoch,
    EpochStats,
    EvalStats,
    NonFiniteLossError,
    StepOptions,
    Tally,
    copies_on_cpu,
)
from fastmlp.engines.reference import mlp_ref, train_step_ref
from fastmlp.engines.resident import resident
from fastmlp.engines.optimizers import update_

if TYPE_CHECKING:
    from typing_extensions import Self

CHUNK_ROWS = 256
"""Images gathered and normalised at once: few enough to stay in a core's cache until used."""
EVALUATION_ROWS = 512
"""Images per batch of an evaluation: as many as fastmlp's own matrix products take."""
REPORT_SECONDS = 0.15
"""How often an epoch reports its progress, and how late a non-finite loss may be noticed."""


class StepEngine(Engine):
    """An engine that Python drives step by step; subclasses say what a step is."""

    @abstractmethod
    def _step(self, x: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One step on x (N, I), labels (N,): the mean loss and the logits before the update."""

    @abstractmethod
    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss and the logits of x (N, I), labels (N,)."""

    @classmethod
    def train_together(
        cls,
        engines: Sequence[Self],
        epochs: Sequence[Epoch],
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochStats]], None] | None = None,
    ) -> list[EpochStats | NonFiniteLossError]:
        """One after the other."""
        done: list[EpochStats | NonFiniteLossError] = []
        so_far = [EpochStats()] * len(engines)

        def report(stats: EpochStats) -> None:
            so_far[len(done)] = stats
            if on_progress is not None:
                on_progress(list(so_far))

        for engine, epoch in zip(engines, epochs, strict=True):
            try:
                stats = engine._train_epoch(epoch, should_stop, report)
                done.append(stats)
                so_far[len(done) - 1] = stats
            except NonFiniteLossError as error:
                done.append(error)
        return done

    def _train_epoch(
        self,
        epoch: Epoch,
        should_stop: Callable[[], bool] | None,
        on_progress: Callable[[EpochStats], None],
    ) -> EpochStats:
        batch, start = self.options.batch_size, epoch.start_step
        tally = Tally(len(epoch.order), batch, start, self.device)
        order = epoch.order.to(self.device)
        chunk_steps = max(1, CHUNK_ROWS // batch)
        report_at = time.perf_counter() + REPORT_SECONDS
        # Chunks begin at the same steps whatever start is, so a batch always has the same
        # alignment in memory, on which the rounding of a matrix product may depend.
        for chunk in range(start - start % chunk_steps, tally.total, chunk_steps):
            rows = slice(chunk * batch, (chunk + chunk_steps) * batch)
            with torch.no_grad():
                images = self._images.index_select(0, order[rows])
                if epoch.moves is not None:
                    images = self._moved(images, epoch.moves[rows])
                labels = self._labels.index_select(0, order[rows])
                skipped = max(start - chunk, 0)
                stop = self._train_chunk(images, labels, skipped, epoch.lr, should_stop, tally)
            if stop:
                break
            if time.perf_counter() >= report_at:
                on_progress(tally.read())
                report_at = time.perf_counter() + REPORT_SECONDS
        return tally.read()

    def _train_chunk(
        self,
        images: Tensor,
        labels: Tensor,
        skipped: int,
        lr: float,
        should_stop: Callable[[], bool] | None,
        tally: Tally,
    ) -> bool:
        """Runs the steps on these images but the first ``skipped`` ones; returns whether
        ``should_stop`` ended it."""
        batch = self.options.batch_size
        xs = torch.split(self._inputs(images), batch)
        ys = torch.split(labels, batch)
        done, stop = [], False
        for x, y in zip(xs[skipped:], ys[skipped:], strict=True):
            done.append(self._step(x, y, lr))
            stop = should_stop is not None and should_stop()
            if stop:
                break
        losses, logits = zip(*done, strict=True)
        guesses = torch.cat(logits).argmax(1)
        truth = labels[skipped * batch :][: len(guesses)]
        tally.add(torch.stack(losses), guesses == truth)
        return stop

    def evaluate(self, part: Part) -> EvalStats:
        with torch.no_grad():
            loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
            correct = torch.zeros((), dtype=torch.int64, device=self.device)
            size = self._evaluation_rows()
            there = self._on_device(part)
            for start in range(0, part.total, size):
                rows = slice(start, start + size)
                x, labels = self._inputs(there.images[rows]), there.labels[rows]
                loss, logits = self._evaluate(x, labels)
                loss_sum += loss
                correct += (logits.argmax(1) == labels).sum()
        count = part.total
        return EvalStats(loss_sum.item() / count, int(correct) / count, count)

    def _evaluation_rows(self) -> int:
        return EVALUATION_ROWS

    def _on_device(self, part: Part) -> Part:
        """``part`` where the engine is; it stays there until another is asked for, as every epoch
        ends with the same one."""
        self._evaluated = Part(
            resident(part.spread.images, self.device), resident(part.spread.labels, self.device)
        )
        return self._evaluated

    def _moved(self, images: Tensor, moves: Moves) -> Tensor:
        return moves.apply(images)

    def _inputs(self, images: Tensor) -> Tensor:
        return self._normalization.apply(images).to(self._layers_dtype)


class EagerEngine(StepEngine):
    """fastmlp's compiled operators, one by one, the backward pass by hand; CPU and CUDA."""

    name = "eager"

    def _set_up(self) -> None:
        self._kept: dict[str, list[Tensor]] = {}
        self._dlosses: dict[int, Tensor] = {}

    @staticmethod
    def why_not(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: StepOptions | None = None,
    ) -> str | None:
        if backend.native_available(device.type):
            return None
        why = f" ({backend.NATIVE_ERROR})" if backend.NATIVE_ERROR else ""
        return f"there are no compiled kernels for {device.type}{why}"

    def _step(self, x: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        loss, logits, gradients = self._gradients(x, labels)
        self._begin()
        update_(self._tensors, gradients, self._kept, lr, self.options)
        return loss, logits

    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._forward(x, self._cast())[-1].to(self._tensors[0].dtype)
        return ops.softmax_xent(logits, labels, None, "sum"), logits

    def _gradients(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The mean loss, the logits and the gradients of all parameters."""
        tensors, dtype = self._cast(), self._tensors[0].dtype
        activations = self._forward(x, tensors)
        logits = activations.pop().to(dtype)
        count = len(labels) if self.options.grad_average else 1
        if count not in self._dlosses:
            self._dlosses[count] = torch.full((), 1 / count, dtype=dtype, device=x.device)
        # every gradient is linear in this one
        loss, dlogits = ops.softmax_xent_with_grad(logits, labels, self._dlosses[count])
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
            activations.append(ops.linear(activations[-1], tensors[i], tensors[i + 1], "relu"))
        activations.append(ops.linear(activations[-1], tensors[-2], tensors[-1], "none"))
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
            dy, dw, db = ops.linear_backward(dy, x, tensors[2 * layer], y, (layer > 0, True, True))
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
    def why_not(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: StepOptions | None = None,
    ) -> str | None:
        return None

    def _moved(self, images: Tensor, moves: Moves) -> Tensor:
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
