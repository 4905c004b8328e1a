"""What ONNX Runtime computes from the file is what the model computes."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, export


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})


def weights(path):
    graph = onnx.load(str(path)).graph
    return {tuple(t.dims) for t in graph.initializer if len(t.dims) >= 2}


def test_a_structured_network_becomes_a_small_file_of_the_same_function(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = HardThresholding(base, model, {"0.weight": 3, "4.weight": 7}, structure="rows")
    given = torch.randn(6, 1, 8, 8)
    for _ in range(5):
        F.cross_entropy(model(given), torch.arange(6) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.finalize()
    path = tmp_path / "small.onnx"
    written = export.to_onnx(model, path, given[:1])
    assert written.n_bytes == path.stat().st_size
    convolutions = [c.after for c in written.changes if c.kind == "Conv2d"]
    assert convolutions == [(3, 1, 3, 3), (7, 3, 3, 3)]
    assert (3, 28) in weights(path)
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    model.eval()
    for batch in (1, 2, 5):
        other = torch.randn(batch, 1, 8, 8)
        (got,) = run(path, other)
        np.testing.assert_allclose(got, model(other).detach().numpy(), rtol=1e-4, atol=1e-5)
    whole = export.to_onnx(model, path, given, smaller=False)
    assert whole.n_bytes - written.n_bytes > 4 * (32 * 8 * 9 - 7 * 3 * 9 + 3 * 100)
    assert whole.changes == ()
    assert weights(path) >= {(3, 128), (32, 8, 3, 3)}


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 6)

    def forward(self, given, shift):
        return self.a(given).view(2, 3, 2).relu(), shift + 1


def test_a_fixed_batch_and_several_tensors(tmp_path):
    model, path = Fixed(), tmp_path / "fixed.onnx"
    sample = (torch.randn(2, 4), torch.randn(2, 1))
    with pytest.raises(IncompatibleError, match="Fixed cannot be called with") as error:
        export.to_onnx(model, path, sample)
    assert str(error.value) == (
        "Fixed cannot be called with a batch of 3: shape '[2, 3, 2]' is invalid for input of size "
        "18.\nhint: Pass `dynamic_batch=False`, which fixes the shapes of `sample`."
    )
    assert not path.exists()
    written = export.to_onnx(model, path, sample, dynamic_batch=False)
    assert (len(written.inputs), len(written.outputs), written.dynamic_batch) == (2, 2, False)
    assert written.difference < 1e-6
    got = run(path, *sample)
    for ours, theirs in zip(model(*sample), got, strict=True):
        np.testing.assert_allclose(theirs, ours.detach().numpy(), rtol=1e-5, atol=1e-6)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids=None, mask=None):
        return {"logits": self.head(self.embed(ids) * mask[..., None]).sum(1), "mask": mask}


def test_keywords_and_several_outputs(tmp_path):
    torch.manual_seed(0)
    model, path = Keywords(), tmp_path / "model.onnx"
    sample = {"mask": torch.ones(2, 3), "ids": torch.arange(6).reshape(2, 3)}
    written = export.to_onnx(model, path, sample)
    # What is handed through gets another name as an input than as an output.
    assert [name.removesuffix("_orig") for name in written.inputs] == ["ids", "mask"]
    more = {"ids": torch.arange(12).reshape(4, 3) % 9, "mask": torch.rand(4, 3)}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {n: more[n.removesuffix("_orig")].numpy() for n in written.inputs})
    for theirs, ours in zip(got, model(**more).values(), strict=True):
        np.testing.assert_allclose(theirs, ours.detach().numpy(), rtol=1e-5, atol=1e-6)


class Moody(nn.Module):
    def forward(self, given):
        return given * 2 if given.sum() > 0 else given


def test_a_model_that_torch_cannot_export_is_said(tmp_path):
    with pytest.raises(IncompatibleError) as error:
        export.to_onnx(Moody(), tmp_path / "model.onnx", torch.ones(2, 2))
    assert error.value.message.startswith("Moody cannot be exported: ")
    assert error.value.hint == ("Replace what torch cannot export, or pass `dynamic_batch=False`.")
    assert list(tmp_path.iterdir()) == []


class Noisy(nn.Module):
    def forward(self, given):
        return given + torch.rand_like(given)


def test_another_function_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(IncompatibleError) as error:
        export.to_onnx(Noisy(), path, torch.zeros(3, 2))
    assert error.value.message.startswith(
        "ONNX Runtime gives other outputs than the model: they differ by "
    )
    assert error.value.message.endswith(" of the largest one on a batch of 3.")
    assert error.value.hint == (
        "Export a part of the model to find the operator, or another `opset`."
    )
    assert path.read_bytes() == b"old"


def test_wrong_arguments_are_refused(tmp_path, monkeypatch):
    model, path = nn.Linear(2, 2), tmp_path / "model.onnx"
    hint = "\nhint: Give the inputs alone; fix other arguments in a module around the model."
    for sample, given in (
        ({"x": 1}, "a int"),
        ((torch.ones(1, 2), None), "a NoneType"),
        (torch.tensor(1.0), "a number"),
    ):
        with pytest.raises(InvalidParameterError) as error:
            export.to_onnx(model, path, sample)
        assert str(error.value) == f"`sample` must hold tensors with a batch, got {given}.{hint}"
    with pytest.raises(InvalidParameterError, match=r"Cannot write '.*': no such file"):
        export.to_onnx(model, tmp_path / "missing" / "model.onnx", torch.ones(2, 2))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(IncompatibleError) as error:
        export.to_onnx(model, path, torch.ones(2, 2))
    assert str(error.value) == (
        "ONNX files need the package 'onnxruntime', which is not installed.\n"
        'hint: Install it with `pip install "ellzero[onnx]"`.'
    )
