"""The pure-PyTorch twin of every operator: the truth that compiled kernels are tested against.

Each ``<op>_ref`` has the signature of ``<op>`` in :mod:`fastmlp.ops.linear`. Forward functions are
PyTorch's own; backward functions are written out, to be read beside the kernels. They run on any
device and in any floating-point dtype, and autograd goes through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``y = act(x @ weight.T + bias)``; x (..., I), weight (O, I), bias (O,) -> y (..., O).

    As ``torch.nn.functional.linear``, followed by ``relu`` where ``activation="relu"``.
    """
    y = F.linear(x, weight, bias)
    return F.relu(y) if activation == "relu" else y


def linear_backward_ref(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dw, db) of :func:`linear_ref`; those not asked for are None.

    dy (..., O), x (..., I), weight (O, I). ``y`` (..., O), the output, is given where the
    activation was ReLU: the gradient passes where y is not <= 0 (so nan passes it). The output's
    mask (:func:`pack_mask_ref`) does as well.

        g = dy * [y > 0],   dx = g @ weight,   dw = g.T @ x,   db = sum over rows of g
    """
    g = dy if y is None else relu_backward_ref(dy, y)
    dx = g @ weight if output_mask[0] else None
    rows, inputs = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (g, x))
    dw = rows.t() @ inputs if output_mask[1] else None
    db = rows.sum(0) if output_mask[2] else None
    return dx, dw, db


def linear_relu_with_mask_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`linear_ref` with a ReLU, (..., O), and its mask (..., ceil(O / 8))."""
    y = linear_ref(x, weight, bias, "relu")
    return y, pack_mask_ref(y)


def relu_ref(x: Tensor) -> Tensor:
    """``max(x, 0)`` elementwise, any shape; relu(nan) is nan. As ``torch.nn.functional.relu``."""
    return F.relu(x)


def relu_with_mask_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`relu_ref`, contiguous, and its mask."""
    y = relu_ref(x).contiguous()
    return y, pack_mask_ref(y)


def relu_backward_ref(dy: Tensor, y: Tensor) -> Tensor:
    """``dx = 0 where y <= 0, else dy``; ``y`` is relu's output or, equally, its input, or the mask
    of either."""
    stops = ~unpack_mask_ref(y, dy.shape) if y.dtype == torch.uint8 else y <= 0
    return torch.where(stops, torch.zeros_like(dy), dy)


def pack_mask_ref(y: Tensor) -> Tensor:
    """A ReLU's mask, uint8 (..., ceil(C / 8)), from its output or input y (..., C).

    Bit ``c % 8`` (the lowest is 0) of byte ``c // 8`` is 1 where the gradient passes element c of
    the last dimension: where y is not <= 0, so at nan too. Bits past the last element are 0. A
    scalar counts as C = 1.
    """
    bits = ~(y.reshape(1) if y.dim() == 0 else y).le(0)
    bits = F.pad(bits, (0, -bits.shape[-1] % 8))
    bits = bits.reshape(*bits.shape[:-1], bits.shape[-1] // 8, 8)
    return (bits << torch.arange(8, device=y.device)).sum(-1).to(torch.uint8)


def unpack_mask_ref(mask: Tensor, shape: torch.Size) -> Tensor:
    """Where the gradient passes, bool of ``shape``, which y had in :func:`pack_mask_ref`."""
    bits = mask.unsqueeze(-1) >> torch.arange(8, device=mask.device) & 1
    return bits.flatten(-2)[..., : shape[-1] if shape else 1].reshape(shape).bool()


def softmax_xent_ref(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of softmax(logits) against class indices; ``F.cross_entropy`` itself.

    logits (N, C), target (N,) int64 or uint8, weight (C,) -> scalar, or (N,) for ``"none"``.
    """
    return F.cross_entropy(
        logits,
        target,
        weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def softmax_xent_backward_ref(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dlogits (N, C) of :func:`softmax_xent_ref`; dloss is a scalar, or (N,) for ``"none"``.

    With p = softmax(logits), w the class weights, s the smoothing and t the target of a row,

        loss = (1-s) w_t (-log p_t) + (s/C) sum_c w_c (-log p_c)
        dlogits_j = dloss * [ ((1-s) w_t + (s/C) sum_c w_c) p_j - (1-s) w_t [j=t] - (s/C) w_j ]

    ignored rows give 0, and ``"mean"`` divides by the sum of w_t over the rows that count.
    """
    classes = logits.shape[1]
    w = logits.new_ones(classes) if weight is None else weight
    target = target.long()  # as uint8, a label of 156 would equal an ignore_index of -100
    kept = target != ignore_index
    t = torch.where(kept, target, 0)
    hot = F.one_hot(t, classes).to(logits.dtype)
    w_t = w[t]
    q = (1 - label_smoothing) * w_t[:, None] * hot + label_smoothing / classes * w
    dlogits = q.sum(1, keepdim=True) * torch.softmax(logits, 1) - q
    if reduction == "mean":
        dloss = dloss / (w_t * kept).sum()
    dlogits = dlogits * (dloss[:, None] if reduction == "none" else dloss)
    # last, so that the 0 of an ignored row outlives a division by 0 where every row is ignored
    return torch.where(kept[:, None], dlogits, torch.zeros_like(dlogits))


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
    (G * N, S + 1, 6), see :func:`fastmlp.engines.blocked.recurrence`, with 1 taken from its first column,
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
    """(G, N, n): what the recurrence has of gradients of ages (G, n)."""
    return table[..., column].gather(2, age[:, None].expand(-1, table.shape[1], -1))


def _sgd_step(
    w: Tensor, gradient: Tensor, buffer: Tensor | None, options: Tensor, real: Tensor
) -> None:
    """``torch.optim.SGD`` of w (G, N, ...) with options (G, N, 5), in the groups that are real."""
    shape = (*options.shape[:2], *(w.dim() - 2) * [1])
    lr, mu, decay, nesterov = (options[..., i].reshape(shape) for i in range(4))
    real = real.reshape(-1, *(w.dim() - 1) * [1])
    d = gradient + decay * w
    if buffer is not None:
        v = mu * buffer + d
        buffer.copy_(torch.where(real, v, buffer))
        d = torch.where(nesterov != 0, d + mu * v, v)
    w.copy_(torch.where(real, w - lr * d, w))
