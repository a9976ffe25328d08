"""Raw rows to inputs, fitted on the training rows, and each mistake in one sentence."""

import json

import numpy as np
import pytest

from fastmlp.data.encoding import TableEncoding
from fastmlp.data.tables import Table, as_column, as_table
from fastmlp.utils.errors import UserError


def table(**columns):
    return Table({name: as_column(values) for name, values in columns.items()}, "people.csv")


PEOPLE = table(age=[20, 30, 40, 50], town=["Ulm", "Bonn", None, "Ulm"])


def test_numbers_are_standardised_and_categories_one_hot():
    encoding = TableEncoding.fit(PEOPLE, categories=["town"])
    assert encoding.input_names == ("age", "town=Bonn", "town=Ulm")
    inputs = encoding.apply(PEOPLE)
    assert inputs.dtype == np.float32
    ages = (np.array([20, 30, 40, 50]) - 35) / np.sqrt(125)
    np.testing.assert_allclose(inputs[:, 0], ages, rtol=1e-6)
    assert inputs[:, 1:].tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]


def test_it_is_fitted_on_the_training_rows_alone():
    encoding = TableEncoding.fit(PEOPLE.rows(slice(0, 2)), categories=["town"])
    with pytest.warns(
        UserWarning, match="'town' of people.csv has 1 category .* lack: 'Berlin'; th"
    ):
        later = encoding.apply(table(town=["Berlin"], extra=["x"], age=[45]))
    assert later.tolist() == [[4.0, 0.0, 0.0]]  # mean 25, deviation 5, a town not seen


def test_it_is_saved_as_json():
    encoding = TableEncoding.fit(PEOPLE, categories=["town"], missing="mean")
    read = TableEncoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert read == encoding
    np.testing.assert_array_equal(read.apply(PEOPLE), encoding.apply(PEOPLE))


def test_a_category_may_be_a_number():
    kinds = table(kind=[10.0, 9.0, np.nan, 10.0])
    encoding = TableEncoding.fit(kinds, categories=["kind"])
    assert encoding.input_names == ("kind=9", "kind=10")
    with pytest.warns(UserWarning, match="has 1 category that the training rows lack: '11'"):
        assert encoding.apply(table(kind=["9", "11"])).tolist() == [[1, 0], [0, 0]]


def test_missing_numbers_become_the_mean_on_request():
    gap = table(age=[20.0, np.nan, 40.0])
    assert TableEncoding.fit(gap, missing="mean").apply(gap).tolist() == [[-1], [0], [1]]


def test_a_constant_column_is_kept_on_request():
    same = table(age=[1.0, 2.0], year=[2020, 2020])
    encoding = TableEncoding.fit(same, keep_constant=True)
    assert encoding.apply(same)[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"age": [1.0, np.nan, np.nan]},
            {},
            r"'age' of people.csv has no value in row 2 \(2 are missing\).* missing mean",
        ),
        ({"age": [1, 2, "old"]}, {}, "'age' .* text 'old' in row 3, among numbers.*categories"),
        (
            {"t": ["a", "b"]},
            {},
            "'t' .* text 'a' in row 1; leave the column out by drop",
        ),
        ({"age": [1.0, np.inf]}, {}, "'age' of people.csv is infinite in row 2"),
        ({"age": [7, 7, 7]}, {}, "'age' of people.csv is 7 in every training row.*keep_constant"),
        ({"age": [np.nan, np.nan]}, {"missing": "mean"}, "'age' .* no value in any training row"),
        ({"age": [1, 2]}, {"missing": "zero"}, "missing must be one of error, mean"),
        ({"age": [1, 2]}, {"categories": ["town"]}, "names the column 'town', .* only 'age'"),
        (
            {"n": [f"name {i}" for i in range(1001)]},
            {"categories": ["n"]},
            "'n' of people.csv has 1,001 categories",
        ),
    ],
)
def test_a_mistake_names_column_row_and_option(columns, options, message):
    with pytest.raises(UserError, match=message):
        TableEncoding.fit(table(**columns), **options)


def test_rows_without_a_column_are_refused():
    encoding = TableEncoding.fit(PEOPLE, categories=["town"])
    with pytest.raises(UserError, match=r"lacks the column 'town'"):
        encoding.apply(table(age=[1]))


def test_unnamed_columns_are_counted():
    two = Table({"0": as_column([1, 2]), "1": as_column([3, 4])}, "X", named=False)
    three = Table({**two.columns, "2": as_column([5, 6])}, "X", named=False)
    with pytest.raises(UserError, match="X has 3 columns, and the network was trained on 2"):
        TableEncoding.fit(two).apply(three)


def test_rows_without_names_of_another_width():
    fitted = TableEncoding.fit(as_table(np.arange(12.0).reshape(3, 4)))
    with pytest.raises(UserError, match="X has 2 columns, and the network was trained on 4; pass"):
        fitted.apply(as_table(np.ones((3, 2))))


def test_what_a_column_is_taken_for_changes_no_category():
    """A stray text makes numbers and truth values texts."""
    encoding = TableEncoding.fit(table(kind=[1.0, 0.0, 1.0]), categories=["kind"])
    for kinds in (["True", "False"], ["1", "0"], ["1.0", "0.0"], [True, False], [1, 0]):
        assert encoding.apply(table(kind=[*kinds])).tolist() == [[0, 1], [1, 0]], kinds
        assert encoding.apply(table(kind=[*kinds, None])).tolist()[:2] == [[0, 1], [1, 0]], kinds
    codes = TableEncoding.fit(table(code=["00100", "100", "x"]), categories=["code"])
    assert set(codes.input_names) == {"code=00100", "code=100", "code=x"}


def test_whole_numbers_that_float64_does_not_tell_apart():
    ids = [10**18 + 1, 10**18 + 2, 10**18 + 1]
    for given in (np.array(ids), ids):
        column = table(id=given)
        encoding = TableEncoding.fit(column, categories=["id"])
        assert encoding.apply(column).tolist() == [[1, 0], [0, 1], [1, 0]]
        assert TableEncoding.fit(table(id=[*ids, 5])).width == 1  # numbers, near enough
