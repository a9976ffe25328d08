"""Check anybody's layers against float64 and name the likeliest slip.

A layer has ``forward`` and ``backward`` as those of :mod:`fastmlp.manual.layers`. Each check calls
it on small random inputs in float32, compares with the reference layers in float64, and prints
whether all is right, or what is wrong, with expected and got, and which slip gives the very result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy
from fastmlp.manual.model import LossForward

TOLERANCE = 1e-5
"""The largest error, in units of the largest true value: float32 has seven digits."""

Slips = Mapping[str, Callable[[], Tensor]]
"""What gives a wrong result, by its description."""


class Result(NamedTuple):
    """One result of a layer beside the truth."""

    name: str
    got: Any
    truth: Tensor
    slips: Slips
    loose: float = 1
    """The tolerance, in units of :data:`TOLERANCE`."""


def check_fully_connected(layer: Any) -> None:
    """Check a fully connected layer, whose backward averages over the batch unless its
    ``grad_average`` is False, and print the outcome."""
    _print("fully connected layer forward and backward tests", fully_connected_faults(layer))


def check_relu(layer: Any) -> None:
    """Check a ReLU layer and print the outcome."""
    _print("ReLU function tests", relu_faults(layer))


def check_softmax_cross_entropy(layer: Any) -> None:
    """Check a layer of softmax and cross entropy and print the outcome."""
    faults = softmax_cross_entropy_faults(layer)
    _print("softmax and cross entropy forward and backward tests", faults)


def _print(tests: str, faults: list[str]) -> None:
    print(f"Results of {tests}: {'All passed.' if not faults else f'{len(faults)} wrong.'}")
    for fault in faults:
        print(f"  {fault}")


def fully_connected_faults(layer: Any) -> list[str]:
    """Return what is wrong with a fully connected layer, a sentence or two for each result."""
    faults: dict[str, str] = {}
    # square first: there a transpose too many or too few gives a result, and so a slip's name
    for sizes in ((4, 4, 4), (6, 5, 3), (1, 3, 2)):
        _try_fully_connected(layer, *sizes, faults)
    return list(faults.values())


def _try_fully_connected(layer: Any, n: int, d: int, f: int, faults: dict[str, str]) -> None:
    average = bool(getattr(layer, "grad_average", True))
    x, w, b, g = _random(layer, (n, d), (d, f), (f,), (n, f))
    truth = FullyConnectedLayer(backend="reference", grad_average=average)
    wide = [tensor.double().cpu() for tensor in (x, w, b, g)]
    y, (dw, db) = truth.forward(*wide[:3]), truth.backward(wide[3])
    slips = _fully_connected_slips(wide, n, average)
    where = f" on a batch of {n}"
    got = _call(faults, "forward", lambda: layer.forward(x, w, b))
    _note(faults, where, Result("forward's output", got, y, slips["y"]))
    pair = _pair(faults, "backward", "(dw, db)", lambda: layer.backward(g))
    if pair is not None:
        _note(faults, where, Result("backward's dw", pair[0], dw, slips["dw"]))
        _note(faults, where, Result("backward's db", pair[1], db, slips["db"]))
    _unchanged(faults, {"x": (x, wide[0]), "w": (w, wide[1]), "the gradient": (g, wide[3])})


def _fully_connected_slips(wide: list[Tensor], n: int, average: bool) -> dict[str, Slips]:
    """Return the slips of each result for x, w, b, g in float64 and a batch of ``n``."""
    x, w, b, g = wide
    (d, f), scale = w.shape, n if average else 1
    products: dict[str, Callable[[], Tensor]] = {
        "": lambda: x.t() @ g,
        "a transpose is missing: the result is that of g.T @ x": lambda: g.t() @ x,
    }
    transposed: Slips = {}
    if n == d == f:  # elsewhere a product of the wrong factors raises
        products["a transpose is missing: the result is that of x @ g"] = lambda: x @ g
        products["the factors are the wrong way round: g @ x.T"] = lambda: g @ x.t()
        transposed = {
            "a transpose too many: x @ w.T": lambda: x @ w.t() + b,
            "the factors are the wrong way round: w @ x": lambda: w @ x + b,
            "the factors are the wrong way round: w.T @ x": lambda: w.t() @ x + b,
        }
    sums: Slips = {
        "": lambda: g.sum(0),
        "the sum is over the wrong axis": lambda: g.sum(1),
        "the sum over the batch is missing": lambda: g,
    }
    return {
        "y": {
            "the bias is not added": lambda: x @ w,
            "the bias is subtracted": lambda: x @ w - b,
            **transposed,
        },
        "dw": _scaled_slips(products, scale, n, d, f),
        "db": _scaled_slips(sums, scale, n, d, f),
    }


def _scaled_slips(results: Slips, scale: int, n: int, d: int, f: int) -> Slips:
    """Return the slips of a gradient that is to be divided by ``scale``, N or 1: each of
    ``results``, of which "" is the right one, divided by that or by something else."""
    divisors = {
        "": scale,
        "the division by N is missing": 1,
        "there is a division by N too many": scale * n,
        "the division is by the number of inputs, not by N": scale * d / n,
        "the division is by the number of outputs, not by N": scale * f / n,
    }
    if scale == 1:
        divisors = {"": 1, "there is a division by N": n}
    slips: dict[str, Callable[[], Tensor]] = {}
    for (what, result), (how, by) in product(results.items(), divisors.items()):
        if named := ", and ".join(filter(None, (what, how))):
            slips[named] = partial(lambda result, by: result() / by, result, by)
    return {**slips, "the sign is wrong": lambda: -results[""]() / scale}


def relu_faults(layer: Any) -> list[str]:
    """Return what is wrong with a ReLU layer."""
    faults: dict[str, str] = {}
    for shape in ((6, 5), (1, 4)):
        _try_relu(layer, shape, faults)
    return list(faults.values())


def _try_relu(layer: Any, shape: tuple[int, int], faults: dict[str, str]) -> None:
    x, g = _random(layer, shape, shape)
    x[0, :2] = torch.tensor([0.0, -0.0])
    g[0, :2] = torch.tensor([1.5, -2.0])
    truth, wide, wide_g = ReLU(backend="reference"), x.double().cpu(), g.double().cpu()
    y, dx = truth.forward(wide), truth.backward(wide_g)
    forward_slips: Slips = {
        "negative numbers pass: nothing is cut": lambda: wide,
        "it is the absolute value": lambda: wide.abs(),
        "it is a leaky ReLU": lambda: F.leaky_relu(wide, 0.01),
        "it is a sigmoid": lambda: wide.sigmoid(),
        "the sign is wrong: negative numbers pass": lambda: wide.clamp(max=0),
        "it is the mask, not the numbers": lambda: wide > 0,
    }
    backward_slips: Slips = {
        "the mask is >= 0 where it should be > 0": lambda: wide_g * (wide >= 0),
        "the mask is missing: the gradient passes everywhere": lambda: wide_g,
        "the mask is that of the gradient, not of forward's input": lambda: wide_g.relu(),
        "it is the mask alone, not its product with the gradient": lambda: wide > 0,
        "the gradient is multiplied by the output, not by a mask": lambda: wide_g * y,
        "the gradient is multiplied by forward's input, not by a mask": lambda: wide_g * wide,
        "the mask is the wrong way round": lambda: wide_g * (wide <= 0),
    }
    where = f" on {shape[0]} x {shape[1]} numbers"
    got = _call(faults, "forward", lambda: layer.forward(x))
    _note(faults, where, Result("forward's output", got, y, forward_slips))
    got = _call(faults, "backward", lambda: layer.backward(g))
    _note(faults, where, Result("backward's output", got, dx, backward_slips))
    _unchanged(faults, {"its input": (x, wide), "the gradient": (g, wide_g)})


def softmax_cross_entropy_faults(layer: Any) -> list[str]:
    """Return what is wrong with a layer of softmax and cross entropy."""
    faults: dict[str, str] = {}
    for n, c, step in ((6, 5, 0.0), (10, 10, 0.0), (1, 4, 0.0), (4, 3, 1000.0)):
        _try_softmax(layer, n, c, step, faults)
    return list(faults.values())


def _try_softmax(layer: Any, n: int, c: int, step: float, faults: dict[str, str]) -> None:
    """Try outputs of the size of 3, with a row's own ``step * (row - 1)`` added to all of it: that
    changes no probability, nor may a softmax that is shifted overflow by it."""
    (net_out,) = _random(layer, (n, c))
    net_out = 3 * net_out + step * (torch.arange(n, device=net_out.device)[:, None] - 1)
    y = (3 * torch.arange(n) + 1).to(net_out.device) % c
    loose = 10 if step else 1  # a large output has fewer digits behind the point
    truth, wide = SoftmaxCrossEntropy(backend="reference"), net_out.double().cpu()
    pred_y, loss = truth.forward(y.cpu(), wide)
    slips = _softmax_slips(wide, y.cpu())
    where = f" on a batch of {n}" + " with outputs in the thousands" * (step > 0)
    forward = LossForward(layer)
    pair = _pair(faults, "forward", "(pred_y, loss)", lambda: forward(y, net_out, False))
    if pair is not None:
        _note(faults, where, Result("forward's pred_y", pair[0], pred_y, slips["pred_y"]))
        _note(faults, where, Result("forward's loss", pair[1], loss, slips["loss"], loose))
    got = _call(faults, "backward", lambda: layer.backward())
    _note(faults, where, Result("backward's output", got, truth.backward(), slips["dx"], loose))
    _unchanged(faults, {"net_out": (net_out, wide)})


def _softmax_slips(wide: Tensor, y: Tensor) -> dict[str, Slips]:
    """Return the slips of each result for outputs in float64 and their labels."""
    n, c, rows = *wide.shape, torch.arange(len(wide))
    p, hot, mean = wide.softmax(1), F.one_hot(y, c), F.cross_entropy(wide, y)
    shift = "softmax is not shifted by each row's largest output"
    wrong = {  # probabilities
        shift: _quotients(wide),
        "softmax is shifted by the largest output of all, not by each row's": _quotients(
            wide - wide.max()
        ),
        "softmax runs over the batch, not over the classes": wide.softmax(0),
        "softmax divides by the sum over the whole batch": wide.flatten().softmax(0).view(n, c),
    }
    divisors = {
        "": n,
        "the gradient is not divided by N": 1,
        "there is a division by N too many": n * n,
        "the gradient is divided by the number of all outputs, not by N": n * c,
    }
    gradients = {
        "": p - hot,
        "the one-hot labels are not subtracted": p,
        "the sign is wrong": hot - p,
        **{slip: q - hot for slip, q in wrong.items()},
    }
    return {
        "pred_y": {
            "it is the probabilities, not the class of the largest": lambda: p,
            "it is the largest probability, not its class": lambda: p.amax(1),
            "it is one-hot, not the class itself": lambda: F.one_hot(p.argmax(1), c),
            "argmax runs over the batch, not over the classes": lambda: p.argmax(0),
            "it is the class of the smallest probability": lambda: p.argmin(1),
            "it is the labels": lambda: y,
            **{slip: partial(torch.argmax, q, 1) for slip, q in wrong.items()},
        },
        "loss": {
            "the division by N is missing": lambda: mean * n,
            "there is a division by N too many": lambda: mean / n,
            "the minus before the logarithm is missing": lambda: -mean,
            "the logarithm is to the base 2": lambda: mean / math.log(2),
            "the logarithm is to the base 10": lambda: mean / math.log(10),
            "the mean over the batch is missing": lambda: -p[rows, y].log(),
            **{slip: partial(F.nll_loss, q.log(), y) for slip, q in wrong.items()},
        },
        "dx": {
            ", and ".join(filter(None, (what, how))): partial(torch.div, dx, by)
            for (what, dx), (how, by) in product(gradients.items(), divisors.items())
            if what or how
        },
    }


def _quotients(outputs: Tensor) -> Tensor:
    """Return exp over the sum of exp, in float32 and as it comes."""
    powers = outputs.float().exp()
    return (powers / powers.sum(1, keepdim=True)).double()


def _random(layer: Any, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return random tensors on the layer's device; raise TypeError for a class in its place."""
    if isinstance(layer, type):
        raise TypeError(f"pass a layer, {layer.__name__}(), not the class")
    random = torch.Generator().manual_seed(len(shapes) + shapes[0][0])
    device = getattr(layer, "device", None) or "cpu"
    return [torch.randn(shape, generator=random).to(device) for shape in shapes]


