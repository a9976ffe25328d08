"""What the layers that are called by hand take: other devices, other kinds of labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmlp import manual


@pytest.mark.filterwarnings("ignore:fastmlp runs the slower")
def test_a_device_without_kernels_goes_the_reference_way_in_both_directions() -> None:
    layer, relu = manual.FullyConnectedLayer(), manual.ReLU()
    x, w, b = (torch.empty(s, device="meta") for s in ((4, 5), (5, 3), (3,)))
    y = relu.forward(layer.forward(x, w, b))
    dw, db = layer.backward(relu.backward(torch.empty_like(y)))
    assert (dw.shape, db.shape, layer.dx.shape) == (w.shape, b.shape, x.shape)


def test_one_hot_labels_may_be_bool() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    hot = nn.functional.one_hot(labels, 3).bool()
    mine = manual.SoftmaxCrossEntropy().forward(hot, scores)
    assert torch.equal(mine[1], manual.SoftmaxCrossEntropy().forward(labels, scores)[1])
