"""The operators of blocked look-ahead SGD (docs/blocked-sgd.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.ops._load import native_available
from fastmlp.ops._register import register_fake
from fastmlp.ops.activations import relu_backward_ref


def blocked_chain_ref(
    p: Tensor,
    q: Tensor | None,
    gram: Tensor,
    labels: Tensor,
    rows: Tensor,
    recurrence: Tensor,
    options: Tensor,
    batch: int,
    parameters: Sequence[Tensor],
    momentum: Sequence[Tensor],
    to_w: Tensor,
    to_v: Tensor | None,
    ends: Tensor,
    losses: Tensor,
    correct: Tensor,
) -> None:
    """The chain of a block of S steps (docs/blocked-sgd.md) of G groups of N networks with H hidden
    units and C classes; a group's networks share their R = S * batch images, of which ``rows`` (G,)
    are there: the rest is padding, with which nothing happens. Nothing waits for the device.

    p (G, R, N, H) = x w^T as the block begins, q the same of momenta (None without momentum, or
    where S = 1); gram (G, R, R) = x x^T + 1, (G, R, 0) where S = 1; labels (G, R); recurrence
    (G * N, S + 1, 6), see :func:`recurrence`, with 1 taken from its first column,
    which float32 would round; options (G * N, 5): lr, momentum, weight decay, nesterov,
    grad_average.

    Moves ``parameters``, the first layer's bias (G * N, H) and the last layer's weight (G * N, C,
    H) and bias (G * N, C), and their ``momentum`` (empty without), to the block's end, and fills
    in, like p, to_w and to_v: w <- w + ends[0] w + ends[1] v + to_w^T x, v <- ends[2] w + ends[3] v
    + to_v^T x are the first layer's weight and its momentum after the block; ends (G * N, 4).
    losses (G * N, S) are means, correct (G * N, S) counts. A label that is no class makes its
    network nan.
    """
    groups, all_rows, networks, hidden = p.shape
    step_of = torch.arange(all_rows, device=p.device) // batch

    def grouped(tensor: Tensor) -> Tensor:
        return tensor.view(groups, networks, *tensor.shape[1:])

    table, moved = grouped(recurrence), [grouped(t) for t in parameters]
    buffers = [grouped(t) for t in momentum]
    bias, weight2, bias2 = moved
    g = p.new_zeros(groups, networks, all_rows, hidden)
    for step in range(all_rows // batch):
        now, past = slice(step * batch, (step + 1) * batch), step * batch
        counts = (rows - past).clamp(0, batch)
        there = (torch.arange(batch, device=p.device) < counts[:, None])[:, None, :, None]
        from_w, from_v = (table[:, :, step, i, None, None] for i in (0, 1))
        pre = p[:, now].transpose(1, 2) + bias[:, :, None]
        pre = pre + from_w * pre
        if q is not None:
            pre = pre + from_v * (q[:, now].transpose(1, 2) + buffers[0][:, :, None])
        factors = _of_age(table, (step - step_of[:past]).expand(groups, -1), 2)[:, :, None]
        pre = pre + (gram[:, None, now, :past] * factors) @ g[:, :, :past]
        h = torch.where(there, F.relu(pre), 0)
        logits = h @ weight2.transpose(2, 3) + bias2[:, :, None]
        target = labels[:, None, now, None].expand(-1, networks, -1, -1)
        known = (target >= 0) & (target < logits.shape[3])
        log_p = torch.where(known, logits.log_softmax(3), torch.nan)
        at = torch.where(known, target, 0)
        count = counts.clamp(min=1)[:, None].to(p.dtype)
        row_losses = torch.where(there, -log_p.gather(3, at), 0)
        grouped(losses)[..., step] = row_losses.sum((2, 3)) / count
        hits = (logits.argmax(3, keepdim=True) == target) & there
        grouped(correct)[..., step] = hits.sum((2, 3))
        scale = torch.where(grouped(options)[..., 4] != 0, 1 / count**2, 1 / count)
        d = (log_p.exp() - torch.zeros_like(log_p).scatter(3, at, 1)) * scale[..., None, None]
        d = torch.where(there, d, 0)
        g[:, :, now] = torch.where(there, relu_backward_ref(d @ weight2, h), 0)
        gradients = (d.transpose(2, 3) @ h, d.sum(2))
        for i, gradient in enumerate(gradients, 1):
            buffer = buffers[i] if buffers else None
            _sgd_step(moved[i], gradient, buffer, grouped(options), counts > 0)
    out = grouped(ends)
    _collect(table, rows, step_of, g, (bias, buffers[0] if buffers else None), (to_w, to_v), out)


def blocked_gram_ref(
    gram: Tensor,
    cross: Tensor | None,
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    planes: int,
) -> None:
    """Fill ``gram`` (B, G, R, R) with x x^T + 1 of the images ``pixels`` (B, G, R, I) uint8 of B
    blocks, where x(u) = u * scale + shift, and ``cross``, from its second block on, with x x'^T,
    where x' are the block before's. scale and shift (I,) are the same throughout each of
    ``planes`` parts of an image, which the compiled operator counts on.
    """
    x = _inputs(pixels, scale, shift, gram.dtype)
    gram.copy_(x @ x.transpose(2, 3) + 1)
    if cross is not None:
        cross[1:] = x[1:] @ x[:-1].transpose(2, 3)


def blocked_products_ref(
    weight: Tensor,
    factors: Tensor | None,
    before: Tensor | None,
    pixels: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    parts: Tensor | None,
) -> None:
    """The products between the chains of two blocks (docs/blocked-sgd.md) of G groups of N networks
    with H hidden units, whose I inputs are x(u) = u * scale + shift, scale and shift (I,), of R
    images.

    Adds to ``weight`` (G * N, H, I) factors^T x(before) of each network, where there are
    ``factors`` (G, R, N, H), a chain's to_w, and its images ``before`` (G, R, I) uint8. Then fills
    ``parts`` (slices, G, R, N, H), where there are next images ``pixels`` (G, R, I) uint8, with
    their products x(pixels) weight^T over slices of the inputs; here, all of it is in the first.
    """
    if factors is not None and before is not None:
        groups, rows, networks, hidden = factors.shape
        stacked = weight.view(groups, networks * hidden, -1)
        x = _inputs(before, scale, shift, weight.dtype)
        stacked.baddbmm_(factors.view(groups, rows, -1).transpose(1, 2), x)
    if pixels is not None and parts is not None:
        groups = len(pixels)
        stacked = weight.view(groups, -1, weight.shape[2])
        x = _inputs(pixels, scale, shift, weight.dtype)
        parts.zero_()
        torch.bmm(x, stacked.transpose(1, 2), out=parts[0].view(groups, x.shape[1], -1))


def _inputs(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    return pixels.to(dtype) * scale + shift


def blocked_product_sum_ref(
    p: Tensor, parts: Tensor, cross: Tensor | None, factors: Tensor | None
) -> None:
    """Fill p (G, R, N, H) with the sum of ``parts`` (slices, G, R, N, H) and, where the chain
    before has changed the weights since, cross (G, R, R) times its ``factors`` (G, R, N, H)."""
    torch.sum(parts, 0, out=p)
    if cross is not None and factors is not None:
        groups, rows = p.shape[:2]
        p.view(groups, rows, -1).baddbmm_(cross, factors.view(groups, rows, -1))


def _collect(
    table: Tensor,
    rows: Tensor,
    step_of: Tensor,
    g: Tensor,
    biases: tuple[Tensor, Tensor | None],
    outs: tuple[Tensor, Tensor | None],
    ends: Tensor,
) -> None:
    """The end of a block: to_w and to_v from the gradients g (G, N, R, H), and the biases."""
    there = torch.arange(len(step_of), device=g.device) < rows[:, None]
    steps = torch.where(there, step_of + 1, 0).amax(1)
    at = steps[:, None, None, None].expand(-1, table.shape[1], 1, 6)
    end, there = table.gather(2, at)[:, :, 0], there[:, None]
    age = (steps[:, None] - step_of).clamp(min=0)
    for column, out in zip((2, 5), outs, strict=True):
        if out is not None:
            part = torch.where(there[..., None], _of_age(table, age, column)[..., None] * g, 0)
            out.copy_(part.transpose(1, 2))
    (bias, bias_v), (to_w, to_v) = biases, outs
    old, old_v = bias.clone(), torch.zeros_like(bias) if bias_v is None else bias_v.clone()
    bias.copy_(old + end[..., 0:1] * old + end[..., 1:2] * old_v + to_w.sum(1))
    if bias_v is not None and to_v is not None:
        bias_v.copy_(end[..., 3:4] * old + end[..., 4:5] * old_v + to_v.sum(1))
    ends.copy_(torch.cat([end[..., 0:2], end[..., 3:5]], 2))


def _of_age(table: Tensor, age: Tensor, column: int) -> Tensor:
    """Return a column's entries (G, N, n) for gradients that are ``age`` (G, n) steps old."""
    return table[..., column].gather(2, age[:, None].expand(-1, table.shape[1], -1))


