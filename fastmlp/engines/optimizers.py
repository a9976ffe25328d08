"""The table of optimizers: what each keeps, and how it updates all parameters at once.

Updates are those of ``torch.optim``, without autograd: what the engines do with the gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
    take them, the latter two with betas of 0.9 and 0.999 and an eps of 1e-8.

    ``momentum`` and ``nesterov`` are SGD's. ``weight_decay`` times the parameter is added to the
    gradient; AdamW subtracts it from the parameter itself. ``grad_average`` divides the gradients,
    already means over a batch, by its size once more. With the ``precision`` bfloat16 the layers,
    forward and backward, compute as under ``torch.autocast``, on copies of the float32 parameters;
    loss, update and optimizer state stay float32. With float32 everything is in the parameters' own
    dtype. Raises ValueError for an ``optimizer`` not in :data:`OPTIMIZERS`, for a momentum that it
    does not have and for a ``precision`` not in :data:`PRECISIONS`.
    """

    batch_size: int
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    grad_average: bool = False
    optimizer: str = "sgd"
    precision: str = "float32"

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


BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""The defaults of ``torch.optim.Adam`` and ``AdamW``."""


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
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=config.weight_decay,
        eps=EPS,
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
        steps = _adam_steps(gradients, optimizer_state)
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
    gradients: list[Tensor], optimizer_state: Mapping[str, list[Tensor]]
) -> list[Tensor]:
    first, second = optimizer_state["exp_avg"], optimizer_state["exp_avg_sq"]
    torch._foreach_add_(optimizer_state["step"], 1)
    torch._foreach_lerp_(first, gradients, 1 - BETA1)
    torch._foreach_mul_(second, BETA2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - BETA2)
    step = optimizer_state["step"][0].double()  # float32 has four digits of 1 - BETA2**step
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, (1 - BETA2**step).sqrt())
    torch._foreach_add_(roots, EPS)
    steps = torch._foreach_div(first, roots)
    torch._foreach_div_(steps, 1 - BETA1**step)
    return list(steps)
