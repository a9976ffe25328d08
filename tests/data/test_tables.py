"""Tables from memory and from files: names, missing values, texts, and what cannot be read."""

import numpy as np
import pytest
import torch

from fastmlp.data.tables import as_table, read_table
from fastmlp.utils.errors import UserError

pd = pytest.importorskip("pandas")

FRAME = pd.DataFrame(
    {"age": [31, 40, 25], "income": [1.5, None, 2.5], "town": ["Ulm", None, "Bonn"]}
)


def check_frame(table):
    assert table.names == ("age", "income", "town")
    assert table.columns["age"].tolist() == [31.0, 40.0, 25.0]
    np.testing.assert_array_equal(table.columns["income"], [1.5, np.nan, 2.5])
    assert table.columns["town"].tolist() == ["Ulm", None, "Bonn"]


def test_a_pandas_frame_keeps_names_and_gaps():
    check_frame(as_table(FRAME))


def test_a_polars_frame_keeps_names_and_gaps():
    pl = pytest.importorskip("polars")
    columns = {"age": [31, 40, 25], "income": [1.5, None, 2.5], "town": ["Ulm", None, "Bonn"]}
    check_frame(as_table(pl.DataFrame(columns)))


def test_pandas_own_missing_values_are_missing():
    frame = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": pd.array(["x", None], "string")})
    table = as_table(frame)
    np.testing.assert_array_equal(table.columns["a"], [1, np.nan])
    assert table.columns["b"].tolist() == ["x", None]


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list])
def test_arrays_have_numbered_columns(make):
    table = as_table(make([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert (table.names, table.named, len(table)) == (("0", "1"), False, 3)
    assert table.columns["1"].tolist() == [2.0, 4.0, 6.0]


def test_a_csv_file(tmp_path):
    FRAME.to_csv(tmp_path / "people.csv", index=False)
    check_frame(read_table(tmp_path / "people.csv"))


def test_a_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "people.parquet")
    check_frame(read_table(tmp_path / "people.parquet"))


def test_an_npz_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6.0).reshape(3, 2), y=np.array(["a", "b", "a"]))
    table = read_table(tmp_path / "a.npz")
    assert table.names == ("x.0", "x.1", "y")
    assert table.columns["x.1"].tolist() == [1.0, 3.0, 5.0]
    rest, targets = table.split(["y"])
    assert rest.names == ("x.0", "x.1")
    assert targets.columns["y"].tolist() == ["a", "b", "a"]


def test_an_npy_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
    assert read_table(tmp_path / "x.npy").columns["0"].tolist() == [0.0, 2.0, 4.0]


def test_no_code_of_a_file_is_run(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "a.csv does not exist"),
        ("a.mat", "", "a.mat is none of the files"),
        ("a.csv", "", "a.csv cannot be read"),
        ("a.csv", "x,y\n", "a.csv has no rows"),
        ("a.csv", "x,x\n1,2\n", "a.csv has two columns named 'x'"),
        ("a.csv", "x,y\n1,2\n1,2,3,4\n", "a.csv cannot be read"),
        ("a.csv", "größe\n1\n".encode("latin-1"), "a.csv is not a text in UTF-8"),
        ("a.csv", "größe\n1\n".encode("utf-16"), "a.csv is not a text in UTF-8"),
        ("a.parquet", "no parquet", "a.parquet cannot be read"),
        ("a.npz", "no npz", r"a.npz cannot be read \(an .npz file must be an archive"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / name)


def test_arrays_of_several_lengths_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(2))
    with pytest.raises(UserError, match="has 3 rows in 'x' and 2 in 'y'"):
        read_table(tmp_path / "a.npz")


def test_columns_that_are_not_there_or_not_enough():
    table = as_table(FRAME)
    with pytest.raises(UserError, match="X has no column 'weight'; its columns are 'age', 'inc"):
        table.split(["age", "weight"])
    with pytest.raises(UserError, match="The target 'age' is named twice"):
        table.split(["age", "age"])
    with pytest.raises(UserError, match="X has no column but the targets"):
        table.split(table.names)


@pytest.mark.parametrize("data", [np.zeros((2, 3, 4)), object(), [[1, 2], [3]]])
def test_what_is_no_table(data):
    with pytest.raises(UserError, match="X must be"):
        as_table(data)


def test_a_name_is_no_table():
    with pytest.raises(UserError, match=r"X must be rows, and 'people\.csv' is a name"):
        as_table("people.csv")