def _sgd_step(
    w: Tensor, gradient: Tensor, buffer: Tensor | None, options: Tensor, real: Tensor
) -> None:
    """Take a step of ``torch.optim.SGD`` on w (G, N, ...) with options (G, N, 5), in groups with
    images left."""
    shape = (*options.shape[:2], *(w.dim() - 2) * [1])
    lr, mu, decay, nesterov = (options[..., i].reshape(shape) for i in range(4))
    real = real.reshape(-1, *(w.dim() - 1) * [1])
    d = gradient + decay * w
    if buffer is not None:
        v = mu * buffer + d
        buffer.copy_(torch.where(real, v, buffer))
        d = torch.where(nesterov != 0, d + mu * v, v)
    w.copy_(torch.where(real, w - lr * d, w))


def block_steps(
    batch_size: int, hidden: int, momentum: bool = False, fresh: int | None = None
) -> int:
    """Steps in a block: the S of blocked SGD, as ``csrc/plan.h`` chooses it for a first hidden
    layer of this width. One where batches are large enough by themselves.

    ``fresh`` is how many images a step has that the steps just before it had not, a whole batch if
    not given.
    """
    fresh = batch_size if fresh is None else fresh
    steps: int = torch.ops.fastmlp.blocked_plan(batch_size, hidden, momentum, fresh)
    return steps


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


def _steps_fake(images: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    orders, batches, group, parameters = args[4], args[6], args[8], args[10]
    if (
        not parameters
        or len(batches) != len(orders)
        or not all(batch > 0 for batch in batches)
        or not all(0 <= g < len(orders) for g in group)
        or not all(order.dim() == 1 for order in orders)
    ):
        raise ValueError(
            "fastmlp::blocked_train_ wants, for each network, parameters and the number of an order"
            " (n,) with a batch above 0"
        )
    steps = sum(-(-len(orders[g]) // batches[g]) for g in group)
    return parameters[0].new_empty(steps), images.new_empty(steps, dtype=torch.int64)


def _evaluate_fake(images: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    count = len(args[4])
    return (
        images.new_empty(count, dtype=torch.float64),
        images.new_empty(count, dtype=torch.int64),
    )


def _nothing(*args: Any) -> None:
    """Fake kernel: returns nothing, as the operator writes into its arguments."""


if native_available():
    register_fake("blocked_train_", _steps_fake)
    register_fake("evaluate", _evaluate_fake)
    for name in ("chain_", "gram_", "products_", "product_sum_"):
        register_fake(f"blocked_{name}", _nothing)
