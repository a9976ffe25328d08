"""Blocked look-ahead SGD: exact mini-batch SGD with the matrix products of a large batch.

The inputs of the next S steps are known ahead, and SGD moves the first layer by sums of their
outer products. So one product X W^T for all S steps, the Gram matrix X X^T and a chain of small
steps give what S steps one by one would: the same numbers, summed in another order.
docs/blocked-sgd.md derives it. It holds wherever the first layer's inputs do not depend on the
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.sampling import EpochOrder
from fastmlp.engines.base import Epoch, TrainState
from fastmlp.engines.compiled import CompiledEngine, NetworkEpoch, flat
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.ops._load import native_available
from fastmlp.ops.blocked_sgd import block_steps, recurrence

_ops: Any = torch.ops.fastmlp


def fresh_images(epoch: Epoch, batch_size: int) -> int:
    """Return how many new images a step brings, estimated from the epoch's first 16 batches and
    rounded up; the batch size if no image repeats."""
    rows = epoch.order.indices[: 16 * batch_size]
    if epoch.order.flip_shifts is not None or len(rows) <= batch_size:
        return batch_size
    distinct = len(torch.unique(rows))
    if distinct == len(rows):
        return batch_size
    return -(-max(distinct - batch_size, 0) // (-(-len(rows) // batch_size) - 1))


def kernel_options(config: OptimizerConfig, lr: float) -> tuple[float, ...]:
    """Return a network's options in the order of ``Option`` in csrc/common/blocked_sgd.h."""
    flags = float(config.nesterov), float(config.grad_average)
    return (lr, config.momentum, config.weight_decay, *flags)


def blocked_unsupported_reason(config: OptimizerConfig) -> str | None:
    """Return why the blocked engines cannot make such steps, or None."""
    if config.optimizer != "sgd":
        return f"it trains with sgd alone, and {config.optimizer} is not linear in the gradients"
    if config.precision != "float32":
        return f"it computes in the parameters' own dtype alone, not in {config.precision}"
    return f"it does not have {config.beyond_plain}" if config.beyond_plain else None


def check_blocked(config: OptimizerConfig) -> None:
    """Raise ValueError where blocks of such steps cannot be computed."""
    if why := blocked_unsupported_reason(config):
        raise ValueError(f"the engine blocked cannot make these steps: {why}")


class BlockedEngine(CompiledEngine):
    """Blocked look-ahead SGD for networks with hidden layers, on the CPU.

    Its steps are the eager engine's up to rounding; the same whatever the number of threads and
    whichever networks are trained beside it. An epoch can be stopped between two blocks.
    """

    name = "blocked"

    @staticmethod
    def unsupported_reason(
        device: torch.device,
        sizes: Sequence[int] | None = None,
        config: OptimizerConfig | None = None,
    ) -> str | None:
        """Return why there are no blocks on this device, of this network or with this optimizer;
        None where there are."""
        if not native_available(device.type):
            return EagerEngine.unsupported_reason(device)
        if device.type != "cpu":
            return f"this form of it is for the CPU, not for {device.type}"
        if config is not None and (why := blocked_unsupported_reason(config)):
            return why
        if sizes is not None and len(sizes) < 3:
            return "it wants at least one hidden layer"
        return None

    def _check_config(self, config: OptimizerConfig, block_steps: int | None) -> None:
        check_blocked(config)

    def _begin(self, state: TrainState, epoch: Epoch) -> _BlockedEpoch:
        return _BlockedEpoch(state, epoch, self.device)

    def _run(self, networks: Sequence[_BlockedEpoch]) -> None:
        """Run the next blocks of all these epochs. Those whose epochs have the very same order
        share its images and Gram matrices, where their batch size and block length are the same.
        """
        groups: dict[tuple[EpochOrder, int, int, int], list[_BlockedEpoch]] = {}
        for network in networks:
            groups.setdefault(network.group_key, []).append(network)
        leaders = [members[0] for members in groups.values()]
        networks = flat(groups.values())
        orders, flip_shifts, shape = self._next_images(leaders)
        configs = [network.state.config for network in networks]
        losses, correct = _ops.blocked_train_.default(
            *(self._images, self._labels, self._normalization.scale, self._normalization.shift),
            *(shape, orders, flip_shifts),
            [leader.state.config.batch_size for leader in leaders],
            [leader.steps for leader in leaders],
            [group for group, members in enumerate(groups.values()) for _ in members],
            [len(network.tensors) // 2 for network in networks],
            flat(network.tensors for network in networks),
            flat(network.momentum for network in networks),
            [network.table for network in networks],
            torch.tensor(
                [
                    kernel_options(config, network.epoch.lr)
                    for network, config in zip(networks, configs, strict=True)
                ],
                dtype=torch.float64,
            ),
        )
        steps = [
            -(-len(order) // network.state.config.batch_size)
            for order, members in zip(orders, groups.values(), strict=True)
            for network in members
        ]
        parts = zip(networks, losses.split(steps), correct.split(steps), strict=True)
        for network, mine, hits in parts:
            network.add(mine, hits)

    def _next_images(
        self, leaders: Sequence[_BlockedEpoch]
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Return the groups' next images, their flips and shifts, empty where there are none, and
        the shape of images that have them."""
        orders, flip_shifts, shape = [], [], []
        none = torch.empty(0, 3, dtype=torch.int8)
        for leader in leaders:
            order, rows = leader.epoch.order, leader.next_rows(self._stretch)
            orders.append(order.indices[rows].contiguous())
            if order.flip_shifts is None:
                flip_shifts.append(none)
            else:
                flip_shifts.append(order.flip_shifts.values[rows].contiguous())
                shape = list(order.flip_shifts.shape)
        return orders, flip_shifts, shape


class _BlockedEpoch(NetworkEpoch):
    """A network's epoch in blocks of ``steps`` steps."""

    def __init__(self, state: TrainState, epoch: Epoch, device: torch.device) -> None:
        super().__init__(state, epoch, device)
        config = state.config
        self.tensors = state.tensors
        self.steps = state.block_steps or block_steps(
            config.batch_size,
            len(self.tensors[1]),
            config.momentum > 0,
            fresh_images(epoch, config.batch_size),
        )
        self.table = recurrence(
            self.steps, epoch.lr, config.momentum, config.weight_decay, config.nesterov
        )
        self.momentum = state.ensure_optimizer_state()["momentum"]

    def next_rows(self, blocks: int) -> slice:
        """Return the rows of the epoch in the next ``blocks`` blocks, or in the rest of a block
        where it resumes in the middle: blocks end at the same steps wherever it began."""
        first, batch = self.metrics.next_step, self.state.config.batch_size
        if first % self.steps:
            blocks = 1
        end = (first // self.steps + blocks) * self.steps
        return slice(first * batch, end * batch)

    @property
    def group_key(self) -> tuple[EpochOrder, int, int, int]:
        """A key, equal for networks that use the same images together."""
        batch = self.state.config.batch_size
        return self.epoch.order, batch, self.steps, self.metrics.next_step
