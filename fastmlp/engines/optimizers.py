"""The optimisers' updates of all parameters at once, without autograd, as ``torch.optim`` makes
them: what the engines do once they have the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""What ``torch.optim.Adam`` and ``AdamW`` begin with."""


def update_(
    tensors: list[Tensor],
    gradients: list[Tensor],
    kept: Mapping[str, list[Tensor]],
    lr: float | Tensor,
    options: OptimizerConfig,
) -> None:
    """One step of ``torch.optim.SGD``, ``Adam`` or ``AdamW``, in one kernel for all parameters.

    ``tensors``, of one dtype and device, change, and so does what the optimiser has ``kept`` of
    them: a list for each name in ``OPTIMIZERS``, none for SGD without momentum. ``lr`` may be a
    float32 scalar on their device, which nobody waits for; on CUDA it is no finer than that.
    """
    if options.optimizer == "sgd":
        torch._fused_sgd_(
            tensors,
            gradients,
            kept.get("momentum", []),
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=options.nesterov,
            maximize=False,
            is_first_step=False,
        )
        return
    adam = torch._fused_adam_ if options.optimizer == "adam" else torch._fused_adamw_
    torch._foreach_add_(kept["step"], 1)
    adam(
        *(tensors, gradients, kept["exp_avg"], kept["exp_avg_sq"], [], kept["step"]),
        lr=lr,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=options.weight_decay,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )


def update_by_parts_(
    tensors: list[Tensor],
    gradients: list[Tensor],
    kept: Mapping[str, list[Tensor]],
    lr: Tensor,
    options: OptimizerConfig,
) -> None:
    """:func:`update_` with a learning rate in the tensors' own dtype, by several kernels. The
    gradients may change."""
    if options.optimizer == "adamw":
        torch._foreach_mul_(tensors, 1 - lr * options.weight_decay)
    elif options.weight_decay:
        torch._foreach_add_(gradients, tensors, alpha=options.weight_decay)
    if options.optimizer == "sgd":
        steps = _sgd_steps(gradients, kept, options)
    else:
        steps = _adam_steps(gradients, kept)
    torch._foreach_sub_(tensors, torch._foreach_mul(steps, lr))


def _sgd_steps(
    gradients: list[Tensor], kept: Mapping[str, list[Tensor]], options: OptimizerConfig
) -> list[Tensor]:
    if "momentum" not in kept:
        return gradients
    momentum = kept["momentum"]
    torch._foreach_mul_(momentum, options.momentum)
    torch._foreach_add_(momentum, gradients)
    if options.nesterov:
        return list(torch._foreach_add(gradients, momentum, alpha=options.momentum))
    return momentum


def _adam_steps(gradients: list[Tensor], kept: Mapping[str, list[Tensor]]) -> list[Tensor]:
    first, second = kept["exp_avg"], kept["exp_avg_sq"]
    torch._foreach_add_(kept["step"], 1)
    torch._foreach_lerp_(first, gradients, 1 - BETA1)
    torch._foreach_mul_(second, BETA2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - BETA2)
    step = kept["step"][0].double()  # float32 has four digits of 1 - BETA2**step
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, (1 - BETA2**step).sqrt())
    torch._foreach_add_(roots, EPS)
    steps = torch._foreach_div(first, roots)
    torch._foreach_div_(steps, 1 - BETA1**step)
    return list(steps)


OPTIMIZERS = {
    "sgd": ("momentum",),
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
}
"""By name, and what each keeps of every parameter: tensors of its shape; ``step``, how many there
have been, is a float32 scalar, as in ``torch.optim``."""


PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class OptimizerConfig:
    """Steps on mini-batches as ``torch.optim.SGD``, ``Adam`` or ``AdamW`` makes them, the latter
    two with betas of 0.9 and 0.999 and an eps of 1e-8.

    ``momentum`` and ``nesterov`` are SGD's. ``weight_decay`` times the parameter is added to the
    gradient; AdamW takes it from the parameter itself. ``grad_average`` divides the gradients,
    already means over a batch, by its size once more. With the ``precision`` bfloat16 the layers,
    forward and backward, are those of ``torch.autocast``, on copies of the float32 parameters;
    loss, update and what the optimiser keeps stay float32. With float32 all is in the parameters'
    own dtype. Raises ValueError for an ``optimizer`` that is none of :data:`OPTIMIZERS`, for a
    momentum that it does not have and for a ``precision`` that is none of :data:`PRECISIONS`.
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
