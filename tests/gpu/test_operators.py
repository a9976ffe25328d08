"""The CUDA operators on a GPU: the cases of support/operator_suite.py, streams, graphs, devices."""

from __future__ import annotations

import os

from support.gpu import Gpu

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


import pytest
import torch
from support.activation_suite import ActivationTests
from support.cases import ACTIVATION_CASES, randn
from support.matmul_precision_suite import Float32Tests, all_products
from support.operator_suite import RELU, CrossEntropyTests, LinearTests, loss_and_gradient
from torch import Tensor

import fastmlp
from fastmlp import functional, native_available
from fastmlp.ops.cross_entropy import cross_entropy_ref
from fastmlp.ops.linear import linear_ref
from fastmlp.ops.matmul_precision import FLOAT32, FMA, TF32, TF32_ALLOWED, THREE_TF32

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not native_available("cuda"), reason="fastmlp._cuda is not built"),
]


@pytest.fixture
def machine():
    gpu = Gpu()
    yield gpu
    gpu.check_inputs()


class TestLinear(LinearTests):
    pass


class TestFloat32(Float32Tests):
    @pytest.mark.parametrize("allowed", [FLOAT32, TF32_ALLOWED])
    @pytest.mark.parametrize("batch", [8, 64])
    def test_the_operators_take_the_way_of_the_plan(self, machine, batch, allowed):
        tensors = [randn(batch, 256), randn(batch, 3072), randn(256, 3072)]
        gpu = torch.cuda.get_device_properties(machine.device)
        described = gpu.multi_processor_count, 10 * gpu.major + gpu.minor
        shape = batch, 3072, 256, torch.float32
        plan = torch.ops.fastmlp.linear_plan_cuda(*shape, *described, allowed)
        by = TF32 if "; TF32" in plan else THREE_TF32 if "three TF32" in plan else FMA
        ours, same = (all_products(machine, way, *tensors) for way in (allowed, by))
        assert_equal(ours[:1], same[:1])
        by_fma = all_products(machine, FMA, *tensors)  # gradients are read without tiles
        assert_equal(ours[1:], by_fma[1:])

    @pytest.mark.parametrize("compiled", [False, True])
    def test_tf32_where_torch_allows_it_and_only_there(self, machine, compiled):
        x, w = machine.place(randn(128, 3072)), machine.place(randn(256, 3072))
        dy, x.requires_grad = machine.place(randn(128, 256)), True

        def products() -> list[Tensor]:
            def forward(x: Tensor, w: Tensor) -> Tensor:
                return functional.linear(x, w, backend="native")

            y = (torch.compile(forward, fullgraph=True) if compiled else forward)(x, w)
            return [y.detach(), *torch.autograd.grad(y, x, dy)]

        before = torch.backends.cuda.matmul.fp32_precision
        results = []
        try:
            for precision in ("ieee", "tf32", "ieee"):
                torch.backends.cuda.matmul.fp32_precision = precision
                results.append(products())
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
        assert_equal(results[0], results[2])
        tensors = [tensor.detach().cpu() for tensor in (dy, x, w)]
        forced = all_products(machine, TF32, *tensors)[:2]
        assert_equal(results[1][:1], forced[:1])
        assert_equal(results[1][1:], results[0][1:])  # gradients are made by FMA
        assert not any(torch.equal(a.cpu(), b) for a, b in zip(results[0], forced, strict=True))


class TestActivation(ActivationTests):
    @pytest.fixture(params=ACTIVATION_CASES, ids=str)
    def activation(self, request):
        return request.param


class TestCrossEntropy(CrossEntropyTests):
    pass


def forward_and_backward(x: Tensor, w: Tensor, b: Tensor, target: Tensor) -> list[Tensor]:
    """Every operator once; tensors on a GPU."""
    ops = torch.ops.fastmlp
    y = ops.linear(x, w, b, RELU)
    loss, stats, total = ops.cross_entropy(y, target)
    dy = ops.cross_entropy_backward(torch.ones_like(loss), y, target, stats, total)
    dy = ops.activation_backward(dy, ops.activation(y, RELU), RELU)
    return [y, loss, dy, *ops.linear_backward(dy, x, w, y, RELU, True, True, True)]


