"""The modules against their ``torch.nn`` twins: results, gradients, weights, copies, names."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.compare import assert_within_2x
from torch import Tensor, nn

import fastmlp.ops._load
from fastmlp.nn.modules import MLP, CrossEntropyLoss, Linear, LinearActivation, LinearReLU, ReLU
from fastmlp.ops import _load, activations, cross_entropy
from fastmlp.ops import linear as linear_ops
from fastmlp.ops.activations import ACTIVATIONS

BACKENDS = ["reference"] + (["native"] if fastmlp.ops._load.native_available() else [])
SIZES = [7, 5, 4, 3]
INITS = ["kaiming", "torch", "xavier", "normal:0.03"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def torch_mlp(sizes=SIZES, dtype=torch.float32) -> nn.Sequential:
    modules = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*modules[:-1]).to(dtype)


def equal(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def results(module: nn.Module, x: Tensor, dy: Tensor | None = None, *args: Tensor) -> list[Tensor]:
    """The output and every gradient, for a random upstream gradient."""
    x = x.clone().requires_grad_()
    y = module(x, *args)
    dy = randn(*y.shape, seed=9, dtype=y.dtype) if dy is None else dy
    y.backward(dy)
    return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


def assert_agrees(ours: nn.Module, twin: nn.Module, x: Tensor, *args: Tensor) -> None:
    """Forward and backward within the tolerance rule, ``twin`` being plain PyTorch."""
    dy = randn(*twin(x, *args).shape, seed=9, dtype=x.dtype)
    truth = results(copy.deepcopy(twin).double(), x.double(), dy.double(), *args)
    peers = results(twin, x, dy, *args)
    for triple in zip(results(ours, x, dy, *args), peers, truth, strict=True):
        assert_within_2x(*triple)


@pytest.mark.parametrize("lead", [(6,), (), (2, 3), (1,), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_linear_relu_are_torch_nn(lead, bias, backend, dtype):
    x = randn(*lead, 7, dtype=dtype)
    twin = nn.Linear(7, 5, bias, dtype=dtype)
    ours = Linear(7, 5, bias, dtype=dtype, backend=backend)
    fused = LinearReLU(7, 5, bias, dtype=dtype, backend=backend)
    assert list(ours.state_dict()) == list(twin.state_dict()) == list(fused.state_dict())
    ours.load_state_dict(twin.state_dict())
    fused.load_state_dict(twin.state_dict())
    assert_agrees(ours, twin, x)
    assert_agrees(fused, nn.Sequential(copy.deepcopy(twin), nn.ReLU()), x)


def test_relu_is_torch_nn(backend, dtype):
    x = randn(4, 3, dtype=dtype)
    x[0] = torch.tensor([0.0, -0.0, math.inf])
    assert_agrees(ReLU(backend=backend), nn.ReLU(), x)
    assert ReLU(backend=backend)(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 2}, {"label_smoothing": 0.1}], ids=str)
def test_loss_is_torch_nn(reduction, weighted, options, backend, dtype):
    weight = randn(5, seed=3, dtype=dtype).abs() if weighted else None
    twin = nn.CrossEntropyLoss(weight, reduction=reduction, **options)
    ours = CrossEntropyLoss(weight, reduction=reduction, backend=backend, **options)
    assert list(ours.state_dict()) == list(twin.state_dict())
    assert_agrees(ours, twin, 3 * randn(6, 5, dtype=dtype), torch.tensor([4, 0, 2, 2, 1, 3]))


def test_loss_takes_its_weight_from_a_state_dict_and_moves_it_with_the_module():
    loss = CrossEntropyLoss(torch.ones(3), backend="reference")
    loss.load_state_dict(nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3])).state_dict())
    assert loss.double().weight.tolist() == [1, 2, 3]
    assert loss.weight.dtype == torch.float64


@pytest.mark.parametrize("sizes", [[7, 3], [7, 5, 3], SIZES], ids=str)
def test_mlp_is_the_torch_nn_sequential(sizes, backend, dtype):
    twin, ours = torch_mlp(sizes, dtype), MLP(sizes, backend=backend, dtype=dtype)
    ours.load_state_dict(twin.state_dict())
    assert_agrees(ours, twin, randn(2, 6, 7, dtype=dtype))


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_weights_go_both_ways_bitwise(bias):
    ours = MLP([7, 5, 3], bias=bias, backend="reference")
    keys = [f"{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")[: 1 + bias]]
    assert list(ours.state_dict()) == keys
    twin = nn.Sequential(nn.Linear(7, 5, bias), nn.ReLU(), nn.Linear(5, 3, bias))
    x = randn(6, 7)
    twin.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), twin(x))
    nn.init.normal_(twin[2].weight)
    ours.load_state_dict(twin.state_dict())
    assert torch.equal(ours(x), twin(x))


def test_mlp_is_a_sequence_like_its_twin():
    model = MLP(SIZES, backend="reference")
    twin = torch_mlp()
    assert model.sizes == SIZES
    assert [type(module) for module in model] == [type(module) for module in twin]
    twin.load_state_dict(model.state_dict())
    x = randn(6, 7)
    assert type(model[:4]) is nn.Sequential
    assert list(model[2:].state_dict()) == list(twin[2:].state_dict())
    assert torch.equal(model[:4](x), twin[:4](x))
    model.append(nn.Softmax(-1))
    assert torch.equal(model(x), twin(x).softmax(-1))


def test_steps_of_training_follow_torch_nn(backend):
    twin = torch_mlp(dtype=torch.float64)
    ours = MLP.from_torch(twin, backend)
    x, target = randn(8, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    losses = (nn.CrossEntropyLoss(), CrossEntropyLoss(backend=backend))
    for model, loss in zip((twin, ours), losses, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad()
            loss(model(x), target).backward()
            optimizer.step()
    for actual, wanted in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_from_torch_and_to_torch_copy_and_keep_everything(backend):
    twin = torch_mlp(dtype=torch.float64).eval()
    twin[2].bias.requires_grad_(False)
    before = torch.get_rng_state()
    ours = MLP.from_torch(twin, backend)
    back = ours.to_torch()
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(back) == repr(twin)
    assert ours.backend == backend
    for other in (ours, back):
        assert not any(module.training for module in other.modules())
        assert equal(other.parameters(), twin.parameters())
        for actual, wanted in zip(other.parameters(), twin.parameters(), strict=True):
            assert actual.dtype == torch.float64
            assert actual.requires_grad == wanted.requires_grad
            assert actual.data_ptr() != wanted.data_ptr()
    x = randn(2, 7, dtype=torch.float64)
    assert_within_2x(ours(x).detach(), twin(x).detach(), twin(x).detach())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_of_every_activation_is_its_twin_in_torch_nn(name, backend, dtype):
    ours = MLP(SIZES, backend=backend, dtype=dtype, activation=name)
    twin = ours.to_torch()
    assert {type(module) for module in twin[1::2]} == {ACTIVATIONS[name].module}
    assert_agrees(ours, twin, randn(6, 7, dtype=dtype))
    again = MLP.from_torch(twin, backend)
    assert again.activation == name
    x = randn(6, 7, dtype=dtype)
    assert torch.equal(again(x), ours(x))
    assert equal(again.parameters(), ours.parameters())
    assert repr(pickle.loads(pickle.dumps(ours))) == repr(ours)
    with torch.no_grad():  # where nothing is kept for a gradient
        assert_within_2x(ours(x), twin(x), twin.double()(x.double()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kaiming_takes_the_gain_of_the_activation(name):
    if name not in ("gelu", "silu"):  # for which PyTorch has none
        known, options = {"none": "linear"}.get(name, name), {"leaky_relu": [0.01]}.get(name, [])
        assert ACTIVATIONS[name].gain == nn.init.calculate_gain(known, *options)
    model = MLP([2048, 512, 3], activation=name, backend="reference")
    std = model[0].weight.std().item()
    assert std == pytest.approx(ACTIVATIONS[name].gain / math.sqrt(2048), rel=0.01)
    if name not in ("tanh", "sigmoid"):  # whose gains are chosen by other rules
        x = ACTIVATIONS[name].forward(randn(64, 2048))
        size = nn.functional.linear(x, model[0].weight).square().mean().item()
        assert size == pytest.approx(1, rel=0.05), "activations grow or shrink with every layer"


def test_an_unknown_activation_is_refused():
    for make in (
        lambda: MLP([2, 3], activation="swish"),
        lambda: LinearActivation(2, 3, activation="swish"),
    ):
        with pytest.raises(ValueError, match=r"activation must be one of none, relu.*got 'swish'"):
            make()
    assert "activation='gelu'" in repr(LinearActivation(2, 3, activation="gelu"))


def test_from_torch_takes_other_names_and_layers_without_bias():
    named = nn.Sequential()
    named.add_module("fc1", nn.Linear(4, 3, bias=False))
    named.add_module("act", nn.ReLU(inplace=True))
    named.add_module("fc2", nn.Linear(3, 2))
    ours = MLP.from_torch(named, backend="reference")
    assert list(ours.state_dict()) == ["0.weight", "2.weight", "2.bias"]
    x = randn(5, 4)
    assert torch.equal(ours(x), named(x))
    assert torch.equal(ours.to_torch()(x), named(x))


@pytest.mark.parametrize(
    ("module", "got"),
    [
        (nn.Linear(2, 3), "Linear of no layers"),
        (nn.Sequential(), "Sequential of no layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), "Sequential of Flatten, Linear"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "Sequential of Linear, ReLU"),
        (nn.Sequential(nn.Linear(2, 3), nn.Softmax(1)), "Sequential of Linear, Softmax"),
        (nn.Sequential(nn.Linear(2, 3), nn.Mish(), nn.Linear(3, 2)), "of Linear, Mish, Linear"),
        (nn.Sequential(nn.Linear(2, 3), nn.GELU("tanh"), nn.Linear(3, 2)), "of Linear, GELU, L"),
        (nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.1), nn.Linear(3, 2)), "of Linear, Leaky"),
        (
            nn.Sequential(*torch_mlp([2, 3, 4])[:3], nn.Tanh(), nn.Linear(4, 2)),
            "of Linear, ReLU, Linear, Tanh, Linear",
        ),
        (nn.Sequential(LinearReLU(2, 3), nn.ReLU(), LinearReLU(3, 2)), "of LinearReLU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_from_torch_says_what_it_wanted_and_got(module, got):
    with pytest.raises(ValueError, match=r"of Linear, ReLU, Linear, \.\.\., Linear, got") as error:
        MLP.from_torch(module)
    assert got in str(error.value)


@pytest.mark.parametrize(
    "sizes", [[], [3], 3, "34", None, [3, 0], [3, -1, 2], [3, 2.0], [3, True], {3, 4}], ids=repr
)
def test_mlp_refuses_other_sizes(sizes):
    with pytest.raises(ValueError, match="at least two integers >= 1") as error:
        MLP(sizes)
    assert str(error.value).endswith(f"got {sizes!r}")


def test_mlp_takes_a_tuple_and_numpy_integers():
    assert [(size, type(size)) for size in MLP((np.int64(4), 3)).sizes] == [(4, int), (3, int)]


@pytest.mark.parametrize(
    "make",
    [
        lambda backend: Linear(3, 2, backend=backend),
        lambda backend: LinearReLU(3, 2, backend=backend),
        lambda backend: ReLU(backend=backend),
        lambda backend: CrossEntropyLoss(backend=backend),
        lambda backend: MLP([3, 2], backend=backend),
    ],
    ids=["Linear", "LinearReLU", "ReLU", "CrossEntropyLoss", "MLP"],
)
def test_backend_is_checked_at_once_and_shown(make):
    with pytest.raises(ValueError, match="got 'cuda'"):
        make("cuda")
    assert "backend='reference'" in repr(make("reference"))
    assert "backend" not in repr(make(None))


def test_repr_tells_the_options():
    assert repr(Linear(3, 2)) == "Linear(in_features=3, out_features=2, bias=True)"
    loss = CrossEntropyLoss(ignore_index=1, reduction="sum", label_smoothing=0.1)
    for option in ("ignore_index=1", "reduction='sum'", "label_smoothing=0.1"):
        assert option in repr(loss)


def test_every_layer_follows_its_backend_and_the_default(monkeypatch):
    """The reference functions are swapped for ones that mark their result: is it them who ran?"""
    for module, name in (
        (linear_ops, "linear_ref"),
        (activations, "activation_ref"),
        (cross_entropy, "cross_entropy_ref"),
    ):
        monkeypatch.setattr(module, name, lambda *args, name=name: name)
    monkeypatch.setattr(_load, "_default", "reference")
    x, target = randn(2, 3), torch.tensor([0, 1])
    for backend in ("reference", None):
        assert Linear(3, 3, backend=backend)(x) == "linear_ref"
        assert LinearReLU(3, 3, backend=backend)(x) == "linear_ref"
        assert MLP([3, 3], backend=backend)(x) == "linear_ref"
        assert ReLU(backend=backend)(x) == "activation_ref"
        assert CrossEntropyLoss(backend=backend)(x, target) == "cross_entropy_ref"


@pytest.mark.skipif(len(BACKENDS) < 2, reason="the extension is not built")
def test_native_layers_do_not_run_the_reference(monkeypatch):
    monkeypatch.delattr(linear_ops, "linear_ref")
    monkeypatch.delattr(activations, "activation_ref")
    monkeypatch.delattr(cross_entropy, "cross_entropy_ref")
    x, target = randn(2, 3), torch.tensor([0, 1])
    model = nn.Sequential(MLP([3, 4, 3], backend="native"), ReLU(backend="native"))
    assert CrossEntropyLoss(backend="native")(model(x), target).isfinite()


def test_copies_and_pickles_are_equal_and_apart(backend):
    model = MLP(SIZES, backend=backend)
    x, before = randn(4, 7), model(randn(4, 7)).detach()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), before)
        assert repr(twin) == repr(model)
        nn.init.zeros_(twin[4].bias)
        nn.init.zeros_(twin[4].weight)
        assert not twin(x).any()
    assert torch.equal(model(x), before)


def test_the_whole_step_compiles_without_a_graph_break(backend):
    model, loss = MLP(SIZES, backend=backend), CrossEntropyLoss(backend=backend)
    x, target = randn(4, 7), torch.tensor([0, 2, 1, 1])

    def step(x: Tensor, target: Tensor) -> Tensor:
        return loss(model(x), target)

    wanted = step(x, target)
    grads = torch.autograd.grad(wanted, list(model.parameters()))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x, target)
    torch.testing.assert_close(compiled, wanted)
    torch.testing.assert_close(torch.autograd.grad(compiled, list(model.parameters())), grads)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_gradients_under_ddp_are_the_plain_ones(backend, tmp_path):
    model, x = MLP(SIZES, backend=backend), randn(4, 7)
    wanted = results(copy.deepcopy(model), x)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        actual = results(nn.parallel.DistributedDataParallel(model), x)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(actual, wanted)


def test_from_torch_takes_fastmlps_own_modules(backend):
    ours = nn.Sequential(Linear(3, 4), ReLU(), Linear(4, 2))
    x = randn(5, 3)
    torch.testing.assert_close(MLP.from_torch(ours, backend=backend)(x), ours(x))
