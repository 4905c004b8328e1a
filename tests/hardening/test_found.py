"""Faults that fuzzing, killing and reading found: each has a test, and its words are pinned."""

import json

import numpy as np
import pytest
import torch

import ellzero
from ellzero.datasets import load_arrays
from ellzero.datasets.arrays import read_npy
from ellzero.errors import DataError, EllzeroError, InvalidParameterError, ModelFileError
from ellzero.fitting import FitSettings
from ellzero.language.compress import compress
from ellzero.models import SavedModel, load_model, save_model
from ellzero.nn.tickets.storage import Folder
from ellzero.storage import read_model_file, to_json
from ellzero.training import TrainSettings, recertify
from ellzero.validation import check_real, check_seed


def _says(action, message, hint=None, kind=EllzeroError):
    with pytest.raises(kind) as caught:
        action()
    assert caught.value.message == message
    if hint is not None:
        assert caught.value.hint == hint


def test_names_with_breaks_stay_on_one_line():
    error = DataError("No 'a\nb\x1b[31m'.", "Drop\tit.")
    assert (error.message, error.hint) == ("No 'a\\nb\\x1b[31m'.", "Drop\\tit.")
    assert DataError("Grün ist 'é'.").message == "Grün ist 'é'."


def test_seeds_that_no_generator_takes():
    assert check_seed(2**32 - 1) == 2**32 - 1
    for make in (check_seed, lambda s: TrainSettings(seed=s), lambda s: FitSettings("x", seed=s)):
        _says(
            lambda make=make: make(2**64),
            "`seed` must be an integer below 2^32, got 18446744073709551616.",
            "Give a smaller one.",
        )


def test_integers_beyond_float64_are_no_numbers():
    _says(lambda: check_real("ridge", 10**400), "`ridge` must be a finite number, got inf.")


def test_values_nested_too_deeply_are_not_written():
    deep = []
    for _ in range(5000):
        deep = [deep]
    _says(
        lambda: to_json(deep, "model"),
        "`model` must be a plain value that JSON can hold, got one nested too deeply.",
        "Keep lists and dictionaries a few levels deep.",
        InvalidParameterError,
    )


def test_devices_without_end_are_no_model_files():
    _says(
        lambda: read_model_file("/dev/zero"),
        "'/dev/zero' is not a file.",
        "Give the path of the model file itself.",
        ModelFileError,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (2**40,)}, "`hidden` must be below 2^31, got 1099511627776."),
        ({"model": 3}, "`model` must be text, got int."),
        ({"task": "x"}, "`task` must be one of 'classification', 'regression', got 'x'."),
    ],
)
def test_settings_of_a_training_with_odd_types(options, message):
    _says(lambda: TrainSettings(**options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 3}, "`target` must be text, got int."),
        ({"always": (3,)}, "`always` must hold names of columns, got 3."),
        ({"task": "x"}, "`task` must be one of 'classification', 'regression', got 'x'."),
    ],
)
def test_settings_of_a_fit_with_odd_types(options, message):
    _says(lambda: FitSettings("t.csv", **options), message)


def _saved(path, **changes):
    values = {
        "kind": "least-squares",
        "params": {"coef": torch.tensor([0.0, 2.0])},
        "task": "regression",
        "feature_names": ("a", "b"),
        **changes,
    }
    save_model(path, SavedModel(**values))
    return load_model(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"claims": {"claim": "best"}}, "its claims are not those of a certificate."),
        ({"claims": {"checks": [{"passed": 1}]}}, "its claims are not those of a certificate."),
        (
            {"mean": torch.zeros(3), "scale": torch.ones(3)},
            "`mean` must hold a number for each of 2 features, got (3,) of torch.float32.",
        ),
        (
            {"params": {"coef": torch.tensor([0, 2])}},
            "The parameter 'coef' must be of floating-point numbers, got torch.int64.",
        ),
    ],
)
def test_models_that_could_not_be_used_are_refused(tmp_path, changes, reason):
    with pytest.raises(EllzeroError) as caught:
        _saved(tmp_path / "m", **changes)
    assert caught.value.message.endswith(reason)


