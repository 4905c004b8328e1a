import copy
import hashlib
import json
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ellzero._version import __version__
from ellzero.errors import IncompatibleError, InvalidParameterError, ModelFileError
from ellzero.nn import export
from ellzero.nn.export import packing

AGAIN = "Copy the file again, or export the model again."
ORIGIN = "Give a file that `ellzero.nn.export.save` wrote."
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def thin(shape, density, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(shape, generator=generator) < density
    return torch.where(keep, torch.randn(shape, generator=generator), 0.0).to(dtype)


def thin_(model, density, seed=0):
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            if p.ndim >= 2:
                p.copy_(thin(p.shape, density, p.dtype, seed + i))
    return model


def same_bits(left, right):
    """Whether two tensors have the same bits, -0.0 counted as 0.0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype in packing.BITS:
        kind = packing.BITS[left.dtype]
        left = torch.where(left == 0, 0, left).contiguous().view(kind)
        right = right.contiguous().view(kind)
    return torch.equal(left, right)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.norm = nn.BatchNorm1d(16)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight


class LeNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# Packing --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    shape=st.lists(st.integers(0, 12), max_size=4),
    density=st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.6, 1.0]),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 1000),
)
def test_packing_is_lossless(shape, density, dtype, seed):
    x = thin(shape, density, dtype, seed)
    packed = packing.pack("x", x)
    if packed is None:
        # Not worth it: nothing to pack, or too full.
        assert x.numel() * x.element_size() <= 16 + 2 * torch.count_nonzero(x) * x.element_size()
        return
    assert packed.n_bytes < x.numel() * x.element_size()
    assert packed.n_nonzero == torch.count_nonzero(x)
    assert same_bits(x, packing.unpack(packed, tuple(shape), dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_numbers_keep_their_bits_and_negative_zero_becomes_zero(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 2
    x = torch.zeros(40, 40, dtype=dtype)
    x[0, :6] = torch.tensor([float("inf"), float("-inf"), tiny, -0.0, 1.0, -tiny], dtype=dtype)
    bits = x.view(packing.BITS[dtype])
    bits[1, 1] = torch.iinfo(bits.dtype).max - 3  # a NaN with a payload
    assert x[1, 1].isnan()
    out = packing.unpack(packing.pack("x", x), (40, 40), dtype).view(bits.dtype)
    expected = bits.clone()
    expected[0, 3] = 0
    assert bits[0, 3] != 0
    assert torch.equal(out, expected)


@given(st.lists(st.integers(0, 2**40), unique=True, max_size=50))
def test_gaps_of_any_length(places):
    places = np.array(sorted(places), np.int64)
    data = packing._to_gaps(places)
    np.testing.assert_array_equal(packing._from_gaps(data, places.size), places)


def test_the_cheaper_support_is_taken():
    assert packing.pack("x", thin((200, 200), 0.002)).support == "gaps"
    assert packing.pack("x", thin((200, 200), 0.3)).support == "bitmap"
    assert packing.pack("x", torch.rand(20, 20) + 1, "float16").support == "all"
    assert packing.pack("x", torch.rand(20, 20) + 1) is None


@pytest.mark.parametrize(("density", "most"), [(0.05, 0.08), (0.01, 0.02)])
def test_files_meet_their_size(path, density, most):
    weight = thin((1000, 1000), density)
    size = export.save({"weight": weight}, path)
    assert size == path.stat().st_size
    entropy = -(density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 32
    # Less than the bits of support and mantissa would be a mistake.
    assert 23 / 32 * density + entropy < size / (4 * weight.numel()) <= most
    assert torch.equal(export.load(path)["weight"], weight)


def test_float16_values_are_rounded_once_and_halve_the_values(path):
    state = {"weight": thin((300, 300), 0.05), "bias": torch.randn(300)}
    exact = export.save(state, path)
    half = export.save(state, path, values="float16")
    assert half < 0.65 * exact
    loaded = export.load(path)
    assert torch.equal(loaded["weight"], state["weight"].half().float())
    assert torch.equal(loaded["bias"], state["bias"])


def test_int8_values_are_within_half_a_step_of_their_row(path):
    weight = thin((300, 300), 0.1) * torch.logspace(-3, 3, 300)[:, None]
    weight[7] = 0
    state = {"weight": weight, "bias": torch.randn(300)}
    export.save(state, path, values="int8")
    loaded = export.load(path)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert torch.all((loaded["weight"] - weight).abs() <= 0.5001 * step)
    assert not loaded["weight"][weight == 0].any()
    assert torch.equal(loaded["bias"], state["bias"])


def test_values_that_do_not_fit_are_refused(path):
    big = {"weight": torch.tensor([[70000.0, 0.0]])}
    with pytest.raises(InvalidParameterError) as caught:
        export.save(big, path, values="float16")
    assert caught.value.message == (
        "'weight' has values beyond 65504, the largest number of float16."
    )
    with pytest.raises(InvalidParameterError) as caught:
        export.save({"weight": torch.tensor([[float("inf"), 0.0]])}, path, values="int8")
    assert caught.value.message == (
        "'weight' has values that are not finite, which int8 cannot hold."
    )
    assert not path.exists()


# Files ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 20), max_size=4), max_size=5),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    dtype=st.sampled_from(FLOATS),
)
def test_any_state_comes_back(tmp_path_factory, shapes, density, dtype):
    path = tmp_path_factory.mktemp("export") / "m.safetensors"
    state = {f"layer.{i}": thin(s, density, dtype, i) for i, s in enumerate(shapes)}
    export.save(state, path)
    loaded = export.load(path)
    assert list(loaded) == list(state)
    assert all(same_bits(state[n], loaded[n]) for n in state)


def test_other_dtypes_and_layouts_are_kept(path):
    state = {
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "wave": torch.tensor([1 + 2j]),
        "turned": thin((30, 40), 0.1).T,
        "small": torch.tensor([0.5, -0.0]),
        "e": torch.zeros(0, 3),
    }
    export.save(state, path)
    loaded = export.load(path)
    assert all(same_bits(state[n], loaded[n]) for n in state)
    assert not torch.signbit(loaded["small"][1])


def test_tied_weights_are_stored_once_and_stay_tied(path):
    torch.manual_seed(0)
    model = thin_(Tied(), 0.2)
    untied = {n: t.clone() for n, t in model.state_dict().items()}
    assert export.save(model, path) < export.save(untied, path.with_suffix(".x"))
    loaded = export.load(path)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    assert list(loaded) == list(model.state_dict())
    fresh = Tied()
    export.load(path, fresh)
    assert fresh.head.weight is fresh.embedding.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


def test_loads_into_the_plain_class_in_a_fresh_process_with_plain_keys(path, tmp_path):
    model = thin_(LeNet(), 0.05)
    export.save(model, path)
    x = torch.arange(784.0)[None] / 784
    torch.save(model(x).detach(), tmp_path / "y.pt")
    code = f"""
import torch
from torch import nn
from ellzero.nn import export
model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
                      nn.Linear(100, 10))
