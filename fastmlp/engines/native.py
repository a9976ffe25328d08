"""The engine ``native``: the steps of any MLP, whole stretches of an epoch in one call of C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp.engines.base import Epoch, TrainState
from fastmlp.engines.compiled import CompiledEngine, NetworkEpoch
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.ops.step_config import Network, StepConfig
from fastmlp.ops.train_steps import train_steps_


class NativeEngine(CompiledEngine):
    """Steps of SGD, Adam and AdamW one after another, on the CPU; networks side by side take a core
    each, one alone takes all. The same bits alone and together, for any number of threads."""

    name = "native"
    call_length = 3.0  # each copies the parameters into panels and back

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return why it cannot run on this device or with this optimizer; None where it can."""
        if device.type != "cpu":
            return f"it is for the CPU, not for {device.type}"
        if config is not None and config.precision != "float32":
            return f"it computes in the parameters' own dtype alone, not in {config.precision}"
        return EagerEngine.unsupported_reason(device)

    def _begin(self, state: TrainState, epoch: Epoch) -> _NativeEpoch:
        return _NativeEpoch(state, epoch, self.device)

    def _run(self, networks: Sequence[_NativeEpoch]) -> None:
        as_they_are = [n for n in networks if n.epoch.order.flip_shifts is None]
        steps = [network.next_steps(self._stretch) for network in as_they_are]
        self._take(as_they_are, steps, self._images, self._labels)
        for network in networks:
            flip_shifts = network.epoch.order.flip_shifts
            if flip_shifts is None:
                continue
            # Every image is moved afresh, so the next steps get images of their own.
            steps = [network.next_steps(self._stretch)]
            rows = network.next_rows(steps[0].steps)
            order = network.epoch.order.indices[rows]
            images = flip_shifts[rows].apply(self._images[order])
            steps[0].order, steps[0].start_step = torch.arange(len(order)), 0
            self._take([network], steps, images, self._labels[order])

    def _take(
        self,
        networks: Sequence[_NativeEpoch],
        steps: Sequence[Network],
        images: Tensor,
        labels: Tensor,
    ) -> None:
        scale, shift = self._normalization.scale, self._normalization.shift
        results = train_steps_(steps, images, labels, scale=scale, shift=shift)
        for network, (losses, correct) in zip(networks, results, strict=True):
            network.add(losses, correct)


class _NativeEpoch(NetworkEpoch):
    """A network's epoch, some steps at a time."""

    def __init__(self, state: TrainState, epoch: Epoch, device: torch.device) -> None:
        super().__init__(state, epoch, device)
        self._kept = {kind: kept for kind, kept in state.ensure_optimizer_state().items() if kept}
        config = state.config
        self._config = StepConfig(
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            grad_average=config.grad_average,
        )

    def next_steps(self, steps: int) -> Network:
        """Return the next ``steps`` steps, fewer at the epoch's end."""
        return Network(
            self.state.tensors,
            self._config,
            self.epoch.order.indices,
            self.epoch.lr,
            dict(self._kept),
            start_step=self.metrics.next_step,
            max_steps=steps,
        )

    def next_rows(self, steps: int) -> slice:
        """Return the places in the epoch's order of the next ``steps`` steps."""
        first, batch = self.metrics.next_step, self._config.batch_size
        return slice(first * batch, (first + steps) * batch)
