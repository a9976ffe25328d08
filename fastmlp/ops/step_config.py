"""What a training step computes, and a network that takes such steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from fastmlp.ops.activations import row_of
from fastmlp.ops.dropout import dropout_threshold
from fastmlp.ops.losses import loss_row

STEP_OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class StepConfig:
    """What a step of one network computes; ``torch.nn``'s and ``torch.optim``'s semantics where no
    option says otherwise. Raises ValueError for a value out of range."""

    batch_size: int
    activation: str = "relu"
    """Of the hidden layers; a name of :data:`fastmlp.ops.activations.ACTIVATIONS`."""
    loss: str = "cross_entropy"
    """A name of :data:`fastmlp.ops.losses.LOSSES`; a row's loss is the sum over its outputs."""
    loss_scale: float = 1.0
    """Factor of a row's loss: 1 / O for torch's mean over O outputs."""
    label_smoothing: float = 0.0
    huber_delta: float = 1.0
    weight_mean: bool = True
    """A batch's mean divides by the sum of its rows' weights, class weights included; otherwise by
    the number of its rows. A batch whose weights sum to 0 has the loss 0."""
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Times the parameter it is added to the gradient; adamw subtracts it from the parameter."""
    decay_biases: bool = True
    decay_per_row: bool = False
    """The decay is divided by what the batch's loss is divided by."""
    lr_in_momentum: bool = False
    """SGD's momentum is v = momentum v - lr g and w += v, or w += momentum v - lr g (nesterov), as
    scikit-learn and Keras have it."""
    epsilon_hat: bool = False
    """Adam adds eps to sqrt(v) before the bias correction, as scikit-learn and TensorFlow do."""
    clip_norm: float | None = None
    """Gradients are scaled so that the norm of all together is at most this."""
    dropout: float = 0.0
    """Of the outputs of hidden layers."""
    grad_average: bool = False
    """Gradients, already means over a batch, are divided by its rows once more."""
    decay_in_loss: float = 0.0
    """A step's loss includes this times what the decay is the gradient of: half the decay times the
    sum of the squares of the parameters that decay."""

    def __post_init__(self) -> None:
        row_of(self.activation)
        loss = loss_row(self.loss)
        if self.optimizer not in STEP_OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(STEP_OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if self.optimizer != "sgd" and (self.momentum or self.nesterov or self.lr_in_momentum):
            raise ValueError(f"momentum and nesterov are for sgd, not for {self.optimizer}")
        if self.label_smoothing and not loss.takes_labels:
            raise ValueError(f"label_smoothing is for cross_entropy, not for {self.loss}")
        if self.optimizer == "adamw" and self.decay_in_loss:
            raise ValueError("decay_in_loss is for sgd and adam: adamw's decay is no gradient")
        for name, low, high in (
            ("label_smoothing", 0.0, 1.0),
            ("momentum", 0.0, math.inf),
            ("eps", 0.0, math.inf),
            ("weight_decay", -math.inf, math.inf),
            ("loss_scale", -math.inf, math.inf),
            ("decay_in_loss", -math.inf, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {self.betas}")
        if self.huber_delta <= 0:
            raise ValueError(f"huber_delta must be above 0, got {self.huber_delta}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}")

    @property
    def state_kinds(self) -> tuple[str, ...]:
        """The kinds of tensors that its optimizer keeps for each parameter."""
        if self.optimizer != "sgd":
            return ("exp_avg", "exp_avg_sq", "step")
        return ("momentum",) if self.momentum else ()


def zero_state(parameters: Sequence[Tensor], config: StepConfig) -> dict[str, list[Tensor]]:
    """Return the optimizer's tensors before the first step: zeros, by kind, one for each parameter;
    ``step``, the number of steps done, is a float32 scalar, as in ``torch.optim``."""
    return {
        kind: [
            torch.zeros((), dtype=torch.float32, device=tensor.device)
            if kind == "step"
            else torch.zeros_like(tensor)
            for tensor in parameters
        ]
        for kind in config.state_kinds
    }


@dataclass
class Network:
    """A network in training, and the steps that it is to take.

    ``parameters`` are W1 (H, I), b1 (H,), W2, b2, ... of one dtype, float32 or float64, without
    hidden layers W1 (O, I), b1 (O,). They and ``state`` (:func:`zero_state`, its default) change in
    place. ``order`` (m,) int64 are the rows that it visits in this epoch, in batches of
    ``config.batch_size``, the last one perhaps smaller; or in so many ``epochs``, one after the
    other, m / epochs rows in each. Of these steps it takes ``max_steps`` (None: all that are left)
    from ``start_step`` on. ``seed`` and ``epoch``, the number of the first one, are dropout's.
    """

    parameters: list[Tensor]
    config: StepConfig
    order: Tensor
    lr: float
    state: dict[str, list[Tensor]] = field(default_factory=dict)
    start_step: int = 0
    max_steps: int | None = None
    seed: int = 0
    epoch: int = 0
    epochs: int = 1

    def __post_init__(self) -> None:
        if not self.state:
            self.state = zero_state(self.parameters, self.config)

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        left = max(self.epochs * self._epoch_steps - self.start_step, 0)
        return left if self.max_steps is None else min(left, max(self.max_steps, 0))

    @property
    def _epoch_steps(self) -> int:
        return -(-len(self.order) // (self.epochs * self.config.batch_size))

    def batch(self, number: int) -> tuple[Tensor, int, int]:
        """Return a step's rows, its number in its epoch, and the epoch's own."""
        epoch, step = divmod(number, self._epoch_steps)
        size, rows = self.config.batch_size, len(self.order) // self.epochs
        first, end = step * size, min((step + 1) * size, rows)
        return self.order[epoch * rows + first : epoch * rows + end], step, self.epoch + epoch


def options_of(config: StepConfig, network: Network | None = None) -> list[float]:
    """Return the options that the operators take, as ``csrc/cpu/engine/steps.h`` orders them."""
    row, loss = row_of(config.activation), loss_row(config.loss)
    of_config = [
        config.batch_size,
        row.kernel,
        loss.kernel,
        config.loss_scale,
        config.label_smoothing,
        config.huber_delta,
        config.weight_mean,
        STEP_OPTIMIZERS.index(config.optimizer),
    ]
    of_update = [
        0.0 if network is None else network.lr,
        config.momentum,
        config.nesterov,
        *config.betas,
        config.eps,
        config.weight_decay,
        config.decay_biases,
        config.decay_per_row,
        config.lr_in_momentum,
        config.epsilon_hat,
        config.clip_norm or 0.0,
        config.dropout,
        dropout_threshold(config.dropout),
        config.grad_average,
        config.decay_in_loss,
    ]
    of_call = [0.0] * 6 + [1.0] if network is None else call_options(network)
    return [float(value) for value in (*of_config, *of_update, *of_call) if value is not None]


LR_OPTION = 8
"""The learning rate's place among the options."""


def call_options(network: Network) -> list[float]:
    """Return the last of the options: dropout's place, and which steps a network takes."""
    seed, kept = network.seed, network.state.get("step")
    return [
        seed & 0xFFFFFFFF,
        seed >> 32 & 0xFFFFFFFF,
        network.epoch & 0xFFFFFF,
        network.start_step,
        network.steps,
        float(kept[0]) if kept else 0.0,
        network.epochs,
    ]


def check_parameters(parameters: Sequence[Tensor], inputs: int) -> None:
    """Raise TypeError or ValueError unless these are the parameters of a network of so many
    inputs."""
    if not parameters or len(parameters) % 2:
        raise ValueError(
            f"parameters must be a weight and a bias for each layer, got {len(parameters)} tensors"
        )
    sizes = [inputs, *(len(bias) for bias in parameters[1::2])]
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight = parameters[2 * number]
        if tuple(weight.shape) != (fan_out, fan_in):
            raise ValueError(
                f"parameters[{2 * number}] must have shape {(fan_out, fan_in)}, "
                f"got {tuple(weight.shape)}"
            )
    dtype = parameters[0].dtype
    for tensor in parameters:
        if tensor.dtype != dtype or dtype not in (torch.float32, torch.float64):
            raise TypeError(f"parameters must be all float32 or all float64, got {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError("parameters must be contiguous")


def check_network(network: Network, rows: int, inputs: int) -> None:
    """Raise TypeError, ValueError or IndexError unless the network fits data of this shape."""
    check_parameters(network.parameters, inputs)
    order, config = network.order, network.config
    if order.dtype != torch.int64 or order.dim() != 1:
        raise TypeError(f"order must be (m,) int64, got {tuple(order.shape)} {order.dtype}")
    if len(order) and not (int(order.min()) >= 0 and int(order.max()) < rows):
        raise IndexError(f"order must be rows of x, 0 to {rows - 1}")
    if network.epochs < 1 or len(order) % network.epochs:
        raise ValueError(
            f"order must hold as many rows for each epoch, got {len(order)} for {network.epochs}"
        )
    if network.start_step < 0:
        raise ValueError(f"start_step must not be negative, got {network.start_step}")
    for kind in config.state_kinds:
        tensors = network.state.get(kind, [])
        if len(tensors) != len(network.parameters):
            raise ValueError(f"state must hold {kind} for each parameter, see zero_state")
        for tensor, parameter in zip(tensors, network.parameters, strict=True):
            if kind != "step" and (
                tensor.shape != parameter.shape
                or tensor.dtype != parameter.dtype
                or not tensor.is_contiguous()
            ):
                raise ValueError(f"state's {kind} must have the shapes and dtype of parameters")
