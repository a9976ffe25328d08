"""The operator ``train_steps_``: steps of any small MLP, whole epochs in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._load import resolve_backend
from fastmlp.ops.activations import row_of
from fastmlp.ops.dropout import dropout_factors
from fastmlp.ops.losses import LossOptions, loss_row, row_weights_of
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


@dataclass(frozen=True)
class Rows:
    """Data to train on or to evaluate. Its tensors may be memory-mapped; they are read row by row.

    ``x`` (n, I) is float32, float64 or uint8; a network's inputs are x * scale + shift, of scalars
    or tensors (I,), computed in the wider of its dtype and x's floating-point one, from uint8 in
    float32. ``x`` may be sparse (``torch.sparse_csr``) float32 or float64, which is never made
    dense and has neither scale nor shift. ``targets`` are what the loss takes
    (:attr:`Loss.takes_labels`): labels (n,) int64 or uint8, or numbers, float32 or float64, (n, O),
    or (n,) where O = 1. ``row_weights`` (n,) and ``class_weight`` (O,) are float32 or float64.
    """

    x: Tensor
    targets: Tensor | None = None
    row_weights: Tensor | None = None
    class_weight: Tensor | None = None
    scale: Tensor | float | None = None
    shift: Tensor | float | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether x is a sparse tensor."""
        return self.x.layout == torch.sparse_csr

    def inputs(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the inputs (m, I) of these rows."""
        x = dense_rows(self.x, rows) if self.is_sparse else self.x[rows]
        wide = torch.promote_types(x.dtype, dtype) if x.is_floating_point() else torch.float32
        x = x.to(wide)
        x = x if self.scale is None else x * torch.as_tensor(self.scale).to(x.dtype)
        x = x if self.shift is None else x + torch.as_tensor(self.shift).to(x.dtype)
        return x.to(dtype)

    def native(self) -> tuple[Tensor | None, ...]:
        """Return x, columns, starts, targets, row_weights, class_weight, scale and shift as the
        operators take them."""
        targets = self.targets
        if targets is not None and targets.is_floating_point() and targets.dim() == 1:
            targets = targets[:, None]
        affine = [
            value
            if value is None
            else torch.as_tensor(value).double().expand(self.x.shape[1]).contiguous()
            for value in (self.scale, self.shift)
        ]
        weights = [
            value if value is None else value.double().contiguous()
            for value in (self.row_weights, self.class_weight)
        ]
        targets = targets if targets is None else targets.contiguous()
        rest = (targets, *weights, *affine)
        if not self.is_sparse:
            return (self.x.contiguous(), None, None, *rest)
        columns, starts = self.x.col_indices().int(), self.x.crow_indices().long()
        return (self.x.values().contiguous(), columns.contiguous(), starts.contiguous(), *rest)

    def batch_targets(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return labels (m,) or numbers (m, O) in this dtype."""
        assert self.targets is not None
        targets = self.targets[rows]
        if not targets.is_floating_point():
            return targets
        return (targets if targets.dim() == 2 else targets[:, None]).to(dtype)


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
        found = _train_native([networks[i] for i in members], rows)
        metrics.update(zip(members, found, strict=True))
    return [metrics[i] for i in range(len(networks))]


def has_kernels(parameters: Sequence[Tensor], rows: Rows, activation: str) -> bool:
    """Return whether the compiled kernels can do it: everything is on the CPU, and the activation
    is compiled."""
    devices = {tensor.device.type for tensor in (rows.x, *parameters)}
    return devices == {"cpu"} and row_of(activation).kernel is not None


def _train_native(networks: Sequence[Network], rows: Rows) -> list[StepMetrics]:
    """Train networks of one dtype and number of outputs by the compiled kernels."""
    kinds = [[kind for kind in n.config.state_kinds if kind != "step"] for n in networks]
    losses, correct = torch.ops.fastmlp.train_steps_(
        *rows.native(),
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
    counts = [network.steps for network in networks]
    metrics = [
        StepMetrics(*each) for each in zip(losses.split(counts), correct.split(counts), strict=True)
    ]
    for network, (found, _) in zip(networks, metrics, strict=True):
        done = int(found.isfinite().sum())
        for step in network.state.get("step", []):
            step += done
    return metrics


def dense_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return these rows of a sparse tensor (n, I) as a dense one (m, I)."""
    starts = x.crow_indices().long()
    first, counts = starts[rows], starts[rows + 1] - starts[rows]
    to = torch.arange(len(rows)).repeat_interleave(counts)
    within = torch.arange(len(to)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    at = first.repeat_interleave(counts) + within
    dense = torch.zeros(len(rows), x.shape[1], dtype=x.dtype)
    return dense.index_put_((to, x.col_indices()[at].long()), x.values()[at], accumulate=True)


def check_rows(rows: Rows) -> None:
    """Raise TypeError or ValueError unless the tensors of the data fit each other."""
    x, count = rows.x, len(rows.x)
    if rows.is_sparse:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"sparse x must be float32 or float64, got {x.dtype}")
        if rows.scale is not None or rows.shift is not None:
            raise ValueError("sparse x must have neither scale nor shift")
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64, torch.uint8):
        raise TypeError(
            f"x must be (n, I) float32, float64 or uint8, got {tuple(x.shape)} {x.dtype}"
        )
    for name, tensor, length in (
        ("row_weights", rows.row_weights, count),
        ("class_weight", rows.class_weight, None),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dim() != 1:
            raise TypeError(f"{name} must have one dimension of float32 or float64")
        if length is not None and len(tensor) != length:
            raise ValueError(f"{name} must have {length} elements, got {len(tensor)}")
    for name, value in (("scale", rows.scale), ("shift", rows.shift)):
        if isinstance(value, Tensor) and tuple(value.shape) not in ((), (x.shape[1],)):
            raise ValueError(
                f"{name} must be a number or have shape ({x.shape[1]},), got {tuple(value.shape)}"
            )


def check_targets(rows: Rows, config: StepConfig, outputs: int) -> None:
    """Raise TypeError, ValueError or IndexError unless the targets are some for this loss and so
    many outputs."""
    targets, loss, count = rows.targets, loss_row(config.loss), len(rows.x)
    if targets is None:
        raise ValueError("targets are missing")
    if loss.takes_labels:
        if targets.dtype not in (torch.int64, torch.uint8) or tuple(targets.shape) != (count,):
            raise TypeError(
                f"targets must be labels ({count},) int64 or uint8 for {loss.name}, "
                f"got {tuple(targets.shape)} {targets.dtype}"
            )
        if count and not (int(targets.min()) >= 0 and int(targets.max()) < outputs):
            raise IndexError(
                f"targets must be labels from 0 to {outputs - 1}, got {int(targets.min())} to "
                f"{int(targets.max())}"
            )
    else:
        shapes = [(count, outputs)] + ([(count,)] if outputs == 1 else [])
        if (
            targets.dtype not in (torch.float32, torch.float64)
            or tuple(targets.shape) not in shapes
        ):
            raise TypeError(
                f"targets must be ({count}, {outputs}) float32 or float64 for {loss.name}, "
                f"got {tuple(targets.shape)} {targets.dtype}"
            )
    if rows.class_weight is not None:
        if not loss.takes_labels:
            raise ValueError(f"class_weight is for cross_entropy, not for {loss.name}")
        if len(rows.class_weight) != outputs:
            raise ValueError(
                f"class_weight must have {outputs} elements, got {len(rows.class_weight)}"
            )


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


def _gradients_ref(
    network: Network, rows: Rows, batch: Tensor, step: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the batch's mean loss, its hits and the gradient of each parameter."""
    config, parameters = network.config, network.parameters
    dtype, loss, row = parameters[0].dtype, loss_row(config.loss), row_of(config.activation)
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
    gradients: list[Tensor] = []
    for layer in reversed(range(len(inputs))):
        gradients[:0] = [g.t() @ inputs[layer], g.sum(0)]
        if layer:
            g = g @ parameters[2 * layer]
            g = g * factors[layer - 1] if factors else g
            g = row.backward(g, saved[layer - 1])
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
