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
    Network,
    StepConfig,
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
        found = _train_native([networks[i] for i in members], rows.native())
        metrics.update(zip(members, found, strict=True))
    return [metrics[i] for i in range(len(networks))]


def has_kernels(parameters: Sequence[Tensor], rows: Rows, activation: str) -> bool:
    """Return whether the compiled kernels can do it: everything is on the CPU, and the activation
    is compiled."""
    devices = {tensor.device.type for tensor in (rows.x, *parameters)}
    return devices == {"cpu"} and row_of(activation).kernel is not None


class RepeatedSteps:
    """:func:`train_steps_` of one network on the same data, call after call, checked but once.

    Between calls the network's order, lr, epoch and range of steps may change. Raises what
    :func:`train_steps_` raises.
    """

    def __init__(self, network: Network, rows: Rows, backend: str | None = None) -> None:
        check_rows(rows)
        check_network(network, len(rows.x), rows.x.shape[1])
        check_targets(rows, network.config, len(network.parameters[-1]))
        native = resolve_backend(backend, "cpu") == "native"
        native = native and has_kernels(network.parameters, rows, network.config.activation)
        self.network, self._rows = network, rows
        self._arguments = rows.native() if native else None

    def take(self) -> StepMetrics:
        """Train for the steps that the network asks for now."""
        if self._arguments is None:
            return train_steps_ref(self.network, self._rows)
        return _train_native([self.network], self._arguments)[0]


