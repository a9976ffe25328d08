"""PyTorch's answers to one question, each with its sums taken in another order.

Rounding makes one float32 result a random draw: another BLAS, another instruction set or another
order of the same terms gives another. A product does not depend on how the terms of its sums are
numbered, so permuting them, computing, and undoing the permutation in the result gives as many
equally right draws as wanted on one machine. ``support.compare`` takes PyTorch's error to be the
largest of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.ops.linear import linear_backward_ref, linear_ref

DRAWS = 12
"""Draws a result is compared with; the first takes everything in the order in which it came."""

State = Mapping[str, Mapping[str, Tensor]]
Data = tuple[Subset, Normalization]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: draws are small, and there are many of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def permutations(count: int, *, seed: int = 0, draws: int = DRAWS) -> list[Tensor]:
    """Return permutations of ``range(count)``, the identity first; no seed is changed."""
    random = torch.Generator().manual_seed(1000 * seed + count)
    shuffled = [torch.randperm(count, generator=random) for _ in range(draws - 1)]
    return [torch.arange(count), *shuffled]


@_one_thread()
def linear_draws(x: Tensor, w: Tensor, b: Tensor | None, activation: str = "none") -> list[Tensor]:
    """Return draws of :func:`linear_ref`, which sums over the inputs."""
    orders = [order.to(x.device) for order in permutations(x.shape[-1])]
    return [linear_ref(x[..., order], w[:, order], b, activation) for order in orders]


@_one_thread()
def linear_backward_draws(
    dy: Tensor, x: Tensor, w: Tensor, y: Tensor | None = None, activation: str = "relu"
) -> list[tuple[Tensor, ...]]:
    """Return draws of each of dx, dw and db: dx sums over the outputs, dw and db over the rows;
    ``y`` is what the activation saves."""
    draws = []
    for rows, outs in zip(permutations(len(dy)), permutations(len(w), seed=1), strict=True):
        rows, outs = rows.to(x.device), outs.to(x.device)
        g, mask = (t if t is None else t[rows][:, outs] for t in (dy, y))
        dx, dw, db = linear_backward_ref(g, x[rows], w[outs], mask, activation=activation)
        assert dx is not None
        assert dw is not None
        assert db is not None
        draws.append((dx[rows.argsort()], dw[outs.argsort()], db[outs.argsort()]))
    return list(zip(*draws, strict=True))


@_one_thread()
def cross_entropy_draws(
    loss_and_gradient: Callable[..., Sequence[Tensor]],
    logits: Tensor,
    target: Tensor,
    dloss: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    **options: Any,
) -> list[tuple[Tensor, ...]]:
    """Return draws of the loss and of its gradient, which sum over the classes and the rows."""
    if logits.dim() == 1:  # (C,) has one row
        one_row = cross_entropy_draws(
            lambda x, y, g, **o: [
                t.reshape(s)
                for t, s in zip(loss_and_gradient(x[0], y[0], g, **o), ((), (1, -1)), strict=True)
            ],
            logits[None],
            target[None],
            dloss,
            weight=weight,
            ignore_index=ignore_index,
            **options,
        )
        return [one_row[0], [gradient[0] for gradient in one_row[1]]]
    draws = []
    orders = zip(permutations(logits.shape[0]), permutations(logits.shape[1], seed=1), strict=True)
    for rows, classes in orders:
        rows, classes = rows.to(logits.device), classes.to(logits.device)
        number = classes.argsort()  # the new number of each class
        known = (target >= 0) & (target < len(number))
        renamed = torch.where(known, number[torch.where(known, target, 0).long()], target)
        named = 0 <= ignore_index < len(number)
        loss, gradient = loss_and_gradient(
            logits[rows][:, classes],
            renamed.to(target.dtype)[rows],
            dloss[rows] if dloss.dim() else dloss,
            weight=None if weight is None else weight[classes],
            ignore_index=int(number[ignore_index]) if named else ignore_index,
            **options,
        )
        back = rows.argsort()
        draws.append((loss[back] if loss.dim() else loss, gradient[back][:, number]))
    return list(zip(*draws, strict=True))


@dataclass(frozen=True)
class Renumbering:
    """Numbers the inputs and the hidden units of an MLP anew, and the images within each batch.

    ``widths`` are permutations, one for the inputs and one for each hidden layer; the classes keep
    their numbers. SGD and Adam commute with it, so that training on what :meth:`data`,
    :meth:`parameters` and :meth:`order` return and then :meth:`undo` gives the same network but
    for rounding.
    """

    widths: tuple[Tensor, ...]
    seed: int

    def data(self, data: Data) -> Data:
        (part, norm), columns = data, self.widths[0]
        moved = replace(norm, scale=norm.scale[columns], shift=norm.shift[columns])
        return replace(part, images=part.images[:, columns]), moved

    def order(self, order: Tensor, batch_size: int) -> Tensor:
        batches = torch.split(order, batch_size)
        if not self.seed:
            return order
        random = torch.Generator().manual_seed(self.seed)
        return torch.cat([b[torch.randperm(len(b), generator=random)] for b in batches])

    def parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renumber what has the names and shapes of an ``nn.Sequential``'s parameters."""
        return self._renumber(tensors, self.widths)

    def undo(self, state: State) -> dict[str, dict[str, Tensor]]:
        """Return an engine's state in the numbers of old."""
        back = [order.argsort() for order in self.widths]
        return {kind: self._renumber(tensors, back) for kind, tensors in state.items()}

    @staticmethod
    def _renumber(tensors: Mapping[str, Tensor], widths: Sequence[Tensor]) -> dict[str, Tensor]:
        moved = {}
        for name, tensor in tensors.items():
            layer = int(name.split(".")[0]) // 2  # activations have the odd numbers
            if tensor.dim() and layer + 1 < len(widths):
                tensor = tensor[widths[layer + 1].to(tensor.device)]
            if tensor.dim() == 2:
                tensor = tensor[:, widths[layer].to(tensor.device)]
            moved[name] = tensor.contiguous()
        return moved


