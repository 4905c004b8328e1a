import dataclasses
import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import sklearn.datasets
import sklearn.linear_model
import torch
from safetensors import safe_open
from safetensors.torch import save

from ellzero._version import __version__
from ellzero.core.result import Certificate, Check, Claim, Proof
from ellzero.datasets import load_table, split
from ellzero.errors import (
    IncompatibleError,
    InvalidParameterError,
    ModelFileError,
    NonFiniteError,
)
from ellzero.models import SavedModel, load_model, predict, predict_proba, save_model

AGAIN = "Copy the file again, or train the model again."
FOREIGN = "Give a file that `ellzero train` wrote."


def make_model(**changes):
    generator = torch.Generator().manual_seed(0)
    coef = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    coef[0, 1] = coef[2, 3] = 0.0
    certificate = Certificate(
        Claim.STATIONARY, (Check("entries", 10.0, 10.0), Check("free", 0.0, float("inf")))
    )
    model = SavedModel(
        kind="linear-softmax",
        params={"intercept": torch.zeros(3, dtype=torch.float64), "coef": coef},
        task="classification",
        feature_names=("sepal length (cm)", "b", "ü", "d"),
        class_names=("x", "y", "z"),
        target_name="species",
        settings={"ridge": 0.1, "n_nonzero": 10, "names": None, "seed": 0, "test_size": 0.2},
        data={"name": "iris", "fingerprint": "abc", "n_samples": 150},
        claims={**certificate.to_dict(), "value": 0.3},
        mean=torch.randn(4, dtype=torch.float64, generator=generator),
        scale=torch.rand(4, dtype=torch.float64, generator=generator) + 0.5,
        proof=Proof(((0, 2), ()), ((), (2,)), [[0.5] * 15, [1 / 3] * 15]),
    )
    return dataclasses.replace(model, **changes)


