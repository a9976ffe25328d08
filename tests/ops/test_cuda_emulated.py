"""The CUDA operators' own source on an emulated GPU: what can be known without one."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from support import emulation
from support.activation_suite import ActivationTests
from support.cases import ACTIVATION_CASES, LAYOUTS, randn, small_integers
from support.graph_cases import OPTIONS, assert_as_close_as_pytorch, order_of
from support.marks import needs_native
from support.matmul_precision_suite import Float32Tests, all_products, all_products_ref
from support.operator_suite import NONE, RELU, CrossEntropyTests, LinearTests
from torch import Tensor

from fastmlp.ops.linear import linear_backward_ref, linear_ref
from fastmlp.ops.matmul_precision import FLOAT32, FMA, TF32, TF32_ALLOWED, THREE_TF32

pytestmark = [
    needs_native,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]

ORDERS = {"ascending": 0, "descending": 1, "shuffled": 6}


@pytest.fixture
def machine(threads):
    """Threads and blocks run in a shuffled order, on tensors that end at a fence."""
    threads(1)  # the emulation is one thread, beside which idle ones of PyTorch would only spin
    emulation.configure(ORDERS["shuffled"])
    yield SimpleNamespace(run=emulation.call, place=emulation.fenced(), device="cpu")
    emulation.operators().release_fences()
    emulation.configure()


@pytest.fixture(
    params=product(ORDERS.values(), [1, 40, 132], [torch.float32, torch.bfloat16]), ids=str
)
def exact(request, machine):
    """Where to place x (20, 700), w (70, 700) and dy (20, 70), whose products are exact: in every
    order of threads, split into several numbers of parts."""
    order, processors, dtype = request.param
    emulation.configure(order, processors)
    shapes = ((20, 700), (70, 700), (20, 70))
    return emulation.fenced(low=True), *(small_integers(*shape, dtype=dtype) for shape in shapes)


def end_of_4_gb(count: int) -> tuple[Tensor, Tensor]:
    """More elements than an int counts, and the last of them, which have values: the rest stays
    untouched, as only the last three blocks run."""
    x = torch.empty((1 << 31) + 1003, dtype=torch.float16)
    tail = x[-count:]
    tail.copy_(randn(count))
    emulation.configure(last_blocks=3)
    return x, tail


class TestLinear(LinearTests):
    def test_exact_in_every_order_and_number_of_parts(self, machine, exact):
        place, x, w, dy = exact
        dtype = x.dtype
        y = machine.run("linear", place(x), place(w), None, NONE)
        assert torch.equal(y, (x.double() @ w.double().t()).to(dtype))
        ours = machine.run(
            "linear_backward", place(dy), place(x), place(w), None, NONE, *[True] * 3
        )
        g = dy.double()
        for got, want in zip(ours, (g @ w.double(), g.t() @ x.double(), g.sum(0)), strict=True):
            assert torch.equal(got, want.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_the_order_of_threads_does_not_change_a_bit(self, machine, dtype):
        x, w, dy = randn(33, 900, dtype=dtype), randn(65, 900, dtype=dtype), randn(33, 65)
        results = []
        for order in ORDERS.values():
            emulation.configure(order)
            y = machine.run("linear", x, w, None, RELU)
            args = (dy.to(dtype), x, w, y, RELU, True, True, True)
            results.append([y, *machine.run("linear_backward", *args)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("batch", [0, 1, 7, 8, 9, 32, 33, 70])
    @pytest.mark.parametrize(
        ("inputs", "outputs"),
        [(2048, 12), (2052, 9), (129, 260), (16, 64), (17, 65), (4, 8), (0, 3), (5, 0)],
        ids=str,
    )
    def test_products_without_tiles_are_exact(self, machine, dtype, batch, inputs, outputs):
        """Of a lane's four elements, a warp's tile, a block's, and of what is read at once."""
        shapes = (batch, inputs), (outputs, inputs), (batch, outputs), (outputs,)
        x, w, dy, b = (small_integers(*shape, dtype=dtype) for shape in shapes)
        placed = [machine.place(tensor) for tensor in (x, w, b)]
        y = machine.run("linear", *placed, RELU)
        assert torch.equal(y, linear_ref(x.double(), w.double(), b.double(), "relu").to(dtype))
        arguments = machine.place(dy), *placed[:2], machine.place(y)
        ours = machine.run("linear_backward", *arguments, RELU, *[True] * 3)
        truths = linear_backward_ref(dy.double(), x.double(), w.double(), y.double())
        for got, truth in zip(ours, truths, strict=True):
            assert torch.equal(got, truth.to(dtype))

    @pytest.mark.parametrize("batch", [9, 40])
    def test_only_some_operands_are_aligned(self, machine, batch):
        shapes = (batch, 64), (20, 64), (batch, 20), (batch, 20)
        whole = [small_integers(*shape) for shape in shapes]
        for off in itertools.product([False, True], repeat=4):
            x, w, dy, mask = (
                machine.place(LAYOUTS["offset" if apart else "contiguous"](tensor))
                for tensor, apart in zip(whole, off, strict=True)
            )
            y = machine.run("linear", x, w, None, NONE)
            assert torch.equal(y, linear_ref(x, w))
            ours = machine.run("linear_backward", dy, x, w, mask, RELU, *[True] * 3)
            for got, truth in zip(ours, linear_backward_ref(dy, x, w, mask), strict=True):
                assert torch.equal(got, truth)

    def test_rows_further_apart_than_an_int_counts(self, machine):
        """4 GB are asked for and a page or two of them touched."""
        x = torch.empty((1 << 32) + 64, dtype=torch.bfloat16).as_strided((3, 40), (1 << 31, 1))
        values = small_integers(3, 40, dtype=torch.bfloat16)
        x.copy_(values)
        w, target = small_integers(5, 40, dtype=torch.bfloat16), torch.tensor([0, 39, 3])
        y = machine.run("linear", x, w, None, NONE)
        assert torch.equal(y, (values.double() @ w.double().t()).to(y.dtype))
        ours = machine.run("linear_backward", y, x, w, None, NONE, True, True, True)
        again = machine.run("linear_backward", y, values, w, None, NONE, True, True, True)
        assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
        ours = machine.run("cross_entropy", x, target)
        again = machine.run("cross_entropy", values, target)
        assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.fixture
