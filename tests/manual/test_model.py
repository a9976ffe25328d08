"""What a student put in place of layers, loss and parameters is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from support.course import blobs

from fastmlp.manual import Classifier, FullyConnectedLayer, ReLU


def no_backward() -> object:
    return mock.Mock(spec=["forward"])


def same_layer(model: Classifier) -> None:
    model.net[2] = model.net[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.net.pop(), "net must be three layers: .*; got 2"),
        (lambda m: m.net.__setitem__(1, ReLU), r"net\[1\] must be a layer, ReLU\(\), not the"),
        (lambda m: m.net.__setitem__(0, no_backward()), r"net\[0\], a Mock, has no method back"),
        (lambda m: setattr(m, "loss_func", None), "loss_func, a NoneType, has no method forward"),
        (same_layer, r"net\[0\] and net\[2\] must be two layers"),
        (lambda m: m.params.pop("b1"), "params must be a dict of w1, b1, w2, b2, got w1, w2, b2"),
        (lambda m: m.params.update(b1=m.params["b1"].numpy()), r"\['b1'\] must be a tensor.*ndarr"),
        (lambda m: m.params.update(b1=torch.zeros(8).int()), r"\['b1'\] must be a .*torch.int32"),
        (lambda m: m.params.update(b1=torch.zeros(1, 8)), r"must fit .*'b1': \(1, 8\)"),
        (lambda m: m.params.update(w2=torch.zeros(3, 8)), r"must fit .*'w2': \(3, 8\)"),
        (lambda m: m.params.update(w1=torch.zeros(8)), r"must fit .*'w1': \(8,\)"),
        (lambda m: m.params.update(b2=torch.zeros(3).double()), "of one dtype .*'b2': 'torch.fl"),
    ],
)
def test_a_model_that_cannot_run_is_told(change: Callable, message: str) -> None:
    model = Classifier(12, 8, 3)
    change(model)
    with pytest.raises((ValueError, TypeError), match=message):
        model.training(blobs(6), epochs=1, verbose=0, model_path=None)


def test_parts_of_another_size_or_make_are_taken() -> None:
    """Another number of hidden units, and a layer that is tested before it has a backward."""
    model = Classifier(12, 8, 3)
    sizes = {"w1": (12, 5), "b1": (5,), "w2": (5, 3), "b2": (3,)}
    model.params = {name: torch.ones(shape) for name, shape in sizes.items()}
    model.training(blobs(6), epochs=1, verbose=0, model_path=None)
    layer = FullyConnectedLayer()
    model.net[0] = mock.Mock(spec=["forward"], forward=layer.forward)
    assert model.score(blobs(6)).images == 6