def assert_same(left, right):
    for field in dataclasses.fields(SavedModel):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "params":
            assert list(a) == list(b)
            for name, tensor in a.items():
                assert b[name].dtype == tensor.dtype
                assert torch.equal(b[name], tensor)
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
        else:
            assert a == b, field.name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def parts(blob):
    length = struct.unpack("<Q", blob[:8])[0]
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def forge(path, *, header=None, metadata=None, checksum=False):
    """Rewrite a model file with a changed header or metadata."""
    content, data = parts(path.read_bytes())
    inside = json.loads(content["__metadata__"]["ellzero"])
    if metadata is not None:
        metadata(inside)
    if checksum:
        inside["checksum"] = reference_checksum(inside, content, data)
    content["__metadata__"]["ellzero"] = json.dumps(inside, sort_keys=True, separators=(",", ":"))
    if header is not None:
        header(content)
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def reference_checksum(metadata, header, data):
    """Return the documented checksum, written a second time."""
    rest = {k: v for k, v in metadata.items() if k != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    for name in sorted(set(header) - {"__metadata__"}):
        entry = header[name]
        start, stop = entry["data_offsets"]
        line = [name, entry["dtype"], entry["shape"], stop - start]
        text += json.dumps(line, separators=(",", ":")).encode() + data[start:stop]
    return hashlib.sha256(text).hexdigest()


def refuse(path, message, hint, kind=ModelFileError):
    with pytest.raises(kind) as caught:
        load_model(path)
    assert (caught.value.message, caught.value.hint) == (message, hint)


# Round trip -----------------------------------------------------------------------------------


def test_round_trip_keeps_everything(path):
    model = make_model()
    save_model(path, model)
    assert_same(load_model(path), model)
    assert load_model(path).n_nonzero == 10
    assert load_model(path).ellzero_version == __version__
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_of_every_dtype_and_layout(path, dtype):
    wide = torch.arange(24, dtype=dtype).reshape(4, 6)
    params = {"coef": wide.T[::2], "intercept": torch.tensor(2.0, dtype=dtype)}
    model = make_model(
        kind="module-mlp",
        params={**params, "shared": params["coef"], "empty": torch.zeros(0, 2, dtype=dtype)},
        architecture={"hidden": [6], "activation": "relu"},
        mean=None,
        scale=None,
        proof=None,
    )
    save_model(path, model)
    assert_same(load_model(path), model)


def test_proof_of_no_box_and_minimal_model(path):
    model = SavedModel("least-squares", {"coef": torch.ones(2)}, "regression", ("a", "b"))
    for proof in (None, Proof((), (), [])):
        save_model(path, dataclasses.replace(model, proof=proof))
        assert load_model(path).proof == proof


def test_file_is_plain_safetensors_with_the_documented_names(path):
    save_model(path, make_model())
    with safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert {"params/coef", "params/intercept", "scaler/mean", "scaler/scale"} < names
    inside = json.loads(metadata["ellzero"], parse_constant=lambda c: 1 / 0)
    assert (inside["format"], inside["schema_version"]) == ("ellzero-model", 1)
    assert inside["n_nonzero"] == 10
    content, data = parts(path.read_bytes())
    assert inside["checksum"] == reference_checksum(inside, content, data)


def test_same_model_gives_the_same_bytes(path):
    save_model(path, make_model())
    first = path.read_bytes()
    save_model(path, make_model())
    assert path.read_bytes() == first


def refuse_save(path, message, hint, **changes):
    with pytest.raises(InvalidParameterError) as caught:
        save_model(path, make_model(**changes))
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert not path.exists()


def test_wrong_models_are_not_saved(path):
    with pytest.raises(InvalidParameterError) as caught:
        save_model(path, make_model(kind="softmax"))
    assert caught.value.message == (
        "`kind` must be one of 'linear-softmax', 'logistic', 'least-squares', 'huber', 'poisson', "
        "'module-mlp', 'gated-relu', got 'softmax'. Did you mean 'linear-softmax'?"
    )
    refuse_save(path, "`params` must hold at least one tensor, got none.", None, params={})
    refuse_save(
        path,
        "`params` must hold 'coef' for the kind 'linear-softmax', got 'weight'.",
        "Name the coefficients 'coef' and the intercept 'intercept'.",
        params={"weight": torch.ones(3, 4)},
    )
    refuse_save(
        path, "`mean` and `scale` must be given together, got one of them.", None, mean=None
    )
    refuse_save(
        path,
        "`model.settings.ridge` must be a plain value that JSON can hold, got Tensor.",
        "Convert it to numbers, strings, lists or dictionaries.",
        settings={"ridge": torch.ones(1)},
    )
    with pytest.raises(NonFiniteError) as caught:
        save_model(path, make_model(params={"coef": torch.tensor([[0.0, float("nan")]])}))
    assert caught.value.message == (
        "The parameter 'coef' is NaN or infinite, so the model is not saved."
    )
    assert caught.value.hint == "Train it again with a smaller step or scaled data."
    below = path / "model"
    path.write_text("a file")
    with pytest.raises(InvalidParameterError) as written:
        save_model(below, make_model())
    assert written.value.message == f"Cannot write '{below}': not a directory."


# Files that cannot be loaded ------------------------------------------------------------------


def test_missing_files(path, tmp_path):
    refuse(path, f"No model file '{path}'.", "Check the path.")
    refuse(tmp_path, f"'{tmp_path}' is not a file.", "Give the path of the model file itself.")
    path.write_text("")
    refuse(path, f"'{path}' is empty.", AGAIN)
    refuse(path / "x", f"'{path / 'x'}' is not a file.", "Give the path of the model file itself.")
    refuse(
        "a\0b",
        "'a\\x00b' cannot be read: embedded null byte.",
        "Check the path and its permissions.",
    )


def test_truncated_file_is_said_wherever_it_is_cut(path):
    save_model(path, make_model())
    whole = path.read_bytes()
    for length in range(10, len(whole), 37):
        path.write_bytes(whole[:length])
        refuse(path, f"'{path}' is cut short: the end of the file is missing.", AGAIN)
    path.write_bytes(whole[:-1])
    refuse(path, f"'{path}' is cut short: the end of the file is missing.", AGAIN)
    path.write_bytes(whole + b"\0")
    refuse(path, f"'{path}' is damaged: its tensors cannot be read.", AGAIN)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


def test_foreign_files(path):
    message = f"'{path}' is not a model file."
    with open(path, "wb") as file:
        pickle.dump(Bomb(), file)
    refuse(path, message, FOREIGN)
    torch.save({"coef": torch.ones(2)}, path)
    refuse(path, message, FOREIGN)
    path.write_text("{" * 40)
    refuse(path, message, FOREIGN)
    deep = b"{" + b'"a":[' * 100_000
    path.write_bytes(struct.pack("<Q", len(deep)) + deep)
    refuse(path, message, FOREIGN)
    message = f"'{path}' is a safetensors file, but not an ellzero model."
    for metadata in (None, {"ellzero": "{}"}, {"ellzero": "[1]"}, {"format": "pt"}):
        path.write_bytes(save({"coef": torch.ones(2)}, metadata))
        refuse(path, message, FOREIGN)
    path.write_bytes(save({"coef": torch.ones(2)}, {"ellzero": "{"}))
    refuse(path, f"'{path}' is damaged: its settings cannot be read.", AGAIN)


@pytest.mark.parametrize(
    ("version", "words", "hint"),
    [
        (2, "a newer format, version 2", "Install a newer ellzero."),
        (0, "an older format, version 0", "Train the model again."),
    ],
)
def test_other_versions(path, version, words, hint):
    save_model(path, make_model())
    forge(path, metadata=lambda m: m.update(schema_version=version))
    message = f"'{path}' has {words}; this ellzero ({__version__}) reads version 1."
    refuse(path, message, hint)


def drop_tensor(header):
    del header["params/coef"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": lambda m: m.pop("schema_version")}, "it has no format version"),
        ({"metadata": lambda m: m.pop("kind")}, "the field 'kind' is missing or of a wrong type"),
        (
            {"metadata": lambda m: m.update(settings=[])},
            "the field 'settings' is missing or of a wrong type",
        ),
        ({"metadata": lambda m: m.update(tensors=[[]])}, "a name in it is not text"),
        ({"header": drop_tensor}, "the tensor 'params/coef' is missing"),
        (
            {"metadata": lambda m: m["params"].append("more"), "checksum": True},
            "the tensor 'params/more' is missing",
        ),
        (
            {"metadata": lambda m: m["settings"].update(ridge=0.2)},
            "its content does not match its checksum",
        ),
        (
            {"header": lambda h: h["params/coef"].update(shape=[4, 3])},
            "its content does not match its checksum",
        ),
    ],
)
def test_damaged_models(path, change, words):
    save_model(path, make_model())
    forge(path, **change)
    refuse(path, f"'{path}' is damaged: {words}.", AGAIN)