def turing(machine):
    """A machine of compute capability 7.5, whose tensor cores know float16 alone."""
    emulation.configure(ORDERS["shuffled"], processors=40, capability=75)
    return machine


class TestLinearOnTuring(LinearTests):
    @pytest.fixture
    def machine(self, turing):
        return turing


class TestCrossEntropyOnTuring(CrossEntropyTests):
    @pytest.fixture
    def machine(self, turing):
        return turing


@pytest.mark.parametrize("order", ORDERS)
def test_on_turing_16_bits_are_exact_in_every_order(machine, order):
    emulation.configure(ORDERS[order], processors=40, capability=75)
    for dtype in (torch.float16, torch.bfloat16):
        shapes = ((20, 70), (20, 700), (70, 700))
        tensors = [small_integers(*shape, dtype=dtype) for shape in shapes]
        truths = all_products_ref(*(tensor.double() for tensor in tensors))
        for got, truth in zip(all_products(machine, FLOAT32, *tensors), truths, strict=True):
            assert torch.equal(got, truth.to(dtype))


class TestFloat32(Float32Tests):
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("processors", [1, 132])
    @pytest.mark.parametrize("by", [FMA, THREE_TF32, TF32])
    def test_exact_in_every_order_and_number_of_parts(self, machine, order, processors, by):
        emulation.configure(ORDERS[order], processors)
        tensors = [small_integers(*shape) for shape in ((20, 70), (20, 700), (70, 700))]
        truths = all_products_ref(*(tensor.double() for tensor in tensors))
        for got, truth in zip(all_products(machine, by, *tensors), truths, strict=True):
            assert torch.equal(got, truth.float())

    @pytest.mark.parametrize(
        ("capability", "allowed", "small", "large"),
        [
            *((80, FLOAT32, FMA, THREE_TF32), (90, FLOAT32, FMA, THREE_TF32)),
            *((103, FLOAT32, FMA, THREE_TF32), (90, TF32_ALLOWED, FMA, TF32)),
            *((89, FLOAT32, FMA, FMA), (120, FLOAT32, FMA, FMA), (120, TF32_ALLOWED, FMA, TF32)),
            *((75, by, FMA, FMA) for by in (FLOAT32, TF32_ALLOWED, THREE_TF32, TF32)),
        ],
    )
    def test_the_operators_take_the_way_of_the_plan(
        self, machine, capability, allowed, small, large
    ):
        emulation.configure(capability=capability)
        for batch, inputs, outputs, by in ((8, 90, 60, small), (256, 700, 240, large)):
            x, w, dy = randn(batch, inputs), randn(outputs, inputs), randn(batch, outputs)
            ours, same = (machine.run("linear", x, w, None, NONE, way) for way in (allowed, by))
            assert torch.equal(ours, same)
            if batch > 8:
                continue
            args = (dy, x, w, None, NONE, True, True, True)
            gradients = [machine.run("linear_backward", *args, way) for way in (allowed, FMA)]
            assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    @pytest.mark.parametrize("by", [-1, 5])
    def test_other_ways_are_refused(self, machine, by):
        with pytest.raises(
            RuntimeError, match=f"matmul_precision must be between 0 and 4, got {by}"
        ):
            machine.run("linear", randn(2, 3), randn(4, 3), None, NONE, by)
        args = randn(2, 4), randn(2, 3), randn(4, 3), None, NONE, True, True, True
        with pytest.raises(
            RuntimeError, match=f"matmul_precision must be between 0 and 4, got {by}"
        ):
            machine.run("linear_backward", *args, by)


