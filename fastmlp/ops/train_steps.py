"""The operator ``train_steps_``: steps of any small MLP, whole epochs in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._load import native_available, resolve_backend
from fastmlp.ops._register import refuse_meta
from fastmlp.ops.activations import row_of
from fastmlp.ops.dropout import dropout_factors
from fastmlp.ops.losses import LossOptions, loss_row, row_weights_of
from fastmlp.ops.rows import Rows, check_rows, check_targets
from fastmlp.ops.step_config import (
    LR_OPTION,
    Network,
    StepConfig,
    call_options,
    check_network,
    options_of,
    zero_state,
)

__all__ = ["Network", "StepConfig", "StepMetrics", "train_steps_", "train_steps_ref", "zero_state"]


class StepMetrics(NamedTuple):
    """Of each step taken: ``losses`` float64, the batch's mean loss before the step, with weight
    decay only where the config says so, and ``correct`` int64, its rows predicted right.

    A network stops before the update of a step whose loss is not finite; the losses of the steps
    that it did not come to are nan.
    """

    losses: Tensor
    correct: Tensor


def train_steps_(
    networks: Sequence[Network],
    x: Tensor,
    targets: Tensor,
    *,
    row_weights: Tensor | None = None,
    class_weight: Tensor | None = None,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    backend: str | None = None,
) -> list[StepMetrics]:
    """Train the networks, in place, for the steps that each asks for; :class:`Rows` describes the
    data. Networks may differ in everything but their inputs, and do not influence each other.

    Raises TypeError, ValueError or IndexError where something does not fit.
    """
    rows = Rows(x, targets, row_weights, class_weight, scale, shift)
    check_rows(rows)
    for network in networks:
        check_network(network, len(x), x.shape[1])
        check_targets(rows, network.config, len(network.parameters[-1]))
    native = resolve_backend(backend, "cpu") == "native"
    metrics: dict[int, StepMetrics] = {}
    groups: dict[tuple[torch.dtype, int], list[int]] = {}
    for i, network in enumerate(networks):
        if native and has_kernels(network.parameters, rows, network.config.activation):
            outputs = network.parameters[-1]
            groups.setdefault((outputs.dtype, len(outputs)), []).append(i)
        else:
            metrics[i] = train_steps_ref(network, rows)
    for members in groups.values():
        found = _NativeSteps([networks[i] for i in members], rows.native()).take()
        metrics.update(zip(members, found, strict=True))
    return [metrics[i] for i in range(len(networks))]


def check_steps(network: Network, rows: Rows) -> None:
    """Raise TypeError, ValueError or IndexError unless the network can be trained on the rows."""
    check_rows(rows)
    check_network(network, len(rows.x), rows.x.shape[1])
    check_targets(rows, network.config, len(network.parameters[-1]))


def has_kernels(parameters: Sequence[Tensor], rows: Rows, activation: str) -> bool:
    """Return whether the compiled kernels can do it: everything is on the CPU, and the activation
    is compiled."""
    devices = {tensor.device.type for tensor in (rows.x, *parameters)}
    return devices == {"cpu"} and row_of(activation).kernel is not None


class RepeatedSteps:
    """:func:`train_steps_` of one network on the same data, call after call, checked but once.

    Between calls the network's order, lr, epoch, epochs and range of steps may change. Raises what
    :func:`train_steps_` raises.
    """

    def __init__(self, network: Network, rows: Rows, backend: str | None = None) -> None:
        check_steps(network, rows)
        native = resolve_backend(backend, "cpu") == "native"
        native = native and has_kernels(network.parameters, rows, network.config.activation)
        self.network, self._rows = network, rows
        self._native = _NativeSteps([network], rows.native()) if native else None

    def take(self) -> StepMetrics:
        """Train for the steps that the network asks for now."""
        if self._native is None:
            return train_steps_ref(self.network, self._rows)
        return self._native.take()[0]


class _NativeSteps:
    """Calls of the compiled kernels, for networks of one dtype and number of outputs on the rows of
    :meth:`Rows.native`: what does not change from call to call is put together once."""

    def __init__(self, networks: Sequence[Network], rows: tuple[Tensor | None, ...]) -> None:
        self._networks, self._rows = networks, rows
        self._layers = [len(network.parameters) // 2 for network in networks]
        self._parameters = [tensor for network in networks for tensor in network.parameters]
        self._state = [
            tensor
            for network in networks
            for kind in network.config.state_kinds
            if kind != "step"
            for tensor in network.state[kind]
        ]
        options = [options_of(network.config, network) for network in networks]
        self._options = torch.tensor(options, dtype=torch.float64)

    def take(self) -> list[StepMetrics]:
        """Train each network for the steps that it asks for now."""
        options = self._options.numpy()
        for of_network, network in zip(options, self._networks, strict=True):
            of_call = call_options(network)
            of_network[LR_OPTION], of_network[-len(of_call) :] = network.lr, of_call
        losses, correct = torch.ops.fastmlp.train_steps_(
            *self._rows,
            [network.order.contiguous() for network in self._networks],
            self._layers,
            self._parameters,
            self._state,
            self._options,
        )
        metrics, end = list[StepMetrics](), 0
        for network in self._networks:
            first, end = end, end + network.steps
            metrics.append(StepMetrics(losses[first:end], correct[first:end]))
            if "step" in network.state:
                taken = np.isfinite(metrics[-1].losses.numpy()).sum()
                for step in network.state["step"]:
                    step.fill_(float(step) + taken)
        return metrics


def train_steps_ref(network: Network, rows: Rows) -> StepMetrics:
    """The steps of one network in plain PyTorch."""
    count = network.steps
    losses = torch.full((count,), math.nan, dtype=torch.float64)
    correct = torch.zeros(count, dtype=torch.int64)
    for i in range(count):
        batch, step, epoch = network.batch(network.start_step + i)
        factors = dropout_of_step(network, len(batch), step, epoch)
        losses[i], hits, gradients, denominator = gradients_ref(network, rows, batch, factors)
        if not losses[i].isfinite():
            break
        correct[i] = hits
        losses[i] += decay_loss(network, denominator)
        for k, gradient in enumerate(gradients):
            update_ref(network, k, gradient, denominator, network.lr)
    return StepMetrics(losses, correct)


def dropout_of_step(network: Network, rows: int, step: int, epoch: int) -> list[Tensor]:
    """Return dropout's factors (rows, units) of each hidden layer, in a step of an epoch."""
    config, parameters = network.config, network.parameters
    return [
        dropout_factors(
            (rows, len(bias)),
            config.dropout,
            seed=network.seed,
            epoch=epoch,
            step=step,
            layer=layer,
            dtype=bias.dtype,
        )
        for layer, bias in enumerate(parameters[1:-2:2])
        if config.dropout
    ]


