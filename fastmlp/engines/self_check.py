"""Every operator and engine on small problems, compared with plain PyTorch in float64, in seconds.

``fastmlp info --check`` shows what comes out; :mod:`fastmlp.engines.gpu_check` asks before the
first run on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.sampling import draw_epoch_order
from fastmlp.data.splits import Subset
from fastmlp.data.transforms import RandomFlipShift, make_normalization
from fastmlp.engines.base import Engine, Epoch
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics
from fastmlp.engines.optimizers import OptimizerConfig
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.nn.init import initial_parameters
from fastmlp.ops import activations as act
from fastmlp.ops import cross_entropy as ce
from fastmlp.ops import flip_shift as moved
from fastmlp.ops import linear as lin
from fastmlp.ops import mlp as net
from fastmlp.ops._load import native_available
from fastmlp.ops.matmul_precision import TF32_ALLOWED, allowed_matmul_precision
from fastmlp.ops.predict_rows import predict_rows

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPE = (3, 4, 4)
"""(planes, height, width) of the images that the engines train on."""
IMAGES, CLASSES = 50, 10
TRAINING: tuple[tuple[tuple[int, ...], torch.dtype, dict[str, Any]], ...] = (
    ((24,), torch.float32, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ((24,), torch.float64, {"momentum": 0.9}),
    ((130,), torch.float32, {}),
    ((260,), torch.float32, {"momentum": 0.9}),
    ((24, 12), torch.float32, {"optimizer": "adam"}),
    ((24,), torch.float32, {"label_smoothing": 0.1}),
)
"""Hidden layers, dtype and optimizer's settings of the networks that they train, each of them on
other kernels."""


@dataclass(frozen=True)
class Check:
    """A comparison: its name, and a function that returns what differs, empty where nothing."""

    name: str
    compare: Callable[[], str]

    def run(self) -> str:
        """Return what differs or how it failed, in a line; empty where all is right."""
        try:
            return self.compare()
        except Exception as error:  # whatever a kernel does that this build should not have
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def checks(device: torch.device, engines: Sequence[type[Engine]]) -> Iterator[Check]:
    """Yield the checks of the operators that have kernels for ``device``, and of those of
    ``engines`` that run on it."""
    if native_available(device.type):
        for dtype in DTYPES:
            for name, compare in _OPERATORS.items():
                yield Check(f"operator {name}, {_name(dtype)}", partial(compare, device, dtype))
        if device.type == "cpu":
            yield Check("operator flip_shift", _check_flip_shift)
            yield Check("operator predict_rows", _check_predict_rows)
    for engine in engines:
        for i, (hidden, dtype, options) in enumerate(TRAINING):
            config, sizes = OptimizerConfig(8, **options), _sizes(hidden)
            if engine.unsupported_reason(device, sizes, config) is None:
                network = f"{'-'.join(map(str, sizes))}, {_name(dtype)}"
                settings = ", ".join(options)
                title = f"engine {engine.name}, {network}{', ' if settings else ''}{settings}"
                yield Check(title, partial(_check_engine, engine, device, i))


def tell(device: torch.device, engines: Sequence[type[Engine]]) -> None:
    """Run the checks and print a line of JSON before and after each, which outlive what a wrong
    kernel may do to the process."""
    torch.zeros(1, device=device)
    print(json.dumps({"begun": True}), flush=True)
    for check in checks(device, engines):
        print(json.dumps({"check": check.name}), flush=True)
        print(json.dumps({"check": check.name, "problem": check.run()}), flush=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sizes(hidden: Sequence[int]) -> list[int]:
    planes, height, width = SHAPE
    return [planes * height * width, *hidden, CLASSES]


# ---- comparisons ----


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(*sizes: int, dtype: torch.dtype) -> Tensor:
    """Return the same normal numbers at each call, on the CPU."""
    return torch.randn(*sizes, generator=_random(sum(sizes)), dtype=torch.float64).to(dtype)


def _tolerance(dtype: torch.dtype, device: torch.device, products: bool = False) -> float:
    """Return how far a right result may be off, relative to the largest number in it."""
    info = torch.finfo(dtype)
    rounding = (64 if info.bits > 16 else 4) * info.eps
    tf32 = products and device.type == "cuda" and allowed_matmul_precision() == TF32_ALLOWED
    return max(rounding, 2**-8) if tf32 else rounding


def _difference(what: str, got: Tensor, truth: Tensor, tolerance: float) -> str:
    got, truth = got.detach().double().cpu(), truth.double()
    if got.shape != truth.shape:
        return f"{what} has the shape {tuple(got.shape)}, not {tuple(truth.shape)}"
    error = float((got - truth).abs().max() / truth.abs().max())
    if error <= tolerance:
        return ""
    return f"{what} is {error:.1e} of its largest number off, more than {tolerance:.1e}"


def _first(differences: Iterator[str]) -> str:
    return next((text for text in differences if text), "")


# ---- operators ----


def _check_linear(device: torch.device, dtype: torch.dtype) -> str:
    tolerance = _tolerance(dtype, device, products=True)

    def differences() -> Iterator[str]:
        for batch, inputs, outputs in ((24, 70, 40), (5, 900, 33)):
            shapes = ((batch, inputs), (outputs, inputs), (outputs,))
            x, w, b = (_draw(*shape, dtype=dtype) for shape in shapes)
            truth = lin.linear_ref(x.double(), w.double(), b.double(), "relu")
            y = lin.linear(x.to(device), w.to(device), b.to(device), "relu")
            yield _difference(f"{batch} x {inputs} -> {outputs}", y, truth, tolerance)

    return _first(differences())


def _check_linear_backward(device: torch.device, dtype: torch.dtype) -> str:
    tolerance = _tolerance(dtype, device, products=True)

    def differences() -> Iterator[str]:
        for batch, inputs, outputs in ((24, 70, 40), (40, 33, 600)):
            shapes = ((batch, outputs), (batch, inputs), (outputs, inputs), (batch, outputs))
            dy, x, w, y = (_draw(*shape, dtype=dtype) for shape in shapes)
            y = y.relu()
            truths = lin.linear_backward_ref(dy.double(), x.double(), w.double(), y.double())
            placed = [tensor.to(device) for tensor in (dy, x, w, y)]
            ours = lin.linear_backward(placed[0], placed[1], placed[2], placed[3])
            for name, got, truth in zip(("dx", "dw", "db"), ours, truths, strict=True):
                if got is not None and truth is not None:
                    where = f"{name} of {batch} x {inputs} -> {outputs}"
                    yield _difference(where, got, truth, tolerance)

    return _first(differences())


def _check_mlp(device: torch.device, dtype: torch.dtype) -> str:
    shapes = ((20, 40), (30, 40), (30,), (17, 30), (17,), (9, 17), (9,))
    drawn = [_draw(*shape, dtype=dtype) / shape[-1] ** 0.5 for shape in shapes]

    def reference(x: Tensor, layers: list[net.Layer]) -> Tensor:
        for layer in layers:
            x = lin.linear_ref(x, *layer)
        return x

    def run(network: Callable[[Tensor, list[net.Layer]], Tensor], like: Tensor) -> list[Tensor]:
        x, *p = (tensor.to(like).requires_grad_() for tensor in drawn)
        layers = zip(p[::2], p[1::2], ("relu", "gelu", "none"), strict=True)
        y = network(x, [net.Layer(*layer) for layer in layers])
        return [y.detach(), *torch.autograd.grad(y.double().square().sum(), (x, *p))]

    tolerance = 4 * _tolerance(dtype, device, products=True)  # one layer after the other
    ours = run(net.mlp, torch.empty(0, device=device, dtype=dtype))
    truths = run(reference, torch.empty(0, dtype=torch.float64))
    names = ("y", "dx", "dw1", "db1", "dw2", "db2", "dw3", "db3")
    return _first(
        _difference(name, got, truth, tolerance)
        for name, got, truth in zip(names, ours, truths, strict=True)
    )


def _check_activation(device: torch.device, dtype: torch.dtype) -> str:
    x, tolerance = _draw(7, 301, dtype=dtype), _tolerance(dtype, device)
    return _first(
        _difference(
            name,
            act.activation(x.to(device), name),
            act.activation_ref(x.double(), name),
            tolerance,
        )
        for name in act.ACTIVATIONS
    )


def _check_activation_backward(device: torch.device, dtype: torch.dtype) -> str:
    dy, x = _draw(7, 301, dtype=dtype), _draw(301, 7, dtype=dtype).t().contiguous()
    tolerance = _tolerance(dtype, device)

    def differences() -> Iterator[str]:
        for name, row in act.ACTIVATIONS.items():
            saved = act.activation_ref(x, name) if row.saves == "output" else x
            truth = act.activation_backward_ref(dy.double(), saved.double(), name)
            dx = act.activation_backward(dy.to(device), saved.to(device), name)
            yield _difference(name, dx, truth, tolerance)

    return _first(differences())


def _check_cross_entropy(device: torch.device, dtype: torch.dtype) -> str:
    tolerance = _tolerance(dtype, device)

    def differences() -> Iterator[str]:
        for rows, classes in ((40, 10), (6, 300), (3, 1500)):
            logits = _draw(rows, classes, dtype=dtype)
            target = torch.randint(classes, (rows,), generator=_random(rows))
            wide = logits.double().requires_grad_()
            truth = ce.cross_entropy_ref(wide, target)
            (gradient,) = torch.autograd.grad(truth, wide)
            loss, dlogits = ce.cross_entropy_with_grad(logits.to(device), target.to(device))
            yield _difference(f"the loss of {rows} x {classes}", loss, truth.detach(), tolerance)
            yield _difference(f"dlogits of {rows} x {classes}", dlogits, gradient, tolerance)

    return _first(differences())


_OPERATORS: dict[str, Callable[[torch.device, torch.dtype], str]] = {
    "linear": _check_linear,
    "linear_backward": _check_linear_backward,
    "mlp": _check_mlp,
    "activation": _check_activation,
    "activation_backward": _check_activation_backward,
    "cross_entropy": _check_cross_entropy,
}


def _check_flip_shift() -> str:
    images = _subset().images
    moves = RandomFlipShift(flip=True, shift=1).draw(len(images), SHAPE, _random(1)).values
    same = torch.equal(
        moved.flip_shift(images, moves, SHAPE), moved.flip_shift_ref(images, moves, SHAPE)
    )
    return "" if same else "images are moved otherwise"


def _check_predict_rows() -> str:
    parameters = list(initial_parameters([20, 12, 4], "torch", 0).values())
    x, wide = _draw(30, 20, dtype=torch.float32), [tensor.double() for tensor in parameters]
    truth = predict_rows(wide, x, backend="reference")
    tolerance = _tolerance(torch.float32, torch.device("cpu"))
    return _difference("the outputs", predict_rows(parameters, x), truth, tolerance)


# ---- engines ----


def _subset() -> Subset:
    random, features = _random(0), _sizes(())[0]
    images = torch.randint(256, (IMAGES, features), generator=random, dtype=torch.uint8)
    return Subset(images, torch.randint(CLASSES, (IMAGES,), generator=random))


def _train(
    engine: type[Engine], device: torch.device, number: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], EpochMetrics, EvalMetrics]:
    """Return the parameters of network ``number`` of TRAINING after an epoch, what the epoch
    measured, and an evaluation after it."""
    hidden, _, options = TRAINING[number]
    data, config = _subset(), OptimizerConfig(8, **options)
    trainer = engine(data, make_normalization("standard", data.images), device)
    begin = {
        name: tensor.to(dtype)
        for name, tensor in initial_parameters(_sizes(hidden), "torch", number).items()
    }
    state = trainer.new_state(begin, config)
    moves = RandomFlipShift(flip=True, shift=1)
    order = draw_epoch_order(0, 0, IMAGES, augmentation=moves, shape=SHAPE)
    (metrics,) = trainer.train_epoch([state], [Epoch(order, 0.02)])
    if not isinstance(metrics, EpochMetrics):
        raise metrics
    (evaluation,) = trainer.evaluate([state], data)
    return state.parameters_state(), metrics, evaluation


@cache
def _truth(number: int) -> tuple[dict[str, Tensor], EpochMetrics, EvalMetrics]:
    return _train(ReferenceEngine, torch.device("cpu"), number, torch.float64)


def _check_engine(engine: type[Engine], device: torch.device, number: int) -> str:
    dtype = TRAINING[number][1]
    parameters, metrics, evaluation = _train(engine, device, number, dtype)
    true_parameters, true_metrics, true_evaluation = _truth(number)
    tolerance = 32 * _tolerance(dtype, device, products=True)  # errors of a few steps add up

    def differences() -> Iterator[str]:
        for name, tensor in parameters.items():
            yield _difference(name, tensor, true_parameters[name], tolerance)
        losses = (metrics.loss, true_metrics.loss), (evaluation.loss, true_evaluation.loss)
        for what, (loss, true_loss) in zip(("of the steps", "afterwards"), losses, strict=True):
            got, truth = torch.tensor([loss]), torch.tensor([true_loss])
            yield _difference(f"the loss {what}", got, truth, max(tolerance, 1e-6))

    return _first(differences())
