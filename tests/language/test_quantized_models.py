"""Whole models on few levels: counts, codes, files, resumption, the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ellzero.cli import app
from ellzero.errors import DataError, InvalidParameterError, ModelFileError
from ellzero.language import CompressedLayer, Quantizer, compress, load_compact
from ellzero.language.calibration import matrix
from ellzero.language.folders import COMPACT, load_folder
from ellzero.language.layers import keep_layer
from ellzero.nn import export
from tests.language.encoders import bert_folder


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def tokens() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 50, (4, 12), generator=generator) for _ in range(3)]
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def samples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 8, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("quantize", ["int8", "int4", Quantizer(3, "affine", 5)])
def test_a_pruned_model_on_levels_keeps_its_budget_and_comes_back(
    quantize: Any, tmp_path: Path
) -> None:
    model = gpt2()
    result = compress(model, tokens(), density=0.3, quantize=quantize)
    assert set(result.quantized) == {f"{layer.name}.weight" for layer in result.layers}
    for line in result.layers:
        weight = matrix(model.get_submodule(line.name))
        record = line.record
        count = int(torch.count_nonzero(weight))
        assert record["n_nonzero"] == count <= int(0.3 * weight.numel())
        assert record["n_rounded"] == int(0.3 * weight.numel()) - count
        codes = result.quantized[f"{line.name}.weight"]
        assert torch.equal(codes.dequantize(), model.get_parameter(f"{line.name}.weight"))
        assert codes.transposed  # GPT-2 stores (inputs, outputs)
        assert codes.n_bits == record["n_bits"] == {"int8": 8, "int4": 4}.get(str(quantize), 3)
        # Both errors are relative to different energies; together they are the whole.
        assert record["lower_bound"] <= record["pruning_error"] < record["relative_error"]
        assert 0.0 <= record["gap"] < 1.0
        note = f"{record['n_rounded']} nonzero weights became zero when rounded"
        assert (note in line.notes) == (record["n_rounded"] > 0)
    export.save(model, tmp_path / "model", quantized=result.quantized)
    export.save(model, tmp_path / "exact")
    small, large = (
        sum(s.n_bytes for s in export.sizes(tmp_path / name) if s.name in result.quantized)
        for name in ("model", "exact")
    )
    assert small < large
    other = gpt2()
    export.load(tmp_path / "model", other)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_levels_alone_keep_every_weight() -> None:
    model = perceptron()
    before = [matrix(model[i]).clone() for i in (0, 2)]
    bias = model[0].bias.detach().clone()
    result = compress(model, samples(), quantize="int8")
    assert result.settings["density"] == 1.0
    for old, line in zip(before, result.layers, strict=True):
        new = result.quantized[f"{line.name}.weight"].dequantize()
        torch.testing.assert_close(new, old, rtol=0.0, atol=0.02 * float(old.abs().max()))
        assert line.record["pruning_error"] == 0.0
        assert line.record["relative_error"] == pytest.approx(
            line.record["quantization_error"], rel=1e-6
        )
    torch.testing.assert_close(model[0].bias.detach(), bias, rtol=0.05, atol=0.01)


def test_int8_is_nearer_than_int4_and_both_than_rounding() -> None:
    x = samples()[0]
    expected = perceptron()(x)
    errors = []
    plain = {"clip_search": False, "feedback": False, "n_passes": 0}
    for quantize in ("int8", "int4", Quantizer(4, group_size=64, **plain)):
        model = perceptron()
        compress(model, samples(), quantize=quantize)
        errors.append(float((model(x) - expected).detach().square().mean()))
    assert errors[0] < 0.05 * errors[1] < errors[1] < errors[2]


def test_the_count_can_be_kept_exactly() -> None:
    model = gpt2()
    result = compress(model, tokens(), density=0.3, quantize=Quantizer(2, keep_count=True))
    for line in result.layers:
        shape = line.record["shape"]
        assert line.record["n_nonzero"] == int(0.3 * shape[0] * shape[1])
        assert line.record["n_rounded"] == 0


def test_a_model_pruned_before_keeps_its_zeros() -> None:
    model = gpt2()
    compress(model, tokens(), density=0.3)
    layers = [name for name, _ in model.named_modules() if name.endswith(("c_fc", "c_attn"))]
    before = {name: matrix(model.get_submodule(name)).clone() for name in layers}
    result = compress(model, tokens(), quantize=Quantizer(8, keep_count=True))
    for name, old in before.items():
        assert torch.equal(matrix(model.get_submodule(name)) != 0.0, old != 0.0)
    assert max(line.record["relative_error"] for line in result.layers) < 1e-3


def test_kept_supports_are_refitted_by_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    support = torch.rand(3, 6, generator=generator) < 0.6
    kept = keep_layer(weight, inputs.T @ inputs, support, damping=0.0)
    total = 0.0
    for row, inside, new in zip(weight, support, kept.weight, strict=True):
        target = inputs @ row
        exact = torch.linalg.lstsq(inputs[:, inside], target).solution
        torch.testing.assert_close(new[inside], exact)
        total += float((target - inputs[:, inside] @ exact).square().sum())
    assert kept.value == pytest.approx(total, rel=1e-8)
    assert kept.n_nonzero == int(support.sum())


def test_a_pattern_stays_a_pattern() -> None:
    model = gpt2()
    compress(model, tokens(), pattern="2:4", quantize="int4")
    weight = model.get_parameter("transformer.h.1.mlp.c_fc.weight").T
    assert int((weight.reshape(64, 4, 4) != 0).sum(2).max()) <= 2


def test_an_interrupted_run_goes_on_to_the_same_codes(tmp_path: Path) -> None:
    expected = compress(gpt2(), tokens(), density=0.4, quantize="int4")

    class Stopped(Exception):
        pass

    def stop(layer: CompressedLayer) -> None:
        if layer.name == "transformer.h.0.mlp.c_fc":
            raise Stopped

    options: dict[str, Any] = {"density": 0.4, "quantize": "int4", "checkpoint": tmp_path / "run"}
    with pytest.raises(Stopped):
        compress(gpt2(), tokens(), callback=stop, **options)
    model = gpt2()
    result = compress(model, tokens(), **options)
    assert list(result.quantized) == list(expected.quantized)
    for name, codes in expected.quantized.items():
        for field in dataclasses.fields(codes):
            one, two = getattr(codes, field.name), getattr(result.quantized[name], field.name)
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        assert torch.equal(model.get_parameter(name), codes.dequantize())
    with pytest.raises(InvalidParameterError, match="of another model, calibration or setting"):
        compress(gpt2(), tokens(), density=0.4, quantize="int8", checkpoint=tmp_path / "run")


def test_quantizing_twice_is_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    batches = [torch.randn(256, 64, generator=torch.Generator().manual_seed(0))]
    note = "it had few levels before, as if quantized; errors add up"
    first = compress(model, batches, quantize="int4")
    second = compress(model, batches, quantize="int4")
    assert note not in first.layers[0].notes
    assert note in second.layers[0].notes


def test_half_precision_models_stay_so() -> None:
    model = perceptron().to(torch.bfloat16)
    result = compress(model, [x.to(torch.bfloat16) for x in samples()], quantize="int8")
    assert matrix(model[0]).dtype == torch.bfloat16
    assert torch.equal(result.quantized["0.weight"].dequantize(), model[0].weight)


def test_wrong_words() -> None:
    with pytest.raises(InvalidParameterError) as caught:
        compress(perceptron(), samples(), density=0.5, quantize="int7")
    assert str(caught.value).startswith("`quantize` must be one of 'int8', 'int4'")
    with pytest.raises(InvalidParameterError) as caught:
        compress(perceptron(), samples())
    assert str(caught.value) == (
        "Exactly one of `density` and `pattern` must be given, got None and None.\nhint: Give "
        '`density=0.5`, or `pattern="2:4"`; none is needed with `quantize`.'
    )


def test_training_does_not_go_with_levels() -> None:
    with pytest.raises(InvalidParameterError) as caught:
        compress(gpt2(), tokens(), density=0.5, quantize="int8", distill=5)
    assert str(caught.value) == (
        "`distill` cannot go with `quantize`: training moves weights off their levels.\nhint: "
        "Compress with `distill` first, then the result with `quantize` alone; zeros stay."
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bert_folder(tmp_path)


def test_the_command_writes_a_compact_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["compress", str(folder), "--calibration", str(tmp_path / "text.txt"),
               "--out", str(out)]  # fmt: skip
    options = ["--density", "0.5", "--quantize", "int4"]
    result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Compact model: " in result.output
    table = json.loads((out / "summary.json").read_text())
    assert table["settings"]["quantize"]["n_bits"] == 4
    assert 0 < table["compact_bytes"] < (out / COMPACT).stat().st_size
    page = (out / "report.html").read_text()
    assert "Compact file" in page
    assert "quantization error" in page
    plain, _ = load_folder(out)
    (out / "model.safetensors").unlink()
    model, tokenizer = load_compact(out)
    for one, two in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    batch = tokenizer(["the dog sat"], return_tensors="pt")
    assert torch.equal(model(**batch).last_hidden_state, plain(**batch).last_hidden_state)
    (out / COMPACT).write_bytes((out / COMPACT).read_bytes()[:-5])
    with pytest.raises(ModelFileError, match="is cut short"):
        load_compact(out)
    with pytest.raises(DataError, match="transformers cannot read the folder"):
        load_compact(tmp_path / "nothing")


def test_the_command_names_a_wrong_scheme_before_any_work(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["compress", str(folder), "--calibration", str(tmp_path / "text.txt"),
               "--out", str(out), "--quantize", "int2"]  # fmt: skip
    with pytest.raises(InvalidParameterError, match="must be one of 'int8', 'int4'"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not out.exists()
