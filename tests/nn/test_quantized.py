"""Quantized weights on disk and in use."""

import itertools
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ellzero.errors import EllzeroError, IncompatibleError, InvalidParameterError, ModelFileError
from ellzero.kernels import coded_product
from ellzero.language import Quantizer, quantize_layer
from ellzero.nn import export
from ellzero.nn.export import QuantizedLinear, QuantizedWeight
from ellzero.nn.export.packing import pack_levels, unpack_levels


def thin(n_outputs: int, n_inputs: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(n_outputs, n_inputs, generator=generator) < density
    return torch.where(keep, torch.randn(n_outputs, n_inputs, generator=generator), 0.0)


def codes_of(weight: Tensor, *options: Any) -> QuantizedWeight:
    return quantize_layer(weight, None, Quantizer(*options)).quantized


def network(density: float = 0.3) -> tuple[nn.Sequential, dict[str, QuantizedWeight]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10), nn.LayerNorm(10))
    codes = {}
    with torch.no_grad():
        for i, bits in ((0, 8), (2, 4)):
            found = codes_of(thin(*model[i].weight.shape, density), bits)
            model[i].weight.copy_(found.dequantize())
            codes[f"{i}.weight"] = found
    return model, codes


@pytest.mark.parametrize("n_bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_codes_come_back_bit_for_bit(n_bits: int, scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    for density, group, dtype in itertools.product(
        (0.0, 0.03, 0.4, 1.0), (None, 16), (torch.float32, torch.float16, torch.float64)
    ):
        weight = thin(13, 37, density).to(dtype)
        found = quantize_layer(weight, None, Quantizer(n_bits, scheme, group))
        export.save({"w": found.weight}, path, quantized={"w": found.quantized})
        assert torch.equal(export.load(path)["w"], found.weight)
        back = export.quantized_weights(path)["w"]
        for part in ("codes", "scales", "zero_points"):
            assert torch.equal(getattr(back, part), getattr(found.quantized, part))
        assert (back.n_bits, back.group_size, back.dtype) == (n_bits, group or 37, dtype)


def test_a_transposed_layer_and_a_model_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model"
    found = codes_of(thin(6, 9, 0.5), 4)
    turned = QuantizedWeight(
        found.codes, found.scales, found.zero_points, 4, 9, torch.float32, True
    )
    assert turned.shape == (9, 6)
    export.save({"w": found.dequantize().T}, path, quantized={"w": turned})
    assert torch.equal(export.load(path)["w"], found.dequantize().T)
    assert export.quantized_weights(path)["w"].transposed
    model, codes = network()
    export.save(model, path, quantized=codes)
    other, _ = network(0.9)
    export.load(path, other)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_sizes_are_those_of_the_format(tmp_path: Path) -> None:
    """Bitmap, codes and 16-bit scales; zlib only makes them smaller."""
    path = tmp_path / "model"
    weight = thin(256, 512, 0.5)
    for n_bits, group in ((8, None), (4, None), (4, 64)):
        found = quantize_layer(weight, None, Quantizer(n_bits, "symmetric", group))
        export.save({"w": found.weight}, path, quantized={"w": found.quantized})
        (line,) = export.sizes(path)
        n_scales = 256 * (1 if group is None else 512 // group)
        limit = 256 * 512 / 8 + n_bits * found.n_nonzero / 8 + 2 * n_scales + 16
        assert 0.8 * limit < line.n_bytes <= limit
        assert line.plain_bytes == 4 * 256 * 512
        assert (line.form, line.n_nonzero) == (f"bitmap, {n_bits} bits", found.n_nonzero)
        assert line.n_bytes == pack_levels(found.quantized).n_bytes
    plain = nn.Linear(8, 4)
    export.save(plain, path)
    assert [(s.form, s.n_bytes) for s in export.sizes(path)] == [("plain", 128), ("plain", 16)]
    text = export.sizes_table(path).splitlines()
    assert text[0].split() == ["tensor", "shape", "nonzero", "form", "plain", "KiB", "file", "KiB"]
    assert len(text) == 4


def test_older_readers_can_read_what_has_no_codes(tmp_path: Path) -> None:
    model, codes = network()
    for given, version in (({}, 1), (codes, 2)):
        export.save(model, tmp_path / "model", quantized=given)
        blob = (tmp_path / "model").read_bytes()
        header = json.loads(blob[8 : 8 + struct.unpack("<Q", blob[:8])[0]])
        assert json.loads(header["__metadata__"]["ellzero"])["schema_version"] == version


def test_every_damaged_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    found = quantize_layer(thin(5, 12, 0.5), None, Quantizer(4, "affine", 5))
    export.save({"w": found.weight}, path, quantized={"w": found.quantized})
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 5]) + whole[at + 1 :])
        try:
            assert torch.equal(export.load(path)["w"], found.weight)
        except ModelFileError:
            refused += 1
    assert refused > 0.95 * len(whole)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            export.load(path)


