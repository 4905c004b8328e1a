"""Arrays of samples: npz files, and MNIST from a folder or a server."""

import gzip
import hashlib
import os
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from ellzero.datasets import (
    data_folder,
    load_arrays,
    load_mnist,
    load_table,
    make_arrays,
    mnist,
    split,
)
from ellzero.errors import DataError, InvalidParameterError

LAYOUT = "The layout is x_train, y_train, x_test, y_test, one sample for each first index."


def parts(n_train=12, n_test=6, shape=(4, 4), dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n_train + n_test, *shape)).astype(dtype)
    y = np.arange(n_train + n_test) % 3
    return {
        "x_train": x[:n_train],
        "y_train": y[:n_train],
        "x_test": x[n_train:],
        "y_test": y[n_train:],
    }


@pytest.fixture
def write(tmp_path):
    def call(name="a.npz", **changes):
        given = {**parts(), **changes}
        np.savez(tmp_path / name, **{k: v for k, v in given.items() if v is not None})
        return tmp_path / name

    return call


def test_images_get_their_channels_in_front(write):
    arrays = load_arrays(write())
    given = parts()
    assert arrays.sample_shape == (1, 4, 4)
    assert (arrays.n_train, arrays.n_test, arrays.n_features) == (12, 6, 16)
    assert arrays.X_train.dtype == torch.uint8
    assert np.array_equal(arrays.X_test[:, 0].numpy(), given["x_test"])
    assert arrays.y_train.tolist() == given["y_train"].tolist()
    color = parts(shape=(5, 6, 3))
    arrays = load_arrays(write(**color))
    assert arrays.sample_shape == (3, 5, 6)
    assert np.array_equal(arrays.X_train[2, :, 1, 3].numpy(), color["x_train"][2, 1, 3])


def test_floating_samples_stay_as_they_are(write):
    given = parts(shape=(4, 5, 3), dtype=np.float64)
    arrays = load_arrays(write(**given))
    assert np.array_equal(arrays.X_train.numpy(), given["x_train"])
    assert arrays.X_train.dtype == torch.float64
    integers = make_arrays("a", parts(dtype=np.int32))
    assert integers.X_train.dtype == torch.float32


def test_labels_become_codes_of_their_values():
    given = parts()
    for part in ("y_train", "y_test"):
        given[part] = np.array([7, -1, 30])[given[part]]
    arrays = make_arrays("a", given)
    assert arrays.class_names == ("-1", "7", "30")
    names = np.array(arrays.class_names)[arrays.y_test.numpy()]
    assert names.tolist() == [str(v) for v in given["y_test"]]
    column = {**given, "y_train": given["y_train"][:, None]}
    assert torch.equal(make_arrays("a", column).y_train, arrays.y_train)


def test_floating_targets_are_a_regression():
    given = parts()
    numbers = {**given, "y_train": given["y_train"] / 2, "y_test": given["y_test"] / 2}
    arrays = make_arrays("a", numbers)
    assert (arrays.task, arrays.class_names, arrays.y_train.dtype) == (
        "regression",
        None,
        torch.float64,
    )
    assert make_arrays("a", given, task="regression").y_test.tolist() == given["y_test"].tolist()


def test_tensors_are_taken_too_and_copied():
    given = {k: torch.from_numpy(v.copy()) for k, v in parts().items()}
    arrays = make_arrays("a", given)
    given["x_train"].zero_()
    assert np.array_equal(arrays.X_train.numpy(), parts()["x_train"])


def test_equal_data_have_equal_fingerprints(write):
    one = load_arrays(write("one.npz")).fingerprint
    assert load_arrays(write("two.npz")).fingerprint == one
    other = parts()["x_test"].copy()
    other[0, 0, 0] ^= 1
    assert load_arrays(write("three.npz", x_test=other)).fingerprint != one
    assert load_arrays(write("four.npz", y_test=parts()["y_test"][::-1])).fingerprint != one


