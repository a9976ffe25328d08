"""A target column to labels or numbers, and each mistake in one sentence."""

import json

import numpy as np
import pytest

from fastmlp.data.tables import Table, as_column
from fastmlp.data.targets import TargetEncoding
from fastmlp.utils.errors import UserError


def table(*columns, names=("y", "z")):
    return Table(dict(zip(names, map(as_column, columns), strict=False)))


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
    target = TargetEncoding.fit(table(values))
    assert (target.task, target.classes) == (task, classes)
    assert TargetEncoding.from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_labels_and_numbers():
    labels = TargetEncoding.fit(table(["b", "a"])).apply(table(["a", "b", "a"]))
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 0])
    numbers = TargetEncoding.fit(table([1, 3]), "regression").apply(table([1, 3, 5]))
    assert (numbers.dtype, numbers.tolist()) == (np.float32, [[-1], [1], [3]])


@pytest.mark.parametrize(
    ("columns", "task", "encoded", "predicted"),
    [
        (([0, 1, 1], [1, 0, 1]), "classification", [[0, 1], [1, 0], [1, 1]], np.int64),
        (([0, 1, 1], ["a", "b", "a"]), "classification", [[0, 0], [1, 1], [1, 0]], object),
        (([1, 2, 3], [0, 1, 1]), "regression", None, np.float64),
        (([0.5, 1.5, 1], [4, 2, 1]), "regression", None, np.float64),
    ],
)
def test_several_columns(columns, task, encoded, predicted):
    given = table(*columns)
    target = TargetEncoding.fit(given)
    assert (target.task, target.classes, target.outputs) == (task, (), 2)
    assert TargetEncoding.from_dict(json.loads(json.dumps(target.to_dict()))) == target
    applied = target.apply(given)
    assert applied.dtype == np.float32
    if encoded is not None:
        assert applied.tolist() == encoded
    else:
        np.testing.assert_allclose(applied.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(applied.std(0), 1, rtol=1e-6)
    back = target.predictions(applied * 0.6 + 0.1 if encoded else applied)
    assert back.dtype == predicted
    for found, column in zip(back.T, columns, strict=True):
        if encoded:
            assert found.tolist() == list(column)
        else:
            np.testing.assert_allclose(found, column, rtol=1e-6, atol=1e-6)


def test_of_several_columns_each_has_two_classes():
    with pytest.raises(UserError, match="'z' has 3 classes, and of several targets each must have"):
        TargetEncoding.fit(table([0, 1, 1], ["a", "b", "c"]))


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
        TargetEncoding.fit(table(values), task)


def test_a_class_that_no_training_row_has():
    target = TargetEncoding.fit(table(["a", "b"]))
    with pytest.raises(UserError, match="'y' is 'c' in row 2, a class that no training row has"):
        target.apply(table(["a", "c"]))


def test_a_row_has_the_number_that_it_has_in_its_source():
    rows = table(["a", "b", "a", None]).rows(np.array([1, 3]))
    with pytest.raises(UserError, match="'y' has no value in row 4 "):
        TargetEncoding.fit(rows)


@pytest.mark.parametrize("change", [{"task": "ranking"}, {"columns": []}])
def test_a_damaged_encoding_is_none(change):
    values = TargetEncoding.fit(table(["a", "b"])).to_dict()
    with pytest.raises(ValueError, match=r"(task|columns) of the target cannot be"):
        TargetEncoding.from_dict({**values, **change})
