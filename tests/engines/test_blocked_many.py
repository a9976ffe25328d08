"""Networks that are trained side by side, and the operator that does it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from support.blocked import CPU, OPTIMIZERS, Network, assert_same_state, flat, new_state, problem
from support.marks import needs_native

from fastmlp.data.sampling import EpochOrder
from fastmlp.data.transforms import RandomFlipShift
from fastmlp.engines import blocked, compiled
from fastmlp.engines.base import Epoch
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.metrics import EpochMetrics, NonFiniteLossError
from fastmlp.engines.reference import ReferenceEngine
from fastmlp.ops.blocked_sgd import recurrence

pytestmark = needs_native

IMAGES = 150


NETWORKS = {
    "plain": Network(),
    "another seed": Network(shape={"seed": 8}),
    "another lr": Network(lr=0.003),
    "momentum, sharing the images": Network(options=OPTIMIZERS["momentum"]),
    "all, sharing the images": Network(options=OPTIMIZERS["all"], shape={"seed": 5}),
    "deep, sharing the images": Network(options=OPTIMIZERS["decay"], shape={"hidden": (33, 12)}),
    "a longer block": Network(shape={"hidden": (520,), "steps": None}),
    "another batch": Network(options={"batch_size": 3}, shape={"steps": None}),
    "a large batch": Network(options={"batch_size": 100}, shape={"steps": None}),
    "another order": Network("second", shape={"hidden": (12, 9, 5)}),
    "a longer epoch": Network("long", options=OPTIMIZERS["nesterov"]),
    "repeats": Network("repeats", options=OPTIMIZERS["all"]),
    "a forced block": Network("repeats", shape={"steps": 3}),
    "taken up at a block": Network(start_step=8, shape={"seed": 9}),
    "taken up within a block": Network("second", start_step=3),
    "taken up at the last step": Network("second", start_step=18),
    "wide": Network("short", options={"batch_size": 16}, shape={"hidden": (300, 300)}),
}


@pytest.fixture
def orders():
    return {
        "first": torch.randperm(IMAGES),
        "second": torch.randperm(IMAGES),
        "long": torch.randint(0, IMAGES, (2 * IMAGES + 7,)),
        "repeats": torch.arange(40).unfold(0, 8, 1).flatten(),
        "short": torch.randperm(IMAGES)[:33],
    }


@pytest.fixture
def data():
    return problem(images=IMAGES, inputs=75, planes=3)


def build(networks, data, orders, engine=BlockedEngine, moves=None, dtype=torch.float32):
    """An engine, the networks' states and their epochs."""
    made, states, epochs = engine(*data, CPU), [], []
    named = {n: EpochOrder(order, moves and moves[: len(order)]) for n, order in orders.items()}
    for network in networks:
        options = {"batch_size": 8, **network.options}
        shape = {"steps": 8, **network.shape}
        states.append(new_state(made, data[0].images.shape[1], options, dtype=dtype, **shape))
        epochs.append(Epoch(named[network.order], network.lr, network.start_step))
    return made, states, epochs


def train_alone(networks, data, orders, **how):
    """What :meth:`Engine.train_epoch` makes of each network by itself, two epochs long."""
    engine, states, epochs = build(networks, data, orders, **how)
    results = []
    for state, epoch in zip(states, epochs, strict=True):
        for _ in range(2):
            (result,) = engine.train_epoch([state], [epoch])
        results.append(result)
    return states, results


def train_together(networks, data, orders, **how):
    """The same, side by side."""
    engine, states, epochs = build(networks, data, orders, **how)
    engine.train_epoch(states, epochs)
    return states, engine.train_epoch(states, epochs)


def assert_same(ours, theirs, names):
    for name, one, mine, other, his in zip(names, *ours, *theirs, strict=True):
        for tensor, twin in zip(flat(one).values(), flat(other).values(), strict=True):
            assert torch.equal(tensor.nan_to_num(7), twin.nan_to_num(7)), name
        if isinstance(mine, NonFiniteLossError):
            assert isinstance(his, NonFiniteLossError), name
            assert mine.step == his.step, name
        else:
            assert mine == his, name


