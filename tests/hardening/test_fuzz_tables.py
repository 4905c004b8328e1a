"""Tables, arrays, images and series from files, damaged or odd."""

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ellzero.cli.denoise import _read
from ellzero.cli.images import read_image
from ellzero.datasets import SourceColumn, load_arrays, load_rows, load_table, split
from ellzero.datasets.mnist import parse_idx
from ellzero.fitting import FitSettings, fit_table, read_fit_data
from ellzero.signal import SparseSmooth
from tests.hardening.fuzz import attempt, damage, fuzz

CELLS = [
    "1", "2", "0", "-3.5", "1e400", "1e-400", "nan", "NaN", "inf", "-inf", "", " ", "?", "NA", "a",
    "b", "é", "true", "False", "2020-01-01", "12:30", "0x10", "1_000", "1,5", '"x, y"', '"', "''",
    "\ufeff", "\u202e", "99999999999999999999", "9223372036854775807", "-9223372036854775808",
    "1.0", "01", "+1", "a\tb", '"a\nb"', "\\N", "#", "%", "x" * 5000, "1e5", "\u0661", "٣",
]  # fmt: skip
SOURCES = [SourceColumn("x"), SourceColumn("c", "text", ("a", "b")), SourceColumn("z", "boolean")]


def _csv(rng):
    """Return a table as text: mostly a good one, with odd cells here and there."""
    n_rows, n_columns = rng.choice([0, 1, 2, 3, 8, 30]), rng.choice([1, 2, 3, 4])
    separator = rng.choice([",", ",", ",", ";", "\t"])
    end = rng.choice(["\n", "\n", "\r\n", "\r"])
    odd = rng.choice([0.0, 0.0, 0.02, 0.2, 1.0])
    names = rng.sample(
        ["x", "c", "z", "y", "x", "", "1", "a b", "é", '"q"', "__index_level_0__"], n_columns
    )
    kinds = [rng.choice(["int", "real", "text", "bool"]) for _ in names]
    good = {
        "int": lambda: str(rng.randrange(4)), "real": lambda: f"{rng.gauss(0, 1):.3f}",
        "text": lambda: rng.choice("ab"), "bool": lambda: rng.choice(["true", "false"]),
    }  # fmt: skip
    lines = [separator.join(names)]
    for _ in range(n_rows):
        cells = [rng.choice(CELLS) if rng.random() < odd else good[k]() for k in kinds]
        if rng.random() < odd / 10:
            cells = cells[:-1] if rng.random() < 0.5 else [*cells, "1"]
        lines.append(separator.join(cells))
    return (end.join(lines) + rng.choice(["", end, end + end])).encode()


def _use(rng, path):
    table = attempt(lambda: load_table(path, target=rng.choice(["y", "x", "c"])))
    if table is not None:
        attempt(lambda: split(table))
        attempt(lambda: split(table, stratify=True))
    features = ["x", "c=b", "z"][: rng.randrange(1, 4)]
    attempt(lambda: load_rows(path, SOURCES, features))
    attempt(lambda: _read(path, rng.choice([None, "x", "y"])))


@fuzz(100, 3000)
def test_odd_and_damaged_csv(rng, folder):
    path = folder / rng.choice(["t.csv", "t.csv", "t.tsv"])
    blob = _csv(rng)
    path.write_bytes(damage(rng, blob) if rng.random() < 0.4 else blob)
    _use(rng, path)


def _column(rng, n):
    kind = rng.randrange(14)
    rows = [rng.randrange(3) for _ in range(n)]
    plain = [
        rows, [float(r) for r in rows], [str(r) for r in rows], [bool(r) for r in rows],
        [None] * n, [None, *rows[1:]], [float("nan"), *rows[1:]], [[r] for r in rows],
        [{"a": r} for r in rows], [bytes([r]) for r in rows],
    ]  # fmt: skip
    if kind < len(plain):
        return pa.array(plain[kind])
    typed = {
        10: pa.decimal128(20, 3), 11: pa.date32(), 12: pa.uint64(), 13: pa.float16(),
    }  # fmt: skip
    if kind == 13:
        return pa.array(np.array(rows, dtype=np.float16))
    return (
        pa.array(rows).cast(pa.int32()).cast(typed[kind])
        if kind != 12
        else pa.array(rows, typed[12])
    )


@fuzz(60, 2000)
def test_odd_and_damaged_parquet(rng, folder):
    n = rng.choice([0, 1, 3, 20])
    names = rng.sample(["x", "c", "z", "y", "é", "a\nb", "", "\x1b[31m"], rng.randrange(1, 5))
    try:
        table = pa.table({name: _column(rng, n) for name in names})
    except (pa.ArrowException, IndexError):
        return
    if rng.random() < 0.1:
        table = table.append_column(names[0], table.column(0))
    out = io.BytesIO()
    pa.parquet.write_table(table, out)
    path = folder / "t.parquet"
    blob = out.getvalue()
    path.write_bytes(damage(rng, blob) if rng.random() < 0.5 else blob)
    _use(rng, path)