WRONG = [
    (
        {"x_test": None},
        "'a.npz' has no array 'x_test'; it holds 'x_train', 'y_train', 'y_test'.",
        LAYOUT,
    ),
    (
        {"y_train": np.zeros(11, int)},
        "'x_train' and 'y_train' of 'a.npz' must have the same number of samples, got 12 and 11.",
        LAYOUT,
    ),
    (
        {"x_test": np.zeros((6, 4, 5))},
        "The samples of 'a.npz' must have one shape, got (4, 4) for training and (4, 5) for "
        "testing.",
        LAYOUT,
    ),
    (
        {"x_train": np.zeros(12)},
        "'x_train' of 'a.npz' must have two axes or more and 'y_train' one, got shapes (12,) and "
        "(12,).",
        LAYOUT,
    ),
    (
        {"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)},
        "'y_train' of 'a.npz' has a single class.",
        "Give data in which the target varies.",
    ),
    (
        {"y_test": np.array([0, 1, 2, 0, 1, 9])},
        "'y_test' of 'a.npz' has a class that 'y_train' lacks: 9.",
        "Leave its samples out, or put some into the training part.",
    ),
    (
        {"y_train": np.arange(12)},
        "'y_train' of 'a.npz' has 12 classes in 12 samples, too many.",
        "Give numbers to predict as floating-point numbers.",
    ),
    (
        {"x_train": np.full((12, 4, 4), np.nan)},
        "'x_train' of 'a.npz' has 192 missing or infinite values.",
        "Drop these samples, or fill them first.",
    ),
    (
        {"y_train": np.array(list("abcabcabcabc"))},
        "'y_train' of 'a.npz' must hold numbers, got the type <U1.",
        "Turn it into numbers, such as one code for each class.",
    ),
    (
        {"x_train": np.zeros((1, 4, 4)), "y_train": np.zeros(1, int)},
        "'a.npz' must have at least two training samples with an entry, got shape (1, 4, 4).",
        LAYOUT,
    ),
    (
        {"y_train": np.array([None] * 12)},
        "'a.npz' holds Python objects; arrays of numbers are needed.",
        "Write it again by `numpy.savez`.",
    ),
]


@pytest.mark.parametrize(("changes", "message", "hint"), WRONG)
def test_wrong_arrays_are_one_sentence(write, changes, message, hint):
    with pytest.raises(DataError) as caught:
        load_arrays(write(**changes))
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_files_that_are_no_archive_are_refused(tmp_path, write):
    again = "Write it again by `numpy.savez`."
    path = tmp_path / "b.npz"
    path.write_bytes(b"not an archive")
    for load in (load_arrays, load_table):
        with pytest.raises(DataError) as caught:
            load(path)
        assert (caught.value.message, caught.value.hint) == (
            "'b.npz' cannot be read; arrays of numbers are needed.",
            again,
        )
    np.save(tmp_path / "c.npy", np.zeros(3))
    (tmp_path / "c.npy").rename(path)
    with pytest.raises(DataError, match=r"'b\.npz' is not an archive"):
        load_arrays(path)
    path.write_bytes(write().read_bytes()[:-30])
    with pytest.raises(DataError, match=r"'b\.npz' cannot be read"):
        load_arrays(path)
    (tmp_path / "t.csv").write_text("a,y\n1,2\n")
    with pytest.raises(DataError, match=r"'t\.csv' is not an \.npz file"):
        load_arrays(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"No file .*'. Did you mean 'a.npz'?"):
        load_arrays(tmp_path / "aa.npz")


def test_an_archive_is_a_table_with_a_test_part_of_its_own(write):
    given = parts()
    for part in ("x_train", "x_test"):
        given[part][:, 1, 2] = 7  # dropped, for it is constant
    table = load_table(write(**given))
    assert table.n_train == 12
    assert len(table.feature_names) == 15
    assert "x[1,2]" not in table.feature_names
    assert table.messages == ("Dropped 1 constant column: 'x[1,2]'.",)
    divided = split(table, test_size=0.9, seed=5)
    assert divided.train_rows.tolist() == list(range(12))
    flat = np.delete(given["x_train"].reshape(12, 16).astype(float), 6, axis=1)
    assert np.allclose(divided.X_train.numpy(), (flat - flat.mean(0)) / flat.std(0), atol=1e-12)
    with pytest.raises(InvalidParameterError) as caught:
        load_table(write(), target="y")
    assert caught.value.message == "`target` cannot name a column of 'a.npz', got 'y'."


def idx(array):
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_idx_files_are_parsed_as_they_are_defined():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(mnist.parse_idx(idx(array)), array)
    raw = idx(array)
    for wrong in (b"", raw[:3], raw[:10], raw[:-1], raw + b"x", b"\0\0\x0d" + raw[3:]):
        with pytest.raises(ValueError, match="idx"):
            mnist.parse_idx(wrong)


@contextmanager
def serving(files):
    """Serve bytes by path on this machine; yields the address and what was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            blob = files.get(self.path)
            self.send_response(404 if blob is None else 200)
            self.send_header("Content-Length", str(len(blob or b"")))
            self.end_headers()
            self.wfile.write(blob or b"")

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def tiny(monkeypatch):
    """Four tiny original files, their hashes in the place of the real ones."""
    given = parts(shape=(28, 28))
    files, served = {}, {}
    for name, (file, _) in mnist.FILES.items():
        raw = idx(given[name])
        files[name] = (file, hashlib.sha256(raw).hexdigest())
        served[file] = gzip.compress(raw)
    monkeypatch.setattr(mnist, "FILES", files)
    return given, served


def at(folder, served):
    return {f"/{folder}/{file}": blob for file, blob in served.items()}


def test_mnist_is_downloaded_once_and_verified(tiny, tmp_path):
    given, served = tiny
    with serving(at("good", served)) as (address, asked):
        arrays = load_mnist(tmp_path / "cache", mirrors=[f"{address}/none/", f"{address}/good/"])
        # The first mirror lacks the files: it was asked for one only.
        assert len(asked) == 5
    assert np.array_equal(arrays.X_train[:, 0].numpy(), given["x_train"])
    assert arrays.y_test.tolist() == given["y_test"].tolist()
    assert arrays.name == "mnist"
    host = address.removeprefix("http://")
    path = tmp_path / "cache" / "mnist.npz"
    assert arrays.messages == (f"Downloaded MNIST from {host} to '{path}'.",)
    assert [p.name for p in path.parent.iterdir()] == ["mnist.npz"]
    again = load_mnist(tmp_path / "cache", mirrors=[])
    assert (again.fingerprint, again.messages) == (arrays.fingerprint, ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda blob: gzip.compress(gzip.decompress(blob)[:-1] + b"\0"), "differs from the orig"),
        (lambda blob: blob[:-20], "ended before the end-of-stream"),
        (lambda blob: b"<html>", "Not a gzipped file"),
        (lambda blob: None, "Not Found"),
    ],
)
def test_a_wrong_download_leaves_nothing(tiny, tmp_path, change, reason):
    served = dict(tiny[1])
    file = mnist.FILES["y_test"][0]
    served[file] = change(served[file])
    folder = tmp_path / "cache"
    with serving(at("bad", served)) as (address, _), pytest.raises(DataError) as caught:
        load_mnist(folder, mirrors=[f"{address}/bad/"])
    assert caught.value.message.startswith(
        f"MNIST is not in '{folder}' and cannot be downloaded ({address.split('//')[1]}: "
    )
    assert reason in caught.value.message
    assert caught.value.hint == (
        "Give the path of an `mnist.npz` in place of `mnist`, or put it into that folder; "
        "`--data-dir` and `ELLZERO_DATA` name another folder."
    )
    assert not folder.exists()


def test_without_a_network_one_sentence_says_what_to_do(tmp_path):
    with serving({}) as (address, _):
        pass  # nobody listens there any more
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path, mirrors=[f"{address}/"])
    assert "Connection refused" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_folder_is_looked_for_in_order(tmp_path, monkeypatch, write):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("ELLZERO_DATA", raising=False)
    assert data_folder() == tmp_path / "x" / "ellzero"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "ellzero"
    monkeypatch.setenv("ELLZERO_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder("mine") == Path("mine")
    write("mnist.npz")
    assert load_mnist().sample_shape == (1, 4, 4)
    assert load_table("mnist").n_train == 12
    monkeypatch.setenv("ELLZERO_DATA", str(write("other.npz", **parts(shape=(5, 4)))))
    assert load_mnist().sample_shape == (1, 5, 4)
    with pytest.raises(DataError, match="for MNIST"):
        load_mnist(tmp_path / "no.npz")


@pytest.mark.slow
def test_the_hashes_are_those_of_the_original_files():
    if not os.environ.get("ELLZERO_DATA"):
        pytest.skip("ELLZERO_DATA names no folder with mnist.npz")
    arrays = load_mnist(mirrors=[])
    assert (arrays.n_train, arrays.n_test, arrays.sample_shape) == (60_000, 10_000, (1, 28, 28))
    given = {
        "x_train": arrays.X_train[:, 0],
        "y_train": arrays.y_train,
        "x_test": arrays.X_test[:, 0],
        "y_test": arrays.y_test,
    }
    for name, (_, digest) in mnist.FILES.items():
        assert hashlib.sha256(idx(given[name].numpy())).hexdigest() == digest
