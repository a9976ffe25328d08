"""The blocked engine and its operators: exact SGD, in another order of summation."""

from __future__ import annotations

import math

import pytest
import torch
from cases import randn, small_integers
from compare import assert_within_2x
from conftest import needs_native

from fastmlp import blocked
from fastmlp.blocked import BlockedEngine, block_steps, chain_ref, recurrence
from fastmlp.data import Normalization, Part
from fastmlp.engine_base import NonFiniteLossError, SgdOptions
from fastmlp.engines import EagerEngine, ReferenceEngine, choose_engine
from fastmlp.errors import UserError
from fastmlp.fitting import initial_parameters

pytestmark = needs_native

CPU = torch.device("cpu")
OPTIMIZERS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "decay": {"weight_decay": 0.05},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "grad_average": True},
}
OPTIMIZER = pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
ops = torch.ops.fastmlp


def problem(images=211, inputs=37, classes=5):
    part = Part(
        torch.randint(0, 256, (images, inputs), dtype=torch.uint8),
        torch.randint(0, classes, (images,)),
    )
    norm = Normalization("standard", 0.02 * torch.rand(inputs) + 0.01, -torch.rand(inputs))
    return part, norm


def make(engine, data, options, hidden=19, dtype=torch.float32, classes=5, steps=None):
    part, norm = data
    sizes = [part.images.shape[1], hidden, classes]
    parameters = initial_parameters(sizes, "kaiming", seed=3)
    parameters = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    made = engine(parameters, part, norm, SgdOptions(**options), CPU)
    if steps is not None:
        made.block_steps = steps
    return made


def flat(engine):
    state = engine.state_dict()
    return {f"{kind}.{k}": t for kind, part in state.items() for k, t in part.items()}


def assert_same_state(one, other):
    mine, theirs = flat(one), flat(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---- the recurrence -----------------------------------------------------------------------------


@OPTIMIZER
def test_the_recurrence_is_torchs_sgd(options):
    options = {k: v for k, v in options.items() if k != "grad_average"}
    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, **options)
    w.grad = torch.tensor([0.3], dtype=torch.float64)
    optimizer.step()  # the block begins after one step, with some momentum
    w0, v0 = w.item(), optimizer.state[w].get("momentum_buffer", torch.zeros(1)).item() or 0.0
    gradients = [0.5, -1.0, 2.0, 0.25]
    table = recurrence(len(gradients), 0.1, **options)
    for t, gradient in enumerate([*gradients, 0.0]):
        past = sum(table[t - u, 2].item() * gradients[u] for u in range(t))
        expected = table[t, 0].item() * w0 + table[t, 1].item() * v0 + past
        assert w.item() == pytest.approx(expected, rel=1e-12)
        w.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()


def test_block_lengths():
    assert [block_steps(b) for b in (1, 8, 100, 128, 1024)] == [128, 16, 1, 1, 1]
    assert [block_steps(b, momentum=True) for b in (1, 8, 31, 32, 1024)] == [64, 8, 2, 1, 1]


# ---- the operators ------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 15, 16, 50])
def test_gather_normalize_is_exact(features):
    part, norm = problem(inputs=features)
    rows = torch.tensor([3, 3, 0, 210, 7])
    x = ops.gather_normalize(part.images, rows, norm.scale, norm.shift)
    assert torch.equal(x, norm.apply(part.images[rows]))
    with pytest.raises(RuntimeError, match=r"rows must be in \[0, 211\), got 211"):
        ops.gather_normalize(part.images, torch.tensor([211]), norm.scale, norm.shift)


@pytest.mark.parametrize(("rows", "features"), [(1, 3), (8, 40), (37, 1100), (130, 17)])
@pytest.mark.parametrize("batch", [1, 3, 8, 64, 200])
def test_gram_is_exact_below_the_blocks(rows, features, batch):
    x = small_integers(rows, features)
    steps = torch.arange(rows) // batch
    want = torch.where(steps[:, None] > steps[None, :], x @ x.t() + 1, 0)
    assert torch.equal(ops.gram(x, batch), want)


