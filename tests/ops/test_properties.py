"""linear, the activations and cross_entropy, forward and backward, against plain PyTorch on drawn
shapes, strides, dtypes and special values.

``FASTMLP_EXAMPLES=N`` draws N examples in all, otherwise 500, the same ones in every run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.activation_suite import compare as compare_activation
from support.cases import ACTIVATION_CASES, DTYPES, LAYOUTS
from support.compare import assert_within_2x
from support.draws import cross_entropy_draws, linear_backward_draws, linear_draws
from support.marks import needs_native
from support.operator_suite import assert_same_bits
from torch import Tensor

from fastmlp.ops import cross_entropy as losses
from fastmlp.ops import linear as ops
from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.cross_entropy import cross_entropy_ref
from fastmlp.ops.linear import linear_backward_ref, linear_ref

pytestmark = needs_native

TESTS = 5
EXAMPLES = settings(
    max_examples=int(os.environ.get("FASTMLP_EXAMPLES", "500")) // TESTS,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SIZES = st.one_of(st.integers(0, 5), st.sampled_from([8, 15, 16, 17, 32, 33]), st.integers(0, 70))
LEADS = st.sampled_from([(), (), (1,), (2,), (3, 2), (0,)])
SEEDS = st.integers(0, 2**32 - 1)
NATIVE = SimpleNamespace(
    run=lambda name, *args: getattr(torch.ops.fastmlp, name)(*args), place=lambda tensor: tensor
)


class Numbers:
    """Tensors of one dtype, of drawn values in drawn strides."""

    def __init__(self, draw: st.DrawFn, kind: str, dtype: torch.dtype) -> None:
        self.draw, self.kind, self.dtype = draw, kind, dtype
        self.random = torch.Generator().manual_seed(draw(SEEDS))

    def specials(self) -> list[float]:
        """Return values at the edges of what the dtype holds."""
        tiny = torch.finfo(self.dtype).smallest_normal
        signs = [math.nan, math.inf, -math.inf, -0.0, 0.0]
        if self.kind == "not finite":
            return signs
        return [*signs, tiny, -tiny / 4, tiny / 2, torch.finfo(self.dtype).max, 100.0, -1e4]

    def __call__(self, *shape: int) -> Tensor:
        """Return a tensor in drawn strides: transposed, a part of another, or expanded."""
        if self.kind == "normal":
            values = torch.randn(shape, generator=self.random, dtype=torch.float64)
        else:  # small integers, whose sums are exact in every order
            values = torch.randint(-2, 3, shape, generator=self.random).double()
        if self.kind in ("not finite", "special"):
            chosen = torch.tensor(self.specials(), dtype=torch.float64)
            often = 0.02 if self.kind == "not finite" else 0.5
            there = torch.rand(shape, generator=self.random) < often
            which = torch.randint(0, len(chosen), shape, generator=self.random)
            values = torch.where(there, chosen[which], values)
        tensor = values.to(self.dtype)
        layout = self.draw(st.sampled_from([*LAYOUTS, "expanded"]))
        if layout == "expanded":
            return tensor[:1].expand_as(tensor) if shape else tensor
        if len(shape) < 2:
            return torch.stack([tensor, tensor], -1)[..., 0] if layout != "contiguous" else tensor
        flat = LAYOUTS[layout](tensor.reshape(math.prod(shape[:-1]), shape[-1]))
        return flat if len(shape) == 2 else flat.unflatten(0, shape[:-1])


@st.composite
def linears(draw: st.DrawFn, kind: str, activations: list[str]) -> tuple[Any, ...]:
    """x, weight, bias or None, dy, and the activation."""
    dtype = draw(st.sampled_from(DTYPES))
    numbers = Numbers(draw, kind, dtype)
    lead, rows, inputs, outputs = draw(LEADS), draw(SIZES), draw(SIZES), draw(SIZES)
    x, weight = numbers(*lead, rows, inputs), numbers(outputs, inputs)
    bias = numbers(outputs) if draw(st.booleans()) else None
    dy = numbers(*lead, rows, outputs)
    return x, weight, bias, dy, draw(st.sampled_from(activations))


def doubles(*tensors: Tensor | None) -> list[Any]:
    return [tensor if tensor is None else tensor.double() for tensor in tensors]


def sizes(*tensors: Tensor | None) -> list[Any]:
    return [tensor if tensor is None else tensor.double().abs() for tensor in tensors]


def flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def saved_of(x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor | None:
    """What PyTorch's forward pass leaves for the derivative."""
    pre, row = F.linear(x, weight, bias), ACTIVATIONS[name]
    return {"nothing": None, "input": pre, "output": row.forward(pre)}[row.saves]


