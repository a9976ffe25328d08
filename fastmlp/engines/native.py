"""The engine ``native``: the steps of any MLP, whole stretches of an epoch in one call of C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.engines.base import Epoch, TrainState
from fastmlp.engines.compiled import CompiledEngine, NetworkEpoch
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.metrics import EvalMetrics, eval_metrics
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.ops.predict_rows import evaluate_rows
from fastmlp.ops.step_config import Network
from fastmlp.ops.train_steps import train_steps_


class NativeEngine(CompiledEngine):
    """Steps of any network and loss one after another, on the CPU; networks side by side take a
    core each, one alone takes all. The same bits alone and together, for any number of threads."""

    name = "native"
    general = True
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
        return EagerEngine.unsupported_reason(device)  # without the settings, which it lacks

    def _begin(self, state: TrainState, epoch: Epoch) -> _NativeEpoch:
        return _NativeEpoch(state, epoch, self.device, self._weights)

    def _run(self, networks: Sequence[_NativeEpoch]) -> None:
        as_they_are = [n for n in networks if n.epoch.order.flip_shifts is None]
        steps = [network.next_steps(self._stretch) for network in as_they_are]
        self._take(as_they_are, steps, self._images, self._labels, self._weights)
        for network in networks:
            flip_shifts = network.epoch.order.flip_shifts
            if flip_shifts is None:
                continue
            # Every image is moved afresh, so the next steps get images of their own.
            steps = [network.next_steps(self._stretch)]
            rows = network.next_rows(steps[0].steps)
            order = network.epoch.order.indices[rows]
            images = flip_shifts[rows].apply(self._images[order])
            steps[0].order = torch.cat([order.new_zeros(rows.start), torch.arange(len(order))])
            weights = None if self._weights is None else self._weights[order]
            self._take([network], steps, images, self._labels[order], weights)

    def _take(
        self,
        networks: Sequence[_NativeEpoch],
        steps: Sequence[Network],
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None,
    ) -> None:
        results = train_steps_(
            *(steps, images, labels), row_weights=weights, scale=self._scale, shift=self._shift
        )
        for network, (losses, correct) in zip(networks, results, strict=True):
            network.add(losses, correct)

    def evaluate(self, states: Sequence[TrainState], subset: Subset) -> list[EvalMetrics]:
        """Return each network's loss, without dropout, and accuracy on ``subset``."""
        if subset.plain and not any(s.config.beyond_plain for s in states):
            return super().evaluate(states, subset)
        data, metrics = subset.spread, []
        for state in states:
            config = state.config.step_config(len(state.tensors[-1]))
            found = evaluate_rows(
                *(state.tensors, data.images, data.labels, config),
                row_weights=data.weights,
                scale=self._scale,
                shift=self._shift,
            )
            metrics.append(eval_metrics(state.config.loss, *found))
        return metrics

    @property
    def _scale(self) -> Tensor | None:
        """The factor of the inputs; None where they are taken as they are."""
        return None if self._normalization.identity else self._normalization.scale

    @property
    def _shift(self) -> Tensor | None:
        """What is added to the inputs; None where they are taken as they are."""
        return None if self._normalization.identity else self._normalization.shift


class _NativeEpoch(NetworkEpoch):
    """A network's epoch, some steps at a time."""

    def __init__(
        self, state: TrainState, epoch: Epoch, device: torch.device, weights: Tensor | None
    ) -> None:
        super().__init__(state, epoch, device, weights)
        self._kept = {kind: kept for kind, kept in state.ensure_optimizer_state().items() if kept}
        self._config = state.config.step_config(len(state.tensors[-1]))

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
            seed=self.state.config.seed,
            epoch=self.epoch.number,
        )

    def next_rows(self, steps: int) -> slice:
        """Return the places in the epoch's order of the next ``steps`` steps."""
        first, batch = self.metrics.next_step, self._config.batch_size
        return slice(first * batch, (first + steps) * batch)