@OPTIMIZER
@pytest.mark.parametrize(("rows", "hidden", "classes", "batch"), [(21, 33, 10, 4), (16, 8, 3, 8)])
def test_chain_is_its_reference(options, rows, hidden, classes, batch):
    grad_average = options.get("grad_average", False)
    sgd = {k: v for k, v in options.items() if k != "grad_average"}
    momentum = "momentum" in sgd
    dtype = torch.float64
    p, q = randn(rows, hidden, dtype=dtype), randn(rows, hidden, dtype=dtype)
    gram = 0.1 * randn(rows, rows, dtype=dtype)
    labels = torch.randint(0, classes, (rows,))
    last = [randn(classes, hidden, dtype=dtype), randn(classes, dtype=dtype)]
    buffers = [torch.randn_like(t) for t in last] if momentum else [None, None]
    leaves = [t.clone().requires_grad_() for t in last]
    optimizer = torch.optim.SGD(leaves, lr=0.1, **sgd)
    for leaf, buffer in zip(leaves, buffers, strict=True):
        if buffer is not None:
            optimizer.state[leaf]["momentum_buffer"] = buffer.clone()
    table = recurrence(-(-rows // batch), 0.1, **sgd)
    q = q if momentum else None
    want = chain_ref(p, q, gram, labels, table, leaves, optimizer, batch, grad_average)
    got = ops.chain(
        *(p, q, gram, labels, table, *last, *buffers, batch, 0.1, sgd.get("momentum", 0.0)),
        *(sgd.get("weight_decay", 0.0), sgd.get("nesterov", False), grad_average),
    )
    for mine, theirs in zip([*got, *last], [*want, *leaves], strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-11, atol=1e-13)
    for buffer, leaf in zip(buffers, leaves, strict=True):
        if buffer is not None:
            theirs = optimizer.state[leaf]["momentum_buffer"]
            torch.testing.assert_close(buffer, theirs, rtol=1e-11, atol=1e-13)


def test_chain_checks_its_arguments():
    p, gram, table = randn(4, 6), randn(4, 4), recurrence(2, 0.1)
    labels, w, b = torch.tensor([0, 1, 2, 0]), randn(3, 6), randn(3)
    rest = (None, None, 2, 0.1, 0.0, 0.0, False, False)
    ops.chain(p, None, gram, labels, table, w, b, *rest)
    with pytest.raises(RuntimeError, match="Target 3 is out of bounds"):
        ops.chain(p, None, gram, labels + 1, table, w, b, *rest)
    with pytest.raises(RuntimeError, match="recurrence must have a row for each step"):
        ops.chain(p, None, gram, labels, table[:2], w, b, *rest)
    with pytest.raises(RuntimeError, match=r"gram must be \(rows, rows\)"):
        ops.chain(p, None, gram[:, :3], labels, table, w, b, *rest)
    with pytest.raises(RuntimeError, match="momentum must be given for all or none"):
        ops.chain(p, None, gram, labels, table, w, b, w.clone(), b.clone(), *rest[2:])


def test_opcheck():
    part, norm = problem()
    rows, p, q = torch.tensor([3, 0, 5, 9]), randn(4, 6), randn(4, 6)
    check = torch.library.opcheck
    check(ops.gather_normalize.default, (part.images, rows, norm.scale, norm.shift))
    check(ops.gram.default, (randn(9, 4), 2))
    table, w, b = recurrence(2, 0.1, 0.9), randn(3, 6), randn(3)
    labels, v, vb = torch.tensor([0, 1, 2, 0]), randn(3, 6), randn(3)
    args = (p, q, randn(4, 4), labels, table, w, b, v, vb, 2, 0.1, 0.9, 0.0, True, False)
    check(ops.chain.default, args)
    first = (randn(6, 5), randn(6), randn(6, 5), randn(6), p, randn(4, 5), table, 2)
    check(ops.block_update_.default, first)


# ---- the engine ---------------------------------------------------------------------------------


@OPTIMIZER
@pytest.mark.parametrize("batch", [*range(1, 18), 100, 128])
def test_float64_is_sgd_to_the_last_bits(options, batch):
    data = problem()
    order = torch.randperm(211)
    engines = [
        make(engine, data, {"batch_size": batch, **options}, dtype=torch.float64)
        for engine in (BlockedEngine, ReferenceEngine)
    ]
    mine, theirs = [engine.train_epoch(order, 0.05) for engine in engines]
    assert mine.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-6)  # kept in float32
    assert (mine.correct, mine.steps, mine.finished) == (theirs.correct, theirs.steps, True)
    ours, reference = flat(engines[0]), flat(engines[1])
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-12)


