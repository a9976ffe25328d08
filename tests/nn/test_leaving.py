"""Out again: fx, torch.export, TorchScript, ONNX and safetensors get PyTorch's own operators."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmlp
from fastmlp import functional
from fastmlp.nn.modules import LinearReLU

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 1, 0, 1, 0])


class Net(nn.Module):
    """Every layer of ours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = fastmlp.Linear(4, 5)
        self.act = fastmlp.ReLU()
        self.fused = LinearReLU(5, 5)
        self.relus = fastmlp.MLP([5, 6, 3])
        self.gelus = fastmlp.MLP([3, 4, 2], activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.gelus(self.relus(self.fused(self.act(self.first(x)))))


class WithLoss(Net):
    def __init__(self) -> None:
        super().__init__()
        self.loss = fastmlp.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(super().forward(x), y)


@pytest.fixture
def net():
    return Net().eval()


def gradients(module: nn.Module, *args: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(module(*args).sum(), list(module.parameters())))


def test_fx_sees_modules_and_functions():
    net = WithLoss()
    graph = torch.fx.symbolic_trace(net)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == [f"{name}.{i}" for name in ("relus", "gelus") for i in range(3)]
    functions = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert functions == [F.linear, F.relu, F.linear, F.relu, F.cross_entropy]
    torch.testing.assert_close(graph(X, Y), net(X, Y))
    torch.testing.assert_close(gradients(graph, X, Y), gradients(net, X, Y))


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_of_pytorchs_operators(strict):
    net, rows = WithLoss(), torch.export.Dim("rows")
    shapes = {"x": {0: rows}, "y": {0: rows}}
    program = torch.export.export(net, (X, Y), dynamic_shapes=shapes, strict=strict)
    assert "fastmlp" not in str(program.graph)
    sources = [node.meta.get("nn_module_stack", {}) for node in program.graph.nodes]
    kinds = [str(kind) for stack in sources for _, kind in list(stack.values())[-1:]]
    assert any("torch.nn.modules.activation.ReLU" in kind for kind in kinds)
    torch.testing.assert_close(program.module()(X[:3], Y[:3]), net(X[:3], Y[:3]))
    torch.testing.assert_close(gradients(program.module(), X, Y), gradients(net, X, Y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_has_trainable_parameters():
    net = WithLoss()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(net, (X, Y))
    assert "fastmlp::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(X[:3], Y[:3]), net(X[:3], Y[:3]))
    torch.testing.assert_close(gradients(loaded, X, Y), gradients(net, X, Y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_compiles_the_counterparts(net):
    single = nn.Sequential(fastmlp.Linear(5, 3), fastmlp.ReLU(), LinearReLU(3, 2, bias=False))
    for module in (net.relus, single):
        kind, want = type(module), module(torch.ones(2, 5))
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, io.BytesIO())
        torch.testing.assert_close(scripted(torch.ones(2, 5)), want)
        pairs = zip(scripted.parameters(), module.parameters(), strict=True)
        assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
        assert type(module) is kind
    loss = torch.jit.script(fastmlp.CrossEntropyLoss())
    torch.testing.assert_close(loss(X, Y), nn.functional.cross_entropy(X, Y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamo", [False, True], ids=["from a trace", "from torch.export"])
def test_onnx(net, dynamo, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (X,), path, dynamo=dynamo, input_names=["x"], verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), net(X))


def test_safetensors(net, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "net.safetensors"
    safetensors.save_model(net, path)
    other = Net()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    safetensors.load_model(other, path)
    assert torch.equal(other(X), net(X))
    twin = net.relus.to_torch()
    safetensors.save_file(net.relus.state_dict(), path)
    twin.load_state_dict(safetensors.load_file(path))
    torch.testing.assert_close(twin(torch.ones(2, 5)), net.relus(torch.ones(2, 5)))


def test_tensors_of_another_class_get_pytorchs_functions():
    class Named(Tensor):
        pass

    class Recorder:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function

    x, weight = X.as_subclass(Named), nn.Parameter(torch.ones(3, 4).as_subclass(Named))
    model = fastmlp.MLP([4, 3, 2])
    for y in (functional.relu(x), functional.linear(x, torch.ones(3, 4)), model(x)):
        assert type(y) is Named
    model[0].weight = weight
    assert type(model(X)) is type(functional.linear(X, weight)) is Named
    assert functional.cross_entropy(Recorder(), Y) is F.cross_entropy
    assert functional.relu(Recorder(), inplace=True) is F.relu
    assert functional.activation(Recorder(), "silu") is F.silu


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_sharded_weights(tmp_path):
    from torch.distributed import tensor as dtensor

    net = fastmlp.MLP([4, 6, 2])
    want = net(X)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/d", rank=0, world_size=1)
    try:
        mesh = dtensor.init_device_mesh("cpu", (1,))
        dtensor.distribute_module(net, mesh)
        linear = fastmlp.replace(net[2])
        got = net(dtensor.distribute_tensor(X, mesh)).full_tensor()
    finally:
        torch.distributed.destroy_process_group()
    assert linear.swapped == {"": "Linear"}
    torch.testing.assert_close(got, want)
