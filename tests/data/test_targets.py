"""A target column to labels or numbers, and each mistake in one sentence."""

import json

import numpy as np
import pytest

from fastmlp.data.tables import as_column
from fastmlp.data.targets import TargetEncoding
from fastmlp.utils.errors import UserError


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["no", "yes", "no"], "classification", ("no", "yes")),
        ([10, 2, 10], "classification", ("2", "10")),
        ([True, False], "classification", ("0", "1")),
        ([0.5, 1.5], "regression", ()),
        (list(range(101)), "regression", ()),
    ],
)
def test_the_task_follows_from_the_target(values, task, classes):
    target = TargetEncoding.fit(as_column(values), "y")
    assert (target.task, target.classes) == (task, classes)
    assert TargetEncoding.from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_labels_and_numbers():
    labels = TargetEncoding.fit(as_column(["b", "a"]), "y").apply(as_column(["a", "b", "a"]))
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 0])
    numbers = TargetEncoding.fit(as_column([1, 3]), "y", "regression").apply(as_column([1, 3, 5]))
    assert (numbers.dtype, numbers.tolist()) == (np.float32, [-1, 1, 3])


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        ([1, 1], None, "'y' has the single class '1'"),
        ([2, 2], "regression", "'y' is the same in every training row"),
        ([1, "a"], "regression", "'y' has the text 'a' in row 2"),
        (["a", None], None, r"'y' has no value in row 2 \(1 are missing\)"),
        ([0.5, np.inf], "regression", "'y' is inf in row 2"),
        ([1, 2], "ranking", "task must be one of classification, regression"),
        (list(range(1001)), "classification", "'y' has 1,001 classes"),
    ],
)
def test_what_cannot_be_a_target(values, task, message):
    with pytest.raises(UserError, match=message):
        TargetEncoding.fit(as_column(values), "y", task)


def test_a_class_that_no_training_row_has():
    target = TargetEncoding.fit(as_column(["a", "b"]), "y")
    with pytest.raises(UserError, match="'y' is 'c' in row 2, a class that no training row has"):
        target.apply(as_column(["a", "c"]))
