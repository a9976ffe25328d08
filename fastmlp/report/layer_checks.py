"""Compare every layer, forward and backward, with PyTorch in float32 and in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.manual import layers as manual
from fastmlp.nn import functional

ULPS = 4
"""The cost of one more rounding, in units in the last place of the largest true value."""
Values = dict[str, Tensor]


@dataclass(frozen=True)
class LayerCheck:
    """One result of one layer, beside the truth: PyTorch's in float64.

    ``largest`` is the largest true value. ``error`` and ``torch_error`` are the largest absolute
    errors of the layer and of PyTorch in float32, ``difference`` that between the two.
    """

    layer: str
    shape: str
    result: str
    largest: float
    difference: float
    error: float
    torch_error: float

    @property
    def passed(self) -> bool:
        """Whether the error is at most twice that of PyTorch in float32, plus a few ulp."""
        floor = ULPS * torch.finfo(torch.float32).eps * self.largest
        return self.error <= 2 * self.torch_error + floor


def check_layers(device: torch.device | str = "cpu", seed: int = 0) -> list[LayerCheck]:
    """Check the layers of a 3072-256-10 network on batches of 8 and 100 random inputs.

    The gradients of the outputs are random, too.
    """
    checks = []
    for batch in (8, 100):
        random = torch.Generator().manual_seed(seed)
        x, w, b, g, logits = (
            torch.randn(shape, generator=random).to(device)
            for shape in ((batch, 3072), (3072, 256), (256,), (batch, 256), (batch, 10))
        )
        w /= 3072**0.5
        y = torch.randint(10, (batch,), generator=random).to(device)
        wide, square, loss = f"{batch} x 3072 x 256", f"{batch} x 256", f"{batch} x 10"
        checks += [
            *_compare("linear", wide, _linear, _torch_linear, x, w, b, g),
            *_compare("linear + relu", wide, _linear_relu, _torch_linear_relu, x, w, b, g),
            *_compare("relu", square, _relu, _torch_relu, g, g.flip(0)),
            *_compare("softmax cross entropy", loss, _loss, _torch_loss, logits, y),
            *_compare("manual fully connected", wide, _manual_linear, _torch_linear, x, w, b, g),
            *_compare("manual ReLU", square, _manual_relu, _torch_relu, g, g.flip(0)),
            *_compare("manual softmax cross entropy", loss, _manual_loss, _torch_loss, logits, y),
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


def _layer(run: Callable[..., Tensor], names: str = "dx dw db") -> Callable[..., Values]:
    """Return a function that gives the output y of ``run`` and, by autograd, its gradients.

    It takes the inputs to differentiate, as many as ``names``, and the gradient of the output.
    """

    def differentiate(*inputs: Tensor) -> Values:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs[:-1]]
        y = run(*leaves)
        gradients = torch.autograd.grad(y, leaves, inputs[-1])
        return {"y": y.detach(), **dict(zip(names.split(), gradients, strict=True))}

    return differentiate


def _loss_of(cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Values]:
    """Return the same for a loss, whose output has the gradient 1, of logits and labels."""
    return lambda logits, labels: _layer(lambda y: cross_entropy(y, labels), "dlogits")(
        logits, torch.ones((), dtype=logits.dtype, device=logits.device)
    )


_linear = _layer(lambda x, w, b: functional.linear(x, w.t(), b))
_torch_linear = _layer(lambda x, w, b: F.linear(x, w.t(), b))
_linear_relu = _layer(lambda x, w, b: functional.linear_relu(x, w.t(), b))
_torch_linear_relu = _layer(lambda x, w, b: F.linear(x, w.t(), b).relu())
_relu = _layer(functional.relu, "dx")
_torch_relu = _layer(F.relu, "dx")
_loss = _loss_of(functional.cross_entropy)
_torch_loss = _loss_of(F.cross_entropy)


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