def _array(rng):
    kind = rng.choice(["u1", "i8", "f4", "f8", "f2", "c16", "?", "U3", "O", "M8[s]", "V4", ">f8"])
    shape = tuple(rng.choice([0, 1, 2, 6]) for _ in range(rng.randrange(4)))
    values = np.zeros(shape, dtype=object if kind == "O" else kind)
    if kind in ("u1", "i8", "f4", "f8", ">f8") and values.size:
        values[...] = np.resize(np.arange(values.size) % 3, shape)
        if kind[-2] == "f" and rng.random() < 0.2:
            values.flat[0] = rng.choice([np.nan, np.inf, 1e30])
    return values


def _npy(rng):
    """Return an array file; sometimes with a header that lies about what follows."""
    out = io.BytesIO()
    if rng.random() < 0.8:
        np.save(out, _array(rng), allow_pickle=True)
        return out.getvalue()
    shape = rng.choice([(2**40,), (2**62, 4), (-1,), (3, 2**33), "x", (2.5,), (True,)])
    text = str(
        {
            "descr": rng.choice(["<f8", "|O", "<f9", [("a", "<f8")]]),
            "fortran_order": False,
            "shape": shape,
        }
    )
    text = rng.choice([text, text, "{" * 300, "__import__('os')", "[" * 5000, ""]) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 64


@fuzz(100, 3000)
def test_odd_and_damaged_archives_of_arrays(rng, folder):
    path = folder / "t.npz"
    kinds = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]
    out = io.BytesIO()
    good = {
        "x_train": np.arange(24.0).reshape(8, 3), "y_train": np.arange(8) % 2,
        "x_test": np.ones((2, 3)), "y_test": np.array([0, 1]),
    }  # fmt: skip
    with zipfile.ZipFile(out, "w", rng.choice(kinds)) as archive:
        for name, array in good.items():
            if rng.random() < 0.05:
                continue
            blob = io.BytesIO()
            np.save(blob, array)
            data = blob.getvalue() if rng.random() < 0.7 else _npy(rng)
            if rng.random() < 0.05:
                data = b"no array"
            archive.writestr(rng.choice([f"{name}.npy"] * 9 + [name]), data)
    blob = out.getvalue()
    path.write_bytes(damage(rng, blob) if rng.random() < 0.4 else blob)
    attempt(lambda: load_arrays(path))
    attempt(lambda: load_table(path))


@fuzz(100, 3000)
def test_odd_and_damaged_images(rng, folder):
    suffix = rng.choice([".npy", ".npy", ".csv", ".tsv"])
    path = folder / f"i{suffix}"
    blob = _npy(rng)
    if suffix != ".npy":
        odd = rng.choice([0.0, 0.01, 0.2])
        n = rng.choice([0, 1, 3, 6])
        rows = [
            [
                rng.choice(CELLS) if rng.random() < odd else f"{rng.gauss(0, 1):.2f}"
                for _ in range(n)
            ]
            for _ in range(rng.choice([0, 1, 4]))
        ]
        blob = "\n".join(("\t" if suffix == ".tsv" else ",").join(r) for r in rows).encode()
    if rng.random() < 0.05:
        out = io.BytesIO()
        np.savez(out, a=np.ones((2, 2)))
        blob = out.getvalue()
    path.write_bytes(damage(rng, blob) if rng.random() < 0.4 else blob)
    read = attempt(lambda: read_image(path))
    if read is not None and read[0].size < 100:
        attempt(lambda: SparseSmooth(1.0, penalty=0.5, graph="grid", time_limit=0.5).fit(read[0]))


@fuzz(200, 3000)
def test_idx_files_are_arrays_or_wrong_values(rng, folder):
    n = rng.randrange(5)
    shape = [rng.choice([0, 1, 3, 2**31, 2**32 - 1]) for _ in range(n)]
    raw = bytes([0, 0, 8, n]) + b"".join(s.to_bytes(4, "big") for s in shape) + bytes(9)
    attempt(lambda: parse_idx(damage(rng, raw) if rng.random() < 0.5 else raw), also=ValueError)


@fuzz(8, 300)
def test_fits_of_odd_tables(rng, folder):
    path = folder / "t.csv"
    path.write_bytes(_csv(rng))
    options = {
        "data": str(path), "target": rng.choice(["y", "x"]), "cv": rng.choice([0, 2, 5]),
        "ridge": rng.choice([(0.0,), (0.1,), (1e300,)]),
        "n_nonzero": rng.choice([None, (1,), (1, 99), (0,)]),
        "always": rng.choice([(), (), ("x",), ("nope",)]), "nonnegative": rng.random() < 0.2,
        "weights": rng.choice([None, None, "x"]),
        "loss": rng.choice([None, None, "poisson", "huber", "logistic", "squared"]),
        "exact": rng.random() < 0.2, "time_limit": 1.0, "test_size": rng.choice([0.0, 0.5]),
    }  # fmt: skip

    def run():
        settings = FitSettings(**options)
        data = read_fit_data(settings)
        found = fit_table(settings, data=data)
        json.dumps(found.chosen.row)

    attempt(run, hint=False)
