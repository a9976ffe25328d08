"""cross_entropy and cross_entropy_backward against PyTorch's cross entropy."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from support.cases import DTYPES, LAYOUTS, randn
from support.compare import assert_within_2x
from support.draws import cross_entropy_draws
from support.marks import needs_native
from support.pairwise import pairwise

from fastmlp import functional
from fastmlp.ops import cross_entropy as ops
from fastmlp.ops.cross_entropy import cross_entropy_ref

pytestmark = needs_native

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
SHAPES = [(1, 1), (1, 2), (8, 10), (7, 16), (5, 17), (33, 100), (3, 1031), (300, 10), (2, 40_000)]
REDUCTIONS = ["mean", "sum", "none"]


def loss_and_grad(f, logits, target, dloss, **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = f(leaf, target, **options)
    loss.backward(dloss.to(loss.dtype))
    return loss.detach(), leaf.grad


def compare(logits, target, reduction, weight=None, **options):
    rows = target.shape if reduction == "none" else ()
    dloss = randn(*rows, dtype=logits.dtype)
    options = {"reduction": reduction, **options}
    wide = None if weight is None else weight.double()
    true = loss_and_grad(cross_entropy_ref, logits.double(), target, dloss, weight=wide, **options)
    plain = partial(loss_and_grad, cross_entropy_ref)
    peer = cross_entropy_draws(plain, logits, target, dloss, weight=weight, **options)
    ours = loss_and_grad(ops.cross_entropy, logits, target, dloss, weight=weight, **options)
    for got, theirs, truth in zip(ours, peer, true, strict=True):
        assert_within_2x(got, theirs, truth)


@pairwise(shape=SHAPES, dtype=DTYPES, reduction=REDUCTIONS)
def test_as_close_to_the_truth_as_pytorch(shape, dtype, reduction):
    logits = 3 * randn(*shape, dtype=dtype)
    compare(logits, torch.randint(0, shape[1], shape[:1]), reduction)


@DTYPE
@pytest.mark.parametrize(
    ("reduction", "weighted", "smoothing", "ignored"),
    list(itertools.product(REDUCTIONS, [False, True], [0.0, 0.1, 1.0], [False, True])),
)
def test_every_option_as_close_as_pytorch(dtype, reduction, weighted, smoothing, ignored):
    logits, target = 2 * randn(29, 19, dtype=dtype), torch.randint(0, 19, (29,))
    if ignored:
        target[::3] = 4  # a class of its own that does not count
        target[1] = 4
    weight = torch.rand(19).to(dtype) + 0.5 if weighted else None
    ignore = 4 if ignored else -100
    compare(logits, target, reduction, weight, label_smoothing=smoothing, ignore_index=ignore)


def test_ignore_index_outside_the_classes():
    target = torch.tensor([0, -100, 2, -1, 1])
    compare(randn(5, 3), torch.where(target == -1, 0, target), "mean")
    compare(randn(5, 3), torch.where(target == -100, -1, target), "sum", ignore_index=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_exact(layout):
    logits, target = randn(9, 13), torch.randint(0, 13, (9,))
    other = LAYOUTS[layout](logits)
    dloss = randn(9)
    before = other.clone()
    for got, want in zip(
        loss_and_grad(ops.cross_entropy, other, target, dloss, reduction="none"),
        loss_and_grad(ops.cross_entropy, logits, target, dloss, reduction="none"),
        strict=True,
    ):
        assert torch.equal(got, want)
    assert torch.equal(other, before)
    step = torch.stack([target, target + 100], 1)[:, 0]
    assert torch.equal(ops.cross_entropy(logits, step), ops.cross_entropy(logits, target))


@pytest.mark.parametrize("shape", [(7,), (4, 5, 3), (2, 6, 3, 2), (0, 5, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_row_and_more_dimensions_as_close_as_pytorch(shape, reduction):
    labels = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(0, shape[1] if len(shape) > 1 else shape[0], labels)
    compare(randn(*shape), target, reduction)
    assert functional.cross_entropy(randn(*shape), target, reduction="none").shape == labels


def test_uint8_targets_are_labels_too():
    logits, target = randn(300, 256), torch.randint(0, 256, (300,))
    assert torch.equal(ops.cross_entropy(logits, target.byte()), ops.cross_entropy(logits, target))


def test_uint8_labels_do_not_wrap_into_ignore_index():
    """156 as a byte equals -100: in the loss and in derivatives of every order it is a label."""
    logits, target = randn(2, 200, dtype=torch.float64).requires_grad_(), torch.tensor([156, 3])

    def derivatives(target):
        loss = ops.cross_entropy(logits, target)
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        return loss, first, *torch.autograd.grad(first[:, 0].sum(), logits)

    for got, want in zip(derivatives(target.byte()), derivatives(target), strict=True):
        assert torch.equal(got, want)


def test_the_corners_of_pytorchs_semantics():
    cross_entropy = functional.cross_entropy
    empty, none = randn(0, 3), torch.empty(0, dtype=torch.int64)
    assert math.isnan(cross_entropy(empty, none))
    assert cross_entropy(empty, none, reduction="sum") == 0
    assert cross_entropy(empty, none, reduction="none").shape == (0,)
    for shape in ((0, 0), (0, 0, 5), (0, 3, 5), (4, 3, 0)):  # no rows, and no classes
        logits, labels = randn(*shape), torch.empty(shape[:1] + shape[2:], dtype=torch.int64)
        assert math.isnan(cross_entropy(logits, labels))
        assert cross_entropy(logits, labels, reduction="none").shape == labels.shape
    ignored = torch.full((4,), -100)
    assert math.isnan(cross_entropy(randn(4, 3), ignored))
    assert cross_entropy(randn(4, 3), ignored, reduction="none").tolist() == [0, 0, 0, 0]
    leaf = randn(4, 3).requires_grad_()
    cross_entropy(leaf, ignored).backward()
    theirs = leaf.detach().clone().requires_grad_()
    cross_entropy_ref(theirs, ignored).backward()
    assert torch.equal(leaf.grad.isnan(), theirs.grad.isnan())


def test_total_weight_of_zero_as_pytorch():
    weight, target = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1, 2])
    for smoothing in (0.0, 0.5):
        args = (randn(2, 3), target, weight, "mean", -100, smoothing)
        assert math.isnan(cross_entropy_ref(*args))
        assert math.isnan(ops.cross_entropy(*args))


def test_an_ignored_row_keeps_its_nan_to_itself():
    logits = randn(3, 4, dtype=torch.float64)
    logits[1] = math.inf
    logits.requires_grad_()
    target, scale = torch.tensor([0, -100, 2]), torch.ones((), dtype=torch.float64)
    scale.requires_grad_()
    loss = ops.cross_entropy(logits, target, None, "sum")
    (first,) = torch.autograd.grad(loss, logits, scale, create_graph=True)
    assert first[1].tolist() == [0, 0, 0, 0]
    (second,) = torch.autograd.grad(first.square().sum(), scale)
    assert second.isfinite()


@pytest.mark.parametrize(
    "row",
    [
        [1e30, 1e30],
        [3e38, -3e38],
        [-math.inf, 0.0],
        [0.0, -math.inf],
        [math.inf, 0.0],
        [math.nan, 0.0],
        [-math.inf, -math.inf],
        [88.0, -104.0],
        [-1e4, 1e4],
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("width", [2, 40])
def test_extreme_logits_as_pytorch(row, smoothing, width):
    logits = torch.tensor([row + [-200.0] * (width - 2)])
    compare(logits, torch.tensor([1]), "mean", label_smoothing=smoothing)
    if row == [1e30, 1e30]:
        assert ops.cross_entropy(logits, torch.tensor([0])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("label", [3, -1, 1 << 40])
def test_a_label_that_is_no_class_is_an_index_error(label):
    target = torch.tensor([0, label, 2])
    with pytest.raises(IndexError, match=rf"Target {label} is out of bounds.*\[0, 3\)"):
        functional.cross_entropy(randn(3, 3), target)
    with pytest.raises(IndexError):
        functional.cross_entropy(randn(3, 3), target, backend="reference")


@pytest.mark.parametrize("shape", [(300, 10), (64, 1000)])
def test_threads_do_not_change_a_bit(shape, threads):
    logits, target = randn(*shape), torch.randint(0, shape[1], shape[:1])
    results = []
    for count in (1, 2, 3, 2):
        threads(count)
        results.append(ops.cross_entropy_with_grad(logits, target))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r, strict=True))


def test_a_long_batch_loses_no_digits():
    logits, target = torch.zeros(200_000, 2), torch.zeros(200_000, dtype=torch.int64)
    assert float(ops.cross_entropy(logits, target)) == pytest.approx(math.log(2), rel=1e-6)


def test_loss_with_gradient_in_one_call():
    logits, target = randn(8, 10), torch.randint(0, 10, (8,))
    loss, dlogits = ops.cross_entropy_with_grad(logits, target)
    want = loss_and_grad(ops.cross_entropy, logits, target, torch.tensor(1.0))
    assert torch.equal(loss, want[0])
    assert torch.equal(dlogits, want[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_every_order(reduction, smoothing, weighted):
    logits = randn(5, 4, dtype=torch.float64).requires_grad_()
    target = torch.tensor([0, 3, -100, 1, 1])
    weight = torch.rand(4, dtype=torch.float64) if weighted else None

    def loss(logits):
        return functional.cross_entropy(
            logits, target, weight, reduction=reduction, label_smoothing=smoothing
        )

    torch.autograd.gradcheck(loss, logits)
    torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_vmap_and_forward_mode_with_every_option(reduction, smoothing):
    logits, tangent = randn(6, 5, 4, dtype=torch.float64), randn(5, 4, dtype=torch.float64)
    target, weight = torch.randint(0, 4, (6, 5)), torch.rand(4, dtype=torch.float64)
    target[:, 2] = -100
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = (partial(f, **options) for f in (functional.cross_entropy, cross_entropy_ref))
    each = torch.stack([theirs(*batch) for batch in zip(logits, target, strict=True)])
    torch.testing.assert_close(torch.vmap(ours)(logits, target), each)
    jvps = [
        torch.func.jvp(lambda x, f=f: f(x, target[0]), (logits[0],), (tangent,))
        for f in (ours, theirs)
    ]
    torch.testing.assert_close(*jvps)


def test_opcheck_and_compile():
    logits, target = randn(5, 4).requires_grad_(), torch.tensor([0, 3, -100, 1, 1])
    for reduction in (0, 1, 2):
        args = (logits, target, torch.rand(4), reduction, -100, 0.1)
        torch.library.opcheck(torch.ops.fastmlp.cross_entropy.default, args)
        loss, stats, total = torch.ops.fastmlp.cross_entropy(*args)
        upstream = torch.rand(loss.shape).requires_grad_()
        args = (upstream, logits, target, stats, total, torch.rand(4), reduction, -100, 0.1)
        torch.library.opcheck(torch.ops.fastmlp.cross_entropy_backward.default, args)
    compiled = torch.compile(functional.cross_entropy, fullgraph=True)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(logits, target), logits),
        torch.autograd.grad(cross_entropy_ref(logits, target), logits),
    )


def test_autocast_runs_the_loss_in_float32():
    logits, target = randn(8, 10, dtype=torch.bfloat16).requires_grad_(), torch.randint(0, 10, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = functional.cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy_ref(logits.float(), target))
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


ERRORS = [
    ({"target": torch.zeros(8, dtype=torch.int32)}, TypeError, "int64 or uint8, got torch.int32"),
    ({"target": torch.zeros(8)}, ValueError, r"target must have shape \(8, 10\).*got \(8,\)"),
    ({"target": torch.zeros(8, 10), "ignore_index": 0}, ValueError, "ignore_index must not be"),
    ({"size_average": "sum"}, TypeError, "size_average must be True, False or None, got 'sum'"),
    ({"target": torch.zeros(7, dtype=torch.int64)}, ValueError, r"\(8,\).*got \(7,\)"),
    ({"logits": torch.tensor(1.0)}, ValueError, "got a scalar"),
    ({"weight": torch.ones(9)}, ValueError, r"weight must have shape \(10,\), got \(9,\)"),
    ({"weight": torch.ones(10).double()}, TypeError, "weight must have the dtype of logits"),
    (
        {"weight": torch.ones(10, requires_grad=True)},
        ValueError,
        "weight cannot require a gradient",
    ),
    ({"reduction": "avg"}, ValueError, "reduction must be one of none, mean, sum, got 'avg'"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1, got 1.5"),
    ({"logits": torch.zeros(8, 10, dtype=torch.int64)}, TypeError, "logits must be float32"),
]


@pytest.mark.parametrize(("change", "kind", "message"), ERRORS)
def test_wrong_arguments_get_one_sentence(change, kind, message):
    good = {"logits": randn(8, 10), "target": torch.zeros(8, dtype=torch.int64)}
    with pytest.raises(kind, match=message):
        functional.cross_entropy(**{**good, **change})


BACKENDS = ["native", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_by_hand(backend):
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    loss = functional.cross_entropy(logits, torch.full((3, 4), 0.25), backend=backend)
    assert loss.item() == pytest.approx(1.773067, abs=1e-6)
    labels = torch.tensor([3, 0, 2])
    hot = torch.nn.functional.one_hot(labels, 4).to(torch.float64)
    got = functional.cross_entropy(logits.double(), hot, backend=backend)
    torch.testing.assert_close(got, functional.cross_entropy(logits.double(), labels))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3), (0, 4)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probabilities_as_pytorch(shape, reduction, weighted, smoothing):
    """Values and gradients, the target's too; and dtypes that differ."""
    for dtype, target_dtype in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        logits, target = randn(*shape, dtype=dtype), randn(*shape, dtype=target_dtype).softmax(-1)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        options["weight"] = torch.rand(4, dtype=dtype) if weighted else None
        results = []
        for function in (functional.cross_entropy, torch.nn.functional.cross_entropy):
            leaves = [t.detach().clone().requires_grad_() for t in (logits, target)]
            loss = function(*leaves, **options)
            results.append((loss, *torch.autograd.grad(loss.sum(), leaves)))
        torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def test_probabilities_have_derivatives_of_every_kind():
    logits = randn(3, 4, dtype=torch.float64).requires_grad_()
    target = randn(3, 4, dtype=torch.float64).softmax(1).detach().requires_grad_()
    weight = torch.rand(4, dtype=torch.float64)

    def loss(logits, target):
        return functional.cross_entropy(logits, target, weight, label_smoothing=0.3)

    args = (logits, target)
    torch.autograd.gradcheck(loss, args, check_forward_ad=True)
    torch.autograd.gradgradcheck(loss, args, check_fwd_over_rev=True, check_rev_over_rev=True)
    per_row = torch.vmap(torch.func.grad(loss))(logits[:, None], target[:, None])
    (whole,) = torch.autograd.grad(loss(*args), logits)
    torch.testing.assert_close(per_row[:, 0] / 3, whole)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), loss(*args))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (
            loss(*args),
            torch.nn.functional.cross_entropy(*args, weight, None, -100, None, "mean", 0.3),
        )
    torch.testing.assert_close(got, want)