def _call(faults: dict[str, str], name: str, run: Callable[[], Any]) -> Any:
    """Return the result of a method; where it raises, note that and return None."""
    try:
        return run()
    except Exception as error:  # it is anybody's code
        if not any(known.startswith(f"{name}'s") for known in faults):  # else it has been told why
            faults.setdefault(name, f"{name} raised {type(error).__name__}: {error}")
        return None


def _pair(faults: dict[str, str], name: str, wanted: str, run: Callable[[], Any]) -> Any:
    """Return two results of a method, or None with a note."""
    got = _call(faults, name, run)
    if isinstance(got, (tuple, list)) and len(got) == 2:
        return got
    if got is not None or not any(known.startswith(name) for known in faults):
        faults.setdefault(name, f"{name} must return {wanted}, and returned {_kind(got)}.")
    return None


def _note(faults: dict[str, str], where: str, result: Result) -> None:
    """Note what is wrong with a result, once for each name."""
    method = result.name.partition("'")[0]
    if result.name in faults or method in faults:
        return
    try:
        got = torch.as_tensor(result.got).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        faults[result.name] = f"{result.name} must be a tensor, and is {_kind(result.got)}."
        return
    if not _close(got, result.truth, result.loose):
        faults[result.name] = _described(result, got, where)


def _described(result: Result, got: Tensor, where: str) -> str:
    """Return the sentence for a wrong result."""
    truth = result.truth.double()
    likely = _likely(result, got)
    if not likely and got.dim() == truth.dim() + 1 and got.squeeze().shape == truth.squeeze().shape:
        flat = got.reshape(truth.shape)  # the other slips show without the dimension
        also = _likely(result, flat)[:1]
        likely = [", and ".join(["it has a dimension too many: no keepdim", *also])]
    slip = f" Likeliest slip: {likely[0]}." if likely else ""
    if got.shape != truth.shape:
        shapes = f"expected shape {tuple(truth.shape)}, got {tuple(got.shape)}"
        return f"{result.name}{where}: {shapes}.{slip}"
    error = (got - truth).abs().nan_to_num(nan=torch.inf)
    worst = int(error.argmax())
    place = ", ".join(str(int(i)) for i in np.unravel_index(worst, tuple(truth.shape)))
    at = f" at [{place}]" if place else ""
    values = f"expected {truth.flatten()[worst]:.6g}{at}, got {got.flatten()[worst]:.6g}"
    largest = float(truth.abs().max())
    off = float(error.max())
    far = f", off by {off:.3g}, {off / largest:.2g} times the largest true value" if largest else ""
    far = far if got.flatten()[worst].isfinite() else ", which is no finite number"
    return f"{result.name}{where}: {values}{far}.{slip}"


def _likely(result: Result, got: Tensor) -> list[str]:
    """Return the slips that give what was got, but for those that change nothing on these sizes."""
    wrong = {slip: wrong().double() for slip, wrong in result.slips.items()}
    return [s for s, w in wrong.items() if _close(got, w, 10) and not _close(w, result.truth)]


def _close(got: Tensor, truth: Tensor, factor: float = 1) -> bool:
    truth = truth.double()
    if got.shape != truth.shape:
        return False
    largest = float(truth.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(
        got, truth, rtol=0, atol=factor * TOLERANCE * max(largest, TOLERANCE), equal_nan=True
    )


def _unchanged(faults: dict[str, str], inputs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Note inputs that the layer has written to."""
    for name, (now, before) in inputs.items():
        if not torch.equal(now.double().cpu(), before):
            fault = f"The layer changed {name} in place; work on a copy, or on a new tensor."
            faults.setdefault(f"changed {name}", fault)


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return "None" if value is None else f"a {type(value).__name__}"