keys = list(model.state_dict())
state = export.load({str(path)!r}, model)
assert list(state) == keys
x = torch.arange(784.0)[None] / 784
print(torch.equal(model(x), torch.load({str(tmp_path / "y.pt")!r})))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


def test_file_is_plain_safetensors_and_says_what_it_is(path):
    export.save(thin_(LeNet(), 0.05), path)
    with safe_open(path, "pt") as file:
        inside = json.loads(file.metadata()["ellzero"])
        assert {file.get_tensor(k).dtype for k in file.keys() if "#" in k} == {torch.uint8}  # noqa: SIM118
        assert "4.bias" in file.keys()  # noqa: SIM118
    assert (inside["format"], inside["schema_version"]) == ("ellzero-network", 1)
    assert [e["name"] for e in inside["tensors"]] == inside["order"]
    assert all(len(e["sha256"]) == 64 for e in inside["tensors"])


def test_the_model_is_left_alone_when_it_does_not_fit(path):
    export.save(thin_(nn.Linear(4, 3), 0.5), path)
    hint = "Build the model as it was when it was saved."
    for model, message in [
        (nn.Linear(4, 2), f"'weight' has shape (2, 4) in the model and (3, 4) in '{path}'."),
        (nn.Linear(4, 3, bias=False), f"'{path}' holds 'bias', which the model lacks."),
        (
            nn.Bilinear(4, 1, 3),
            f"'weight' has shape (3, 4, 1) in the model and (3, 4) in '{path}'.",
        ),
        (
            nn.LayerNorm(2, elementwise_affine=False),
            f"'{path}' holds 'weight', which the model lacks.",
        ),
        (
            nn.Sequential(nn.Linear(4, 3)),
            f"The model has '0.weight', which '{path}' does not hold.",
        ),
    ]:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(IncompatibleError) as caught:
            export.load(path, model)
        assert (caught.value.message, caught.value.hint) == (message, hint)
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_what_cannot_be_stored_is_refused(path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return 1

    for model, message in [
        (
            Extra(2, 2),
            "`model` must have tensors as its state, got int as '_extra_state'.",
        ),
        (
            {"w": torch.zeros(2, 2, device="meta")},
            "'w' must be a dense tensor with data, got layout torch.strided on meta with dtype "
            "torch.float32.",
        ),
        (
            {"w": torch.zeros(2, 2).to_sparse()},
            "'w' must be a dense tensor with data, got layout torch.sparse_coo on cpu with dtype "
            "torch.float32.",
        ),
        (
            {"w": thin((40, 40), 0.1), "w#values": torch.ones(3)},
            "Two tensors of the model would be stored as 'w#values'.",
        ),
    ]:
        with pytest.raises(InvalidParameterError) as caught:
            export.save(model, path)
        assert caught.value.message == message
    with pytest.raises(InvalidParameterError, match="Did you mean 'float16'"):
        export.save({}, path, values="flaot16")


# Damage ---------------------------------------------------------------------------------------


def refuse(path, message, hint):
    with pytest.raises(ModelFileError) as caught:
        export.load(path)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def forge(path, change, checksum=True):
    """Rewrite the description of a file."""
    blob = path.read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    inside = json.loads(header["__metadata__"]["ellzero"])
    change(inside)
    if checksum:
        rest = {k: v for k, v in inside.items() if k != "checksum"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        inside["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"]["ellzero"] = json.dumps(inside)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + length :])


