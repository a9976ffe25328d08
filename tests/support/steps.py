"""Problems for ``train_steps_``, and its steps as a user of PyTorch writes them: autograd and
``torch.optim``."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F

from fastmlp.ops.activations import row_of
from fastmlp.ops.dropout import dropout_factors
from fastmlp.ops.losses import loss_row
from fastmlp.ops.train_steps import Network, StepConfig

OPTIMIZERS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.8, "weight_decay": 0.02, "nesterov": True},
    {"momentum": 0.7, "clip_norm": 0.3},
    {"momentum": 0.9, "lr_in_momentum": True},
    {"momentum": 0.9, "lr_in_momentum": True, "nesterov": True, "weight_decay": 0.05},
    {"grad_average": True},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-5},
    {"optimizer": "adam", "epsilon_hat": True, "eps": 1e-4},
    {"optimizer": "adam", "weight_decay": 0.3, "decay_biases": False, "decay_per_row": True},
    {"optimizer": "adam", "clip_norm": 0.5, "grad_average": True},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1, "decay_biases": False},
]
"""Each option of the update, alone and beside others."""


def make_parameters(sizes, dtype=torch.float64, seed=0):
    """Random parameters of a network of these layer sizes."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n, m in pairwise(sizes):
        made += [
            torch.randn(m, n, generator=generator) / n**0.5,
            torch.randn(m, generator=generator),
        ]
    return [t.to(dtype) for t in made]


def make_targets(loss, rows, outputs, seed=1):
    """Random targets that the loss takes."""
    generator = torch.Generator().manual_seed(seed)
    if loss == "cross_entropy":
        return torch.randint(0, outputs, (rows,), generator=generator)
    if loss == "binary_cross_entropy":
        return (torch.rand(rows, outputs, generator=generator) < 0.4).double()
    if loss == "poisson":
        return torch.randint(0, 5, (rows, outputs), generator=generator).double()
    return torch.randn(rows, outputs, generator=generator).double()


def make_network(sizes, config, rows, *, dtype=torch.float64, lr=0.01, seed=0, **options):
    """A network with an order of all rows."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + 50))
    parameters = make_parameters(sizes, dtype, seed)
    return Network(parameters, config, order, lr, seed=seed + 7, epoch=3, **options)


def clone(network):
    """A copy that shares nothing but the order."""
    state = {kind: [t.clone() for t in tensors] for kind, tensors in network.state.items()}
    made = copy.copy(network)
    made.parameters, made.state = [t.clone() for t in network.parameters], state
    return made


def _torch_optimizer(config, parameters, lr):
    decayed = [p for i, p in enumerate(parameters) if config.decay_biases or i % 2 == 0]
    others = [p for i, p in enumerate(parameters) if not config.decay_biases and i % 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr, betas=config.betas, eps=config.eps)


class _OwnOptimizer:
    """The two updates that torch.optim has not, by their published formulas."""

    def __init__(self, config, parameters, lr):
        self.config, self.parameters, self.lr, self.t = config, parameters, lr, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self):
        self.t += 1
        for i, p in enumerate(self.parameters):
            decay = self.config.weight_decay if self.config.decay_biases or i % 2 == 0 else 0
            g = p.grad + decay * p.data
            if self.config.optimizer == "sgd":
                v = self.config.momentum * self.first[i] - self.lr * g
                self.first[i] = v
                p.data += self.config.momentum * v - self.lr * g if self.config.nesterov else v
                continue
            beta1, beta2 = self.config.betas
            self.first[i] = beta1 * self.first[i] + (1 - beta1) * g
            self.second[i] = beta2 * self.second[i] + (1 - beta2) * g**2
            lr = self.lr * (1 - beta2**self.t) ** 0.5 / (1 - beta1**self.t)
            p.data -= lr * self.first[i] / (self.second[i].sqrt() + self.config.eps)


def torch_loss(config, z, target, class_weight=None):
    """The loss of each row by torch.nn.functional."""
    if config.loss == "cross_entropy":
        return F.cross_entropy(
            z,
            target,
            class_weight,
            reduction="none",
            label_smoothing=config.label_smoothing,
        )
    rows = {
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "squared_error": F.mse_loss,
        "huber": lambda z, y, reduction: F.huber_loss(z, y, reduction, config.huber_delta),
        "poisson": F.poisson_nll_loss,
    }[config.loss]
    return rows(z, target, reduction="none").sum(1)


def train_by_torch(network, x, targets, row_weights=None, class_weight=None):
    """The steps of a fresh network with autograd and torch.optim; returns losses and parameters."""
    config, lr = network.config, network.lr
    parameters = [p.clone().requires_grad_() for p in network.parameters]
    dtype = parameters[0].dtype
    make = _OwnOptimizer if config.lr_in_momentum or config.epsilon_hat else _torch_optimizer
    optimizer, activate = make(config, parameters, lr), row_of(config.activation).module()
    losses, classes = [], None if class_weight is None else class_weight.to(dtype)
    for step, batch in enumerate(network.order.split(config.batch_size)):
        h, target = x[batch].to(dtype), targets[batch]
        target = target.to(dtype) if target.is_floating_point() else target
        layers = len(parameters) // 2
        for layer in range(layers):
            h = F.linear(h, *parameters[2 * layer : 2 * layer + 2])
            if layer + 1 < layers:
                h = activate(h)
            if layer + 1 < layers and config.dropout:
                place = {"seed": network.seed, "epoch": network.epoch, "step": step}
                h = h * dropout_factors(
                    tuple(h.shape), config.dropout, **place, layer=layer, dtype=dtype
                )
        rows = torch_loss(config, h, target, classes) * config.loss_scale
        weights = torch.ones_like(rows) if row_weights is None else row_weights[batch].to(dtype)
        parts = weights if classes is None else weights * classes[target]
        total = parts.sum() if config.weight_mean else len(batch)
        loss = (rows * weights).sum() / total
        losses.append(loss.detach().double())
        average = len(batch) if config.grad_average else 1
        for p in parameters:
            p.grad = None
        (loss / average).backward()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        if config.decay_per_row:  # torch's coupled decay, of this batch
            optimizer.param_groups[0]["weight_decay"] = config.weight_decay / float(total)
        optimizer.step()
    return torch.stack(losses), [p.detach() for p in parameters]


def numbers_of(network):
    """All numbers that a network's training changes, in one vector."""
    return torch.cat(
        [t.reshape(-1).double() for t in network.parameters]
        + [t.reshape(-1).double() for tensors in network.state.values() for t in tensors]
    )


def problem(config, rows=53, inputs=7, outputs=3):
    """Inputs and targets for a network."""
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(3)).double()
    return x, make_targets(config.loss, rows, outputs)


def hits_of(config, z, target):
    """How many rows are right."""
    return int(loss_row(config.loss).hits(z, target).sum())


def config_of(**options):
    """A configuration with small batches."""
    return StepConfig(**{"batch_size": 8, **options})
