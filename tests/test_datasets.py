import dataclasses
import datetime
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
import sklearn.linear_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.datasets import (
    iris_reference,
    load_rows,
    load_table,
    make_sparse_classification,
    make_sparse_regression,
    make_sparse_signal,
    split,
)
from ellzero.errors import DataError, EllzeroError, InvalidParameterError

NUMBERS = "a,b,y\n1,4,2.5\n2,5,3.5\n3,7,1.5\n"
BUNDLED_HINT = (
    "Data sets: iris, digits, breast_cancer, wine, mnist; files: .csv, .tsv, .parquet, .pq, .npz."
)


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


def refuse(source, message, hint, *, kind=DataError, **kwargs):
    kwargs.setdefault("target", "y")
    with pytest.raises(kind) as caught:
        load_table(source, **kwargs)
    assert (caught.value.message, caught.value.hint) == (message, hint)


# Bundled sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iris", "digits", "breast_cancer", "wine"])
def test_bundled_sets_equal_those_of_scikit_learn(name):
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    table = load_table(name)
    varies = bunch.data.std(axis=0) > 0
    np.testing.assert_array_equal(table.X.numpy(), bunch.data[:, varies])
    np.testing.assert_array_equal(table.y.numpy(), bunch.target)
    assert table.feature_names == tuple(np.array(bunch.feature_names)[varies])
    assert table.class_names == tuple(str(n) for n in bunch.target_names)
    assert (table.task, table.name) == ("classification", name)
    assert (table.X.dtype, table.y.dtype) == (torch.float64, torch.int64)
    assert (table.n_samples, table.n_features) == (len(bunch.data), varies.sum())


def test_constant_columns_of_digits_are_dropped_and_named():
    assert load_table("digits").messages == (
        "Dropped 3 constant columns: 'pixel_0_0', 'pixel_4_0', 'pixel_4_7'.",
    )


def test_bundled_set_accepts_its_own_target_only():
    assert load_table("iris", target="species").target_name == "species"
    refuse(
        "iris",
        "The target of 'iris' is 'species', got 'y'.",
        "Leave `target` out for a bundled data set.",
    )
    refuse(
        "wine",
        "The target of 'wine' is a class, so `task` cannot be 'regression'.",
        "Leave `task` out for a bundled data set.",
        target=None,
        task="regression",
    )


def test_bundled_name_wins_over_a_file(tmp_path, monkeypatch):
    (tmp_path / "iris").write_text(NUMBERS)
    monkeypatch.chdir(tmp_path)
    assert load_table("iris").n_samples == 150
    refuse(
        "./iris",
        "'iris' has no extension; known extensions are .csv, .tsv, .parquet, .pq, .npz.",
        "Save the data as CSV or Parquet.",
    )


def test_importing_datasets_loads_no_reader():
    code = (
        "import sys, ellzero.datasets; "
        "print([m for m in ('sklearn', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Files ----------------------------------------------------------------------------------------


def test_csv_of_numbers(write):
    table = load_table(write(NUMBERS), target="y")
    assert table.X.tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 7.0]]
    assert table.y.tolist() == [2.5, 3.5, 1.5]
    assert table.y.dtype == torch.float64
    assert (table.name, table.task) == ("data.csv", "regression")
    assert (table.feature_names, table.target_name) == (("a", "b"), "y")
    assert table.class_names is None
    assert table.messages == ("Took the target 'y' as a number (regression).",)


def test_target_may_be_any_column(write):
    table = load_table(write(NUMBERS), target="a", task="regression")
    assert table.feature_names == ("b", "y")
    assert table.y.tolist() == [1.0, 2.0, 3.0]


def test_categories_booleans_and_classes_are_encoded_and_said(write):
    text = "color,flag,y\nred,true,B\nblue,false,A\n green ,True,B\nred,FALSE,A\n"
    table = load_table(write(text), target="y")
    assert table.feature_names == ("color=green", "color=red", "flag")
    assert table.X.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert (table.class_names, table.y.tolist()) == (("A", "B"), [1, 0, 1, 0])
    assert table.messages == (
        "Encoded 'color' (3 categories) as 2 columns.",
        "Encoded 'flag' (false, true) as 0 and 1.",
        "Took the target 'y' as 2 classes.",
    )


def test_integers_are_classes_when_few_values_repeat(write):
    few = write("a,y\n" + "".join(f"{i},{i % 3 + 5}\n" for i in range(7)))
    table = load_table(few, target="y")
    assert table.class_names == ("5", "6", "7")
    assert table.y.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert table.messages == (
        "Took the target 'y' as 3 classes; `task='regression'` takes them as numbers.",
    )
    assert load_table(few, target="y", task="regression").y.tolist() == [5, 6, 7, 5, 6, 7, 5]
    # One row fewer: twice the number of values is not exceeded.
    fewer = write("a,y\n" + "".join(f"{i},{i % 3 + 5}\n" for i in range(6)))
    assert load_table(fewer, target="y").task == "regression"
    # 20 values are classes, 21 are numbers.
    for count, task in ((20, "classification"), (21, "regression")):
        path = write("a,y\n" + "".join(f"{i},{i % count}\n" for i in range(100)))
        assert load_table(path, target="y").task == task


