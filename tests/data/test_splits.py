"""From a configuration to the three parts, and the fingerprint of what was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cifar10_files import tiny_dataset
from support.tiny import tiny_data

from fastmlp.data.dataset import Dataset
from fastmlp.data.splits import DataSplits, Subset, parse_split, split_dataset
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import load_splits
from fastmlp.utils.errors import UserError


def test_a_configuration_decides_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(100) % 2
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: bool) -> Dataset:
        asked.append((*args, options))
        test = (images[:10], labels[:10])
        return Dataset("synthetic", "built in", True, ("a", "b"), images, labels, *test)

    monkeypatch.setattr("fastmlp.training.data.load_dataset", load_dataset)
    config = TrainConfig(dataset="synthetic", data_dir="here", data_url="there", split="50/30/20")
    data = load_splits(config, progress=False)
    assert asked == [("synthetic", "here", "there", {"progress": False, "download": True})]
    assert (data.name, data.source, data.synthetic, data.classes) == (
        "synthetic",
        "built in",
        True,
        2,
    )
    assert torch.equal(data.train.images, images[:50].flatten(1))
    assert torch.equal(data.val.labels, labels[50:80])
    assert torch.equal(data.test.labels, labels[80:])
    official = load_splits(replace(config, test_set="official"))
    assert torch.equal(official.test.images, images[:10].flatten(1))


def test_a_missing_folder_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_splits(TrainConfig(dataset="cifar10", data_dir=str(tmp_path / "nowhere")))


def changed(data: DataSplits, part: str, **tensors: torch.Tensor) -> DataSplits:
    return replace(data, **{part: replace(getattr(data, part), **tensors)})


def test_the_fingerprint_knows_every_pixel_and_label() -> None:
    data = tiny_data()
    train = data.train
    pixel, label = train.images.clone(), train.labels.clone()
    pixel[-1, -1] ^= 1
    label[0] = (label[0] + 1) % 3
    val = data.val.labels.flip(0)
    prints = [
        data.fingerprint,
        replace(data, name="other").fingerprint,
        changed(data, "train", images=pixel).fingerprint,
        changed(data, "train", labels=label).fingerprint,
        changed(data, "val", labels=val).fingerprint,
        changed(data, "train", weights=torch.ones(len(label))).fingerprint,
        changed(data, "train", weights=torch.arange(len(label)).float()).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert tiny_data().fingerprint == prints[0]
    assert changed(data, "test", labels=data.test.labels.flip(0)).fingerprint == prints[0]
    strided = Subset(train.images.t().contiguous().t(), train.labels)
    assert replace(data, train=strided).fingerprint == prints[0]


def test_data_that_cannot_be_used() -> None:
    data = tiny_data()
    with pytest.raises(UserError, match="Labels must be from 0 to 1, the training part has 0 to 2"):
        replace(data, classes=2)
    val = data.val
    with pytest.raises(UserError, match="The validation part has no images"):
        changed(data, "val", images=val.images[:0], labels=val.labels[:0])


@pytest.fixture
def dataset() -> Dataset:
    return tiny_dataset()


def test_the_parts_follow_each_other(dataset):
    split = split_dataset(dataset)
    assert [len(part.labels) for part in (split.train, split.val, split.test)] == [60, 20, 20]
    parts = (split.train, split.val, split.test)
    assert torch.equal(torch.cat([part.images for part in parts]), dataset.images.flatten(1))
    assert torch.equal(torch.cat([part.labels for part in parts]), dataset.labels)
    assert split.val.images.is_contiguous()
    assert split.val.images.data_ptr() == dataset.images[60].data_ptr()
    fewer = split_dataset(replace(dataset, images=dataset.images[:98], labels=dataset.labels[:98]))
    assert [len(part.labels) for part in (fewer.train, fewer.val, fewer.test)] == [58, 20, 20]


def test_the_official_test_set_replaces_the_third_part_only(dataset):
    split = split_dataset(dataset, "80/10/10", "official")
    assert torch.equal(split.train.labels, dataset.labels[:80])
    assert torch.equal(split.val.images, dataset.images[80:90].flatten(1))
    assert torch.equal(split.test.images, dataset.test_images.flatten(1))
    assert torch.equal(split.test.labels, dataset.test_labels)
    assert len(split_dataset(dataset, "90/10/0", "official").val.labels) == 10


@given(st.integers(1, 99), st.data())
def test_parse_split_reads_what_sums_to_100(train, draw):
    val = draw.draw(st.integers(1, 100 - train))
    assert parse_split(f" {train}/{val}/{100 - train - val}") == (train, val, 100 - train - val)


@pytest.mark.parametrize(
    "text",
    [
        *("", "60/20", "60/20/20/0", "60/20/21", "100/0/0", "0/50/50", "-20/60/60"),
        *("60,20,20", "a/b/c", "60.0/20/20", "٦٠/20/20"),
    ],
)
def test_parse_split_refuses_the_rest(text):
    with pytest.raises(UserError, match="split must be three whole percentages") as error:
        parse_split(text)
    assert error.value.exit_code == 2


def test_split_dataset_refuses_what_leaves_no_test(dataset):
    with pytest.raises(UserError, match="leaves nothing to test on"):
        split_dataset(dataset, "90/10/0")
    with pytest.raises(UserError, match="test_set must be split or official, got 'all'"):
        split_dataset(dataset, test_set="all")