def test_forged_models_with_a_right_checksum(path):
    save_model(path, make_model())
    forge(path, metadata=lambda m: m.update(n_nonzero=5), checksum=True)
    refuse(path, f"'{path}' says 5 nonzero parameters, but holds 10.", AGAIN)
    save_model(path, make_model())
    forge(path, metadata=lambda m: m.update(task="magic"), checksum=True)
    refuse(
        path,
        f"'{path}' cannot be used: `task` must be one of 'classification', 'regression', "
        "got 'magic'.",
        AGAIN,
    )
    # A changed number in the weights, with the checksum of the changed file.
    save_model(path, make_model())
    forge(path, checksum=True)
    assert_same(load_model(path), make_model())


def test_changed_weight_is_noticed(path):
    save_model(path, make_model())
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)
    refuse(path, f"'{path}' is damaged: its content does not match its checksum.", AGAIN)


def test_two_hundred_hostile_files_raise_nothing_else(path):
    rng = np.random.default_rng(0)
    save_model(path, make_model())
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    header = struct.unpack("<Q", whole[:8].tobytes())[0]
    refused = 0
    for trial in range(200):
        if trial % 4 == 0:
            data = rng.integers(0, 256, rng.integers(0, 400), dtype=np.uint8).tobytes()
            if trial % 8 == 0:
                body = b"{" + data
                data = struct.pack("<Q", max(len(body) - 20, 0)) + body
        else:
            copy = whole.copy()
            places = rng.integers(0, 8 + header if trial % 4 < 3 else len(whole), 1 + trial % 3)
            copy[places] = rng.integers(0, 256, len(places))
            data = copy.tobytes()
        path.write_bytes(data)
        try:
            model = load_model(path)
        except ModelFileError:
            refused += 1
        else:  # a changed blank between two fields
            assert_same(model, make_model())
    assert refused >= 195


# Prediction -----------------------------------------------------------------------------------


def test_softmax_predicts_as_scikit_learn_on_raw_features(path):
    table = load_table("iris")
    parts = split(table)
    fit = sklearn.linear_model.LogisticRegression()
    fit.fit(parts.X_train.numpy(), parts.y_train.numpy())
    model = make_model(
        params={"coef": torch.tensor(fit.coef_), "intercept": torch.tensor(fit.intercept_)},
        feature_names=table.feature_names,
        mean=parts.mean,
        scale=parts.scale,
    )
    save_model(path, model)
    expected = fit.predict(((table.X - parts.mean) / parts.scale).numpy())
    predicted = predict(load_model(path), table.X)
    assert predicted.dtype == torch.int64
    assert predicted.tolist() == expected.tolist()


