"""The operator that evaluates several networks at once, against plain PyTorch in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.blocked import make, problem
from support.compare import assert_within_2x
from support.marks import needs_native

from fastmlp.data.splits import Subset
from fastmlp.data.transforms import Normalization
from fastmlp.engines.blocked import BlockedEngine
from fastmlp.engines.metrics import EvalMetrics
from fastmlp.engines.reference import ReferenceEngine, mlp_ref

pytestmark = needs_native

COUNTS = pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
HIDDEN = [(), (19,), (7, 33), (300,), (1, 1, 1)]


def networks(inputs=37, classes=5, dtype=torch.float64):
    """Parameters of networks of different depths."""
    made = []
    for hidden in HIDDEN:
        sizes = [inputs, *hidden, classes]
        made.append([])
        for n, m in pairwise(sizes):
            made[-1] += [torch.randn(m, n).to(dtype) / n**0.5, torch.randn(m).to(dtype)]
    return made


def evaluate(data, parameters):
    part, norm = data
    return torch.ops.fastmlp.evaluate(
        *(part.images, part.labels, norm.scale, norm.shift, part.counts),
        *([len(p) // 2 for p in parameters], [tensor for p in parameters for tensor in p]),
    )


def truth(data, parameters, dtype=torch.float64):
    """Losses and hits, as plain PyTorch has them."""
    part, norm = data[0].spread, data[1]
    x = norm.apply(part.images).to(dtype)
    logits = [mlp_ref([tensor.to(dtype) for tensor in p], x) for p in parameters]
    losses = [F.cross_entropy(row, part.labels, reduction="sum") for row in logits]
    hits = [(row.argmax(1) == part.labels).sum() for row in logits]
    return torch.stack(losses), torch.stack(hits)


@COUNTS
@pytest.mark.parametrize(("inputs", "classes"), [(37, 5), (1, 2), (1200, 40)])
def test_several_networks_are_what_plain_pytorch_has(count, inputs, classes):
    data, parameters = problem(count, inputs, classes), networks(inputs, classes)
    losses, hits = evaluate(data, parameters)
    want, true_hits = truth(data, parameters)
    torch.testing.assert_close(losses, want, rtol=1e-12, atol=0)
    assert torch.equal(hits, true_hits)
    for i, one in enumerate(parameters):  # which networks are beside it changes nothing
        assert [t.item() for t in evaluate(data, [one])] == [losses[i].item(), hits[i].item()]


@COUNTS
def test_float32_is_as_close_to_the_truth_as_pytorch(count):
    data, parameters = problem(count), networks(dtype=torch.float32)
    losses, hits = evaluate(data, parameters)
    theirs, their_hits = truth(data, parameters, torch.float32)
    want, _ = truth(data, parameters)
    assert losses.dtype == torch.float64  # the sum; each image's loss is float32
    assert_within_2x(losses.float(), theirs, want)
    assert (hits - their_hits).abs().max() <= 1


@COUNTS
def test_images_that_count_more_than_once(count):
    (part, norm), parameters = problem(count), networks()
    data = replace(part, counts=torch.arange(count) % 4 + 1), norm
    losses, hits = evaluate(data, parameters)
    want, true_hits = truth(data, parameters)
    torch.testing.assert_close(losses, want, rtol=1e-12, atol=0)
    assert torch.equal(hits, true_hits)
    for counts in (torch.ones(count + 1).long(), torch.ones(count)):
        with pytest.raises(RuntimeError, match="counts"):
            evaluate((replace(part, counts=counts), norm), parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 17, 33])
def test_of_equal_logits_the_first_counts(dtype, classes):
    data = problem(images=200, classes=classes)
    weight = torch.zeros(classes, 37, dtype=dtype)
    for peaks in (
        [0],
        [1],
        [0, 1],
        [classes - 1],
        list(range(classes)),
        [classes - 2, classes - 1],
    ):
        bias = torch.zeros(classes, dtype=dtype)
        bias[peaks] = 0.5
        hits = evaluate(data, [[weight, bias]])[1].item()
        assert hits == (data[0].labels == peaks[0]).sum().item()
        assert hits == truth(data, [[weight, bias]])[1].item()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["one weight", "all weights", "a logit"])
def test_a_network_gone_wrong_leaves_the_others_alone(value, place):
    data, parameters = problem(images=70), networks()
    before, hits_before = evaluate(data, parameters)
    bad = [tensor.clone() for tensor in parameters[1]]
    if place == "a logit":
        bad[-1][3] = value
    else:
        bad[0][(0, 0) if place == "one weight" else ()] = value
    losses, hits = evaluate(data, [parameters[0], bad, *parameters[2:]])
    others = [0, 2, 3, 4]
    assert torch.equal(losses[others], before[others])
    assert torch.equal(hits[others], hits_before[others])
    want = truth(data, [bad])[0].item()
    assert losses[1].item() == pytest.approx(want, rel=1e-12, nan_ok=True)
    if math.isnan(value):
        assert math.isnan(losses[1])


def test_threads_and_reruns_do_not_change_a_bit(threads):
    data, parameters = problem(images=700, inputs=300), networks(300, dtype=torch.float32)
    runs = []
    for count in (1, 2, 3, 1):
        threads(count)
        runs.append(evaluate(data, parameters))
    for losses, hits in runs[1:]:
        assert torch.equal(losses, runs[0][0])
        assert torch.equal(hits, runs[0][1])


def test_no_images():
    losses, hits = evaluate(problem(images=0), networks())
    assert losses.tolist() == [0.0] * len(HIDDEN)
    assert hits.tolist() == [0] * len(HIDDEN)


@COUNTS
def test_engines_together_on_a_part_of_its_own(count):
    data, (part, _) = problem(), problem(images=count)
    hidden = [(19,), (7, 3), (64,)]
    networks = [
        make(BlockedEngine, data, {"batch_size": 8}, hidden=sizes, dtype=torch.float64, seed=i)
        for i, sizes in enumerate(hidden)
    ]
    stats = networks[0].engine.evaluate([network.state for network in networks], part)
    assert stats == [network.evaluate(part) for network in networks]
    for i, (mine, sizes) in enumerate(zip(stats, hidden, strict=True)):
        plain = {"hidden": sizes, "dtype": torch.float64, "seed": i}
        theirs = make(ReferenceEngine, data, {"batch_size": 8}, **plain).evaluate(part)
        assert mine == EvalMetrics(pytest.approx(theirs.loss, rel=1e-12), theirs.accuracy, count)


def test_networks_of_several_dtypes_are_refused():
    part, _ = data = problem()
    one, other = (
        make(BlockedEngine, data, {"batch_size": 8}, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    with pytest.raises(ValueError, match=r"must have one dtype, got .*float32.*float64"):
        one.engine.evaluate([one.state, other.state], part)


def test_what_does_not_fit_is_refused():
    part, norm = data = problem()
    parameters = networks()
    inputs = (part.images, part.labels, norm.scale, norm.shift, None)
    tensors = [tensor for p in parameters for tensor in p]
    ops = torch.ops.fastmlp
    for labels, bad in ((part.labels + 1, 5), (part.labels - 1, -1)):
        with pytest.raises(RuntimeError, match=f"Target {bad} is out of bounds"):
            evaluate((Subset(part.images, labels), norm), parameters)
    with pytest.raises(RuntimeError, match="labels must have size 211 in dimension 0"):
        evaluate((Subset(part.images, part.labels[1:]), norm), parameters)
    with pytest.raises(RuntimeError, match="labels has the wrong dtype"):
        evaluate((Subset(part.images, part.labels.int()), norm), parameters)
    with pytest.raises(RuntimeError, match="a weight must have size 36 in dimension 1"):
        evaluate((Subset(part.images[:, 1:].clone(), part.labels), cut(norm)), parameters)
    with pytest.raises(RuntimeError, match="a weight has the wrong dtype"):
        evaluate(data, [*parameters, networks(dtype=torch.float32)[0]])
    with pytest.raises(RuntimeError, match="the network must be float32 or float64"):
        evaluate(data, networks(dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="there must be at least one network"):
        ops.evaluate(*inputs, [], [])
    for counts in (torch.full((211,), -1), torch.full((211,), 1 << 62)):
        with pytest.raises(RuntimeError, match="counts must not be negative"):
            ops.evaluate(*inputs[:4], counts, [len(parameters[0]) // 2], parameters[0])
    for layers in ([1], [1, 2, 3, 2, 5], [30], [0, 1, 2, 3, 2, 4], [-1, 1]):
        with pytest.raises(RuntimeError, match="a weight and a bias for each layer"):
            ops.evaluate(*inputs, layers, tensors)


def cut(norm):
    return Normalization(norm.name, norm.scale[1:].clone(), norm.shift[1:].clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    (part, norm), parameters = problem(), networks(dtype=dtype)
    inputs = (part.images, part.labels, norm.scale, norm.shift, None)
    tensors = [tensor for p in parameters for tensor in p]
    layers = [len(p) // 2 for p in parameters]
    torch.library.opcheck(torch.ops.fastmlp.evaluate.default, (*inputs, layers, tensors))