def test_task_can_be_asked_for(write):
    path = write("a,y\n1,0.5\n2,1.5\n3,0.5\n4,1.5\n")
    assert load_table(path, target="y").task == "regression"
    table = load_table(path, target="y", task="classification")
    assert (table.class_names, table.y.tolist()) == (("0.5", "1.5"), [0, 1, 0, 1])
    boolean = load_table(write("a,y\n1,true\n2,false\n"), target="y")
    assert (boolean.class_names, boolean.y.tolist()) == (("false", "true"), [1, 0])


def test_constant_columns_are_dropped_and_said(write):
    table = load_table(write("a,b,c,y\n1,5,x,2.5\n2,5,x,3.5\n"), target="y")
    assert table.feature_names == ("a",)
    assert table.messages[-1] == "Dropped 2 constant columns: 'b', 'c'."


@pytest.mark.parametrize(
    ("text", "name", "messages"),
    [
        (NUMBERS.replace(",", "\t"), "data.tsv", 0),
        (NUMBERS.replace(",", ";"), "data.csv", "Read 'data.csv' as separated by semicolons."),
        (NUMBERS.replace(",", "\t"), "data.csv", "Read 'data.csv' as separated by tabs."),
        ("\ufeff" + NUMBERS, "data.csv", 0),
        (NUMBERS.replace("\n", "\r\n"), "data.CSV", 0),
        (NUMBERS.replace(",", " , "), "data.csv", 0),
        (NUMBERS.replace("a,b,y", '"a","b","y"'), "data.csv", 0),
    ],
)
def test_dialects_give_the_same_data(write, text, name, messages):
    expected = load_table(write(NUMBERS, "plain.csv"), target="y")
    table = load_table(write(text, name), target="y")
    assert table.fingerprint == expected.fingerprint
    assert table.messages[:-1] == ((messages,) if messages else ())


def test_type_is_inferred_from_the_whole_file(write):
    # An integer column that turns real only after 2 MB.
    rows = "".join(f"{i},{i % 7}\n" for i in range(250_000))
    table = load_table(write(f"a,y\n{rows}0.5,1\n"), target="y")
    assert table.X[-1].item() == 0.5
    assert table.n_samples == 250_001


def test_csv_and_parquet_hold_the_same_table(tmp_path, write):
    rng = np.random.default_rng(0)
    a, n = rng.standard_normal(40), rng.integers(0, 50, 40)
    c = rng.choice(["u", "v", "w"], 40)
    y = rng.choice(["no", "yes"], 40)
    lines = [f"{a[i]!r},{n[i]},{c[i]},{y[i]}" for i in range(40)]
    lines = [re.sub(r"np\.float64\((.*?)\)", r"\1", line) for line in lines]
    csv = load_table(write("a,n,c,y\n" + "\n".join(lines)), target="y")
    columns = {
        "a": pa.array(a),
        "n": pa.array(n.astype(np.int16)),
        "c": pa.array(c).dictionary_encode(),
        "y": pa.array(y),
    }
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    parquet = load_table(tmp_path / "data.parquet", target="y")
    assert parquet.fingerprint == csv.fingerprint
    assert torch.equal(parquet.X[:, 0], torch.from_numpy(a))
    assert torch.equal(parquet.X[:, 1], torch.from_numpy(n).double())
    assert parquet.X[:, 2].tolist() == (c == "v").tolist()
    assert parquet.class_names == ("no", "yes")


def test_parquet_types(tmp_path):
    path = tmp_path / "data.pq"
    columns = {
        "f": pa.array([1.0, 2.0, 3.0], pa.float32()),
        "u": pa.array([1, 2, 4], pa.uint64()),
        "d": pa.array([1, 2, 4], pa.decimal128(5, 2)),
        "b": pa.array([True, False, True]),
        "__index_level_0__": pa.array([0, 1, 2]),
        "y": pa.array([1.5, 2.5, 0.5]),
    }
    pq.write_table(pa.table(columns), path)
    table = load_table(path, target="y")
    assert table.X.tolist() == [[1, 1, 1, 1], [2, 2, 2, 0], [3, 4, 4, 1]]
    assert table.messages[0] == "Left out '__index_level_0__', a stored row index."


