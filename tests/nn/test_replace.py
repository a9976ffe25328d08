"""replace and restore: another class, the same modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastmlp
from fastmlp.nn import replace as replace_module
from fastmlp.nn.modules import LinearReLU

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class LoRALinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class Net(nn.Module):
    """Ties, hooks, parametrizations, and layers of which some are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.again = self.first
        self.act = nn.ReLU(inplace=True)
        self.norm = nn.LayerNorm(4)
        self.pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.lora = LoRALinear(4, 4)
        self.changed = nn.Linear(4, 4)
        self.changed.forward = lambda x: 2 * x
        self.mlp = fastmlp.MLP([4, 3])
        self.loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3]), label_smoothing=0.1)
        self.first.register_forward_hook(lambda _m, _x, y: y + 1)

    def forward(self, x):
        x = self.again(x)
        for name, module in self.named_children():
            x = x if name == "loss" else module(x)
        return self.loss(x, torch.tensor([0, 1, 2, 2, 1, 0]))


def test_the_modules_stay_and_change_their_class():
    net = Net().eval()
    net.act.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    modules, want = list(net.modules()), net(X)
    state = {name: t.clone() for name, t in net.state_dict().items()}
    modes = [m.training for m in modules]
    report = fastmlp.replace(net, backend="reference")
    ours = {"first": "Linear", "tied": "Linear", "act": "ReLU", "pruned": "Linear"}
    assert report.swapped == {**ours, "normed": "Linear", "loss": "CrossEntropyLoss"}
    assert set(report.kept) == {"norm", "lora", "changed"}
    assert type(net.first) is fastmlp.Linear
    assert type(net.normed).__bases__ == (fastmlp.Linear,)
    assert net.first.backend == "reference"
    assert list(net.modules()) == modules
    assert [m.training for m in modules] == modes
    assert net.tied.weight is net.first.weight
    torch.testing.assert_close(net(X), want)
    net(X).backward()
    optimizer.step()
    assert not torch.equal(net.first.weight, state["first.weight"])
    net.load_state_dict(state)
    torch.testing.assert_close(net(X), want)
    assert fastmlp.replace(net).swapped == {}

    restored = fastmlp.restore(net)
    assert restored.swapped == {
        **ours,
        "normed": "Linear",
        "mlp": "Sequential",
        "loss": "CrossEntropyLoss",
    }
    assert restored.kept == {}
    assert list(net.modules()) == modules
    assert not any(type(m).__module__.startswith("fastmlp") for m in modules)
    assert "backend" not in vars(net.first)
    torch.testing.assert_close(net(X), want)
    assert list(net.state_dict()) == list(state)
    parametrize.remove_parametrizations(net.normed, "weight")
    assert type(net.normed) is nn.Linear


def test_the_report_is_a_table_with_reasons():
    text = str(fastmlp.replace(nn.Sequential(nn.Linear(2, 3), LoRALinear(3, 3), nn.Tanh())))
    assert text.splitlines() == [
        "swapped: 1",
        "  0        Linear",
        "kept: 2",
        "  1        LoRALinear: a subclass, with code of its own",
        "  2        Tanh: fastmlp has no such layer",
    ]
    assert "(model)  ReLU" in str(fastmlp.replace(nn.ReLU()))


def test_what_has_no_kernels_stays(monkeypatch):
    net = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2, device="meta"))
    report = fastmlp.replace(net)
    assert report.kept == {"0": "Linear: no kernels for torch.complex64"}
    assert report.swapped == {"1": "Linear"}
    monkeypatch.setattr(replace_module, "native_available", lambda device: False)
    monkeypatch.setattr(replace_module, "unsupported_reason", lambda device: f"none on {device}")
    assert fastmlp.replace(nn.Linear(2, 2)).kept == {"": "Linear: none on cpu"}
    assert fastmlp.replace(nn.Linear(2, 2), backend="reference").swapped == {"": "Linear"}


def test_restore_says_what_has_no_counterpart():
    class Own(fastmlp.Linear):
        pass

    net = nn.Sequential(LinearReLU(4, 3), Own(3, 2), fastmlp.Linear(2, 2))
    report = fastmlp.restore(net)
    assert report.swapped == {"2": "Linear"}
    assert list(report.kept) == ["0", "1"]
    assert "LinearReLU: torch.nn has no one module" in report.kept["0"]
    assert "subclass" in report.kept["1"]


def test_another_backend_is_refused_before_anything_changes():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got 'cuda'"):
        fastmlp.replace(net, backend="cuda")
    assert type(net[0]) is nn.Linear