@pytest.mark.parametrize(
    ("n_bits", "group_size", "change"),
    [
        (0, 4, {}),
        (4, 0, {}),
        (4, 10**12, {}),
        (5, 4, {}),
        (4, 4, {"scale": b"\0"}),
        (4, 4, {"zero": b"ab"}),
        (4, 4, {"values": b""}),
        (4, 4, {"support": b""}),
    ],
)
def test_forged_parts_raise(n_bits: int, group_size: int, change: dict[str, bytes]) -> None:
    packed = pack_levels(codes_of(thin(4, 8, 0.5), 4, "affine", 4))
    parts = {**packed.parts, **change}
    forged = type(packed)(packed.support, packed.values, packed.n_nonzero, parts, ())
    with pytest.raises((ValueError, IncompatibleError)):
        unpack_levels(forged, (4, 8), n_bits, group_size, torch.float32, False)


def test_changed_and_unknown_weights_are_refused(tmp_path: Path) -> None:
    model, codes = network()
    with torch.no_grad():
        model[0].weight[3, 4] += 1.0
    cases = [
        (
            codes,
            "'0.weight' is not what its codes in `quantized` say; it was changed since.\nhint: "
            "Quantize it again, or leave it out of `quantized`.",
        ),
        (
            {"1.weight": codes["0.weight"]},
            "`quantized` has '1.weight', which is not in the model.\nhint: Give the names of the "
            "model's state.",
        ),
    ]
    for given, message in cases:
        for call in (
            lambda g=given: export.save(model, tmp_path / "model", quantized=g),
            lambda g=given: export.sparse(model, quantized=g),
        ):
            with pytest.raises(InvalidParameterError) as caught:
                call()
            assert str(caught.value) == message
    assert not (tmp_path / "model").exists()


