"""The built-in synthetic set: the same bytes everywhere, and neither trivial nor impossible."""

import hashlib

import numpy as np
import pytest
import torch

from fastmlp.data import synthetic as synthetic


@pytest.fixture(scope="module")
def made():
    """10,000 images (n, 3, 32, 32) uint8 and their labels."""
    images, labels = synthetic.generate(10_000, seed=0)
    return torch.from_numpy(images), torch.from_numpy(labels)


def test_the_bytes_never_change():
    images, labels = synthetic.generate(2000, seed=0)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest == "62aab927bcc1ee387904ff20b6d38f764e3302f56c996337dbf9e3037feb6ea5"


def test_one_thread_makes_the_same_bytes(made, monkeypatch):
    monkeypatch.setattr(synthetic.os, "cpu_count", lambda: 1)
    images, labels = synthetic.generate(3000, seed=0)
    assert torch.equal(torch.from_numpy(images), made[0][:3000])
    assert torch.equal(torch.from_numpy(labels), made[1][:3000])


@pytest.mark.parametrize("count", [0, 1, 999, 1001])
def test_a_smaller_count_is_a_beginning_of_a_larger_one(made, count):
    images, labels = synthetic.generate(count, seed=0)
    assert images.shape == (count, 3, 32, 32)
    assert torch.equal(torch.from_numpy(images), made[0][:count])
    assert torch.equal(torch.from_numpy(labels), made[1][:count])


def test_another_seed_makes_other_images(made):
    images, _ = synthetic.generate(1000, seed=1)
    rows = {image.tobytes() for image in images}
    assert len(rows) == 1000
    assert not rows & {image.numpy().tobytes() for image in made[0]}


def test_classes_are_equally_many_and_mixed(made):
    assert len(synthetic.CLASSES) == len(set(synthetic.CLASSES)) == 10
    for start in (0, 4000):
        assert torch.bincount(made[1][start : start + 1000]).tolist() == [100] * 10
    assert len(made[1][:100].unique()) == 10


def test_colour_does_not_give_the_class_away(made):
    """The best linear guess from the mean colour is little better than chance."""
    colour = made[0].double().mean((2, 3))
    inputs = torch.cat([colour, torch.ones(len(colour), 1)], 1)
    targets = torch.nn.functional.one_hot(made[1], 10).double()
    weights = torch.linalg.lstsq(inputs[:8000], targets[:8000]).solution
    guessed = (inputs[8000:] @ weights).argmax(1)
    assert (guessed == made[1][8000:]).double().mean() < 0.16


def accuracy(model, inputs, labels, lr):
    """Accuracy on the last 2,000 after four epochs of plain SGD on the others."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for batch in torch.cat([torch.randperm(len(labels) - 2000) for _ in range(4)]).split(32):
        loss = torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = model(inputs[-2000:]).argmax(1) == labels[-2000:]
    return float(right.double().mean())


def test_an_mlp_learns_what_a_linear_model_cannot(made, threads):
    """A little of the training behind the figures of the module's docstring."""
    threads(1)  # products this small are no faster on more
    inputs = (made[0].flatten(1).float() - 118) / 71
    linear = torch.nn.Linear(3072, 10)
    mlp = torch.nn.Sequential(torch.nn.Linear(3072, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    assert accuracy(linear, inputs, made[1], 0.005) < 0.35
    assert accuracy(mlp, inputs, made[1], 0.05) > 0.5


def test_the_warning_is_a_closed_box_with_its_reason():
    path = "/a/very/long/path-with-hyphens/" + "x" * 90
    lines = synthetic.warning(f"There is no CIFAR-10 in {path}.").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[0]) == set(lines[-1]) == {"#"}
    assert all(line[0] == line[-1] == "#" for line in lines)
    assert any(path in line for line in lines)
    assert "THIS IS NOT CIFAR-10" in lines[2]
