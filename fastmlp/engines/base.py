"""What every engine has in common: its interface, its options and the numbers it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import FlipShifts, Normalization
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OPTIMIZERS, OptimizerConfig
from fastmlp.engines.resident import resident

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Epoch:
    """What one network trains on in an epoch.

    ``order`` (n,) int64, on the CPU, names the training images in the order they are used, any of
    them more than once or never, in batches of ``options.batch_size``, the last one perhaps
    smaller. ``moves``, if there are any, flip and shift them. ``start_step`` is where an epoch that
    was stopped goes on.
    """

    order: Tensor
    lr: float
    moves: FlipShifts | None = None
    start_step: int = 0


class Engine(ABC):
    """A ReLU network and its training part on one device.

    ``parameters`` is the ``state_dict`` of ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear, ...)``,
    all float32 or all float64, weights (O, I) and biases (O,); it is copied. Inputs are
    ``normalization.apply(images)``.
    """

    name: ClassVar[str]

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        train: Subset,
        normalization: Normalization,
        options: OptimizerConfig,
        device: torch.device,
    ) -> None:
        self.options = options
        self.device = device
        self._parameters = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(
                tensor.detach()
            )
            for name, tensor in parameters.items()
        }
        self._tensors = list(self._parameters.values())
        self._layers_dtype = self._tensors[0].dtype
        if options.precision == "bfloat16":
            if self._layers_dtype != torch.float32:
                raise ValueError(
                    f"precision bfloat16 wants float32 parameters, got {self._layers_dtype}"
                )
            self._layers_dtype = torch.bfloat16
        self._images = resident(train.images, device)
        self._labels = resident(train.labels, device)
        self._normalization = replace(
            normalization,
            scale=resident(normalization.scale, device),
            shift=resident(normalization.shift, device),
        )
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Makes what this kind of engine needs beside parameters and data."""

    @staticmethod
    @abstractmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        options: OptimizerConfig | None = None,
    ) -> str | None:
        """Why this engine cannot run on the device, or not for a network of these layer sizes or
        with these options, or None where it can."""

    def train_epoch(
        self,
        order: Tensor,
        lr: float,
        *,
        moves: FlipShifts | None = None,
        start_step: int = 0,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[EpochMetrics], None] | None = None,
    ) -> EpochMetrics:
        """Runs the steps of an :class:`Epoch` until all batches are done or ``should_stop()`` is
        true after a step.

        ``on_progress`` is called about every 0.15 s. Both it and the result count from
        ``start_step``. Raises ValueError for a ``start_step`` beyond the epoch and
        :class:`NonFiniteLossError`.
        """
        epoch = Epoch(order, lr, moves, start_step)
        report = (lambda all_stats: on_progress(all_stats[0])) if on_progress else None
        (result,) = self.train_together([self], [epoch], should_stop, report)
        if isinstance(result, NonFiniteLossError):
            raise result
        return result

    @classmethod
    @abstractmethod
    def train_together(
        cls,
        engines: Sequence[Self],
        epochs: Sequence[Epoch],
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """:meth:`train_epoch` of several engines with the same training images and normalisation,
        side by side where this kind of engine can. Each gives what it gives alone, to the last
        bit; one whose loss is not finite stops, and its error stands in its place. Raises
        ValueError for a ``start_step`` beyond its epoch."""

    @classmethod
    def evaluate_together(cls, engines: Sequence[Self], part: Subset) -> list[EvalMetrics]:
        """:meth:`evaluate` of several engines with the same normalisation."""
        return [engine.evaluate(part) for engine in engines]

    @abstractmethod
    def evaluate(self, part: Subset) -> EvalMetrics:
        """Loss and accuracy on ``part`` with the parameters as they are."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Copies, on the CPU, of what the optimiser keeps: for each name in :data:`OPTIMIZERS` the
        tensors by parameter name, empty where there are none yet."""

    @abstractmethod
    def _load_optimizer(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes copies of an :meth:`optimizer_state`; one that is empty is a fresh start."""

    def parameters_state(self) -> dict[str, Tensor]:
        """Copies of the parameters, on the CPU, as a plain ``state_dict``."""
        return copies_on_cpu(self._parameters)

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Copies ``parameters`` into the network; raises ValueError where they do not fit it."""
        self._check_fits("parameters", parameters)
        for name, tensor in self._parameters.items():
            tensor.detach().copy_(parameters[name])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Everything that training goes on from, bit by bit, even in the middle of an epoch: the
        same for every engine, so that one may take over from another."""
        return {"parameters": self.parameters_state(), **self.optimizer_state()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on from a :meth:`state_dict`; raises ValueError where it does not fit."""
        kept = OPTIMIZERS[self.options.optimizer]
        if set(state) != {"parameters", *kept}:
            raise ValueError(
                f"a state of {self.options.optimizer} must hold parameters, {', '.join(kept)}, "
                f"got {', '.join(state)}"
            )
        begun = any(state[kind] for kind in kept)
        for kind in ("parameters", *(kept if begun else ())):
            self._check_fits(kind, state[kind])
        self.load_parameters(state["parameters"])
        self._load_optimizer({kind: state[kind] for kind in kept})

    def _check_fits(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        ours = {
            name: () if kind == "step" else tuple(tensor.shape)
            for name, tensor in self._parameters.items()
        }
        theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if ours != theirs:
            raise ValueError(f"{kind} must be {ours}, got {theirs}")


def copies_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
