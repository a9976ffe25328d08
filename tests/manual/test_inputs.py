"""What the layers that are called by hand take: devices, arrays, other kinds of labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastmlp import manual


@pytest.mark.filterwarnings("ignore:fastmlp runs the slower")
def test_a_device_without_kernels_goes_the_reference_way_in_both_directions() -> None:
    layer, relu = manual.FullyConnectedLayer("meta"), manual.ReLU()
    x, w, b = (torch.empty(s) for s in ((4, 5), (5, 3), (3,)))  # moved to the layer's device
    y = relu.forward(layer.forward(x, w, b))
    dw, db = layer.backward(relu.backward(torch.empty_like(y)))
    assert (dw.shape, db.shape, layer.dx.shape) == (w.shape, b.shape, x.shape)
    assert {t.device.type for t in (y, dw, db, layer.dx)} == {"meta"}


def test_a_backend_in_place_of_a_device_and_a_missing_gpu_are_told() -> None:
    for make in (manual.FullyConnectedLayer, manual.ReLU, manual.SoftmaxCrossEntropy):
        with pytest.raises(ValueError, match=r"device must be a device .*'native'.* backend="):
            make("native")
        with pytest.raises(ValueError, match=r"device cuda:99 is missing: .*Colab"):
            make("cuda:99")
    with pytest.raises(ValueError, match="device cuda:99 is missing"):
        manual.Classifier(3, 2, 2, device="cuda:99")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_a_missing_device_of_another_kind_is_told() -> None:
    for make in (manual.ReLU, lambda device: manual.Classifier(3, 2, 2, device)):
        with pytest.raises(ValueError, match='device mps is missing here; pass device="cpu"'):
            make("mps")


def test_a_bias_may_be_a_row() -> None:
    x, w, b, g = (torch.randn(s) for s in ((4, 5), (5, 3), (3,), (4, 3)))
    layer = manual.FullyConnectedLayer()
    y = layer.forward(x, w, b)
    dw, db = layer.backward(g)
    assert db.shape == (3,)
    for row in (b[None], b[None].numpy()):
        assert torch.equal(layer.forward(x, w, row), y)
        dw_of_row, db_of_row = layer.backward(g)
        assert torch.equal(dw_of_row, dw)
        assert torch.equal(db_of_row, db[None])
    assert torch.equal(layer.forward(x, w, b), y)
    assert layer.backward(g)[1].shape == (3,)
    with pytest.raises(AssertionError, match=r"b: expected shape \(3,\), got \(3, 1\)"):
        layer.forward(x, w, b[:, None])


def test_labels_may_be_a_column() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    mine, other = manual.SoftmaxCrossEntropy(), manual.SoftmaxCrossEntropy()
    assert torch.equal(mine.forward(labels[:, None], scores)[1], other.forward(labels, scores)[1])
    assert torch.equal(mine.backward(), other.backward())


def test_one_hot_labels_may_be_bool() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    hot = nn.functional.one_hot(labels, 3).bool()
    mine = manual.SoftmaxCrossEntropy().forward(hot, scores)
    assert torch.equal(mine[1], manual.SoftmaxCrossEntropy().forward(labels, scores)[1])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8, ">i4"])
def test_labels_of_numpy_and_of_any_integers_are_taken(dtype: type | str) -> None:
    scores, labels = torch.randn(4, 3), np.array([0, 2, 1, 1], dtype)
    loss = manual.SoftmaxCrossEntropy()
    wanted = nn.functional.cross_entropy(scores, torch.tensor(labels.tolist()))
    for given in (labels, torch.from_numpy(labels.astype(labels.dtype.newbyteorder("=")))):
        pred_y, value = loss.forward(given, scores.numpy())
        assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert pred_y.tolist() == scores.argmax(1).tolist()


def test_labels_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"y: expected integers, .*float64; try y.long\(\)"):
        manual.SoftmaxCrossEntropy().forward(np.zeros(4), torch.randn(4, 3))


def test_a_gradient_of_another_dtype_is_told_and_an_array_of_it_taken() -> None:
    x, w, b, g = (torch.randn(s) for s in ((4, 5), (5, 3), (3,), (4, 3)))
    layer, relu = manual.FullyConnectedLayer(), manual.ReLU()
    layer.forward(x, w, b)
    relu.forward(g)
    for each in (layer, relu):
        with pytest.raises(TypeError, match=r"backprop: expected torch.float32, .*torch.float64"):
            each.backward(g.double())
    assert torch.equal(layer.backward(g.double().numpy())[0], layer.backward(g)[0])
    assert torch.equal(relu.backward(g.double().numpy()), relu.backward(g))


def test_layers_take_numpy_arrays_even_read_only_ones() -> None:
    x, w, b = (torch.randn(s) for s in ((4, 5), (5, 3), (3,)))
    array = x.numpy().copy()
    array.setflags(write=False)
    layer = manual.FullyConnectedLayer("cpu")
    y = layer.forward(array, w.numpy(), b.numpy())
    assert torch.equal(y, manual.FullyConnectedLayer().forward(x, w, b))
    dw, _ = layer.backward(np.ones((4, 3), np.float32))
    torch.testing.assert_close(dw, (x.T @ torch.ones(4, 3)) / 4)
    relu = manual.ReLU()
    assert torch.equal(relu.backward(relu.forward(array).numpy()), x.clamp(min=0))