class TestActivation(ActivationTests):
    @pytest.fixture(params=ACTIVATION_CASES, ids=str)
    def activation(self, request):
        return request.param

    def test_more_elements_than_an_int_counts(self, machine):
        x, tail = end_of_4_gb(3000)
        y = emulation.operators().activation(x, RELU)
        assert torch.equal(y[-3000:], tail.relu())
        del y
        assert emulation.operators().release_tensors() == 0


class TestCrossEntropy(CrossEntropyTests):
    @pytest.mark.parametrize("shape", [(1030, 10), (70, 100), (3, 3000)], ids=str)
    def test_the_order_of_threads_does_not_change_a_bit(self, machine, shape):
        logits, target = randn(*shape), torch.randint(0, shape[1], shape[:1])
        results = []
        for order in ORDERS.values():
            emulation.configure(order)
            options = (None, 1, -100, 0.1)
            loss, stats, total = machine.run("cross_entropy", logits, target, *options)
            args = (torch.tensor(1.0), logits, target, stats, total, *options)
            results.append([loss, stats, total, machine.run("cross_entropy_backward", *args)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_emulation_itself_tells_of_a_write_outside_and_of_bad_arguments():
    operators = emulation.operators()
    y = operators.activation(randn(8), RELU)
    ctypes.cast(y.data_ptr(), ctypes.POINTER(ctypes.c_float))[8] = 1.0
    del y
    assert operators.release_tensors() == 4
    with pytest.raises(RuntimeError, match="saved must have the shape of dy"):
        operators.activation_backward(randn(3), randn(4), RELU)
    with pytest.raises(RuntimeError, match="label_smoothing must be in"):
        operators.cross_entropy(randn(2, 3), torch.tensor([0, 1]), None, 1, -100, 2.0)


@pytest.mark.parametrize(
    ("shape", "dtype", "plan"),
    [
        ((8, 3072, 256), torch.float32, "fastmlp's kernels (skinny"),
        ((8, 3072, 256), torch.float32, "GPU; straight into registers)"),
        ((8, 3072, 256), torch.bfloat16, "GPU; straight into registers)"),
        ((64, 3072, 256), torch.float32, "tiles of 64 rows, 24 parts; three TF32"),
        ((64, 3072, 256), torch.float32, "bound by arithmetic; gradients straight into registers)"),
        ((32, 3072, 256), torch.bfloat16, "ATen's BLAS (large: too much"),
        ((8, 3072, 256), torch.float64, "ATen's BLAS (float64"),
        ((256, 2048, 1024), torch.float32, "fastmlp's kernels (skinny"),
        ((256, 2048, 1024), torch.float16, "ATen's BLAS (large: too much"),
    ],
)
def test_the_plan_in_words(shape, dtype, plan):
    """As ``fastmlp info`` prints it; which plan, tests/native/test_plan.py says."""
    assert plan in emulation.operators().linear_plan_cuda(*shape, dtype, 132, 90)
    if dtype is not torch.float64 and shape[0] == 64:
        on_turing = emulation.operators().linear_plan_cuda(*shape, dtype, 40, 75)
        words = "FMA: this GPU's tensor cores know float16 alone"
        assert (words in on_turing) == (dtype is not torch.float16)
    with pytest.raises(RuntimeError, match="matmul_precision must be between 0 and 4, got 7"):
        emulation.operators().linear_plan_cuda(*shape, dtype, 132, 90, 7)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("hidden", [(), (19, 6)], ids=str)
def test_the_graph_engine_on_these_operators(machine, monkeypatch, options, hidden):
    """As a GPU runs it: batches at padded addresses, the gradient's scale in a tensor."""
    for module, name in (
        ("linear", "linear"),
        ("linear", "linear_backward"),
        ("cross_entropy", "cross_entropy"),
        ("cross_entropy", "cross_entropy_backward"),
    ):
        monkeypatch.setattr(f"fastmlp.ops.{module}._{name}_op", partial(emulation.call, name))
    monkeypatch.setattr("fastmlp.engines.graph.CHUNK_STEPS", 4)
    assert_as_close_as_pytorch(torch.device("cpu"), options, hidden, order_of(59))