def assert_near(got: Tensor, draws: Sequence[Tensor], truth: Tensor, terms: Tensor) -> None:
    """Assert what :func:`assert_within_2x` does, with a floor of a few ulp of the terms that are
    summed: of a result of one or two numbers, which drawn shapes have, they may cancel."""
    assert got.shape == truth.shape
    size = terms.double().abs().flatten()
    size = (size.max() if len(size) else size.sum()).to(got.dtype).reshape(1)

    def with_size(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.flatten(), size.to(tensor.dtype)])

    assert_within_2x(with_size(got), [with_size(draw) for draw in draws], with_size(truth))


@EXAMPLES
@given(linears("normal", list(ACTIVATIONS)))
def test_linear_is_as_close_to_the_truth_as_pytorch(drawn: tuple[Any, ...]) -> None:
    x, weight, bias, dy, name = drawn
    y = ops.linear(x, weight, bias, name)
    assert y.shape == dy.shape
    rows, dy_rows = flat(x), flat(dy)
    scale = linear_ref(*sizes(rows, weight, bias))
    truth = linear_ref(*doubles(rows, weight, bias), name)
    assert_near(flat(y), linear_draws(rows, weight, bias, name), truth, scale)
    saved = saved_of(rows, weight, bias, name)
    shaped = saved if saved is None else saved.reshape(dy.shape)
    ours = ops.linear_backward(dy, x, weight, shaped, activation=name)
    peers = linear_backward_draws(dy_rows, rows, weight, saved, name)
    truths = linear_backward_ref(*doubles(dy_rows, rows, weight, saved), activation=name)
    scales = linear_backward_ref(*sizes(dy_rows, rows, weight))
    for got, draws, true, size in zip(ours, peers, truths, scales, strict=True):
        assert_near(got.reshape(true.shape), draws, true, size)


@EXAMPLES
@given(linears("not finite", ["none", "relu"]))
def test_linear_of_integers_and_not_finite_numbers_is_exact(drawn: tuple[Any, ...]) -> None:
    x, weight, bias, dy, name = drawn
    y = ops.linear(x, weight, bias, name)
    truth = linear_ref(*doubles(x, weight, bias), name).to(x.dtype)
    torch.testing.assert_close(y, truth, rtol=0, atol=0, equal_nan=True)
    saved = None if name == "none" else y
    ours = ops.linear_backward(dy, x, weight, saved, activation=name)
    truths = linear_backward_ref(*doubles(dy, x, weight, saved), activation=name)
    for got, true in zip(ours, truths, strict=True):
        torch.testing.assert_close(got, true.to(x.dtype), rtol=0, atol=0, equal_nan=True)


@EXAMPLES
@given(st.data())
def test_activations_are_pytorchs(data: st.DataObject) -> None:
    numbers = Numbers(data.draw, data.draw(st.sampled_from(["normal", "special"])), torch.float32)
    numbers.dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.lists(SIZES, max_size=3))
    case = data.draw(st.sampled_from([c for c in ACTIVATION_CASES if c.exact or c.name != "gelu"]))
    if numbers.kind == "special" and not case.exact:
        numbers.kind = "normal"
    compare_activation(NATIVE, case, numbers(*shape), numbers(*shape))