# ---- side by side is as alone -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved", [False, True])
def test_each_is_what_it_is_alone(dtype, moved, data, orders, threads):
    moves = RandomFlipShift(True, 2).draw(400, (3, 5, 5), torch.Generator()) if moved else None
    how = {"dtype": dtype, "moves": moves}
    threads(1)
    alone = train_alone(NETWORKS.values(), data, orders, **how)
    for count in (1, 2, 3):
        threads(count)
        together = train_together(NETWORKS.values(), data, orders, **how)
        assert_same(together, alone, NETWORKS)
    assert all(isinstance(stats, EpochMetrics) and stats.finished for stats in alone[1])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_groups_on_any_number_of_threads(count, data, threads):
    orders = {str(i): torch.randperm(IMAGES) for i in range(count)}
    networks = [
        Network(order, shape={"hidden": (70,), "seed": i}) for i, order in enumerate(orders)
    ]
    threads(1)
    alone = train_alone(networks, data, orders)
    for number in (2, 3, 4):
        threads(number)
        assert_same(train_together(networks, data, orders), alone, orders)


def test_blocks_in_one_call_or_in_many(data, orders, monkeypatch):
    ends = []
    for seconds in (0.0, 1e6):  # one block a call, or twice as many in each as before
        monkeypatch.setattr(compiled, "CALL_SECONDS", seconds)
        ends.append(train_together(NETWORKS.values(), data, orders))
    assert_same(*ends, NETWORKS)


def test_those_on_the_same_images_share_them(data, orders, monkeypatch):
    calls = []

    def note(*args):
        calls.append((len(args[5]), args[9]))
        return torch.ops.fastmlp.blocked_train_.default(*args)

    ops = SimpleNamespace(
        blocked_train_=SimpleNamespace(default=note), blocked_plan=torch.ops.fastmlp.blocked_plan
    )
    monkeypatch.setattr(blocked, "_ops", ops)
    monkeypatch.setattr(compiled, "CALL_SECONDS", 0.0)
    names = ["plain", "another seed", "momentum, sharing the images", "deep, sharing the images"]
    names += ["a longer block", "another batch", "another order", "taken up at a block"]
    engine, states, epochs = build([NETWORKS[name] for name in names], data, orders)
    engine.train_epoch(states, epochs)
    assert calls[0] == (5, [0, 0, 0, 0, 1, 2, 3, 4])
    equal = [Epoch(EpochOrder(orders["first"]), 0.05) for _ in states[:2]]
    calls.clear()
    engine.train_epoch(states[:2], equal)
    assert calls[0] == (2, [0, 1])  # equal orders are not compared
    moves = RandomFlipShift(True, 2).draw(IMAGES, (3, 5, 5), torch.Generator())
    still, moved = (EpochOrder(orders["first"], each) for each in (None, moves))
    calls.clear()
    engine.train_epoch(states[:3], [Epoch(order, 0.05) for order in (still, moved, moved)])
    assert calls[0] == (2, [0, 1, 1])


# ---- what may happen under way ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_one_that_diverges_leaves_the_others_alone(dtype, seconds, data, orders, monkeypatch):
    monkeypatch.setattr(compiled, "CALL_SECONDS", seconds)
    healthy = dict(list(NETWORKS.items())[:6])
    networks = {**healthy, "bad": Network(lr=1e20), "after": Network("second")}
    engine, states, epochs = build(networks.values(), data, orders, dtype=dtype)
    results = engine.train_epoch(states, epochs)
    error = results[6]
    assert isinstance(error, NonFiniteLossError)
    assert not math.isfinite(error.loss)
    engine, alone, epochs = build(networks.values(), data, orders, dtype=dtype)
    for i, (state, epoch) in enumerate(zip(alone, epochs, strict=True)):
        (result,) = engine.train_epoch([state], [epoch])
        if i == 6:
            assert isinstance(result, NonFiniteLossError)
            assert 0 < result.step == error.step
        else:
            assert results[i] == result
            assert_same_state(states[i], state)


def test_a_stop_is_for_all_and_they_go_on_from_there(data, orders, monkeypatch):
    monkeypatch.setattr(compiled, "CALL_SECONDS", 0.0)
    networks = list(NETWORKS.values())
    engine, whole, epochs = build(networks, data, orders)
    stats = engine.train_epoch(whole, epochs)
    engine, parts, epochs = build(networks, data, orders)
    first = engine.train_epoch(parts, epochs, should_stop=lambda: True)
    assert [part.steps for part in first[:3]] == [8, 8, 8]
    assert [first[i].finished for i in (0, 7, 15)] == [False, False, True]
    left = [i for i, part in enumerate(first) if not part.finished]
    starts = [epochs[i].start_step + first[i].steps for i in left]
    again = [
        Epoch(epochs[i].order, epochs[i].lr, start) for i, start in zip(left, starts, strict=True)
    ]
    second = engine.train_epoch([parts[i] for i in left], again)
    for one, other in zip(whole, parts, strict=True):
        assert_same_state(one, other)
    for i, part in zip(left, second, strict=True):
        both = first[i] + part
        assert (both.steps, both.samples, both.correct) == (
            stats[i].steps,
            stats[i].samples,
            stats[i].correct,
        )
        assert both.finished