@OPTIMIZER
@pytest.mark.parametrize("steps", [1, 2, 16, 32])
@pytest.mark.parametrize("limit", [1, 2, 15, 16, 17, 50])
def test_float32_is_as_close_to_the_truth_as_pytorch(options, steps, limit):
    data = problem(images=8 * limit - 3)
    order = torch.randperm(8 * limit - 3)
    options = {"batch_size": 8, **options}
    truth = make(ReferenceEngine, data, options, dtype=torch.float64)
    theirs, ours = make(ReferenceEngine, data, options), make(BlockedEngine, data, options)
    ours.block_steps = steps
    for engine in (truth, theirs, ours):
        engine.train_epoch(order, 0.05)
    for name, true in flat(truth).items():
        assert_within_2x(flat(ours)[name], flat(theirs)[name], true)


@pytest.mark.parametrize("hidden", [1, 8, 31, 64, 256, 1000])
@pytest.mark.parametrize("classes", [2, 17, 100])
def test_widths(hidden, classes):
    data = problem(images=70, inputs=50, classes=classes)
    options = {"batch_size": 6, "momentum": 0.9}
    order = torch.randperm(70)
    engines = [
        make(engine, data, options, hidden, torch.float64, classes)
        for engine in (BlockedEngine, ReferenceEngine)
    ]
    for engine in engines:
        engine.train_epoch(order, 0.01)
    for name, tensor in flat(engines[1]).items():
        torch.testing.assert_close(flat(engines[0])[name], tensor, rtol=1e-10, atol=1e-12)


@OPTIMIZER
def test_threads_and_reruns_do_not_change_a_bit(options, threads):
    data, order = problem(inputs=300), torch.randperm(211)
    runs = []
    for count in (1, 2, 3, 1):
        threads(count)
        engine = make(BlockedEngine, data, {"batch_size": 8, **options}, hidden=70)
        engine.train_epoch(order, 0.05)
        runs.append(engine)
    for other in runs[1:]:
        assert_same_state(runs[0], other)


@OPTIMIZER
def test_stopping_between_blocks_changes_nothing(options):
    data, order = problem(), torch.randperm(211)
    options = {"batch_size": 3, **options}
    whole, parts = (make(BlockedEngine, data, options, steps=4) for _ in range(2))
    want = whole.train_epoch(order, 0.05)
    first = parts.train_epoch(order, 0.05, should_stop=lambda: True)
    assert (first.steps, first.finished) == (4, False)
    again = make(BlockedEngine, data, options, steps=4)
    again.load_state_dict(parts.state_dict())
    second = again.train_epoch(order, 0.05, start_step=first.steps)
    assert_same_state(whole, again)
    total = first + second
    assert (total.samples, total.correct) == (want.samples, want.correct)
    assert total.loss_sum == pytest.approx(want.loss_sum)


def test_takes_over_from_another_engine_in_the_middle_of_a_block():
    data, order = problem(), torch.randperm(211)
    options = {"batch_size": 8, "momentum": 0.9}
    eager, late = make(EagerEngine, data, options), make(BlockedEngine, data, options)
    calls = iter([False, False, True])
    done = eager.train_epoch(order, 0.05, should_stop=lambda: next(calls)).steps
    assert done == 3
    late.load_state_dict(eager.state_dict())
    late.train_epoch(order, 0.05, start_step=done)
    eager.train_epoch(order, 0.05, start_step=done)
    for name, tensor in flat(eager).items():
        torch.testing.assert_close(flat(late)[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_diverging_model_names_its_step_and_ends():
    data, order = problem(), torch.randperm(211)
    engine = make(BlockedEngine, data, {"batch_size": 8})
    with pytest.raises(NonFiniteLossError) as caught:
        engine.train_epoch(order, 1e20)
    assert 0 < caught.value.step < 27
    assert not math.isfinite(caught.value.loss)


def test_auto_takes_it_where_it_applies_and_says_why_not():
    assert choose_engine("auto", CPU, [3072, 256, 10])[0] is BlockedEngine
    deep, reason = choose_engine("auto", CPU, [3072, 256, 64, 10])
    assert deep is EagerEngine
    assert "not blocked, because it takes one hidden layer, not 2" in reason
    with pytest.raises(UserError, match="engine blocked cannot run here: it takes one hidden"):
        choose_engine("blocked", CPU, [3072, 10])


def test_progress_is_reported(monkeypatch):
    monkeypatch.setattr(blocked, "REPORT_SECONDS", 0.0)
    seen = []
    engine = make(BlockedEngine, problem(), {"batch_size": 8}, steps=2)
    engine.train_epoch(
        torch.randperm(211), 0.05, on_progress=lambda stats: seen.append(stats.steps)
    )
    assert seen == [*range(2, 27, 2), 27]