def _denominator(weights: Tensor, config: StepConfig) -> Tensor:
    """Return what a batch's loss is divided by: inf where its rows have no weight."""
    if not config.weight_mean:
        weights = torch.ones_like(weights)
    total = weights.double().sum()
    return total.masked_fill(total == 0, math.inf)


def forward_ref(
    parameters: Sequence[Tensor], x: Tensor, activation: str, factors: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the outputs (m, O), what each layer's activation saves, and each layer's inputs;
    ``factors`` are dropout's, of each hidden layer."""
    row, inputs = row_of(activation), [x]
    saved: list[Tensor] = []
    layers = len(parameters) // 2
    for layer in range(layers):
        z = F.linear(inputs[-1], parameters[2 * layer], parameters[2 * layer + 1])
        if layer + 1 == layers:
            return z, saved, inputs
        y = row.forward(z)
        saved.append(z if row.saves == "input" else y)
        inputs.append(y * factors[layer] if factors else y)
    raise AssertionError


def backward_ref(
    parameters: Sequence[Tensor],
    g: Tensor,
    saved: Sequence[Tensor],
    inputs: Sequence[Tensor],
    activation: str,
    factors: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Return the gradients of all parameters, in their order, from that of the outputs, ``g``
    (m, O), and what :func:`forward_ref` returned."""
    row, gradients = row_of(activation), list[Tensor]()
    for layer in reversed(range(len(inputs))):
        gradients[:0] = [g.t() @ inputs[layer], g.sum(0)]
        if layer:
            g = g @ parameters[2 * layer]
            g = g * factors[layer - 1] if factors else g
            wide = torch.promote_types(g.dtype, torch.float32)  # rounded once, as autograd does
            g = row.backward(g.to(wide), saved[layer - 1].to(wide)).to(g.dtype)
    return gradients


def gradients_ref(
    network: Network, rows: Rows, batch: Tensor, factors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Return the mean loss of a batch of rows, its hits, the gradient of each parameter, clipped,
    and what the loss was divided by; ``factors`` are dropout's, of each hidden layer.

    Nothing waits for the device here, nor in the functions below.
    """
    config, parameters = network.config, network.parameters
    dtype, loss = parameters[0].dtype, loss_row(config.loss)
    x, target = rows.inputs(batch, dtype), rows.batch_targets(batch, dtype)
    z, saved, inputs = forward_ref(parameters, x, config.activation, factors)
    class_weight = None if rows.class_weight is None else rows.class_weight.to(dtype)
    options = LossOptions(class_weight, config.label_smoothing, config.huber_delta)
    given = None if rows.row_weights is None else rows.row_weights[batch]
    weights, parts = row_weights_of(loss, target, given, options, z)
    denominator = _denominator(parts, config)
    scale = config.loss_scale / denominator
    mean = (loss.rows(z, target, options) * weights).double().sum() * scale
    scale = scale / len(batch) if config.grad_average else scale
    g = loss.gradient(z, target, options) * (weights * scale.to(weights.dtype))[:, None]
    gradients = backward_ref(parameters, g, saved, inputs, config.activation, factors)
    if config.clip_norm is not None:
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = (config.clip_norm / (norm + 1e-6)).clamp(max=1)
        gradients = [gradient * factor for gradient in gradients]
    return mean, loss.hits(z, target).sum(), gradients, denominator


def decay_loss(network: Network, denominator: Tensor) -> Tensor | float:
    """Return what the weight decay adds to a step's loss."""
    config = network.config
    if not config.decay_in_loss:
        return 0.0
    decayed = network.parameters if config.decay_biases else network.parameters[::2]
    squares = torch.stack([tensor.double().square().sum() for tensor in decayed]).sum()
    decay = squares * (config.decay_in_loss * config.weight_decay / 2)
    return decay / denominator if config.decay_per_row else decay


def update_ref(
    network: Network, k: int, gradient: Tensor, denominator: Tensor, lr: Tensor | float
) -> None:
    """Update the network's k-th parameter with this learning rate."""
    config, w = network.config, network.parameters[k]
    rate = config.weight_decay if config.decay_biases or k % 2 == 0 else 0.0
    decay: Tensor | float = rate
    if rate and config.decay_per_row:
        decay = (rate / denominator).to(w.dtype)
    if config.optimizer == "adamw":
        w.mul_(1 - lr * decay)
    elif rate:
        gradient = gradient + decay * w
    if config.optimizer == "sgd":
        w.add_(_sgd_change(network, k, gradient, lr))
        return
    (beta1, beta2), state = config.betas, network.state
    first, second, steps = (state[kind][k] for kind in ("exp_avg", "exp_avg_sq", "step"))
    steps.add_(1)
    correction1 = (1 - beta1 ** steps.double()).to(w.dtype)
    root2 = (1 - beta2 ** steps.double()).sqrt().to(w.dtype)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    if config.epsilon_hat:
        w.sub_(first / second.sqrt().add_(config.eps) * (lr * root2 / correction1))
    else:
        w.sub_(first / (second.sqrt() / root2).add_(config.eps) * (lr / correction1))


def _sgd_change(network: Network, k: int, gradient: Tensor, lr: Tensor | float) -> Tensor:
    """Return what SGD adds to the k-th parameter, moving its momentum."""
    config = network.config
    if not config.momentum:
        return -lr * gradient
    v = network.state["momentum"][k]
    if config.lr_in_momentum:
        v.mul_(config.momentum).sub_(lr * gradient)
        return config.momentum * v - lr * gradient if config.nesterov else v
    v.mul_(config.momentum).add_(gradient)
    return -lr * (gradient + config.momentum * v) if config.nesterov else -lr * v


if native_available():
    refuse_meta("train_steps_", "how many steps it takes is among its options' numbers")