def test_files_that_are_none_of_ours_are_refused(path, tmp_path):
    refuse(path, f"No model file '{path}'.", "Check the path.")
    refuse(tmp_path, f"'{tmp_path}' is not a file.", "Give the path of the model file itself.")
    path.write_bytes(b"")
    refuse(path, f"'{path}' is empty.", AGAIN)
    path.write_bytes(b"PK\x03\x04" * 20)
    refuse(path, f"'{path}' is not a model file.", ORIGIN)
    for metadata in (None, {"ellzero": '{"format":"ellzero-model"}'}):
        path.write_bytes(to_bytes({"w": torch.ones(2)}, metadata))
        refuse(path, f"'{path}' is a safetensors file, but not an exported network.", ORIGIN)


def test_damaged_files_are_refused_by_their_checksums(path):
    export.save({"w": thin((50, 50), 0.1), "b": torch.ones(50)}, path)
    assert torch.equal(export.load(path)["b"], torch.ones(50))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refuse(path, f"'{path}' is cut short: the end of the file is missing.", AGAIN)
    path.write_bytes(whole[:40])
    refuse(path, f"'{path}' is cut short: the end of the file is missing.", AGAIN)
    at = whole.rindex(torch.ones(50).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    refuse(path, f"'{path}' is damaged: the tensor 'b' does not match its checksum.", AGAIN)
    path.write_bytes(whole.replace(b'\\"tied\\":{}', b'\\"tide\\":{}'))
    refuse(path, f"'{path}' is damaged: its description does not match its checksum.", AGAIN)


def test_other_versions_are_refused(path):
    export.save({"w": torch.ones(2, 2)}, path)
    forge(path, lambda inside: inside.update(schema_version=3))
    refuse(
        path,
        f"'{path}' has a newer format, version 3; this ellzero ({__version__}) reads "
        "versions 1 and 2.",
        "Install a newer ellzero.",
    )
    forge(path, lambda inside: inside.update(schema_version=0))
    refuse(
        path,
        f"'{path}' has an older format, version 0; this ellzero ({__version__}) reads "
        "versions 1 and 2.",
        "Export the model again.",
    )
    forge(path, lambda inside: inside.update(schema_version=True))
    refuse(path, f"'{path}' is damaged: it has no format version.", AGAIN)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["tensors"][0].update(n_nonzero=3), "the tensor 'w' cannot be decoded"),
        (lambda m: m["tensors"][0].update(shape=[4, 4]), "the tensor 'w' cannot be decoded"),
        (
            lambda m: m["tensors"][0].update(shape=[10**9, 10**9]),
            "the tensor 'w' cannot be decoded",
        ),
        (lambda m: m["tensors"][0].update(compressed=[]), "the tensor 'w' cannot be decoded"),
        (lambda m: m["tensors"][0].update(dtype="float64"), "the tensor 'w' cannot be decoded"),
        (lambda m: m["tensors"][0].update(dtype="nn"), "its description cannot be read"),
        (lambda m: m["tensors"][0].update(support="x"), "its description cannot be read"),
        (lambda m: m["tensors"][0].update(name="v"), "the tensor 'v#support' is missing"),
        (lambda m: m.update(order=["u"]), "the tensor 'u' is missing"),
        (
            lambda m: m.update(tensors=[]),
            "it holds the tensor 'w#support', which it does not describe",
        ),
        (lambda m: m.update(tensors=3), "its description cannot be read"),
    ],
)
def test_forged_descriptions_are_refused(path, change, what):
    export.save({"w": thin((50, 50), 0.1)}, path)
    forge(path, change)
    refuse(path, f"'{path}' is damaged: {what}.", AGAIN)


