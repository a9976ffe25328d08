"""A network in training, its epochs, and the interface of the engines that run them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics, NonFiniteLossError
from fastmlp.engines.optimizers import OPTIMIZERS, OptimizerConfig, zero_optimizer_state
from fastmlp.engines.resident import resident


@dataclass(frozen=True)
class Epoch:
    """What a network trains on in an epoch: the images of ``order`` in batches of
    ``config.batch_size``, the last one perhaps smaller.

    States whose epochs have the very same ``order`` share its images where the engine can. An epoch
    that was stopped resumes at ``start_step``. ``number``, counted from 0, is for dropout.
    """

    order: EpochOrder
    lr: float
    start_step: int = 0
    number: int = 0


@dataclass(eq=False)
class TrainState:
    """A network in training: its parameters, its optimizer's state and the optimizer's settings.

    ``parameters`` is the ``state_dict`` of ``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear, ...)``,
    all float32 or all float64, weights (O, I) and biases (O,). ``optimizer_state`` maps the kinds
    that :data:`OPTIMIZERS` names to tensors by parameter name; each is empty before the first step.
    Everything lies on the engine's device. ``block_steps`` forces the length of a block in the
    blocked engines; None lets them choose. Made by :meth:`Engine.new_state`, compared and hashed
    by identity.
    """

    parameters: dict[str, Tensor]
    optimizer_state: dict[str, dict[str, Tensor]]
    config: OptimizerConfig
    block_steps: int | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters in the order of the layers: weight, bias, weight, bias, ..."""
        return list(self.parameters.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.tensors[0].dtype

    @property
    def layers_dtype(self) -> torch.dtype:
        """The dtype in which the layers compute."""
        return torch.bfloat16 if self.config.precision == "bfloat16" else self.dtype

    def ensure_optimizer_state(self) -> dict[str, list[Tensor]]:
        """Return the optimizer's tensors of all parameters, by kind, creating zeros on first use.

        The lists are empty where the optimizer keeps nothing, as SGD without momentum.
        """
        if not any(self.optimizer_state.values()):
            self.optimizer_state = zero_optimizer_state(self.parameters, self.config)
        return {kind: list(tensors.values()) for kind, tensors in self.optimizer_state.items()}

    def parameters_state(self) -> dict[str, Tensor]:
        """Return copies of the parameters, on the CPU, as a plain ``state_dict``."""
        return copies_on_cpu(self.parameters)

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy ``parameters`` into the network; raise ValueError where they do not fit it."""
        self._check_fits("parameters", parameters)
        for name, tensor in self.parameters.items():
            tensor.copy_(parameters[name].detach())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return copies, on the CPU, of all that training resumes from, bit by bit, even in the
        middle of an epoch. The format is the same for every engine."""
        kept = {kind: copies_on_cpu(tensors) for kind, tensors in self.optimizer_state.items()}
        return {"parameters": self.parameters_state(), **kept}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy a :meth:`state_dict` into this state; raise ValueError where it does not fit."""
        kinds = OPTIMIZERS[self.config.optimizer]
        if set(state) != {"parameters", *kinds}:
            raise ValueError(
                f"a state of {self.config.optimizer} must hold parameters, {', '.join(kinds)}, "
                f"got {', '.join(state)}"
            )
        begun = any(state[kind] for kind in kinds)
        for kind in ("parameters", *(kinds if begun else ())):
            self._check_fits(kind, state[kind])
        self.load_parameters(state["parameters"])
        if not begun:
            self.optimizer_state = {kind: {} for kind in kinds}
            return
        self.ensure_optimizer_state()
        for kind, tensors in self.optimizer_state.items():
            for name, tensor in tensors.items():
                tensor.copy_(state[kind][name])

    def _check_fits(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        ours = {
            name: () if kind == "step" else tuple(tensor.shape)
            for name, tensor in self.parameters.items()
        }
        theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_shapes(kind, ours, theirs)


def check_shapes(
    kind: str, ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ValueError, naming the first that differs, unless the shapes of tensors are ours."""
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{kind} of {name} must be {_shaped(ours.get(name))}, "
                f"not {_shaped(theirs.get(name))}"
            )


def _shaped(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"


class Engine(ABC):
    """Trains and evaluates networks on one device: holds what all of them share.

    ``train`` are the images, or rows of numbers, that they train on; a network's inputs are
    ``normalization.apply(images)``.
    """

    name: ClassVar[str]
    general: ClassVar[bool] = False
    """Whether it has every loss, activation and option of a step, and takes rows of numbers, any
    targets and weights; otherwise ReLU, cross entropy, uint8 images and labels."""

    def __init__(self, train: Subset, normalization: Normalization, device: torch.device) -> None:
        self.device = device
        self._images = resident(train.images, device)
        self._labels = resident(train.labels, device)
        self._weights = None if train.weights is None else resident(train.weights, device)
        self._normalization = replace(
            normalization,
            scale=resident(normalization.scale, device),
            shift=resident(normalization.shift, device),
        )

    @staticmethod
    @abstractmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return why this engine cannot run on the device, or not for a network of these layer
        sizes or with this optimizer; None where it can."""

    @classmethod
    def unsupported_data(cls, train: Subset) -> str | None:
        """Return why this engine cannot train on such data; None where it can."""
        return None if cls.general or train.plain else "it trains on uint8 images with labels alone"

    def new_state(
        self,
        parameters: Mapping[str, Tensor],
        config: OptimizerConfig,
        *,
        block_steps: int | None = None,
    ) -> TrainState:
        """Return a network before its first step, from copies of ``parameters``.

        Raises ValueError for a combination that this engine cannot train.
        """
        self._check_config(config, block_steps)
        state = TrainState(
            {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device).copy_(
                    tensor.detach()
                )
                for name, tensor in parameters.items()
            },
            {kind: {} for kind in OPTIMIZERS[config.optimizer]},
            config,
            block_steps,
        )
        if config.precision == "bfloat16" and state.dtype != torch.float32:
            raise ValueError(f"precision bfloat16 wants float32 parameters, got {state.dtype}")
        return state

    def _check_config(self, config: OptimizerConfig, block_steps: int | None) -> None:
        """Raise ValueError for settings that this engine does not have."""
        if not self.general and config.beyond_plain:
            raise ValueError(f"the engine {self.name} does not have {config.beyond_plain}")
        if block_steps is not None:
            raise ValueError(
                f"block_steps is for the engine blocked, not {self.name}; leave it out"
            )

    @abstractmethod
    def train_epoch(
        self,
        states: Sequence[TrainState],
        epochs: Sequence[Epoch],
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[list[EpochMetrics]], None] | None = None,
    ) -> list[EpochMetrics | NonFiniteLossError]:
        """Run the steps of each state's epoch until all batches are done or ``should_stop()`` is
        true after a step.

        Networks train side by side where the engine can, and each gives what it gives alone: to the
        last bit, unless the engine's class says otherwise. A network whose loss is not finite
        stops, and its error stands in its place. ``on_progress`` gets the metrics of all about
        every 0.15 s; they and the result count from ``start_step``. Raises ValueError for a
        ``start_step`` beyond its epoch.
        """

    @abstractmethod
    def evaluate(self, states: Sequence[TrainState], subset: Subset) -> list[EvalMetrics]:
        """Return each network's loss and accuracy on ``subset``."""


def copies_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that later training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