def test_logistic_and_least_squares():
    X = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
    coef = torch.tensor([1.0, -0.5], dtype=torch.float64)
    model = SavedModel(
        "least-squares",
        {"coef": coef, "intercept": torch.tensor(0.25, dtype=torch.float64)},
        "regression",
        ("a", "b"),
        mean=torch.tensor([1.0, 0.0], dtype=torch.float64),
        scale=torch.tensor([2.0, 1.0], dtype=torch.float64),
    )
    # ((x1 - 1) / 2) - x2 / 2 + 1/4, by hand.
    assert predict(model, X).tolist() == [-0.75, 3.25, -0.25]
    classes = dataclasses.replace(
        model, kind="logistic", task="classification", class_names=("no", "yes")
    )
    assert predict(classes, X).tolist() == [0, 1, 0]
    bare = dataclasses.replace(model, params={"coef": coef}, mean=None, scale=None)
    assert predict(bare, X).tolist() == [0.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("relu", torch.nn.ReLU),
        ("tanh", torch.nn.Tanh),
        ("sigmoid", torch.nn.Sigmoid),
        ("gelu", torch.nn.GELU),
        ("softplus", torch.nn.Softplus),
        ("identity", torch.nn.Identity),
    ],
)
def test_network_predicts_as_torch(path, name, layer):
    generator = torch.Generator().manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 5), layer(), torch.nn.Linear(5, 6), layer(), torch.nn.Linear(6, 3)
    )
    X = torch.randn(50, 4, generator=generator)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        expected = network(X)
    model = make_model(
        kind="module-mlp",
        params=dict(network.state_dict()),
        architecture={"hidden": [5, 6], "activation": name},
        mean=None,
        scale=None,
    )
    save_model(path, model)
    assert predict(load_model(path), X).tolist() == expected.argmax(1).tolist()


def test_predict_refuses_what_does_not_fit():
    model = make_model()
    for X, shape in ((torch.ones(2, 3), "(2, 3)"), (torch.ones(4), "(4,)")):
        with pytest.raises(InvalidParameterError) as caught:
            predict(model, X)
        assert caught.value.message == f"`X` must have shape (n_samples, 4), got {shape}."
        assert caught.value.hint == (
            "Give the features that the model was trained on, in the same order."
        )
    wrong = [
        {"params": {"coef": torch.ones(3, 5)}},
        {"params": {"coef": torch.ones(2, 4)}},
        {"params": {"coef": torch.ones(3, 4), "intercept": torch.ones(2)}},
        {"task": "regression", "class_names": None},
        {"kind": "module-mlp", "params": {"bias": torch.ones(3)}},
    ]
    for changes in wrong:
        with pytest.raises(IncompatibleError, match="do not form a model of kind"):
            predict(make_model(**changes), torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(IncompatibleError) as caught:
        predict(make_model(params={"coef": torch.ones(3, 5)}), torch.ones(2, 4))
    assert caught.value.message == (
        "The parameters do not form a model of kind 'linear-softmax' with 4 features: "
        "'coef' (3, 5)."
    )
    assert caught.value.hint == (
        "Check the kind, the feature names and the class names of the model."
    )


def test_probabilities_agree_with_scikit_learn():
    X, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    for target, kind in ((y, "logistic"), ((y + (X[:, 0] > 1)), "linear-softmax")):
        fitted = sklearn.linear_model.LogisticRegression(max_iter=1000).fit(X, target)
        flat = kind == "logistic"
        params = {
            "coef": torch.from_numpy(fitted.coef_[0] if flat else fitted.coef_),
            "intercept": torch.from_numpy(fitted.intercept_[0:1] if flat else fitted.intercept_),
        }
        names = tuple(map(str, range(30)))
        classes = tuple(map(str, fitted.classes_))
        model = SavedModel(kind, params, "classification", names, classes)
        found = predict_proba(model, torch.from_numpy(X))
        np.testing.assert_allclose(found.numpy(), fitted.predict_proba(X), rtol=1e-9, atol=1e-15)
        assert bool((predict(model, torch.from_numpy(X)).numpy() == fitted.predict(X)).all())
        assert torch.isfinite(predict_proba(model, torch.from_numpy(1e6 * X))).all()


def test_counts_are_the_exponential_of_the_scores():
    params = {"coef": torch.tensor([0.0, 2.0]), "intercept": torch.tensor(1.0)}
    model = SavedModel("poisson", params, "regression", ("a", "b"))
    X = torch.tensor([[9.0, 0.5], [9.0, -1.0]])
    torch.testing.assert_close(predict(model, X), torch.tensor([2.0, -1.0]).exp())
    with pytest.raises(IncompatibleError) as caught:
        predict_proba(model, X)
    assert str(caught.value) == (
        "Probabilities are of models of classes, got a model of kind 'poisson'.\n"
        "hint: Ask for its predictions."
    )
