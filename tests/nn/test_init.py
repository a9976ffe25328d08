"""Initial parameters: what is drawn, from which generator, and that of torch.nn.init."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fastmlp.nn import init
from fastmlp.nn.modules import MLP
from fastmlp.ops._load import native_available

BACKENDS = ["reference"] + (["native"] if native_available() else [])
SIZES = [7, 5, 4, 3]
INITS = ["kaiming", "torch", "xavier", "normal:0.03"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_equal(ones, others) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("name", INITS)
def test_init_depends_on_the_generator_alone(name):
    states = []
    cases = [*((1, name, torch.float32) for name in BACKENDS), (1, None, torch.float64)]
    for seed, chosen, dtype in [*cases, (2, None, torch.float32)]:
        model = MLP(SIZES, backend=chosen, dtype=dtype)
        torch.manual_seed(len(states))
        before = torch.get_rng_state()
        init.init_parameters(model, name, seeded(seed))
        assert torch.equal(torch.get_rng_state(), before)
        states.append([parameter.detach().float() for parameter in model.parameters()])
    for other in states[1:-1]:
        assert_equal(states[0], other)
    assert not any(torch.equal(a, b) for a, b in zip(states[0][::2], states[-1][::2], strict=True))


@pytest.mark.parametrize("name", [name for name in INITS if name != "torch"])
def test_a_new_mlp_draws_from_the_global_generator(name):
    torch.manual_seed(3)
    model = MLP(SIZES, init=name)
    torch.manual_seed(3)
    twin = MLP(SIZES, init="torch")
    init.init_parameters(twin, name)
    assert_equal(model.parameters(), twin.parameters())


def test_init_torch_draws_what_torch_nn_draws_from_the_same_seed():
    torch.manual_seed(3)
    modules = [m for i, o in pairwise(SIZES) for m in (nn.Linear(i, o), nn.ReLU())]
    twin = nn.Sequential(*modules[:-1])
    torch.manual_seed(3)
    model = MLP(SIZES, init="torch")
    assert_equal(model.parameters(), twin.parameters())
    generated = MLP(SIZES)
    init.init_parameters(generated, "torch", seeded(3))
    assert_equal(generated.parameters(), twin.parameters())


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("kaiming", lambda w, last, g: he(w, last, g)),
        ("xavier", lambda w, last, g: nn.init.xavier_uniform_(w, generator=g)),
        ("normal:0.03", lambda w, last, g: nn.init.normal_(w, std=0.03, generator=g)),
    ],
)
def test_init_is_torch_nn_init(name, fill):
    model, generator = MLP(SIZES), seeded(4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    init.init_parameters(model, name, seeded(4))
    for layer in (model[0], model[2], model[4]):
        wanted = fill(torch.empty_like(layer.weight), layer is model[4], generator)
        torch.testing.assert_close(layer.weight.detach(), wanted.detach(), rtol=1e-6, atol=0)
        assert not layer.bias.any()


def he(weight: Tensor, last: bool, generator: torch.Generator) -> Tensor:
    kind = "linear" if last else "relu"
    return nn.init.kaiming_normal_(weight, nonlinearity=kind, generator=generator)


def test_init_skips_a_bias_that_is_not_there_and_says_where_there_is_nothing():
    torch.manual_seed(5)
    wanted = [nn.Linear(i, o, bias=False).weight for i, o in pairwise(SIZES)]
    model = MLP(SIZES, bias=False)
    for net in (model, model.to_torch()):
        init.init_parameters(net, "torch", seeded(5))
        assert_equal(net.parameters(), wanted)
    with pytest.raises(ValueError, match="must contain a Linear layer, got ReLU"):
        init.init_parameters(nn.ReLU(), "kaiming")


def test_parse_init():
    assert init.parse_init("kaiming") == ("kaiming", 0.0)
    assert init.parse_init("normal:1e-2") == ("normal", 0.01)
    for bad in ("", "he", "normal", "normal:", "normal:x", "normal:-1", "normal:nan", None, 3):
        with pytest.raises(
            ValueError, match=r"^init must be kaiming, .*normal:STD.*, got "
        ) as error:
            init.parse_init(bad)
        assert str(error.value).endswith(f"got {bad!r}")
    with pytest.raises(ValueError, match="normal:inf"):
        MLP([2, 3], init="normal:inf")
