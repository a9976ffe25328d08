"""The table of optimizers: what each keeps, and how it updates all parameters at once.

Updates are those of ``torch.optim``, without autograd: what the engines do with the gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmlp.ops.losses import loss_row
from fastmlp.ops.step_config import StepConfig

OPTIMIZERS = {
    "sgd": ("momentum",),
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
}
"""By name, the kinds of tensors that each keeps for every parameter, of the parameter's shape;
``step``, the number of steps done, is a float32 scalar, as in ``torch.optim``."""

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class OptimizerConfig:
    """The settings of an optimizer: mini-batch steps as ``torch.optim.SGD``, ``Adam`` or ``AdamW``
    take them, and what they minimise, on a network of what kind.

    ``momentum`` and ``nesterov`` are SGD's. ``weight_decay`` times the parameter is added to the
    gradient; AdamW subtracts it from the parameter itself. ``betas`` and ``eps`` are Adam's and
    AdamW's. ``grad_average`` divides the gradients, already means over a batch, by its size once
    more; then ``clip_norm``, unless 0, scales them so that the norm of all together is at most
    this.

    ``loss`` is a name of :data:`fastmlp.ops.losses.LOSSES`, a row's being the mean over its
    outputs, and a batch's the mean over its rows, by their weights; ``label_smoothing`` is
    cross_entropy's. ``activation`` of the hidden layers is a name of
    :data:`fastmlp.ops.activations.ACTIVATIONS`. ``dropout`` is the share of their outputs that a
    step drops, by random numbers of ``seed``, epoch, step, layer and unit.

    With the ``precision`` bfloat16 the layers, forward and backward, compute as under
    ``torch.autocast``, on copies of the float32 parameters; loss, update and optimizer state stay
    float32. With float32 everything is in the parameters' own dtype. Raises ValueError for an
    ``optimizer`` not in :data:`OPTIMIZERS`, for a momentum that it does not have, for a
    ``precision`` not in :data:`PRECISIONS` and for numbers out of range.
    """

    batch_size: int
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    grad_average: bool = False
    optimizer: str = "sgd"
    precision: str = "float32"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 0.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    activation: str = "relu"
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov are for sgd, not for {self.optimizer}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        self.step_config(1)  # raises ValueError for a number out of range

    def step_config(self, outputs: int) -> StepConfig:
        """Return these settings as ``train_steps_`` takes them, for a network of so many
        outputs."""
        return StepConfig(
            batch_size=self.batch_size,
            activation=self.activation,
            loss=self.loss,
            loss_scale=1.0 if loss_row(self.loss).takes_labels else 1 / outputs,
            label_smoothing=self.label_smoothing,
            optimizer=self.optimizer,
            momentum=self.momentum,
            nesterov=self.nesterov,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm or None,
            dropout=self.dropout,
            grad_average=self.grad_average,
        )

    @property
    def beyond_plain(self) -> str | None:
        """What these steps have beyond an optimizer, ReLU and plain cross entropy, which the
        engines for them lack: ``dropout 0.5``, say; None for nothing."""
        plain = OptimizerConfig(self.batch_size)
        for name in ("loss", "label_smoothing", "activation", "dropout", "clip_norm"):
            if getattr(self, name) != getattr(plain, name):
                return f"{name} {getattr(self, name)}"
        return None


def zero_optimizer_state(
    parameters: Mapping[str, Tensor], config: OptimizerConfig
) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's tensors before the first step: zeros, by kind and parameter name, on
    the parameters' device. SGD without momentum keeps nothing."""
    stateless = config.optimizer == "sgd" and not config.momentum
    return {
        kind: {}
        if stateless
        else {
            name: torch.zeros((), dtype=torch.float32, device=tensor.device)
            if kind == "step"
            else torch.zeros_like(tensor)
            for name, tensor in parameters.items()
        }
        for kind in OPTIMIZERS[config.optimizer]
    }


def update_(
    tensors: list[Tensor],
    gradients: list[Tensor],
    optimizer_state: Mapping[str, list[Tensor]],
    lr: float | Tensor,
    config: OptimizerConfig,
) -> None:
    """Take a step of ``torch.optim.SGD``, ``Adam`` or ``AdamW``, in one kernel for all parameters.

    ``tensors``, of one dtype and device, and ``optimizer_state``, a list for each kind in
    :data:`OPTIMIZERS`, empty for SGD without momentum, change in place. ``lr`` may be a float32
    scalar on their device, read without a host sync; on CUDA it is no finer than that.
    """
    if config.optimizer == "sgd":
        torch._fused_sgd_(
            tensors,
            gradients,
            optimizer_state["momentum"],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=config.nesterov,
            maximize=False,
            is_first_step=False,
        )
        return
    adam = torch._fused_adam_ if config.optimizer == "adam" else torch._fused_adamw_
    first, second, step = (optimizer_state[kind] for kind in ("exp_avg", "exp_avg_sq", "step"))
    torch._foreach_add_(step, 1)
    adam(
        *(tensors, gradients, first, second, [], step),
        lr=lr,
        beta1=config.betas[0],
        beta2=config.betas[1],
        weight_decay=config.weight_decay,
        eps=config.eps,
        amsgrad=False,
        maximize=False,
    )


def update_by_parts_(
    tensors: list[Tensor],
    gradients: list[Tensor],
    optimizer_state: Mapping[str, list[Tensor]],
    lr: Tensor,
    config: OptimizerConfig,
) -> None:
    """Do what :func:`update_` does, with a learning rate in the tensors' own dtype, in several
    kernels. The gradients may change."""
    if config.optimizer == "adamw":
        torch._foreach_mul_(tensors, 1 - lr * config.weight_decay)
    elif config.weight_decay:
        torch._foreach_add_(gradients, tensors, alpha=config.weight_decay)
    if config.optimizer == "sgd":
        steps = _sgd_steps(gradients, optimizer_state, config)
    else:
        steps = _adam_steps(gradients, optimizer_state, config)
    torch._foreach_sub_(tensors, torch._foreach_mul(steps, lr))


def _sgd_steps(
    gradients: list[Tensor], optimizer_state: Mapping[str, list[Tensor]], config: OptimizerConfig
) -> list[Tensor]:
    momentum = optimizer_state["momentum"]
    if not momentum:
        return gradients
    torch._foreach_mul_(momentum, config.momentum)
    torch._foreach_add_(momentum, gradients)
    if config.nesterov:
        return list(torch._foreach_add(gradients, momentum, alpha=config.momentum))
    return momentum


def _adam_steps(
    gradients: list[Tensor], optimizer_state: Mapping[str, list[Tensor]], config: OptimizerConfig
) -> list[Tensor]:
    beta1, beta2 = config.betas
    first, second = optimizer_state["exp_avg"], optimizer_state["exp_avg_sq"]
    torch._foreach_add_(optimizer_state["step"], 1)
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    step = optimizer_state["step"][0].double()  # float32 has four digits of 1 - beta2**step
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, (1 - beta2**step).sqrt())
    torch._foreach_add_(roots, config.eps)
    steps = torch._foreach_div(first, roots)
    torch._foreach_div_(steps, 1 - beta1**step)
    return list(steps)
