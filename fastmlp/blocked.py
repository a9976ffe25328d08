"""Blocked look-ahead SGD: exact mini-batch SGD with the matrix products of a large batch.

The inputs of the next S steps are known ahead, and SGD moves the first layer by sums of their
outer products. So one product X W^T for all S steps, the Gram matrix X X^T and a chain of small
steps give what S steps one by one would: the same numbers, summed in another order.
docs/blocked-sgd.md derives it. It holds wherever the first layer's inputs do not depend on the
parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend, ops
from .dispatch import register_fake
from .engine_base import EpochStats, Tally
from .step_engines import REPORT_SECONDS, EagerEngine

BLOCK_ROWS = 128
"""Images in a block, about: enough for products at full speed, few enough for the Gram matrix to
cost no more than a quarter of one."""
MOMENTUM_BLOCK_ROWS = 64
"""The same with momentum, where a block of several steps needs both products twice, for the weights
and for their momentum."""

_ops: Any = torch.ops.fastmlp


def block_steps(batch_size: int, momentum: bool = False) -> int:
    """Steps in a block: the S of blocked SGD. One where batches are large enough by themselves."""
    if momentum:
        return MOMENTUM_BLOCK_ROWS // batch_size if batch_size < 32 else 1
    return max(1, BLOCK_ROWS // batch_size)


def recurrence(
    steps: int,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """How weights w and momentum v after t steps depend on where they began, and on gradients.

    ``torch.optim.SGD`` is linear in w, v and the gradients d of the loss:

        v' = momentum v + d + weight_decay w
        w' = w - lr (d + weight_decay w + momentum v' if nesterov else v')

    Returns (steps + 1, 6) float64; row t holds what w_t takes from w_0, from v_0 and from a
    gradient at step 0, then the same three for v_t. A gradient at step u counts like one at step 0
    in row t - u.
    """

    def step(w: float, v: float, d: float) -> tuple[float, float]:
        d += weight_decay * w
        v = momentum * v + d
        return w - lr * (d + momentum * v if nesterov else v), v

    from_w, from_v, from_g = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)
    rows = []
    for t in range(steps + 1):
        columns = (from_w, from_v, from_g)
        rows.append([c[0] for c in columns] + [c[1] for c in columns])
        from_w, from_v = step(*from_w, 0.0), step(*from_v, 0.0)
        from_g = step(*from_g, 1.0 if t == 0 else 0.0)
    return torch.tensor(rows, dtype=torch.float64)


class BlockedEngine(EagerEngine):
    """Blocked look-ahead SGD for networks with one hidden layer, on the CPU.

    Its steps are the eager engine's up to rounding. They are taken in blocks, and an epoch can be
    stopped between two blocks, a few milliseconds apart.
    """

    name = "blocked"
    block_steps: int | None = None
    """Forces the length of a block; None leaves it to :func:`block_steps`."""

    @staticmethod
    def why_not(device: torch.device, sizes: Sequence[int] | None = None) -> str | None:
        if not backend.native_available(device.type):
            return EagerEngine.why_not(device)
        if device.type != "cpu":
            return f"it has no kernels for {device.type} yet"
        if sizes is not None and len(sizes) != 3:
            return f"it takes one hidden layer, not {len(sizes) - 2}"
        return None

    def train_epoch(
        self,
        order: Tensor,
        lr: float,
        *,
        start_step: int = 0,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[EpochStats], None] | None = None,
    ) -> EpochStats:
        batch, options = self.options.batch_size, self.options
        tally = Tally(len(order), batch, start_step, self.device)
        steps = self.block_steps or block_steps(batch, options.momentum > 0)
        table = recurrence(steps, lr, options.momentum, options.weight_decay, options.nesterov)
        if options.momentum and self._momentum[0] is None:
            self._momentum = [torch.zeros_like(tensor) for tensor in self._tensors]
        report_at = time.perf_counter() + REPORT_SECONDS
        step = start_step
        while step < tally.total:
            # Blocks end at the same steps wherever the epoch was taken up.
            end = min((step // steps + 1) * steps, tally.total)
            with torch.no_grad():
                tally.add(*self._block(order[step * batch : end * batch], lr, table))
            step = end
            if should_stop is not None and should_stop():
                break
            if on_progress is not None and time.perf_counter() >= report_at:
                on_progress(tally.read())
                report_at = time.perf_counter() + REPORT_SECONDS
        return tally.read()

    def _block(self, rows: Tensor, lr: float, table: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the steps on the training images ``rows``; returns each step's mean loss and number
        of hits."""
        options, norm = self.options, self._normalization
        batch = options.batch_size
        w1, b1, w2, b2 = self._tensors
        v1, vb1, v2, vb2 = self._momentum
        x = _ops.gather_normalize.default(self._images, rows, norm.scale, norm.shift).to(w1.dtype)
        p = ops.linear(x, w1, b1)
        q = ops.linear(x, v1, vb1) if v1 is not None and len(rows) > batch else None
        g, losses, correct = _ops.chain.default(
            *(p, q, _ops.gram.default(x, batch), self._labels.index_select(0, rows), table),
            *(w2, b2, v2, vb2, batch, lr, options.momentum, options.weight_decay),
            *(options.nesterov, options.grad_average),
        )
        _ops.block_update_.default(w1, b1, v1, vb1, g, x, table, batch)
        return losses, correct


def _chain_fake(p: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    steps = -(-len(p) // args[8])
    return torch.empty_like(p), p.new_empty(steps), p.new_empty(steps, dtype=torch.int64)


if backend.native_available():
    register_fake(
        "gather_normalize",
        lambda images, rows, scale, shift: scale.new_empty(len(rows), images.shape[1]),
    )
    register_fake("gram", lambda x, batch: x.new_empty(len(x), len(x)))
    register_fake("chain", _chain_fake)
    register_fake("block_update_", lambda *args: None)


def chain_ref(
    p: Tensor,
    q: Tensor | None,
    gram: Tensor,
    labels: Tensor,
    table: Tensor,
    last: Sequence[Tensor],
    optimizer: torch.optim.SGD,
    batch: int,
    grad_average: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``chain`` in plain PyTorch: the steps of a block after the first products.

    p, q (n, H) are X W^T + b of the first layer's weights and of their momentum, gram (n, n) is
    X X^T + 1, labels (n,), ``table`` a :func:`recurrence`, ``last`` the last layer's weight (C, H)
    and bias (C,), which ``optimizer`` moves. Returns dloss/dpre (n, H), the steps' mean losses and
    their numbers of hits.
    """
    weight, bias = last
    g = torch.zeros_like(p)
    losses, correct = [], []
    for t, first in enumerate(range(0, len(p), batch)):
        rows = slice(first, first + batch)
        pre = table[t, 0] * p[rows]
        if q is not None:
            pre = pre + table[t, 1] * q[rows]
        ages = t - torch.arange(first) // batch
        pre = pre + (gram[rows, :first] * table[ages, 2].to(p.dtype)) @ g[:first]
        pre = pre.to(p.dtype).requires_grad_()
        logits = F.linear(F.relu(pre), weight, bias)
        loss = F.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        (loss / len(pre) if grad_average else loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert pre.grad is not None
        g[rows] = pre.grad
        losses.append(loss.detach())
        correct.append((logits.argmax(1) == labels[rows]).sum())
    return g, torch.stack(losses), torch.stack(correct)