def test_fingerprint_tells_data_apart(write):
    base = load_table(write(NUMBERS), target="y").fingerprint
    assert load_table(write(NUMBERS, "other.csv"), target="y").fingerprint == base
    changed = [
        NUMBERS.replace("7", "8"),
        NUMBERS.replace("1.5", "1.25"),
        NUMBERS.replace("a,b", "a,c"),
        NUMBERS.replace("a,b,y", "b,a,y"),
        NUMBERS.replace("2,5,3.5\n3,7,1.5", "3,7,1.5\n2,5,3.5"),
    ]
    prints = {load_table(write(text), target="y").fingerprint for text in changed}
    assert len(prints | {base}) == 6


def test_negative_zero_is_zero(write):
    plain = load_table(write("a,y\n0.0,1.5\n1,2\n"), target="y").fingerprint
    assert load_table(write("a,y\n-0.0,1.5\n1,2\n"), target="y").fingerprint == plain


# Bad input ------------------------------------------------------------------------------------

MANY = "".join(f"id{i},{i / 2}\n" for i in range(30))
BAD_FILES = [
    ("", "'data.csv' is empty.", "Give a file with a header and rows."),
    (" \n\n", "'data.csv' is empty.", "Give a file with a header and rows."),
    (
        "a,y\n",
        "'data.csv' has column names but no rows.",
        "Give a file with at least two rows.",
    ),
    ("a,y\n1,2\n", "'data.csv' has a single sample.", "Give at least two samples."),
    (
        "a,y\n1,yes\n2,yes\n",
        "The target 'y' of 'data.csv' has a single class, 'yes'.",
        "Give data in which the target varies.",
    ),
    (
        "a,y\n1,2.5\n2,2.5\n",
        "The target 'y' of 'data.csv' has a single value, 2.5.",
        "Give data in which the target varies.",
    ),
    (
        "a,b,y\n1,2,0.5\n1,2,1.5\n",
        "Every feature of 'data.csv' is constant.",
        "Give features that vary over the samples.",
    ),
    (
        "age,income,y\n,1,2\n,?,3\n3,3, NA\n",
        "'data.csv' has 4 missing values: 'age' (2), 'income' (1), 'y' (1).",
        "Drop these rows, or fill them first.",
    ),
    (
        "c,y\nred,2\nNA,3\n",
        "'data.csv' has 1 missing value: 'c' (1).",
        "Drop these rows, or fill them first.",
    ),
    (
        "a,y\ninf,2.5\n1,-inf\n-Infinity,2\n",
        "'data.csv' has 3 infinite values: 'a' (2), 'y' (1).",
        "Drop these rows, or replace the values first.",
    ),
    (
        "age,Y\n1,2\n2,3\n",
        "'data.csv' has no column 'y'. Did you mean 'Y'?",
        "Its columns are 'age', 'Y'.",
    ),
    ("a,b\n1,2\n2,3\n", "'data.csv' has no column 'y'.", "Its columns are 'a', 'b'."),
    ("a, a ,y\n1,2,3\n", "'data.csv' has columns of the same name: 'a'.", "Rename them."),
    (
        b"a,y\n1,2\n\xff\xfe,2\n",
        "'data.csv' is not UTF-8 text: line 3 cannot be decoded.",
        "Save the file as UTF-8.",
    ),
    (
        b"a,y\n1,2\n2,\xe2\x82",
        "'data.csv' is not UTF-8 text: line 3 cannot be decoded.",
        "Save the file as UTF-8.",
    ),
    (
        NUMBERS.encode("utf-16"),
        "'data.csv' is UTF-16 text; UTF-8 is needed.",
        "Save the file as UTF-8.",
    ),
    (
        b"a,y\n1,\0\n",
        "'data.csv' is not a text file: it holds zero bytes.",
        "Check the extension; for Parquet it is '.parquet'.",
    ),
    (
        "a,y\n1,2\n1,2,3\n",
        "Row 3 of 'data.csv' has 3 values, the header has 2 columns.",
        "Check its separators and quotes.",
    ),
    (
        'a,y\n1,2\n2,"2\n3,4\n4,5\n',
        "'data.csv' has a quote that is never closed.",
        "Close it, or drop it.",
    ),
    (
        "1,2\n3,4\n5,6\n",
        "The first line of 'data.csv' holds numbers, not column names.",
        "Put a line with the column names on top.",
    ),
    (
        ",a,y\n0,1,2\n1,3,4\n",
        "Column 1 of 'data.csv' has no name.",
        "Name it, or drop it when it is a row number.",
    ),
    (
        "y\n1\n2\n",
        "'data.csv' has no column besides the target 'y'.",
        "Add columns of features.",
    ),
    (
        "day,y\n2020-01-01,1\n2020-01-02,3\n",
        "Column 'day' of 'data.csv' holds dates or times.",
        "Turn it into numbers, such as days since a fixed date, or drop it.",
    ),
    (
        "key,y\n" + MANY,
        "Column 'key' of 'data.csv' holds 30 different texts in 30 samples, too many for "
        "categories.",
        "Drop the column; it looks like an identifier or free text.",
    ),
    (
        "key,y\n" + "".join(f"id{i % 101},{i / 2}\n" for i in range(500)),
        "Column 'key' of 'data.csv' holds 101 different texts in 500 samples, too many for "
        "categories.",
        "Drop the column; it looks like an identifier or free text.",
    ),
    (
        "age,y\n" + "".join(f"{i},{i / 2}\n" for i in range(30)) + "unknown,3\n",
        "Column 'age' of 'data.csv' mixes numbers and text: sample 31 holds 'unknown'.",
        "Replace the text by numbers, or drop the column.",
    ),
    (
        "a,y\n" + "".join(f"{i},name{i}\n" for i in range(30)),
        "The target 'y' of 'data.csv' has 30 classes in 30 samples, too many.",
        "Name another target, or take numbers as a regression by `task='regression'`.",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_csv_is_refused_in_one_sentence(write, text, message, hint):
    refuse(write(text), message, hint)


def test_hundred_categories_are_still_encoded(write):
    text = "c,y\n" + "".join(f"c{i % 100},{i / 2}\n" for i in range(500))
    assert load_table(write(text), target="y").n_features == 99


def test_text_target_cannot_be_a_regression(write):
    refuse(
        write("a,y\n1,u\n2,v\n"),
        "The target 'y' of 'data.csv' is text, so `task` cannot be 'regression'.",
        "Leave `task` out, or turn the target into numbers.",
        task="regression",
    )


def test_wrong_parameters(write):
    path = write(NUMBERS)
    refuse(
        path,
        "`target` must name the column of 'data.csv' to predict, got nothing.",
        "Pass `target`, on the command line `--target COLUMN`.",
        kind=InvalidParameterError,
        target=None,
    )
    refuse(
        path,
        "`target` must be the name of a column, got 3.",
        "Pass a string.",
        kind=InvalidParameterError,
        target=3,
    )
    refuse(
        path,
        "`task` must be one of 'classification', 'regression', got 'regresion'. "
        "Did you mean 'regression'?",
        None,
        kind=InvalidParameterError,
        task="regresion",
    )
    refuse(
        7,
        "`source` must be the name of a data set or a path, got int.",
        "Bundled data sets: iris, digits, breast_cancer, wine.",
        kind=InvalidParameterError,
    )


def test_unknown_data_set_names_the_nearest():
    refuse("irsi", "Unknown data set 'irsi'. Did you mean 'iris'?", BUNDLED_HINT)
    refuse(
        "Breast-Cancer",
        "Unknown data set 'Breast-Cancer'. Did you mean 'breast_cancer'?",
        BUNDLED_HINT,
    )
    refuse("xyzzy", "Unknown data set 'xyzzy'.", BUNDLED_HINT)
    refuse("", "'' is a folder, not a file.", BUNDLED_HINT)
    refuse("a\0b", "Unknown data set 'a\\x00b'.", BUNDLED_HINT)


def test_missing_file_names_the_nearest(tmp_path, write):
    write(NUMBERS, "houses.csv")
    write(NUMBERS, "house.txt")
    refuse(
        tmp_path / "house.csv",
        f"No file '{tmp_path}/house.csv'. Did you mean 'houses.csv'?",
        "Check the path.",
    )
    refuse(
        f"{tmp_path}/gone/house.csv",
        f"No file '{tmp_path}/gone/house.csv': the folder '{tmp_path}/gone' does not exist.",
        "Check the path.",
    )
    refuse(tmp_path, f"'{tmp_path}' is a folder, not a file.", BUNDLED_HINT)


def test_unknown_extension(write):
    known = "known extensions are .csv, .tsv, .parquet, .pq, .npz."
    hint = "Save the data as CSV or Parquet."
    refuse(write(NUMBERS, "data.xlsx"), f"'data.xlsx' has the extension '.xlsx'; {known}", hint)
    refuse(write(NUMBERS, "data"), f"'data' has no extension; {known}", hint)


def test_unreadable_parquet(tmp_path, write):
    message = "'d.parquet' cannot be read as Parquet: the file is damaged or of another kind."
    hint = "Write it again, or check the extension."
    refuse(write(NUMBERS, "d.parquet"), message, hint)
    pq.write_table(pa.table({"a": [1, 2], "y": [1.5, 2.5]}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    refuse(write(whole[:-9], "d.parquet"), message, hint)
    refuse(write(b"", "d.parquet"), "'d.parquet' is empty.", "Give a file with a header and rows.")


def test_parquet_columns_that_cannot_be_used(tmp_path):
    path = tmp_path / "d.parquet"
    y = pa.array([1.5, 2.5])
    pq.write_table(pa.table({"a": pa.array([None, float("nan")], pa.float64()), "y": y}), path)
    refuse(
        path,
        "'d.parquet' has 2 missing values: 'a' (2).",
        "Drop these rows, or fill them first.",
    )
    pq.write_table(pa.table({"a": pa.nulls(2), "y": y}), path)
    refuse(
        path,
        "'d.parquet' has 2 missing values: 'a' (2).",
        "Drop these rows, or fill them first.",
    )
    pq.write_table(pa.table({"a": pa.array([[1], [2, 3]]), "y": y}), path)
    refuse(
        path,
        "Column 'a' of 'd.parquet' has the type list<element: int64>, which is not a number, "
        "text or boolean.",
        "Turn it into numbers, or drop it.",
    )
    day = datetime.date(2020, 1, 1)
    pq.write_table(pa.table({"a": pa.array([day, None]), "y": y}), path)
    refuse(
        path,
        "Column 'a' of 'd.parquet' holds dates or times.",
        "Turn it into numbers, such as days since a fixed date, or drop it.",
    )
    pq.write_table(pa.Table.from_arrays([y, y, y], ["a", "a", "y"]), path)
    refuse(path, "'d.parquet' has columns of the same name: 'a'.", "Rename them.")
    pq.write_table(pa.table({"a": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}), path)
    refuse(
        path,
        "'d.parquet' has column names but no rows.",
        "Give a file with at least two rows.",
    )


def test_many_bad_columns_are_cut_short(write):
    header = ",".join(f"c{i}" for i in range(12)) + ",y\n"
    text = header + ("," * 12 + "1\n") + (",".join("2" * 12) + ",3\n")
    with pytest.raises(DataError) as caught:
        load_table(write(text), target="y")
    assert caught.value.message.startswith("'data.csv' has 12 missing values: 'c0' (1), ")
    assert caught.value.message.endswith("'c9' (1) and 2 more columns.")


def test_encoded_names_must_differ(write):
    refuse(
        write("c,c=v,y\nu,1,0.5\nv,2,1.5\n"),
        "Encoding 'data.csv' gives columns of the same name: 'c=v'.",
        "Rename the columns.",
    )


def check_table(table):
    n, p = table.X.shape
    assert n >= 2
    assert p >= 1
    assert table.y.shape == (n,)
    assert len(table.feature_names) == len(set(table.feature_names)) == p
    assert torch.isfinite(table.X).all()
    assert (table.X.amin(0) < table.X.amax(0)).all()
    if table.class_names is None:
        assert torch.isfinite(table.y).all()
    else:
        assert sorted(set(table.y.tolist())) == list(range(len(table.class_names)))
    json.dumps(dataclasses.asdict(dataclasses.replace(table, X=0, y=0)))


def read_or_refuse(path):
    """Return whether a file gives a valid table; any other error than our own escapes."""
    try:
        table = load_table(path, target="y")
    except EllzeroError as caught:
        error = caught
    else:
        check_table(table)
        return True
    assert error.message.endswith((".", "?"))
    assert "\n" not in error.message
    assert error.hint
    return False


def test_damaged_csv_gives_a_message_or_a_valid_table(tmp_path):
    rng = np.random.default_rng(0)
    base = b'a,"b c",c,y\n' + b"".join(
        b'%d,%.2f,"t%d",%d\n' % (i, i / 7, i % 3, i % 2) for i in range(20)
    )
    alphabet = np.frombuffer(b"0123456789abct,;\t\n\r\"'.-+eE \0\xff\xc3NAinf?_", dtype=np.uint8)
    outcomes = [0, 0]
    path = tmp_path / "data.csv"
    for trial in range(200):
        data = np.frombuffer(base, dtype=np.uint8).copy()
        if trial % 4 == 0:
            data = rng.choice(alphabet, rng.integers(0, 200))
        else:
            places = rng.integers(0, len(data), rng.integers(1, 4))
            data[places] = rng.choice(alphabet, len(places))
            if trial % 4 == 1:
                data = data[: rng.integers(0, len(data))]
        path.write_bytes(data.tobytes())
        outcomes[read_or_refuse(path)] += 1
    assert min(outcomes) >= 20  # both ends are reached


def test_damaged_parquet_gives_a_message_or_a_valid_table(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"a": np.arange(9.0), "y": np.arange(9) % 2}), path)
    base = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for _ in range(50):
        data = base.copy()
        data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        read_or_refuse(path)


# Split ----------------------------------------------------------------------------------------


def recipe():
    bunch = sklearn.datasets.load_iris()
    order = np.random.default_rng(0).permutation(150)
    train, test = order[:120], order[120:]
    mean, std = bunch.data[train].mean(0), bunch.data[train].std(0)
    return bunch, train, test, mean, std


def test_split_is_the_recipe_of_the_reference_experiment():
    bunch, train, test, mean, std = recipe()
    parts = split(load_table("iris"))
    assert (parts.n_train, parts.n_test) == (120, 30)
    assert parts.train_rows.tolist() == train.tolist()
    assert parts.test_rows.tolist() == test.tolist()
    np.testing.assert_array_equal(parts.mean.numpy(), mean)
    np.testing.assert_array_equal(parts.scale.numpy(), std)
    np.testing.assert_array_equal(parts.X_train.numpy(), (bunch.data[train] - mean) / std)
    np.testing.assert_array_equal(parts.X_test.numpy(), (bunch.data[test] - mean) / std)
    np.testing.assert_array_equal(parts.y_train.numpy(), bunch.target[train])
    np.testing.assert_array_equal(parts.y_test.numpy(), bunch.target[test])
    assert parts.messages == ()
    assert parts.names == tuple(bunch.feature_names)


def test_iris_reference_has_the_published_curvature():
    X, y, X_test, y_test = iris_reference()
    bunch, train, test, mean, std = recipe()
    assert (tuple(X.shape), tuple(X_test.shape)) == ((120, 5), (30, 5))
    expected = np.column_stack([(bunch.data[train] - mean) / std, np.ones(120)])
    np.testing.assert_array_equal(X.numpy(), expected)
    np.testing.assert_array_equal(y.numpy(), bunch.target[train])
    np.testing.assert_array_equal(y_test.numpy(), bunch.target[test])
    assert X_test[:, 4].tolist() == [1.0] * 30
    largest = np.linalg.eigvalsh(expected.T @ expected / 120)[-1]
    assert round(float(largest), 4) == 2.9146  # data constant of the reference, four decimals
    top = torch.linalg.eigvalsh(X.T @ X / 120)[-1]
    assert abs(float(top) - largest) < 1e-12


@given(
    n=st.integers(4, 60),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_split_standardizes_by_the_training_rows(n, share, seed):
    table = numbers(n)
    parts = split(table, test_size=share, seed=seed)
    rows = torch.cat([parts.train_rows, parts.test_rows])
    assert sorted(rows.tolist()) == list(range(n))
    assert parts.n_train == round((1 - share) * n)
    # Sums of at most 60 numbers of size one: 1e-12 is far above their rounding.
    assert parts.X_train.mean(0).abs().max() < 1e-12
    assert (parts.X_train.std(0, correction=0) - 1).abs().max() < 1e-12
    back = torch.cat([parts.X_train, parts.X_test]) * parts.scale + parts.mean
    torch.testing.assert_close(back, table.X[rows], rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.cat([parts.y_train, parts.y_test]), table.y[rows])


IRIS = load_table("iris")


def numbers(n):
    rng = np.random.default_rng(n)
    X, y = torch.from_numpy(rng.standard_normal((n, 3))), torch.from_numpy(rng.standard_normal(n))
    return dataclasses.replace(
        IRIS, X=X, y=y, task="regression", class_names=None, feature_names=("a", "b", "c")
    )


def test_test_size_zero_has_no_test_set():
    parts = split(load_table("iris"), test_size=0)
    assert (parts.n_train, parts.n_test, tuple(parts.X_test.shape)) == (150, 0, (0, 4))
    assert parts.messages == ()


def test_stratified_split_keeps_shares():
    parts = split(load_table("iris"), stratify=True, seed=3)
    assert parts.y_train.bincount().tolist() == [40, 40, 40]
    assert parts.y_test.bincount().tolist() == [10, 10, 10]
    # Shuffled, not sorted by class: a sorted sequence has 2 changes.
    assert (parts.y_train.diff() != 0).sum() > 40


def test_split_depends_on_the_seed():
    table = load_table("iris")
    assert split(table, seed=1).train_rows.tolist() != split(table, seed=2).train_rows.tolist()


def small(write, text):
    return load_table(write(text), target="y")


def test_column_constant_in_training_is_not_scaled(write):
    rows = "".join(f"{i},0.1,{i / 2}\n" for i in range(10))
    table = small(write, f"a,b,y\n{rows}10,5,1\n")
    seed = next(s for s in range(99) if np.random.default_rng(s).permutation(11)[-1] == 10)
    parts = split(table, seed=seed)
    assert parts.scale[1].item() == 1.0
    assert parts.X_train[:, 1].tolist() == [0.0] * parts.n_train
    assert parts.X_test[-1, 1].item() == 4.9
    assert parts.messages == ("Constant in the training rows, so not scaled: 1 column: 'b'.",)


def test_split_tells_of_an_absent_class_and_an_empty_test_set(write):
    table = small(write, "a,y\n" + "".join(f"{i},{'uv'[i % 2]}\n" for i in range(9)) + "9,w\n")
    seed = next(s for s in range(99) if np.random.default_rng(s).permutation(10)[-1] == 9)
    assert split(table, seed=seed).messages == ("No training row for 1 class: 'w'.",)
    tiny = small(write, "a,y\n1,0.5\n2,1.5\n")
    assert split(tiny).messages == ("No row is left to test on: 2 samples are too few.",)


def refuse_split(message, hint, kind, table, **kwargs):
    with pytest.raises(kind) as caught:
        split(table, **kwargs)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_wrong_splits(write):
    again = "Give a smaller `test_size`, another `seed`, or more data."
    iris = load_table("iris")
    for value, shown in ((-0.1, "-0.1"), (1.5, "1.5"), (float("nan"), "nan"), ("a", "'a'")):
        refuse_split(
            f"`test_size` must be a number between 0 and 1, got {shown}.",
            None,
            InvalidParameterError,
            iris,
            test_size=value,
        )
    refuse_split(
        "`test_size` must be below 1, got 1.",
        "Leave rows to train on, such as 0.2.",
        InvalidParameterError,
        iris,
        test_size=1,
    )
    refuse_split(
        "`seed` must be an integer of at least 0, got -1.",
        None,
        InvalidParameterError,
        iris,
        seed=-1,
    )
    refuse_split(
        "`test_size=0.999` leaves 0 rows of 150 to train on; at least 2 are needed.",
        again,
        DataError,
        iris,
        test_size=0.999,
    )
    rare = small(write, "a,y\n" + "".join(f"{i},u\n" for i in range(9)) + "9,v\n")
    seed = next(s for s in range(99) if np.random.default_rng(s).permutation(10)[-1] == 9)
    refuse_split(
        "The 9 training rows hold a single class.",
        again,
        DataError,
        rare,
        seed=seed,
        test_size=0.1,
    )
    flat = small(write, "a,y\n" + "".join(f"{i},0.5\n" for i in range(9)) + "9,1.5\n")
    refuse_split(
        "The 9 training rows hold a single target value.",
        again,
        DataError,
        flat,
        seed=seed,
        test_size=0.1,
    )
    refuse_split(
        "`stratify` must be False for a regression, got True.",
        "Leave it out.",
        InvalidParameterError,
        flat,
        stratify=True,
    )
    huge = small(write, "a,y\n1e300,1.5\n-1e300,2\n3,4\n5,6\n")
    refuse_split(
        "Column 'a' cannot be standardized: its values are too large or too close.",
        "Change its unit, or drop it.",
        DataError,
        huge,
        test_size=0,
    )


# Planted problems -----------------------------------------------------------------------------


def test_planted_regression_is_recovered_by_least_squares():
    problem = make_sparse_regression(200, 30, 4, noise=0.0, correlation=0.5, seed=1)
    fit, *_ = np.linalg.lstsq(problem.X.numpy(), problem.y.numpy(), rcond=None)
    np.testing.assert_allclose(fit, problem.coef.numpy(), atol=1e-10)
    assert problem.support.tolist() == np.flatnonzero(np.abs(fit) > 0.5).tolist()
    assert len(problem.support) == 4
    magnitudes = problem.coef[problem.support].abs()
    assert ((magnitudes >= 1) & (magnitudes <= 2)).all()


def test_planted_noise_and_correlation_are_as_said():
    n = 40_000
    problem = make_sparse_regression(n, 4, 2, noise=0.7, correlation=-0.6, seed=2)
    residual = (problem.y - problem.X @ problem.coef).numpy()
    # Four standard errors: std / sqrt(2 n) and 1 / sqrt(n).
    assert abs(residual.std() - 0.7) < 4 * 0.7 / np.sqrt(2 * n)
    expected = (-0.6) ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert np.abs(np.corrcoef(problem.X.numpy().T) - expected).max() < 4 / np.sqrt(n)
    assert np.abs(problem.X.numpy().var(axis=0) - 1).max() < 4 * np.sqrt(2 / n)


def test_planted_classification_follows_the_logistic_model():
    problem = make_sparse_classification(20_000, 5, 2, seed=3)
    assert problem.y.dtype == torch.int64
    fit = sklearn.linear_model.LogisticRegression(C=1e6, fit_intercept=False, tol=1e-8)
    fit.fit(problem.X.numpy(), problem.y.numpy())
    # A standard error is about 0.03 here.
    np.testing.assert_allclose(fit.coef_[0], problem.coef.numpy(), atol=0.15)
    clean = make_sparse_classification(500, 5, 2, noise=0.0, seed=3)
    assert torch.equal(clean.y, (clean.X @ clean.coef > 0).long())


@pytest.mark.parametrize("make", [make_sparse_regression, make_sparse_classification])
def test_planted_problems_repeat_and_reach_the_limits(make):
    first, second = make(20, 6, 3, seed=5), make(20, 6, 3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.X, make(20, 6, 3, seed=6).X)
    assert make(20, 6, 0).coef.count_nonzero() == 0
    assert make(20, 6, 6).support.tolist() == list(range(6))
    assert make(1, 1, 1).X.shape == (1, 1)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((0, 5, 1), {}, "`n_samples` must be an integer of at least 1, got 0."),
        ((5, 2.0, 1), {}, "`n_features` must be an integer of at least 1, got 2.0."),
        (
            (5, 5, 6),
            {},
            "`n_nonzero` must be an integer between 0 and 5, the number of features, got 6.",
        ),
        ((5, 5, 1), {"noise": -1}, "`noise` must be a number of at least 0, got -1."),
        (
            (5, 5, 1),
            {"correlation": 1},
            "`correlation` must be a number between -0.999 and 0.999, got 1.",
        ),
        ((5, 5, 1), {"seed": -1}, "`seed` must be an integer of at least 0, got -1."),
    ],
)
def test_planted_problems_refuse_wrong_parameters(args, kwargs, message):
    for make in (make_sparse_regression, make_sparse_classification):
        with pytest.raises(InvalidParameterError, match=f"^{re.escape(message)}"):
            make(*args, **kwargs)


# Rows for a model -------------------------------------------------------------------------------


def fitted_columns(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("y,size,color,on\n" + "1.5,2,red,true\n2.5,3,blue,false\n3.5,5,green,true\n")
    table = load_table(path, target="y")
    assert table.feature_names == ("size", "color=green", "color=red", "on")
    return table


def test_rows_are_read_by_name_in_any_order(tmp_path):
    table = fitted_columns(tmp_path)
    path = tmp_path / "new.csv"
    path.write_text("on,extra,color,size\nfalse,9,red,7\ntrue,9,blue,8\n")
    X, messages = load_rows(path, table.sources, table.feature_names)
    assert X.tolist() == [[7, 0, 1, 0], [8, 0, 0, 1]]
    assert messages == ()
    # The rows that it was fitted on come out as they were.
    same, _ = load_rows(tmp_path / "old.csv", table.sources, table.feature_names)
    assert torch.equal(same, table.X)
    # One row is enough, and only the columns that the features need.
    path.write_text("size\n4\n")
    assert load_rows(path, table.sources, ["size"])[0].tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "size,on\n1,true\n",
            "'new.csv' lacks 1 column: 'color', which the model uses.\n"
            "hint: Its columns are 'size', 'on'.",
        ),
        (
            "size,color,on\n1,black,true\n",
            "Column 'color' of 'new.csv' holds 'black', unknown to the model.\n"
            "hint: It knows 'blue', 'green', 'red'; drop these rows, or fit the model again.",
        ),
        (
            "size,color,on\nbig,red,true\n",
            "Column 'size' of 'new.csv' must hold numbers, sample 1 holds 'big'.\n"
            "hint: Replace the text by numbers.",
        ),
        (
            "size,color,on\n,red,true\n",
            "'new.csv' has 1 missing value: 'size' (1).\n"
            "hint: Drop these rows, or fill them first.",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, text, message):
    table = fitted_columns(tmp_path)
    path = tmp_path / "new.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_rows(path, table.sources, table.feature_names)
    assert str(caught.value) == message


def test_arrays_have_no_columns_to_read_rows_by(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"'rows\.npz' holds arrays, the model needs columns"):
        load_rows(path, (), ())


def test_columns_survive_json(tmp_path):
    from ellzero.datasets import SourceColumn

    table = fitted_columns(tmp_path)
    stored = json.loads(json.dumps([s.to_dict() for s in table.sources]))
    assert tuple(SourceColumn.from_dict(s) for s in stored) == table.sources


def test_planted_signals_have_the_bumps_and_the_noise_that_were_asked_for():
    y, signal, support = make_sparse_signal(20_000, 100, length=7, noise=0.3, seed=1)
    assert (np.flatnonzero(signal) == support).all()
    words = "".join("1" if s else "0" for s in signal != 0)
    assert [len(run) for run in words.split("0") if run] == [7] * 100
    assert (y - signal).std() == pytest.approx(0.3, rel=0.02)
    peaks = np.abs(signal[support]).reshape(100, 7)
    # The middle sample is at the height, the first at a half plus half a sine of pi / 14.
    assert ((peaks[:, 3] >= 1.5) & (peaks[:, 3] <= 2.5)).all()
    assert peaks[:, 0] == pytest.approx(peaks[:, 3] * (0.5 + 0.5 * np.sin(np.pi / 14)), rel=1e-12)
    assert {-1.0, 1.0} == set(np.sign(signal[support]))
    assert (make_sparse_signal(50, 3, length=5, nonnegative=True).signal >= 0).all()
    again = make_sparse_signal(20_000, 100, length=7, noise=0.3, seed=1)
    assert (again.y == y).all()
    tight = make_sparse_signal(11, 3, length=3, noise=0.0)
    assert (tight.y != 0).tolist() == ([True] * 3 + [False]) * 2 + [True] * 3
    assert not make_sparse_signal(5, 0, noise=0.0).y.any()
    with pytest.raises(InvalidParameterError) as error:
        make_sparse_signal(10, 3, length=3)
    assert error.value.message == "3 bumps of 3 samples need 11 samples, got 10."
