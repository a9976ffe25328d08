"""The tree of an MLP: what walks modules finds those of ``torch.nn``, and what it does to them
counts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.marks import needs_native
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import hooks

import fastmlp
from fastmlp import MLP
from fastmlp.nn import mlp
from fastmlp.nn.modules import LinearActivation, LinearReLU

SIZES = [4, 5, 3, 2]
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP(SIZES)


def twin_of(model: MLP) -> nn.Sequential:
    """The same modules in a plain ``nn.Sequential``: hooks, replacements and all."""
    return nn.Sequential(*model)


def assert_same(model: nn.Module, twin: nn.Module) -> None:
    torch.testing.assert_close(model(X), twin(X))


@needs_native
@pytest.mark.parametrize("activation", ["relu", "tanh", "none"])
def test_what_is_untouched_is_fused(monkeypatch, activation):
    model, calls = MLP(SIZES, activation=activation), []
    apply_layers = mlp.apply_layers

    def spy(x, layers, backend):
        calls.extend(layer.activation for layer in layers)
        return apply_layers(x, layers, backend)

    monkeypatch.setattr(mlp, "apply_layers", spy)
    assert_same(model, twin_of(model))
    assert calls == [activation, activation, "none"]
    calls.clear()
    model[3] = nn.Softmax(-1)
    model[0].register_forward_hook(lambda *_: None)
    assert_same(model, twin_of(model))
    assert calls == ["none", "none"]


def test_a_tool_that_replaces_every_linear_drops_no_relu(model):
    class Doubled(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return 2 * self.layer(x)

    truth = nn.Sequential(*[Doubled(m) if isinstance(m, nn.Linear) else m for m in model])
    tail = nn.Sequential(LinearReLU(2, 2), LinearActivation(2, 2, activation="tanh"))
    for net in (model, tail):
        for name, module in list(net.named_children()):
            if isinstance(module, nn.Linear):
                setattr(net, name, Doubled(module))
    assert_same(model, truth)
    assert [type(m) for m in tail] == [LinearReLU, LinearActivation]


def test_hooks_on_relu_as_guided_backpropagation_has_them(model):
    """Captum's GuidedBackprop: gradients that reach a ReLU are clamped before and after it."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_full_backward_hook(lambda _m, dx, _dy: (dx[0].clamp(min=0),))
    x = X.clone().requires_grad_()
    got, want = (torch.autograd.grad(net(x).sum(), x)[0] for net in (model, twin_of(model)))
    torch.testing.assert_close(got, want)
    plain = torch.autograd.grad(copy_without_hooks(model)(x).sum(), x)[0]
    assert not torch.allclose(got, plain)


def copy_without_hooks(model: MLP) -> MLP:
    plain = MLP(SIZES)
    plain.load_state_dict(model.state_dict())
    return plain


def test_hooks_by_exact_type_as_deep_lift_has_them(model):
    """Captum's DeepLift looks ``type(module)`` up in a table and hooks inputs and outputs."""
    rules, seen = {nn.ReLU: "nonlinear", nn.Linear: "linear"}, []
    for module in model.children():
        rule = rules[type(module)]
        module.register_forward_pre_hook(lambda _m, x, r=rule: seen.append((r, x[0].clone())))
        module.register_forward_hook(lambda _m, _x, y, r=rule: seen.append((r, y.clone())))
    y = model(X)
    assert [rule for rule, _ in seen[::2]] == ["linear", "nonlinear"] * 2 + ["linear"]
    for (_, out), (_, following) in zip(seen[1:-1:2], seen[2::2], strict=True):
        assert torch.equal(out, following)
    assert torch.equal(seen[0][1], X)
    assert torch.equal(seen[-1][1], y)


def test_global_hooks_see_every_module(model):
    seen = []
    handle: hooks.RemovableHandle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(module)
    )
    try:
        model(X)
    finally:
        handle.remove()
    assert seen == [*model, model]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantize_dynamic_finds_the_linear_layers(model):
    quantized = torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)
    kinds = [type(module).__module__.rsplit(".")[-2:] for module in quantized[::2]]
    assert kinds == [["modules", "linear"]] * 3
    assert all(type(m) is not nn.Linear for m in quantized[::2])
    torch.testing.assert_close(quantized(X), model(X), atol=0.1, rtol=0.1)


def test_pruning_by_type_of_module(model):
    truth = twin_of(copy.deepcopy(model))
    for net in (model, truth):
        for module in net.modules():
            if type(module) is nn.Linear:
                prune.l1_unstructured(module, "weight", amount=0.5)
    assert_same(model, truth)
    assert (model[0].weight == 0).sum() == 10


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations_count(model, norm):
    model.eval()
    before = model(X)
    norm(model[2])
    with torch.no_grad():
        for name, parameter in model[2].named_parameters():
            parameter.mul_(3 if name.endswith("original0") else 1)
    assert_same(model, twin_of(model))
    assert not torch.allclose(model(X), before)


def test_a_replaced_forward_and_a_compiled_layer_are_called(model):
    model[1].forward = lambda x: x.sigmoid()
    assert_same(model, twin_of(model))
    called = []
    model[2]._compiled_call_impl = lambda x: called.append(1) or nn.Linear.forward(model[2], x)
    assert_same(model, twin_of(model))
    assert called == [1, 1]