@st.composite
def cross_entropies(draw: st.DrawFn, kind: str) -> tuple[Any, ...]:
    """Logits (N, C, ...), target, and the options."""
    numbers = Numbers(draw, kind, draw(st.sampled_from(DTYPES)))
    rows, classes = draw(SIZES), max(draw(SIZES), 1)
    behind = draw(st.sampled_from([(), (), (), (2,), (1, 3)]))
    logits = numbers(rows, classes, *behind)
    target = torch.randint(0, classes, (rows, *behind), generator=numbers.random)
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if draw(st.booleans()):
        options["weight"] = torch.rand(classes, generator=numbers.random).to(numbers.dtype) + 0.5
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.1, 1.0]))
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([-1, 0, classes - 1]))
        ignored = torch.rand(target.shape, generator=numbers.random) < 0.3
        target = torch.where(ignored, options["ignore_index"], target)
    if draw(st.booleans()) and not behind and options.get("ignore_index", 0) >= 0:
        target = target.byte()
    return logits, target, options


def loss_and_gradient(f: Any, logits: Tensor, target: Tensor, dloss: Tensor, **options: Any) -> Any:
    leaf = logits.detach().clone().requires_grad_()
    loss = f(leaf, target, **options)
    loss.backward(dloss.to(loss.dtype))
    return loss.detach(), leaf.grad


def in_rows(logits: Tensor) -> Tensor:
    return flat(logits.movedim(1, -1))


def wide(options: dict[str, Any]) -> dict[str, Any]:
    return {n: v.double() if isinstance(v, Tensor) else v for n, v in options.items()}


@EXAMPLES
@given(cross_entropies("normal"))
def test_cross_entropy_is_as_close_to_the_truth_as_pytorch(drawn: tuple[Any, ...]) -> None:
    logits, target, options = drawn
    logits, before = logits * 3, logits
    dloss = torch.full(target.shape if options["reduction"] == "none" else (), 1.25)
    ours = loss_and_gradient(losses.cross_entropy, logits, target, dloss, **options)
    rows, labels = in_rows(logits), target.flatten().long()  # PyTorch takes uint8 here and there
    dloss = dloss.flatten() if dloss.dim() else dloss
    truth = loss_and_gradient(cross_entropy_ref, rows.double(), labels, dloss, **wide(options))

    def plain(*args: Any, **options: Any) -> Any:
        return loss_and_gradient(cross_entropy_ref, *args, **options)

    peers = cross_entropy_draws(plain, rows, labels, dloss.to(rows.dtype), **options)
    flattened = (ours[0].flatten() if dloss.dim() else ours[0], in_rows(ours[1]))
    weight = options.get("weight", torch.ones(rows.shape[1])).double()
    counted = labels[labels != options.get("ignore_index", -100)]
    share = 1 / weight[counted].sum() if options["reduction"] == "mean" else 1
    terms = ((1 + rows.double().abs()) * weight, 1.25 * weight * share)  # of losses, of gradients
    for got, draws, true, each in zip(flattened, peers, truth, terms, strict=True):
        assert_near(got, draws, true, each)
    assert before.shape == ours[1].shape


@EXAMPLES
@given(cross_entropies("not finite"))
def test_cross_entropy_is_nan_and_infinite_where_pytorchs_is(drawn: tuple[Any, ...]) -> None:
    logits, target, options = drawn
    dloss = torch.ones(target.shape if options["reduction"] == "none" else ())
    ours = loss_and_gradient(losses.cross_entropy, logits, target, dloss, **options)
    target = target.long()
    truth = loss_and_gradient(cross_entropy_ref, logits.double(), target, dloss, **wide(options))
    # PyTorch multiplies a row that is ignored by 0, which leaves its nan.
    ignored = (target == options.get("ignore_index", -100)).unsqueeze(1)
    truth = truth[0], torch.where(ignored, 0, truth[1])
    eps = 4 * torch.finfo(logits.dtype).eps
    for got, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(got.double(), true, rtol=eps, atol=eps, equal_nan=True)


def test_bits_of_relu_on_every_special_value() -> None:
    for dtype in DTYPES:
        values = Numbers.specials(SimpleNamespace(kind="special", dtype=dtype))  # type: ignore[arg-type]
        x = torch.tensor(values, dtype=torch.float64).to(dtype)
        assert_same_bits(torch.ops.fastmlp.activation(x, ACTIVATIONS["relu"].kernel), x.relu())