def _train_native(
    networks: Sequence[Network], rows: tuple[Tensor | None, ...]
) -> list[StepMetrics]:
    """Train networks of one dtype and number of outputs by the compiled kernels, on the rows of
    :meth:`Rows.native`."""
    kinds = [[kind for kind in n.config.state_kinds if kind != "step"] for n in networks]
    losses, correct = torch.ops.fastmlp.train_steps_(
        *rows,
        [network.order.contiguous() for network in networks],
        [len(network.parameters) // 2 for network in networks],
        [tensor for network in networks for tensor in network.parameters],
        [
            tensor
            for network, names in zip(networks, kinds, strict=True)
            for kind in names
            for tensor in network.state[kind]
        ],
        torch.tensor(
            [options_of(network.config, network) for network in networks], dtype=torch.float64
        ),
    )
    metrics, end = [], 0
    for network in networks:
        first, end = end, end + network.steps
        metrics.append(StepMetrics(losses[first:end], correct[first:end]))
        if "step" in network.state:
            done = np.isfinite(metrics[-1].losses.numpy()).sum()
            torch._foreach_add_(network.state["step"], float(done))
    return metrics


def train_steps_ref(network: Network, rows: Rows) -> StepMetrics:
    """The steps of one network in plain PyTorch."""
    config, count = network.config, network.steps
    losses = torch.full((count,), math.nan, dtype=torch.float64)
    correct = torch.zeros(count, dtype=torch.int64)
    size = config.batch_size
    for i in range(count):
        step = network.start_step + i
        batch = network.order[step * size : (step + 1) * size]
        losses[i], hits, gradients = _gradients_ref(network, rows, batch, step)
        if not losses[i].isfinite():
            break
        correct[i] = hits
        if config.clip_norm is not None:
            norm = torch.stack([g.norm() for g in gradients]).norm()
            factor = (config.clip_norm / (norm + 1e-6)).clamp(max=1)
            gradients = [g * factor for g in gradients]
        denominator = _denominator(_batch_weights(network, rows, batch)[1], config)
        losses[i] += _decay_loss(network, denominator) if config.decay_in_loss else 0
        for k, gradient in enumerate(gradients):
            _update_ref(network, k, gradient, denominator)
    return StepMetrics(losses, correct)


def _loss_options(config: StepConfig, rows: Rows, dtype: torch.dtype) -> LossOptions:
    weight = None if rows.class_weight is None else rows.class_weight.to(dtype)
    return LossOptions(weight, config.label_smoothing, config.huber_delta)


def _batch_weights(network: Network, rows: Rows, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return :func:`row_weights_of` of the batch's rows."""
    dtype = network.parameters[0].dtype
    config, like = network.config, torch.empty(0, dtype=dtype)
    weights = None if rows.row_weights is None else rows.row_weights[batch]
    targets = rows.batch_targets(batch, dtype)
    options = _loss_options(config, rows, dtype)
    return row_weights_of(loss_row(config.loss), targets, weights, options, like)


def _denominator(weights: Tensor, config: StepConfig) -> float:
    """Return what a batch's loss is divided by: inf where its rows have no weight."""
    total = float(weights.double().sum()) if config.weight_mean else float(len(weights))
    return total if total != 0 else math.inf


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


def _gradients_ref(
    network: Network, rows: Rows, batch: Tensor, step: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the batch's mean loss, its hits and the gradient of each parameter."""
    config, parameters = network.config, network.parameters
    dtype, loss = parameters[0].dtype, loss_row(config.loss)
    factors = [
        dropout_factors(
            (len(batch), len(bias)),
            config.dropout,
            seed=network.seed,
            epoch=network.epoch,
            step=step,
            layer=layer,
            dtype=dtype,
        )
        for layer, bias in enumerate(parameters[1:-2:2])
        if config.dropout
    ]
    x, target = rows.inputs(batch, dtype), rows.batch_targets(batch, dtype)
    z, saved, inputs = forward_ref(parameters, x, config.activation, factors)
    weights, parts = _batch_weights(network, rows, batch)
    options = _loss_options(config, rows, dtype)
    scale = config.loss_scale / _denominator(parts, config)
    mean = (loss.rows(z, target, options) * weights).double().sum() * scale
    scale = scale / len(batch) if config.grad_average else scale
    g = loss.gradient(z, target, options) * (weights * scale)[:, None]
    gradients = backward_ref(parameters, g, saved, inputs, config.activation, factors)
    return mean, loss.hits(z, target).sum(), gradients


def _decay_loss(network: Network, denominator: float) -> float:
    """Return what the weight decay adds to a step's loss."""
    config = network.config
    decayed = network.parameters if config.decay_biases else network.parameters[::2]
    squares = sum(float(tensor.double().square().sum()) for tensor in decayed)
    decay = config.weight_decay / (denominator if config.decay_per_row else 1)
    return config.decay_in_loss * decay / 2 * squares


def _update_ref(network: Network, k: int, gradient: Tensor, denominator: float) -> None:
    """Update the network's k-th parameter."""
    config, w, lr = network.config, network.parameters[k], network.lr
    decay = config.weight_decay if config.decay_biases or k % 2 == 0 else 0.0
    decay = decay / denominator if config.decay_per_row else decay
    if config.optimizer == "adamw":
        w.mul_(1 - lr * decay)
    elif decay:
        gradient = gradient + decay * w
    if config.optimizer == "sgd":
        w.add_(_sgd_change(network, k, gradient))
        return
    (beta1, beta2), state = config.betas, network.state
    first, second, steps = (state[kind][k] for kind in ("exp_avg", "exp_avg_sq", "step"))
    steps += 1
    step = float(steps)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, root2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    if config.epsilon_hat:
        w.addcdiv_(first, second.sqrt().add_(config.eps), value=-lr * root2 / correction1)
    else:
        w.addcdiv_(first, (second.sqrt() / root2).add_(config.eps), value=-lr / correction1)


def _sgd_change(network: Network, k: int, gradient: Tensor) -> Tensor:
    """Return what SGD adds to the k-th parameter, moving its momentum."""
    config, lr = network.config, network.lr
    if not config.momentum:
        return -lr * gradient
    v = network.state["momentum"][k]
    if config.lr_in_momentum:
        v.mul_(config.momentum).sub_(gradient, alpha=lr)
        return config.momentum * v - lr * gradient if config.nesterov else v
    v.mul_(config.momentum).add_(gradient)
    return -lr * (gradient + config.momentum * v) if config.nesterov else -lr * v


if native_available():
    refuse_meta("train_steps_", "how many steps it takes is among its options' numbers")