# Products ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize(("n_outputs", "n_inputs"), [(1, 1), (7, 30), (130, 65), (300, 20)])
def test_products_are_within_rounding(scheme: str, n_outputs: int, n_inputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for density in (0.0, 0.2, 1.0):
        weight = thin(n_outputs, n_inputs, density)
        weight = weight.abs() if scheme == "affine" else weight
        found = codes_of(weight, 8, scheme)
        bias = torch.randn(n_outputs, generator=generator)
        for given in (bias, None):
            layer = QuantizedLinear(found, given)
            dense = found.dequantize()
            assert torch.equal(layer.weight, dense)
            for batch in (0, 1, 2, 3, 9, 17, 33, 70):
                x = torch.randn(batch, n_inputs, generator=generator)
                shift = torch.zeros(n_outputs) if given is None else given
                exact = F.linear(x.double(), dense.double(), shift.double())
                size = F.linear(x.double().abs(), dense.double().abs(), shift.double().abs())
                limit = (n_inputs + 3) * 2**-23 * size + 1e-30
                assert bool(((layer(x).double() - exact).abs() <= limit).all())
    assert layer.codes.dtype == (torch.int16 if scheme == "affine" else torch.int8)


def test_kernels_run_interpreted_too() -> None:
    found = codes_of(thin(9, 14, 0.5), 8)
    layer = QuantizedLinear(found)
    cols = layer.cols.numpy().view(np.uint16)
    scales = np.zeros(16, np.float32)
    scales[:9] = layer.scales.numpy()
    zeros = np.zeros(16, np.float32)
    x = np.random.default_rng(0).normal(size=(8, 14)).astype(np.float32)
    arguments = (layer.codes.numpy(), cols, layer.starts.numpy(), layer.order.numpy(), scales)
    expected = x @ found.dequantize().numpy().T
    out = np.zeros((8, 9), np.float32)
    coded_product.coded_vectors.py_func(*arguments, zeros, x, out, 0, 1)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    out = np.zeros((8, 9), np.float32)
    tiles = np.ascontiguousarray(x.T)[None]
    coded_product.coded_tiles.py_func(*arguments, zeros, zeros, tiles, out, 0, 1)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_threads_give_the_same_bits() -> None:
    found = codes_of(thin(700, 512, 0.5), 8)
    x = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    one, three = (QuantizedLinear(found, None, threads)(x) for threads in (1, 3))
    assert torch.equal(one, three)


def test_layers_are_copied_pickled_and_loaded() -> None:
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    bias = torch.ones(8)
    layer = QuantizedLinear(codes_of(thin(8, 30, 0.5), 8), bias)
    expected = layer(x)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x), expected)
    other = QuantizedLinear(codes_of(thin(8, 30, 0.2, 3), 8), torch.zeros(8))
    other(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    torch.testing.assert_close(layer.to_linear()(x), expected)
    assert layer(x.reshape(5, 1, 30)).shape == (5, 1, 8)
    assert layer.n_bytes < 8 * 30 * 4
    assert "codes=torch.int8" in repr(layer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda layer: QuantizedLinear(codes_of(torch.ones(2, 8), 4, "symmetric", 4)),
            "`QuantizedLinear` cannot run this weight: the kernel of codes needs one scale for "
            "each row, not groups of 4.\nhint: Run the dequantized layer, or `SparseLinear` on "
            "it.",
        ),
        (
            lambda layer: QuantizedLinear(codes_of(torch.ones(2, 8).double(), 4)),
            "`QuantizedLinear` cannot run this weight: the kernel of codes needs a float32 model, "
            "not torch.float64.\nhint: Run the dequantized layer, or `SparseLinear` on it.",
        ),
        (
            lambda layer: layer(torch.ones(2, 7)),
            "`QuantizedLinear` needs inputs of shape (..., 8), got (2, 7).\nhint: Give the "
            "features along the last axis.",
        ),
        (
            lambda layer: layer(torch.ones(2, 8).double()),
            "`QuantizedLinear` needs float32 inputs on the CPU, got torch.float64 on cpu.\nhint: "
            "Convert the input, or use the dense model.",
        ),
        (
            lambda layer: layer(torch.ones(2, 8, requires_grad=True)),
            "`QuantizedLinear` has no gradients, got an input that requires them.\nhint: Run the "
            "model under `torch.no_grad()`, and train the dense one.",
        ),
        (
            lambda layer: layer.to(torch.float64)(torch.ones(2, 8)),
            "The buffers of `QuantizedLinear` do not describe a weight of shape (2, 8).\nhint: "
            "Load the state of a layer of the same shape, and keep it in float32.",
        ),
    ],
)
def test_messages(call: Any, message: str) -> None:
    layer = QuantizedLinear(codes_of(torch.ones(2, 8), 8))
    with pytest.raises(EllzeroError) as caught:
        call(layer)
    assert str(caught.value) == message


def test_buffers_that_lie_are_refused() -> None:
    layer = QuantizedLinear(codes_of(torch.ones(2, 8), 8))
    layer.cols[0, 0] = 8
    with pytest.raises(IncompatibleError, match="do not describe a weight"):
        layer(torch.ones(1, 8))


def test_a_model_runs_on_codes_where_they_are_fastest() -> None:
    model, codes = network()
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))

    def timer(calls: Any) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: 1.0 if name == "sliced-codes" else 2.0 for name in calls}

    fast = export.sparse(model, sample=x, timer=timer, quantized=codes)
    assert [g.backend for g in export.report(fast)] == ["sliced-codes", "sliced-codes"]
    assert isinstance(fast[0], QuantizedLinear)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)
    floats = export.sparse(model, sample=x, timer=timer)
    assert [g.backend for g in export.report(floats)] == ["dense", "dense"]


def test_samples_may_be_given_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.layer.weight.data *= torch.arange(32).reshape(4, 8) % 5 == 0

        def forward(self, *, values: Tensor) -> Tensor:
            out: Tensor = self.layer(values)
            return out

    fast = export.sparse(
        Named(), sample={"values": torch.ones(3, 8)}, timer=lambda calls: dict.fromkeys(calls, 1.0)
    )
    assert export.report(fast)[0].batch == 3