def renumberings(widths: Sequence[int], draws: int = DRAWS) -> list[Renumbering]:
    """Return renumberings of a network with these inputs and hidden units, the identity first."""
    by_layer = [permutations(n, seed=i, draws=draws) for i, n in enumerate(widths)]
    return [Renumbering(each, i) for i, each in enumerate(zip(*by_layer, strict=True))]


@_one_thread()
def training_draws(
    make: Callable[[Data], Any],
    data: Data,
    epochs: Iterable[tuple[Tensor, float]],
    batch_size: int,
    count: int = DRAWS,
) -> list[dict[str, Tensor]]:
    """Train the engines that ``make`` returns of the data, of one network, for some epochs of
    (order, learning rate); return the state of each, flat, as ``kind.name``."""
    epochs, ends = list(epochs), []
    start = make(data).parameters_state()
    widths = [t.shape[1] for name, t in start.items() if name.endswith("weight")]
    for renumbering in renumberings(widths, count):
        engine = make(renumbering.data(data))
        engine.load_parameters(renumbering.parameters(start))
        for order, lr in epochs:
            engine.train_epoch(renumbering.order(order, batch_size), lr)
        ends.append(_flat(renumbering.undo(engine.state_dict())))
    return ends


def _flat(state: State) -> dict[str, Tensor]:
    return {f"{kind}.{name}": t for kind, part in state.items() for name, t in part.items()}


def by_name(draws: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Return the draws of each tensor."""
    return {name: [draw[name] for draw in draws] for name in draws[0]}


def joined(draws: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return all numbers of each draw in one vector."""
    return [torch.cat([tensor.flatten() for tensor in draw.values()]) for draw in draws]