def test_arrays_that_say_they_are_huge(tmp_path):
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 64)}\n"
    blob = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    (tmp_path / "a.npy").write_bytes(blob + b"\0" * 64)
    with pytest.raises(DataError, match=r"'a\.npy' (says that its array is larger|is not a)"):
        read_npy("a.npy", tmp_path / "a.npy", "Give another.")
    (tmp_path / "b.npy").write_bytes(b"PK\x05\x06" + b"\0" * 18)
    _says(
        lambda: read_npy("b.npy", tmp_path / "b.npy", "Give another."),
        "'b.npy' is not a .npy file.",
        "Give another.",
    )
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 no archive")
    _says(
        lambda: load_arrays(tmp_path / "c.npz"),
        "'c.npz' cannot be read; arrays of numbers are needed.",
        "Write it again by `numpy.savez`.",
    )


def test_numbers_that_networks_cannot_square():
    X = np.linspace(1, 2, 12).reshape(6, 2)
    y = X[:, 0] * 1e200
    for model in (ellzero.ConvexReLURegressor(0.1), ellzero.GatedReLURegressor(0.1)):
        _says(
            lambda model=model: model.fit(X, y),
            "`y` must have its largest magnitude between 1e-60 and 1e+60, got 1.90909e+200.",
            "Divide it by that: the objective is made of squares.",
        )


def test_gates_that_are_no_numbers():
    X = np.linspace(1, 2, 12).reshape(6, 2)
    _says(
        lambda: ellzero.GatedReLURegressor(0.1, gates="x").fit(X, X[:, 0]),
        "`gates` must hold numbers, got str.",
        "Pass one gate vector in a row.",
    )


def test_bounds_beyond_float64_bound_nothing():
    X = np.linspace(1, 2, 12).reshape(6, 2) ** 2
    free = ellzero.L0Regressor(1).fit(X, X[:, 0]).coef_
    held = ellzero.L0Regressor(1, upper=10**400, lower=-(10**400)).fit(X, X[:, 0]).coef_
    assert np.allclose(free, held)


def test_counts_and_losses_at_the_edge_of_float64():
    X = np.linspace(1, 2, 12).reshape(6, 2) ** 2
    _says(
        lambda: ellzero.L0PoissonRegressor(1).fit(X, np.full(6, 1e300)),
        "`y` must hold counts of at most 2^53, got 1e+300.",
        "Count in larger units.",
    )
    _says(
        lambda: ellzero.L0HuberRegressor(1).fit(X, X[:, 0] * 1e200),
        "`y` must have its largest magnitude up to 1e+150, got 3.64463e+200.",
        "Divide it by that: the loss is made of squares.",
    )
    # Constant counts have no deviance to explain.
    model = ellzero.L0PoissonRegressor(1).fit(X, np.full(6, 2.0))
    assert model.score(X, np.full(6, 2.0)) == 1.0
    assert model.score(X, np.full(6, 3.0)) == 0.0


def test_what_experiments_and_compressions_left_is_damaged(tmp_path):
    (tmp_path / "settings.json").write_bytes(b"\xff")
    _says(
        lambda: Folder(tmp_path, {"a": 1}),
        f"The settings of the experiment in '{tmp_path}' cannot be read.",
        "Give another folder, or delete this one.",
    )
    (tmp_path / "run.json").mkdir()
    _says(
        lambda: compress(
            torch.nn.Linear(4, 2), [torch.ones(8, 4)], density=0.5, checkpoint=tmp_path
        ),
        f"The checkpoint in '{tmp_path}' cannot be read or made: is a directory.",
        "Remove the folder, or name another one.",
    )


def test_certifying_a_network_runs_no_file_that_only_the_model_names(tmp_path):
    import hashlib

    from ellzero.nn import export

    path = tmp_path / "m.safetensors"
    export.save(torch.nn.Linear(4, 3), path)
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef build(): pass\n")
    content = {
        "format": "ellzero-claims", "schema_version": 1,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "settings": TrainSettings(model=f"{evil}:build", n_nonzero=(5,)).to_dict(),
        "data": {}, "inputs": {}, "n_nonzero": 5, "claims": {"value": 0.5},
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(content))
    _says(
        lambda: recertify(str(path), "iris"),
        f"'{path}' holds a network that a Python file builds, '{evil}:build', which is not run "
        "unasked.",
        f"If you trust that file, pass `--model {evil}:build`.",
        InvalidParameterError,
    )
    assert not (tmp_path / "ran").exists()