@pytest.mark.parametrize("act", [nn.GELU("tanh"), nn.LeakyReLU(0.3), nn.LeakyReLU(), nn.Mish()])
def test_activations_with_options_keep_them(model, act):
    model[1] = act
    assert_same(model, twin_of(model))


def test_a_pickle_of_a_fused_tree_is_read():
    """Earlier versions had LinearReLU or LinearActivation, Identity, ..., Linear."""
    for activation, fused in (("relu", LinearReLU), ("gelu", LinearActivation)):
        old, new = MLP(SIZES, activation=activation), MLP(SIZES, activation=activation).eval()
        options = {} if fused is LinearReLU else {"activation": activation}
        for i in (0, 2):
            old[i] = fused(*SIZES[i // 2 : i // 2 + 2], backend="reference", **options)
            old[i + 1] = nn.Identity()
        old[4] = fastmlp.Linear(3, 2, backend="reference")
        old.load_state_dict(new.state_dict())
        del old.backend
        read = pickle.loads(pickle.dumps(old.eval()))
        assert [type(m) for m in read] == [type(m) for m in new]
        assert read.backend == "reference"
        assert not any(module.training for module in read.modules())
        assert torch.equal(read(X), old(X))
        assert_same(read, new)
        assert_same(read.to_torch(), new)
        again = pickle.loads(pickle.dumps(read))
        assert repr(again) == repr(read)


def delete_the_end(model):
    del model[-1]


def change_the_head(model):
    model[4] = nn.Linear(3, 7)


@pytest.mark.parametrize(
    "change",
    [
        delete_the_end,
        change_the_head,
        lambda model: model.append(nn.Softmax(-1)),
        lambda model: model.insert(1, nn.LayerNorm(5)),
        lambda model: model.insert(0, fastmlp.ReLU(True)),
        lambda model: model.append(nn.Sequential(fastmlp.Linear(2, 2), nn.Dropout(0.0))),
        lambda model: model.append(MLP([2, 3])),
        lambda model: model[2].register_forward_hook(lambda _m, _x, y: y + 1),
        lambda model: prune.random_unstructured(model[0], "weight", 0.5),
        lambda model: nn.utils.weight_norm(model[0]),
        lambda model: nn.utils.spectral_norm(model[0]),
        lambda model: parametrizations.weight_norm(model[2]),
        lambda model: parametrizations.orthogonal(model[2]),
        lambda model: parametrize.register_parametrization(model[0], "bias", nn.Tanh()),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_to_torch_converts_what_is_there(model, change):
    change(model)
    model(X)  # hooks of weight_norm and pruning leave what autograd recorded
    model.eval()
    twin = model.to_torch()
    assert type(twin) is nn.Sequential
    assert not any("fastmlp" in type(m).__module__ for m in twin.modules())
    assert list(twin.state_dict()) == list(model.state_dict())
    assert_same(model, twin)
    for module in twin.modules():  # apart from the original, and trainable
        for parameter in module.parameters(recurse=False):
            assert parameter.data_ptr() not in {p.data_ptr() for p in model.parameters()}
    twin(X).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        before = twin(X)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(twin(X), before)


def test_ties_are_kept_both_ways():
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    plain[2].weight = plain[0].weight
    plain[4] = plain[0]
    model = MLP.from_torch(plain)
    assert model[2].weight is model[0].weight
    assert model[4] is model[0]
    back = model.to_torch()
    assert back[2].weight is back[0].weight is not model[0].weight
    assert back[4] is back[0]
    assert_same(model, plain)
    assert_same(back, plain)


def test_from_torch_keeps_hooks_and_parametrizations():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), fastmlp.Linear(3, 2)).eval()
    plain[1].register_forward_hook(lambda _m, _x, y: y + 1)
    plain.register_forward_hook(lambda _m, _x, y: 2 * y)
    parametrizations.spectral_norm(plain[2])
    model = MLP.from_torch(plain)
    assert_same(model, plain)
    assert type(plain) is nn.Sequential
    assert nn.Linear in type(model[2]).__bases__


def test_a_subclass_is_refused_by_name(model):
    class LoRALinear(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    class LinearOfOurs(fastmlp.Linear):
        pass

    with pytest.raises(ValueError, match=r"LoRALinear, ReLU, Linear, where module 0 is neither"):
        MLP.from_torch(nn.Sequential(LoRALinear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="got Net of no layers"):
        MLP.from_torch(Net(nn.Linear(2, 3)))
    model[2] = LoRALinear(5, 3)
    assert_same(model.to_torch(), model)
    for layer in (LinearReLU(5, 3), LinearOfOurs(5, 3)):
        model[2] = layer
        with pytest.raises(ValueError, match=f"got {type(layer).__name__} as module '2'"):
            model.to_torch()


def test_a_subclass_of_mlp_becomes_torchs_unless_it_computes_something_else():
    class Named(MLP):
        pass

    class Scaled(MLP):
        def forward(self, input):
            return 2 * super().forward(input)

    named = Named(SIZES)
    assert_same(named.to_torch(), named)
    assert type(named.to_torch()) is nn.Sequential
    with pytest.raises(ValueError, match="got Scaled as module ''"):
        Scaled(SIZES).to_torch()
