"""Whole models with random weights: counts, blocks, resumption, what is left dense."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ellzero.errors import DataError, IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.language import CompressedLayer, compress
from ellzero.language.calibration import (
    matrix,
    prunable_layers,
    read_batches,
    split_model,
    stages,
)
from ellzero.language.moments import moments
from ellzero.language.sensitivity import final_output, output_sensitivity


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def samples(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 8, generator=generator) for _ in range(2)]


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def tokens() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(3):
        ids = torch.randint(0, 50, (4, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_counts_are_exact_and_the_rest_is_untouched() -> None:
    model = gpt2()
    before = weights(model)
    result = compress(model, tokens(), density=0.3)
    assert [layer.name for layer in result.layers] == [
        f"transformer.h.{i}.{part}"
        for i, part in itertools.product(
            range(2), ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        )
    ]
    names = {f"{layer.name}.weight" for layer in result.layers}
    for name, parameter in model.named_parameters():
        if name in names:
            assert int((parameter != 0).sum()) == int(0.3 * parameter.numel())
        elif name.removesuffix("bias") + "weight" not in names:
            assert torch.equal(parameter, before[name])
    assert result.left_dense["lm_head"] == "its weight is tied to 'transformer.wte'"
    table = result.to_dict()
    assert table["n_nonzero"] == sum(int((model.get_parameter(n) != 0).sum()) for n in names)
    for line in table["layers"]:
        assert 0.0 <= line["lower_bound"] <= line["relative_error"] < 1.0


def test_a_pattern_runs_along_the_inputs_of_a_transposed_layer() -> None:
    model = gpt2()
    compress(model, tokens(), pattern="2:4")
    # GPT-2 stores (inputs, outputs).
    weight = model.get_parameter("transformer.h.1.mlp.c_fc.weight")
    assert int((weight.T.reshape(64, 4, 4) != 0).sum(2).max()) == 2


def test_moments_leave_padding_out() -> None:
    model = gpt2()
    calls = read_batches(tokens())
    layers, _ = prunable_layers(model)
    del layers["transformer.h.1.mlp.c_fc"]
    segments, starts = split_model(model, layers, calls)
    assert len(segments) == 2
    groups, unused = stages(segments[0], starts[0])
    assert [len(group) for group in groups] == [1, 1, 1, 1]
    assert unused == []
    found = moments(segments[0], groups[0], starts)
    rows = []
    for call in calls:
        ids = call.kwargs["input_ids"]
        hidden = model.transformer.wte(ids) + model.transformer.wpe(torch.arange(12))
        rows.append(model.transformer.h[0].ln_1(hidden)[call.kwargs["attention_mask"].bool()])
    expected = torch.cat(rows).double()
    assert found.n_samples == 3 * 45
    torch.testing.assert_close(found.gram, expected.T @ expected, rtol=1e-5, atol=1e-5)


def test_layers_with_a_common_input_share_a_stage() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.a(x) + self.b(x))

    model = Branches()
    layers, _ = prunable_layers(model)
    calls = read_batches(samples())
    segments, calls = split_model(model, layers, calls)
    assert stages(segments[0], calls[0])[0] == [["a", "b"], ["c"]]


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = gpt2()
    expected = compress(whole, tokens(), density=0.4, allocation="global")

    class Stopped(Exception):
        pass

    def stop(layer: CompressedLayer) -> None:
        if layer.name == "transformer.h.1.attn.c_attn":
            raise Stopped

    options: dict[str, Any] = {
        "density": 0.4, "allocation": "global", "checkpoint": tmp_path / "run",
    }  # fmt: skip
    with pytest.raises(Stopped):
        compress(gpt2(), tokens(), callback=stop, **options)
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == 5
    resumed = gpt2()
    result = compress(resumed, tokens(), **options)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name))
    errors = [layer.record["relative_error"] for layer in result.layers]
    assert errors == [layer.record["relative_error"] for layer in expected.layers]
    with pytest.raises(InvalidParameterError, match="is of another model, calibration or setting"):
        compress(gpt2(), tokens(), **{**options, "density": 0.5})
    next((tmp_path / "run").glob("*.safetensors")).write_bytes(b"no")
    with pytest.raises(DataError, match=r"checkpoint file .* cannot be read"):
        compress(gpt2(), tokens(), **options)


def test_a_global_budget_is_exact_and_follows_the_output() -> None:
    model = perceptron()
    with torch.no_grad():
        # Half of the second layer is zero, so a score can keep at most the other half.
        model[2].weight[2:] = 0.0
    result = compress(model, samples(), density=0.75, allocation="global", inputs="dense")
    kept = [int((model[i].weight != 0).sum()) for i in (0, 2)]
    assert kept == [52, 16]
    assert sum(kept) <= 72
    assert result.n_nonzero == sum(kept)


def test_rows_keep_the_same_number() -> None:
    model = perceptron()
    compress(model, samples(), density=0.5, allocation="rows")
    assert (model[0].weight != 0).sum(1).tolist() == [4] * 8


@pytest.mark.parametrize(
    "options", [{"inputs": "dense"}, {"correction": 0.0}, {"correction": 0.5}], ids=str
)
def test_outputs_are_nearer_than_those_of_the_largest_weights(options: dict[str, Any]) -> None:
    dense = perceptron()
    data = samples()
    test = torch.cat(samples(5))
    ours, largest = copy.deepcopy(dense), copy.deepcopy(dense)
    compress(ours, data, density=0.4, **options)
    for layer in (largest[0], largest[2]):
        weight = matrix(layer)
        level = weight.abs().flatten().sort(descending=True).values[int(0.4 * weight.numel())]
        weight[weight.abs() <= level] = 0.0
    with torch.no_grad():
        distance = [float((m(test) - dense(test)).square().mean()) for m in (ours, largest)]
    assert distance[0] < distance[1]


def test_sensitivity_is_the_derivative_of_the_output() -> None:
    model = perceptron()
    layers, _ = prunable_layers(model)
    calls = read_batches([x for seed in range(200) for x in samples(seed)])
    found = output_sensitivity(model, layers, calls)
    torch.testing.assert_close(found["2"], torch.ones(4).double())
    hidden = torch.cat([model[0](call.args[0]) for call in calls])
    expected = ((hidden > 0).double().mean(0) * matrix(model[2]).double().square().sum(0)).detach()
    # 12,800 rows share 400 directions; cross terms leave a few percent.
    torch.testing.assert_close(found["0"], expected, rtol=0.25, atol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_short_calibration_and_dead_inputs_are_said() -> None:
    data = samples()[0][:5].clone()
    data[:, 3] = 0.0
    result = compress(perceptron(), [data], density=0.5)
    assert result.layers[0].notes == (
        "5 calibration tokens for 8 inputs; damping decides the rest",
        "1 inputs are always zero; their weights are zero",
    )


def test_what_is_not_supported_is_listed() -> None:
    model = nn.Sequential(nn.Conv1d(2, 8, 1), nn.Flatten(1), nn.Linear(8, 6), nn.Linear(6, 2))
    result = compress(model, [torch.randn(9, 2, 1)], pattern="2:4")
    assert result.left_dense == {
        "0": "Conv1d is not supported",
        "3": "its 6 inputs are no multiple of the pattern",
    }
    encoder = nn.TransformerEncoderLayer(8, 2)
    assert prunable_layers(encoder)[1] == {
        "self_attn": "MultiheadAttention does not call its linear layers"
    }


def test_refusals() -> None:
    model = perceptron()
    with pytest.raises(InvalidParameterError, match="Exactly one of `density` and `pattern`"):
        compress(model, samples())
    with pytest.raises(InvalidParameterError, match="`density` must be above 0, got 0"):
        compress(model, samples(), density=0.0)
    with pytest.raises(InvalidParameterError, match="`pattern` must be like \"2:4\", got '4:2'"):
        compress(model, samples(), pattern="4:2")
    with pytest.raises(InvalidParameterError, match="`allocation`"):
        compress(model, samples(), density=0.5, allocation="even")
    with pytest.raises(InvalidParameterError, match="No layer can be compressed: '0': Conv1d is"):
        compress(nn.Sequential(nn.Conv1d(2, 2, 1)), samples(), density=0.5)
    with pytest.raises(DataError, match="calibration set is empty"):
        compress(model, [], density=0.5)
    with pytest.raises(IncompatibleError, match="returns a str without logits or hidden states"):
        final_output("text", read_batches(samples())[0])
    with pytest.raises(InvalidParameterError, match="A ReLU has no weight matrix"):
        matrix(nn.ReLU())
    broken = [samples()[0] * float("nan")]
    with pytest.raises(NonFiniteError, match="input of layer '0' has a NaN"):
        compress(model, broken, density=0.5)