def network(device: str = "cuda:0", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    tensors = [randn(8, 3072, dtype=dtype), randn(256, 3072, dtype=dtype), randn(256, dtype=dtype)]
    return [t.to(device) for t in (*tensors, torch.randint(0, 256, (8,)))]


def assert_equal(ours: list[Tensor], others: list[Tensor]) -> None:
    for a, b in zip(ours, others, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def test_the_poison_reaches_new_tensors():
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty_strided((5,), (1,), device="cuda").isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_side_stream_behind_a_slow_producer(dtype):
    """Whoever launches on another stream than the present one reads x before it is there."""
    x, *rest = network(dtype=dtype)
    want = forward_and_backward(x, *rest)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(x)
        got = forward_and_backward(late, *rest)
    torch.cuda.current_stream().wait_stream(stream)
    assert_equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_replays_with_changed_inputs(dtype):
    static = network(dtype=dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward_and_backward(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(*static)
    for _ in range(3):
        fresh = network(dtype=dtype)
        for place, value in zip(static, fresh, strict=True):
            place.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(captured, forward_and_backward(*fresh))


def test_compiled_with_reduced_overhead():
    def loss(x: Tensor, w: Tensor, b: Tensor, target: Tensor) -> Tensor:
        hidden = functional.linear(x, w, b, "relu", backend="native")
        return functional.cross_entropy(hidden, target, backend="native")

    compiled = torch.compile(loss, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x, w, b, target = network()
        for tensor in (x, w, b):
            tensor.requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        ours = torch.autograd.grad(compiled(x, w, b, target), (x, w, b))
        ours = [t.clone() for t in ours]
        theirs = torch.autograd.grad(loss(x, w, b, target), (x, w, b))
        for got, want in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thirty_runs_give_the_same_bits(dtype):
    tensors = network(dtype=dtype)
    first = forward_and_backward(*tensors)
    for _ in range(30):
        assert_equal(forward_and_backward(*tensors), first)


@pytest.mark.parametrize("shape", [(1000, 10), (64, 1000), (8, 50_257)], ids=str)
def test_thirty_losses_are_the_same_bits(machine, shape):
    logits, target = randn(*shape), torch.randint(0, shape[1], shape[:1])
    first = loss_and_gradient(machine, logits, target, torch.tensor(1.0), label_smoothing=0.1)
    for _ in range(30):
        assert_equal(
            loss_and_gradient(machine, logits, target, torch.tensor(1.0), label_smoothing=0.1),
            first,
        )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_second_gpu_while_the_first_is_the_present_one():
    torch.cuda.set_device(0)
    tensors = network("cuda:1")
    on_second = forward_and_backward(*tensors)
    assert all(t.device == torch.device("cuda:1") for t in on_second)
    assert torch.cuda.current_device() == 0
    on_first = forward_and_backward(*(t.to("cuda:0") for t in tensors))
    for a, b in zip(on_first, on_second, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())
    x, w, b, _ = tensors
    with pytest.raises(RuntimeError, match="must be on the GPU of the other tensors"):
        torch.ops.fastmlp.linear(x, w.to("cuda:0"), b)


def test_tensors_of_cpu_and_gpu_are_refused():
    x, w, b, _ = network()
    with pytest.raises(RuntimeError, match="weight must be on the GPU of the other tensors"):
        torch.ops.fastmlp.linear(x, w.cpu(), b)


def test_autograd_autocast_and_opcheck():
    x, w, b, target = network()
    small = [t[:5].double().requires_grad_() for t in (x[:, :7], w[:, :7], b)]
    torch.autograd.gradcheck(lambda *a: functional.linear(*a, "relu"), small)
    torch.autograd.gradcheck(lambda t: functional.cross_entropy(t, target[:5] % 7), small[0])
    with torch.autocast("cuda", torch.bfloat16):
        y = functional.linear(x, w, b, "relu")
        loss = functional.cross_entropy(y, target)
    assert (y.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(loss, cross_entropy_ref(y.float(), target))
    for args in ((x, w, b, True), (x.t().reshape(2, 4, -1)[..., :3072], w, None, False)):
        torch.library.opcheck(torch.ops.fastmlp.linear.default, args)
    torch.library.opcheck(torch.ops.fastmlp.cross_entropy.default, (x, target))
    torch.library.opcheck(torch.ops.fastmlp.activation.default, (x.t(), RELU))


def test_a_network_trains_as_the_reference_does():
    x, target = randn(32, 64).cuda(), torch.randint(0, 10, (32,)).cuda()
    weights = []
    for backend in ("native", "reference"):
        fastmlp.set_backend(backend)
        try:
            torch.manual_seed(3)
            model = fastmlp.MLP([64, 48, 10]).cuda()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(5):
                optimizer.zero_grad()
                fastmlp.CrossEntropyLoss()(model(x), target).backward()
                optimizer.step()
        finally:
            fastmlp.set_backend(None)
        weights.append([p.detach() for p in model.parameters()])
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_elements_than_an_int_counts(dtype):
    """Rows 2^31 elements apart, and an elementwise operator on as many."""
    size = (1 << 31) + 64
    if torch.cuda.mem_get_info()[0] < 3 * size * dtype.itemsize:
        pytest.skip("it takes too much memory for this GPU")
    x = torch.zeros(size, dtype=dtype, device="cuda")
    rows = x.as_strided((2, 40), (1 << 31, 1))
    rows.copy_(randn(2, 40))
    w = randn(5, 40, dtype=dtype).cuda()
    want = linear_ref(rows.contiguous(), w).float()  # cuBLAS takes no rows so far apart
    limit = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(functional.linear(rows, w).float(), want, rtol=0.02, atol=limit)
    y = functional.relu(x)
    assert torch.equal(y[-64:], x[-64:].relu())
    assert torch.equal(y[:64], x[:64].relu())
