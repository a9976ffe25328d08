"""One network on an engine of its own: what most tests of the engines train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, Normalization
from fastmlp.engines.base import Engine, Epoch, TrainState
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OptimizerConfig


class SingleNetwork:
    """A network's state and the engine that trains it, called for one network at a time."""

    def __init__(self, engine: Engine, state: TrainState) -> None:
        self.engine, self.state = engine, state

    def train_epoch(
        self,
        order: Tensor,
        lr: float,
        *,
        flip_shifts: FlipShifts | None = None,
        start_step: int = 0,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[EpochMetrics], None] | None = None,
    ) -> EpochMetrics:
        """Run :meth:`Engine.train_epoch` on ``order`` (n,); raise the error of a bad loss."""
        epoch = Epoch(EpochOrder(order, flip_shifts), lr, start_step)
        report = (lambda metrics: on_progress(metrics[0])) if on_progress else None
        (result,) = self.engine.train_epoch(
            [self.state], [epoch], should_stop=should_stop, on_progress=report
        )
        if isinstance(result, NonFiniteLossError):
            raise result
        return result

    def evaluate(self, subset: Subset) -> EvalMetrics:
        """Return its loss and accuracy."""
        (metrics,) = self.engine.evaluate([self.state], subset)
        return metrics

    def parameters_state(self) -> dict[str, Tensor]:
        """Return copies of its parameters."""
        return self.state.parameters_state()

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Replace its parameters."""
        self.state.load_parameters(parameters)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return copies of all that it resumes from."""
        return self.state.state_dict()

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace all that it resumes from."""
        self.state.load_state_dict(state)


def single(
    kind: type[Engine],
    parameters: Mapping[str, Tensor],
    train: Subset,
    normalization: Normalization,
    config: OptimizerConfig,
    device: torch.device,
    **how: Any,
) -> SingleNetwork:
    """Return a network on a new engine of this kind; ``how`` goes to :meth:`Engine.new_state`."""
    engine = kind(train, normalization, device)
    return SingleNetwork(engine, engine.new_state(parameters, config, **how))
