"""Train with the same SGD on the same data, written otherwise: what fastmlp is timed against.

Every peer is built with ``peer(parameters, images, labels, lr)`` from a plain ``state_dict`` of
``nn.Sequential(nn.Linear, nn.ReLU, nn.Linear)``, images (n, I) float32, already normalised, and
labels (n,) int64, and trains with ``peer.epoch(order, batch)``, one plain SGD step on each batch of
``order`` (n,) int64. ``peer.parameters()`` gives the ``state_dict`` back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameters = dict[str, Tensor]


class Peer(Protocol):
    """A way to train."""

    def epoch(self, order: Tensor, batch: int) -> float:
        """Take the steps of ``order``; return the mean loss of their batches."""

    def parameters(self) -> Parameters:
        """Return the parameters as a plain ``state_dict``."""


class HandWritten:
    """A course's loop: layers by hand in torch operations, w of shape (D, F), the loss read back
    after every step, updates as ``w -= lr * dw``."""

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        self.w1, self.w2 = (parameters[f"{i}.weight"].t().contiguous() for i in (0, 2))
        self.b1, self.b2 = (parameters[f"{i}.bias"].clone() for i in (0, 2))
        self.images, self.labels, self.lr = images, labels, lr

    def epoch(self, order: Tensor, batch: int) -> float:
        losses = []
        for rows in torch.split(order, batch):
            x, y = self.batch(rows)
            h = x @ self.w1 + self.b1
            a = h.clamp(min=0)
            logits = a @ self.w2 + self.b2
            e = (logits - logits.max(1, keepdim=True).values).exp()
            p = e / e.sum(1, keepdim=True)
            hot = F.one_hot(y, p.shape[1])
            losses.append(-(hot * p.log()).sum().item() / len(rows))
            dlogits = (p - hot) / len(rows)
            dh = dlogits @ self.w2.t() * (h > 0)
            self.update(self.w2, a.t() @ dlogits)
            self.update(self.b2, dlogits.sum(0))
            self.update(self.w1, x.t() @ dh)
            self.update(self.b1, dh.sum(0))
        return sum(losses) / len(losses)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a step."""
        return self.images[rows], self.labels[rows]

    def update(self, w: Tensor, dw: Tensor) -> None:
        """Take one step of SGD on a parameter."""
        w -= self.lr * dw

    def parameters(self) -> Parameters:
        return {
            "0.weight": self.w1.t(),
            "0.bias": self.b1,
            "2.weight": self.w2.t(),
            "2.bias": self.b2,
        }


class HandWrittenInPlace(HandWritten):
    """The same without a temporary array for the step."""

    def update(self, w: Tensor, dw: Tensor) -> None:
        w.sub_(dw, alpha=self.lr)


class ModuleAndOptimizer:
    """The usual PyTorch: nn.Sequential, autograd, torch.optim.SGD; the loss is read once, at the
    end."""

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        (hidden, inputs), (classes, _) = (parameters[f"{i}.weight"].shape for i in (0, 2))
        self.model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        self.model.to(images.device).load_state_dict(parameters)
        fused = True if images.is_cuda else None
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.model.parameters(), lr=lr, fused=fused
        )
        self.images, self.labels = images, labels

    def epoch(self, order: Tensor, batch: int) -> float:
        total = torch.zeros((), device=self.images.device)
        batches = torch.split(order.to(self.images.device), batch)
        for rows in batches:
            loss = self.loss_of(self.images[rows], self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach()
        return total.item() / len(batches)

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return F.cross_entropy(self.model(x), y)

    def parameters(self) -> Parameters:
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}