def test_two_hundred_corruptions_are_refused_or_harmless(path):
    model = thin_(Tied(), 0.1)
    export.save(model, path)
    whole = path.read_bytes()
    state = export.load(path)
    generator = np.random.default_rng(0)
    refused = 0
    for trial in range(240):
        blob = bytearray(whole)
        kind = trial % 4
        at = int(generator.integers(len(blob) if trial % 3 else 1200))
        if kind == 0:
            blob[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del blob[at : at + int(generator.integers(1, 30))]
        elif kind == 2:
            blob[at:at] = generator.bytes(int(generator.integers(1, 30)))
        else:
            blob[at : at + 16] = generator.bytes(16)
        if blob == whole:
            continue
        path.write_bytes(bytes(blob))
        try:
            loaded = export.load(path)
        except ModelFileError:
            refused += 1
        else:
            # White space of the header, say.
            assert list(loaded) == list(state)
            assert all(torch.equal(loaded[n], state[n]) for n in state)
    assert refused >= 220


# Layers ---------------------------------------------------------------------------------------


def close(out, linear, x):
    """Whether the result is within the documented rounding of the exact one."""
    weight = linear.weight.detach().double()
    bias = torch.zeros(len(weight)).double() if linear.bias is None else linear.bias.double()
    exact = F.linear(x.double(), weight, bias)
    size = F.linear(x.double().abs(), weight.abs(), bias.abs())
    n = torch.count_nonzero(weight, dim=1)
    bound = (n + 1) * torch.finfo(x.dtype).eps * size
    assert out.dtype == x.dtype
    assert out.shape == exact.shape
    assert torch.all((out.double() - exact).abs() <= bound + 1e-30)


@pytest.mark.parametrize("backend", ["sliced", "blocks", "torch-csr", "scipy-csr"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_sparse_linear_equals_dense(backend, bias, dtype):
    torch.manual_seed(0)
    linear = thin_(nn.Linear(70, 150, bias=bias, dtype=dtype), 0.1)
    layer = export.SparseLinear(linear, backend)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.to_linear().weight, linear.weight)
    for shape in [(70,), (1, 70), (2, 70), (3, 70), (32, 70), (45, 70), (0, 70), (2, 3, 70)]:
        x = torch.randn(shape, dtype=dtype)
        close(layer(x), linear, x)
        assert layer(x).is_contiguous()
    turned = torch.randn(70, 9, dtype=dtype).T
    close(layer(turned), linear, turned)
    strided = torch.randn(4, 140, dtype=dtype)[:, ::2]
    close(layer(strided), linear, strided)


@pytest.mark.parametrize("backend", ["sliced", "blocks"])
@torch.no_grad()
def test_threads_give_the_same_bits(backend, monkeypatch):
    monkeypatch.setattr(export.modules, "_WORK", 1)
    began = []
    in_threads = export.modules._in_threads

    def watch(kernel, arguments, parts):
        began.append(len(parts))
        in_threads(kernel, arguments, parts)

    monkeypatch.setattr(export.modules, "_in_threads", watch)
    linear = thin_(nn.Linear(64, 700), 0.2)
    one = export.SparseLinear(linear, backend)
    for threads in (2, 3, 50):
        several = export.SparseLinear(linear, backend, threads)
        for batch in (1, 40):
            x = torch.randn(batch, 64)
            assert torch.equal(one(x), several(x))
    assert set(began) == {1, 2, 3, 6}  # 700 rows are six windows


@pytest.mark.parametrize("backend", ["sliced", "blocks", "torch-csr", "scipy-csr"])
@torch.no_grad()
def test_copies_pickles_and_conversions_of_a_sparse_layer(backend):
    linear = thin_(nn.Linear(40, 30), 0.2)
    layer = export.SparseLinear(linear, backend)
    x = torch.randn(5, 40)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        twin.values.zero_()
        assert torch.equal(layer(x), y)
    other = export.SparseLinear(thin_(nn.Linear(40, 30), 0.4, seed=9), backend)
    assert not torch.equal(other(x), y)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    layer.bias.add_(1)
    torch.testing.assert_close(layer(x), y + 1)
    layer.bias.copy_(linear.bias)
    wrong = copy.deepcopy(layer)
    wrong.cols.fill_(40)
    with pytest.raises(IncompatibleError) as caught:
        wrong(x)
    assert caught.value.message == (
        "The buffers of `SparseLinear` do not describe a weight of shape (30, 40)."
    )
    wide = copy.deepcopy(layer).to(torch.float64)
    close(wide(x.double()), linear.double(), x.double())
    assert torch.equal(wide.float()(x), y)
    layer.share_memory()
    assert torch.equal(layer(x), y)
    with pytest.raises(IncompatibleError) as caught:
        copy.deepcopy(layer).half()(x.half())
    assert caught.value.message == (
        "`SparseLinear` needs the packed weight in float32 or float64 on the CPU, got "
        "torch.float16 on cpu."
    )


def test_wrong_inputs_of_a_sparse_layer_are_refused():
    layer = export.SparseLinear(thin_(nn.Linear(4, 3), 0.5))
    for x, message in [
        (
            torch.ones(2, 5),
            "`SparseLinear` needs inputs of shape (..., 4), got (2, 5).",
        ),
        (
            torch.ones(2, 4).double(),
            "`SparseLinear` needs torch.float32 inputs on the CPU, got torch.float64 on cpu.",
        ),
        (
            torch.ones(2, 4, requires_grad=True),
            "`SparseLinear` has no gradients, got an input that requires them.",
        ),
    ]:
        with pytest.raises(IncompatibleError) as caught:
            layer(x)
        assert caught.value.message == message
    with torch.no_grad():
        assert layer(torch.ones(2, 4, requires_grad=True)).shape == (2, 3)
    with pytest.raises(IncompatibleError, match="in float32 or float64 on the CPU"):
        export.SparseLinear(nn.Linear(4, 3, dtype=torch.bfloat16))
    with pytest.raises(InvalidParameterError, match="Did you mean 'blocks'"):
        export.SparseLinear(nn.Linear(4, 3), "block")


# Choice ---------------------------------------------------------------------------------------


def timer(**seconds):
    """Return a timer that calls nothing twice and knows its answers."""

    def fake(calls):
        for call in calls.values():
            call()
        return {name: seconds.get(name.replace("-", "_"), 9.0) for name in calls}

    return fake


def test_the_fastest_backend_is_taken_and_the_model_unchanged():
    model = thin_(LeNet(), 0.1)
    before = copy.deepcopy(model.state_dict())
    for backend in ("sliced", "torch-csr", "scipy-csr"):
        quick = timer(dense=2.0, **{backend.replace("-", "_"): 1.0})
        fast = export.sparse(model, timer=quick)
        assert [fast[i].backend for i in (0, 2, 4)] == [backend] * 3
        assert [g.gain for g in export.report(fast)] == [2.0] * 3
    assert type(model[0]) is nn.Linear
    assert model.training
    assert model[0].weight.requires_grad
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    x = torch.randn(7, 784)
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert not fast(x).requires_grad
    assert pickle.loads(pickle.dumps(fast))(x).equal(fast(x))
    assert export.report(copy.deepcopy(fast)) == export.report(fast)


def test_dense_is_kept_where_it_is_faster_and_the_table_says_so():
    model = nn.Sequential(thin_(nn.Linear(80, 40), 0.1), nn.ReLU(), nn.Linear(40, 16))
    fast = export.sparse(model, sample=4, timer=timer(dense=1.0, sliced=0.99))
    assert type(fast[0]) is nn.Linear
    assert type(fast[2]) is nn.Linear
    first, last = export.report(fast)
    assert (first.backend, first.batch, first.shape) == ("dense", 4, (40, 80))
    assert first.gain == pytest.approx(1 / 0.99)
    assert last.gain is None
    lines = export.table(fast).splitlines()
    assert " ".join(lines[0].split()) == (
        "layer shape batch nonzero KiB packed dense us sparse us gain runs"
    )
    assert lines[1].split()[-4:] == ["1000000.0", "990000.0", "1.01x", "dense"]
    assert lines[3:] == [
        "0: dense is kept; it is as fast or faster (sliced, the best sparse one, runs at 1.01 "
        "times its speed).",
        "2: dense is kept; 100.0 % of the weight is nonzero, and nothing pays above 50 %.",
    ]


def test_blocks_are_tried_only_where_zeros_come_in_blocks():
    seen = []

    def watch(calls):
        seen.append(set(calls))
        return {name: 1.0 if name == "blocks" else 2.0 for name in calls}

    plain = thin_(nn.Linear(60, 80), 0.05)
    blocks = nn.Linear(60, 80)
    blocks.weight.data *= (torch.rand(10, 1, 60) < 0.1).expand(10, 8, 60).reshape(80, 60)
    fast = export.sparse(nn.Sequential(plain, nn.Identity(), blocks), timer=watch)
    rest = {"dense", "sliced", "torch-csr", "scipy-csr"}
    assert seen == [rest, rest | {"blocks"}]
    assert fast[2].backend == "blocks"
    x = torch.randn(3, 60)
    close(fast[2](x), blocks, x)
    assert export.report(fast)[1].packed_bytes < 0.2 * export.report(fast)[1].dense_bytes


def test_the_sample_decides_the_batch_and_what_is_measured():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = thin_(nn.Linear(8, 8), 0.1)
            self.idle = thin_(nn.Linear(8, 8), 0.1)

        def forward(self, x, scale):
            return self.used(x) * scale

    x = torch.randn(5, 3, 8)
    fast = export.sparse(Model(), sample=(x, 2.0), timer=timer(sliced=1.0))
    used, idle = export.report(fast)
    assert (used.batch, used.backend) == (15, "sliced")
    assert (idle.batch, idle.backend) == (0, "dense")
    assert idle.reason == "dense is kept; `sample` does not reach the layer."
    assert [g.batch for g in export.report(export.sparse(Model(), timer=timer()))] == [1, 1]


def test_shared_layers_subclasses_and_a_bare_layer():
    layer = thin_(nn.Linear(8, 8), 0.1)
    fast = export.sparse(
        nn.Sequential(layer, layer, nn.ModuleList([layer])), timer=timer(sliced=1.0)
    )
    assert fast[0] is fast[1] is fast[2][0]
    assert len(export.report(fast)) == 1
    bare = export.sparse(layer, timer=timer(sliced=1.0))
    assert isinstance(bare, export.SparseLinear)
    assert export.report(bare)[0].name == ""
    assert "(model)" in export.table(bare)
    half = export.sparse(copy.deepcopy(layer).half(), timer=timer(sliced=1.0))
    assert export.report(half)[0].reason == (
        "dense is kept; packed layers need float32 or float64 on the CPU, not torch.float16 on "
        "cpu."
    )


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_transformer_runs_through_its_packed_layers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for block in model.layers:
        thin_(block.linear1, 0.1)
        thin_(block.linear2, 0.1)
    model.eval()
    x = torch.randn(2, 5, 16)
    fast = export.sparse(model, sample=x, timer=timer(sliced=1.0))
    assert [g.name for g in export.report(fast) if g.backend == "sliced"] == [
        "layers.0.linear1",
        "layers.0.linear2",
        "layers.1.linear1",
        "layers.1.linear2",
    ]
    calls = []
    fast.layers[1].linear2.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert calls == [1]


def test_wrong_arguments_of_sparse_are_refused():
    model = nn.Linear(2, 2)
    for wrong, message in [
        (
            {"sample": "x"},
            "`sample` must be a number of samples, a tensor, a tuple or a mapping of inputs, got "
            "str.",
        ),
        ({"sample": 0}, "`sample` must be an integer of at least 1, got 0."),
        ({"threads": 0}, "`threads` must be an integer of at least 1, got 0."),
    ]:
        with pytest.raises(InvalidParameterError) as caught:
            export.sparse(model, **wrong)
        assert caught.value.message == message
    with pytest.raises(InvalidParameterError) as caught:
        export.table(model)
    assert caught.value.message == (
        "`fast` must be a model that `export.sparse` returned, got Linear."
    )


def test_measuring_for_real_restores_the_threads_and_gains_at_99_percent():
    before = torch.get_num_threads()
    fast = export.sparse(thin_(nn.Linear(1024, 1024), 0.01), threads=1)
    assert torch.get_num_threads() == before
    (gain,) = export.report(fast)
    assert set(gain.seconds) == {"dense", "sliced", "torch-csr", "scipy-csr"}
    assert gain.seconds[gain.backend] == min(gain.seconds.values())