def test_progress_of_all(data, orders, monkeypatch):
    monkeypatch.setattr(compiled, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(compiled, "CALL_SECONDS", 0.0)
    networks = [Network(), Network("long"), Network(lr=1e20), Network("short")]
    engine, states, epochs = build(networks, data, orders)
    seen = []
    end = engine.train_epoch(states, epochs, on_progress=seen.append)
    assert [stats[0].steps for stats in seen] == [8, 16, *[19] * (len(seen) - 2)]
    assert [stats[1].steps for stats in seen] == [*range(8, 39, 8), 39]
    assert [stats[3].steps for stats in seen] == [5] * len(seen)
    assert all(stats[2] == EpochMetrics() for stats in seen)
    assert [seen[-1][i] for i in (0, 1, 3)] == [end[i] for i in (0, 1, 3)]


def test_networks_that_do_not_go_together_are_refused(data, orders):
    engine, (one, other), epochs = build([Network(), Network()], data, orders)
    _, (double,), _ = build([Network()], data, orders, dtype=torch.float64)
    before = flat(one)
    with pytest.raises(ValueError, match="must have one dtype"):
        engine.train_epoch([one, double], epochs)
    flip_shifts = [
        RandomFlipShift(True, 1).draw(IMAGES, shape, torch.Generator())
        for shape in ((3, 5, 5), (1, 5, 15))
    ]
    moved = [Epoch(EpochOrder(orders["first"], each), 0.05) for each in flip_shifts]
    with pytest.raises(ValueError, match="must be for images of one shape"):
        engine.train_epoch([one, other], moved)
    with pytest.raises(ValueError, match="start_step must be from 0 to 18, got 19"):
        engine.train_epoch([one, other], [epochs[0], Epoch(epochs[0].order, 0.05, 19)])
    with pytest.raises(ValueError, match="shorter"):
        engine.train_epoch([one, other], epochs[:1])
    assert all(map(torch.equal, flat(one).values(), before.values()))
    assert engine.train_epoch([], []) == []


@pytest.mark.parametrize("engine", [EagerEngine, ReferenceEngine])
def test_engines_of_single_steps_take_turns(engine, data, orders, threads, monkeypatch):
    threads(1)
    monkeypatch.setattr("fastmlp.engines.stepwise.REPORT_SECONDS", 0.0)
    networks = [Network(), Network(lr=1e20), Network("second", shape={"hidden": (9, 5)})]
    alone = train_alone(networks, data, orders, engine=engine)
    assert [isinstance(result, NonFiniteLossError) for result in alone[1]] == [False, True, False]
    assert_same(train_together(networks, data, orders, engine=engine), alone, range(3))
    seen = []
    made, states, epochs = build(networks, data, orders, engine=engine)
    end = made.train_epoch(states, epochs, on_progress=seen.append)
    assert {len(stats) for stats in seen} == {3}
    assert (seen[-1][0], seen[-1][2]) == (end[0], end[2])
    made, states, epochs = build(networks, data, orders, engine=engine)
    stopped = made.train_epoch(states, epochs, should_stop=lambda: True)
    assert [stats.steps for stats in stopped] == [1, 1, 1]


# ---- the operator -------------------------------------------------------------------------------


def arguments(momentum=0.9, dtype=torch.float32):
    """Of blocked_train_, for a network of two layers on four batches of 3, two to a block."""
    part, norm = problem(images=9, inputs=12, classes=4)
    parameters = [torch.randn(shape, dtype=dtype) for shape in ((6, 12), (6,), (4, 6), (4,))]
    return {
        **{"images": part.images, "labels": part.labels, "scale": norm.scale, "shift": norm.shift},
        **{"shape": [3, 2, 2], "orders": [torch.tensor([0, 8, 4, 4, 1, 7, 5, 6, 2, 2, 0, 1])]},
        **{"moves": [torch.empty(0, 3, dtype=torch.int8)], "batches": [3], "block_steps": [2]},
        **{"group": [0], "layers": [2], "parameters": parameters},
        "momentum": [torch.zeros_like(tensor) for tensor in parameters] if momentum else [],
        "recurrences": [recurrence(2, 0.1, momentum)],
        "options": torch.tensor([[0.1, momentum, 0.0, 0.0, 0.0]], dtype=torch.float64),
    }


def nth(index, value):
    """Another entry of a list."""
    return lambda items: [value(item) if i == index else item for i, item in enumerate(items)]


MOVES = torch.zeros(12, 3, dtype=torch.int8)
FAR = torch.tensor([2, 0, 0], dtype=torch.int8)
REFUSED = [
    ({"orders": nth(0, lambda order: order + 1)}, r"an order must be in \[0, 9\), got 9"),
    ({"orders": nth(0, lambda order: order - 1)}, r"an order must be in \[0, 9\), got -1"),
    ({"orders": nth(0, torch.Tensor.int)}, "an order has the wrong dtype"),
    ({"labels": lambda x: x * 0 + 4}, "Target 4 is out of bounds"),
    ({"labels": lambda x: x * 0 - 1}, "Target -1 is out of bounds"),
    ({"labels": lambda x: x[1:]}, "labels must have size 9 in dimension 0"),
    ({"images": torch.Tensor.float}, "images has the wrong dtype"),
    ({"images": lambda x: x.t().contiguous().t()}, "images must be contiguous"),
    ({"scale": lambda x: x[1:]}, "scale and shift must have size 12"),
    ({"shift": torch.Tensor.double}, "scale and shift has the wrong dtype"),
    ({"momentum": lambda x: x[1:]}, "momentum must hold a buffer for each parameter"),
    ({"momentum": lambda x: [*x, x[0]]}, "momentum must hold a buffer for each parameter"),
    ({"momentum": nth(0, lambda x: x[1:])}, "a weight's momentum must have size 6 in dimension 0"),
    ({"momentum": nth(3, lambda x: x[1:])}, "a bias's momentum must have size 4 in dimension 0"),
    ({"momentum": nth(0, torch.Tensor.double)}, "a weight's momentum has the wrong dtype"),
    ({"recurrences": nth(0, lambda x: x[:2])}, "must have a row for each step of a block and one"),
    ({"recurrences": nth(0, lambda x: x[:, :5].clone())}, "a recurrence must have a row for each"),
    ({"recurrences": nth(0, torch.Tensor.float)}, "a recurrence has the wrong dtype"),
    (
        {"parameters": nth(2, lambda x: x[:, 1:].clone())},
        "a weight must have size 6 in dimension 1",
    ),
    ({"parameters": nth(1, lambda x: x[1:])}, "a bias must have size 6 in dimension 0"),
    ({"parameters": nth(2, torch.Tensor.double)}, "a weight has the wrong dtype"),
    ({"parameters": lambda x: [t.half() for t in x]}, "the network must be float32 or float64"),
    ({"parameters": []}, "there must be at least one network"),
    ({"parameters": lambda x: x[:3]}, "parameters must hold a weight and a bias for each layer"),
    ({"parameters": lambda x: [*x, x[0]]}, "a bias for each layer, and nothing else"),
    (
        {"layers": [1], "parameters": lambda x: x[:2], "momentum": lambda x: x[:2]},
        "a network must have at least two layers",
    ),
    ({"group": [1]}, "a group must be the number of an order"),
    ({"group": [-1]}, "a group must be the number of an order"),
    ({"group": [0, 0]}, "each network must have its group, recurrence and options"),
    ({"batches": [3, 3]}, "each order must have its moves, batch and block_steps"),
    ({"batches": [0]}, "batches and block_steps must be above 0"),
    ({"block_steps": [0]}, "batches and block_steps must be above 0"),
    ({"options": lambda x: x[:, :4].clone()}, "options must have size 5 in dimension 1"),
    ({"shape": [3, 2, 3]}, r"shape must be \(planes, height, width\), with as many pixels"),
    ({"shape": [], "moves": [MOVES]}, r"shape must be \(planes, height, width\)"),
    ({"moves": [MOVES[1:]]}, "moves must have size 12 in dimension 0"),
    ({"moves": [MOVES.int()]}, "moves has the wrong dtype"),
    ({"moves": [MOVES + FAR]}, "moves must shift an image by less than its height and width"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_does_not_fit_is_refused(changes, message):
    args = arguments()
    for name, value in changes.items():
        args[name] = value(args[name]) if callable(value) else value
    before = [tensor.clone() for tensor in args["parameters"]]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastmlp.blocked_train_(*args.values())
    assert all(map(torch.equal, args["parameters"], before))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_opcheck(momentum):
    torch.library.opcheck(
        torch.ops.fastmlp.blocked_train_.default, tuple(arguments(momentum).values())
    )