class JaxScan:
    """JAX: a whole epoch as one jitted lax.scan over its steps, data on the device."""

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        import jax
        import jax.numpy as jnp

        def loss(p: Any, x: Any, y: Any) -> Any:
            w1, b1, w2, b2 = p
            logits = jnp.maximum(x @ w1.T + b1, 0) @ w2.T + b2
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

        def step(carried: Any, rows: Any) -> Any:
            p, _ = carried
            value, grad = jax.value_and_grad(loss)(p, self.images[rows], self.labels[rows])
            return (jax.tree.map(lambda w, g: w - lr * g, p, grad), None), value

        self.start(parameters, images, labels, step, lambda p: None)

    def start(
        self,
        parameters: Parameters,
        images: Tensor,
        labels: Tensor,
        step: Callable[[Any, Any], Any],
        state_of: Callable[[Any], Any],
    ) -> None:
        """Put everything on the device; ``step((parameters, state), rows)`` gives these anew and
        the loss, ``state_of(parameters)`` the state that the first step begins with."""
        import jax
        import jax.numpy as jnp

        self.names, self.asarray = list(parameters), jnp.asarray
        p = tuple(jnp.asarray(tensor.numpy()) for tensor in parameters.values())
        self.carried = p, state_of(p)
        self.images, self.labels = jnp.asarray(images.numpy()), jnp.asarray(labels.numpy())
        self.scan = jax.jit(lambda carried, order: jax.lax.scan(step, carried, order))

    def epoch(self, order: Tensor, batch: int) -> float:
        whole = len(order) - len(order) % batch
        losses = []
        for rows in (order[:whole].reshape(-1, batch), order[None, whole:]):
            if rows.numel():
                self.carried, values = self.scan(self.carried, self.asarray(rows.numpy()))
                losses.append(values)
        return sum(float(v.sum()) for v in losses) / sum(len(v) for v in losses)

    def parameters(self) -> Parameters:
        arrays = zip(self.names, self.carried[0], strict=True)
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays}


class ScikitLearn:
    """scikit-learn's MLPClassifier with plain SGD, one partial_fit an epoch."""

    def __init__(self, parameters: Parameters, images: Tensor, labels: Tensor, lr: float) -> None:
        from sklearn.neural_network import MLPClassifier

        hidden = len(parameters["0.bias"])
        model = MLPClassifier(
            (hidden,), solver="sgd", alpha=0.0, learning_rate_init=lr, momentum=0.0, shuffle=False
        )
        self.start(model, parameters, images, labels)

    def start(self, model: Any, parameters: Parameters, images: Tensor, labels: Tensor) -> None:
        """Give a model the parameters."""
        self.model, self.images, self.labels = model, images.numpy(), labels.numpy()
        tensors = [tensor.numpy() for tensor in parameters.values()]
        # The first call makes the model's arrays, which then get the common initial parameters.
        model.partial_fit(self.images[:8], self.labels[:8], classes=np.arange(len(tensors[-1])))
        del model._optimizer  # with what it keeps of the first call
        for weight, bias, own, own_bias in zip(
            tensors[::2], tensors[1::2], model.coefs_, model.intercepts_, strict=True
        ):
            own[:], own_bias[:] = weight.T, bias

    def epoch(self, order: Tensor, batch: int) -> float:
        self.model.batch_size = batch
        rows = order.numpy()
        self.model.partial_fit(self.images[rows], self.labels[rows])
        return float(self.model.loss_)

    def parameters(self) -> Parameters:
        model, tensors = self.model, {}
        for layer, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
            tensors[f"{2 * layer}.weight"] = torch.from_numpy(weight.T.copy())
            tensors[f"{2 * layer}.bias"] = torch.from_numpy(bias.copy())
        return tensors


PEERS: dict[str, tuple[str, Callable[[Parameters, Tensor, Tensor, float], Peer]]] = {
    "nn.Module + torch.optim.SGD": ("torch", ModuleAndOptimizer),
    "hand-written loop in torch": ("torch", HandWritten),
    "the same, updates in place": ("torch", HandWrittenInPlace),
    "JAX jit(scan)": ("jax", JaxScan),
    "scikit-learn": ("sklearn", ScikitLearn),
}
"""By name, with the package that each needs."""
