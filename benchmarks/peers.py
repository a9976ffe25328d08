"""What fastmlp's training is timed against: the same SGD on the same data, written otherwise.

Every peer is built with ``peer(parameters, images, labels, lr)`` from a plain ``state_dict`` of
``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear)``, images (n, I) float32, already normalised, and
labels (n,) int64, and trains with ``peer.epoch(order, batch)``, one plain SGD step on each batch of
``order`` (n,) int64. ``peer.parameters()`` gives the ``state_dict`` back.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameters = dict[str, Tensor]


class Peer(Protocol):
    """One way to train."""

    def epoch(self, order: Tensor, batch: int) -> float:
        """Runs the steps of ``order``; returns the mean loss of their batches."""

    def parameters(self) -> Parameters:
        """The parameters as a plain ``state_dict``."""


class HandWritten:
    """A course's loop: layers by hand in torch operations, w of shape (D, F), the loss read back
    after every step."""

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        self.w1, self.w2 = (parameters[f"{i}.weight"].t().contiguous() for i in (0, 2))
        self.b1, self.b2 = (parameters[f"{i}.bias"].clone() for i in (0, 2))
        self.images, self.labels, self.lr = images, labels, lr

    def epoch(self, order: Tensor, batch: int) -> float:
        losses = []
        for rows in torch.split(order, batch):
            x, y = self.images[rows], self.labels[rows]
            h = x @ self.w1 + self.b1
            a = h.clamp(min=0)
            logits = a @ self.w2 + self.b2
            e = (logits - logits.max(1, keepdim=True).values).exp()
            p = e / e.sum(1, keepdim=True)
            hot = F.one_hot(y, p.shape[1])
            losses.append(-(hot * p.log()).sum().item() / len(rows))
            dlogits = (p - hot) / len(rows)
            dh = dlogits @ self.w2.t() * (h > 0)
            self.w2.sub_(a.t() @ dlogits, alpha=self.lr)
            self.b2.sub_(dlogits.sum(0), alpha=self.lr)
            self.w1.sub_(x.t() @ dh, alpha=self.lr)
            self.b1.sub_(dh.sum(0), alpha=self.lr)
        return sum(losses) / len(losses)

    def parameters(self) -> Parameters:
        return {
            "0.weight": self.w1.t(),
            "0.bias": self.b1,
            "2.weight": self.w2.t(),
            "2.bias": self.b2,
        }


class ModuleAndOptimizer:
    """What one writes in PyTorch: nn.Sequential, autograd, torch.optim.SGD; the loss is read once,
    at the end."""

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        (hidden, inputs), (classes, _) = (parameters[f"{i}.weight"].shape for i in (0, 2))
        self.model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        self.model.load_state_dict(parameters)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.images, self.labels = images, labels

    def epoch(self, order: Tensor, batch: int) -> float:
        total = torch.zeros(())
        batches = torch.split(order, batch)
        for rows in batches:
            loss = F.cross_entropy(self.model(self.images[rows]), self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach()
        return total.item() / len(batches)

    def parameters(self) -> Parameters:
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
