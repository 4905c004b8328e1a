"""Python files of a user: what they may define, and what is said when they are wrong."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ellzero.errors import DataError, InvalidParameterError
from ellzero.training.modules import build_module, file_digest, is_function, load_data

GOOD = """
from torch import nn

def build(n_inputs, n_outputs):
    return nn.Linear(n_inputs, n_outputs)

def fixed():
    return nn.Linear(4, 3)

def sized(n_inputs=2, n_outputs=2, bias=False):
    return nn.Linear(n_inputs, n_outputs, bias=bias)

class Net(nn.Linear):
    pass

def three(a, b, c):
    return nn.Linear(a, b)

def one(n_inputs):
    return nn.Linear(n_inputs, 1)

def fails(n_inputs, n_outputs):
    raise ValueError(f"no way with {n_inputs}.\\nmore")

def leaves(n_inputs, n_outputs):
    raise SystemExit(1)

def empty(n_inputs, n_outputs):
    return nn.ReLU()

def frozen(n_inputs, n_outputs):
    return nn.Linear(n_inputs, n_outputs).requires_grad_(False)

def a_class(n_inputs, n_outputs):
    return nn.Linear

def nothing(n_inputs, n_outputs):
    pass

number = 3
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(GOOD)


@pytest.mark.parametrize(
    ("name", "shape", "bias"),
    [
        ("build", (3, 5), True),
        ("fixed", (3, 4), True),
        ("sized", (3, 5), False),
        ("Net", (3, 5), True),
    ],
)
def test_functions_and_classes_make_networks(name, shape, bias):
    made = build_module(f"net.py:{name}", 5, 3)
    assert tuple(made.weight.shape) == shape
    assert (made.bias is not None) == bias


MODULE = "Return a `torch.nn.Module` with weights to train."
WRONG = [
    (
        "net.py",
        "`--model` must be a Python file, a colon and a name, got 'net.py'.",
        "Write `--model net.py:build`.",
    ),
    (
        "net.txt:build",
        "`--model` must be a Python file, a colon and a name, got 'net.txt:build'.",
        "Write `--model net.py:build`.",
    ),
    ("no.py:build", "No Python file 'no.py'.", "Check the path."),
    (
        "net.py:bild",
        "'net.py' has no 'bild'. Did you mean 'build'?",
        "Name a function of the file: `--model net.py:NAME`.",
    ),
    (
        "net.py:number",
        "'number' of 'net.py' must be a function, got int.",
        "Define a function that returns it.",
    ),
    (
        "net.py:three",
        "`three` of 'net.py' must take (n_inputs, n_outputs) or nothing, got (a, b, c).",
        "Give its other arguments defaults.",
    ),
    (
        "net.py:one",
        "`one` of 'net.py' must take (n_inputs, n_outputs) or nothing, got (n_inputs).",
        "Give its other arguments defaults.",
    ),
    (
        "net.py:fails",
        "`fails` of 'net.py' failed: line 23: ValueError: no way with 5.",
        "Correct the function.",
    ),
    (
        "net.py:leaves",
        "`leaves` of 'net.py' failed: line 26: SystemExit: 1.",
        "Correct the function.",
    ),
    ("net.py:empty", "The network of `empty` in 'net.py' has no parameter to train.", MODULE),
    ("net.py:frozen", "The network of `frozen` in 'net.py' has no parameter to train.", MODULE),
    (
        "net.py:a_class",
        "`a_class` of 'net.py' must return a network, got the class Linear.",
        MODULE,
    ),
    ("net.py:nothing", "`nothing` of 'net.py' must return a network, got NoneType.", MODULE),
]


@pytest.mark.parametrize(("text", "message", "hint"), WRONG)
def test_wrong_networks_are_one_sentence(text, message, hint):
    with pytest.raises(InvalidParameterError) as caught:
        build_module(text, 5, 3)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:\n", "'bad.py' cannot be run: line 1: invalid syntax."),
        (
            "import no_such_module\n",
            "'bad.py' cannot be run: line 1: ModuleNotFoundError: No module named "
            "'no_such_module'.",
        ),
        ("x = 1\n1 / 0\n", "'bad.py' cannot be run: line 2: ZeroDivisionError: division by zero."),
        ("raise SystemExit\n", "'bad.py' cannot be run: line 1: SystemExit."),
    ],
)
def test_files_that_cannot_be_run_are_one_sentence(text, message):
    Path("bad.py").write_text(text)
    with pytest.raises(InvalidParameterError) as caught:
        build_module("bad.py:build", 5, 3)
    assert (caught.value.message, caught.value.hint) == (message, "Correct the file.")
    assert not list(Path().rglob("*.pyc"))


def test_a_file_may_import_what_lies_beside_it():
    Path("sub").mkdir()
    Path("sub/parts_of_mine.py").write_text("from torch.nn import Linear as Layer\n")
    Path("sub/net.py").write_text("from parts_of_mine import Layer\nbuild = Layer\n")
    assert isinstance(build_module("sub/net.py:build", 5, 3), nn.Linear)


def test_data_come_as_a_tuple_or_by_name():
    Path("d.py").write_text(
        "import torch\nx, y = torch.eye(4), torch.tensor([0, 1, 0, 1])\n"
        "def four(): return x, y, x[:2], y[:2]\n"
        "def named(): return {'x_train': x, 'y_train': y, 'x_test': x[:2], 'y_test': y[:2]}\n"
        "def two(): return x, y\n"
        "def misfit(): return x, y[:3], x, y\n"
    )
    one, two = load_data("d.py:four"), load_data("d.py:named")
    assert torch.equal(one.X_train, torch.eye(4))
    assert one.fingerprint == two.fingerprint
    assert one.name == "d.py:four"
    assert load_data("d.py:four", "regression").task == "regression"
    with pytest.raises(InvalidParameterError) as caught:
        load_data("d.py:two")
    assert (caught.value.message, caught.value.hint) == (
        "`two` of 'd.py' must return x_train, y_train, x_test and y_test, got tuple.",
        "Return a tuple of these four arrays.",
    )
    with pytest.raises(DataError, match="must have the same number of samples, got 4 and 3"):
        load_data("d.py:misfit")


def test_names_of_functions_are_told_from_names_of_data():
    assert is_function("net.py:data")
    assert is_function("net.py")
    assert not any(is_function(t) for t in ("iris", "a.csv", "mnist", "x.npz"))
    before = file_digest("net.py:build")
    Path("net.py").write_text(GOOD + "\n")
    assert file_digest("net.py:build") != before
