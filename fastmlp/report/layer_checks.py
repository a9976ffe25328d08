"""Every layer, forward and backward, against PyTorch's own in float32 and against float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.manual import layers as manual
from fastmlp.nn import functional

ULPS = 4
"""What one more rounding may cost, in units of the last place of the largest true value."""
Values = dict[str, Tensor]


@dataclass(frozen=True)
class LayerCheck:
    """One result of one layer. The errors are the largest absolute difference from the truth, which
    is what ``torch.nn`` gives in float64, ``difference`` from what it gives in float32; ``largest``
    is the largest true value."""

    layer: str
    shape: str
    result: str
    largest: float
    difference: float
    error: float
    torch_error: float

    @property
    def passed(self) -> bool:
        """Whether the error is at most twice that of PyTorch in float32, and a few ulp."""
        floor = ULPS * torch.finfo(torch.float32).eps * self.largest
        return self.error <= 2 * self.torch_error + floor


def check_layers(device: torch.device | str = "cpu", seed: int = 0) -> list[LayerCheck]:
    """Checks the layers of a network of 3072-256-10 on a batch of 8 and one of 100; inputs and the
    gradients of the outputs are random."""
    checks = []
    for batch in (8, 100):
        random = torch.Generator().manual_seed(seed)
        x, w, b, g, logits = (
            torch.randn(shape, generator=random).to(device)
            for shape in ((batch, 3072), (3072, 256), (256,), (batch, 256), (batch, 10))
        )
        w /= 3072**0.5
        labels = torch.randint(10, (batch,), generator=random).to(device)
        linear, square, loss = f"{batch} x 3072 x 256", f"{batch} x 256", f"{batch} x 10"
        checks += [
            *_compare("linear", linear, _linear, _torch_linear, x, w, b, g),
            *_compare("linear + relu", linear, _linear_relu, _torch_linear_relu, x, w, b, g),
            *_compare("relu", square, _relu, _torch_relu, g, g.flip(0)),
            *_compare("softmax cross entropy", loss, _loss, _torch_loss, logits, labels),
            *_compare("manual fully connected", linear, _manual_linear, _torch_linear, x, w, b, g),
            *_compare("manual ReLU", square, _manual_relu, _torch_relu, g, g.flip(0)),
            *_compare(
                "manual softmax cross entropy", loss, _manual_loss, _torch_loss, logits, labels
            ),
        ]
    return checks


def _compare(
    layer: str,
    shape: str,
    ours: Callable[..., Values],
    peer: Callable[..., Values],
    *inputs: Tensor,
) -> list[LayerCheck]:
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    found, theirs, truth = ours(*inputs), peer(*inputs), peer(*wide)

    def distance(values: Values, others: Values, result: str) -> float:
        return float((values[result].double() - others[result].double()).abs().max())

    return [
        LayerCheck(
            *(layer, shape, result, float(truth[result].abs().max())),
            distance(found, theirs, result),
            distance(found, truth, result),
            distance(theirs, truth, result),
        )
        for result in found
    ]


def _differentiate(
    run: Callable[..., Tensor], g: Tensor | None, names: str, *inputs: Tensor
) -> Values:
    """The output y and, by autograd, its gradients to the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = run(*leaves)
    gradients = torch.autograd.grad(y, leaves, g)
    return {"y": y.detach(), **dict(zip(names.split(), gradients, strict=True))}


def _linear(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Values:
    run: Callable[..., Tensor] = lambda x, w, b: functional.linear(x, w.t(), b)  # noqa: E731
    return _differentiate(run, g, "dx dw db", x, w, b)


def _torch_linear(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Values:
    return _differentiate(lambda x, w, b: F.linear(x, w.t(), b), g, "dx dw db", x, w, b)


def _linear_relu(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Values:
    run: Callable[..., Tensor] = lambda x, w, b: functional.linear_relu(x, w.t(), b)  # noqa: E731
    return _differentiate(run, g, "dx dw db", x, w, b)


def _torch_linear_relu(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Values:
    return _differentiate(lambda x, w, b: F.linear(x, w.t(), b).relu(), g, "dx dw db", x, w, b)


def _relu(x: Tensor, g: Tensor) -> Values:
    return _differentiate(functional.relu, g, "dx", x)


def _torch_relu(x: Tensor, g: Tensor) -> Values:
    return _differentiate(F.relu, g, "dx", x)


def _loss(logits: Tensor, labels: Tensor) -> Values:
    run: Callable[..., Tensor] = lambda y: functional.cross_entropy(y, labels)  # noqa: E731
    return _differentiate(run, None, "dlogits", logits)


def _torch_loss(logits: Tensor, labels: Tensor) -> Values:
    return _differentiate(lambda y: F.cross_entropy(y, labels), None, "dlogits", logits)


def _manual_linear(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Values:
    layer = manual.FullyConnectedLayer(grad_average=False)
    y = layer.forward(x, w, b)
    dw, db = layer.backward(g)
    return {"y": y, "dx": layer.dx, "dw": dw, "db": db}


def _manual_relu(x: Tensor, g: Tensor) -> Values:
    layer = manual.ReLU()
    return {"y": layer.forward(x), "dx": layer.backward(g)}


def _manual_loss(logits: Tensor, labels: Tensor) -> Values:
    layer = manual.SoftmaxCrossEntropy()
    _, loss = layer.forward(labels, logits)
    return {"y": loss, "dlogits": layer.backward()}
