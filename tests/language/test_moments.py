"""What a layer aims at: against least squares on the tokens themselves."""

from typing import Any

import pytest
import torch
from torch import nn

from ellzero.errors import DataError
from ellzero.language.calibration import Call, Segment, prunable_layers, read_batches, stages
from ellzero.language.moments import Pair, aim_of, moments
from ellzero.language.residuals import Place, find_residuals


class PreNorm(nn.Module):
    """Adds round the norm, as GPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return hidden + self.down(torch.relu(self.up(self.norm(hidden))))


class PostNorm(nn.Module):
    """Adds before the norm, as BERT does; the inner part gets what goes round by keyword."""

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(6, 4), nn.LayerNorm(4)

        def forward(self, hidden: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
            return self.norm(self.dense(hidden) + around)

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(4, 6), self.Out()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.up(hidden)), around=hidden)


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def segment_of(module: nn.Module) -> Segment:
    return Segment(module, prunable_layers(module)[0])


def inputs(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (PreNorm, {"down": Place("", 0)}),
        (PostNorm, {"out.dense": Place("", 0)}),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {}),
    ],
)
def test_additions_are_found_by_their_values(kind: Any, expected: dict[str, Place]) -> None:
    module = seeded(kind)
    assert find_residuals(segment_of(module), Call((inputs(),), {})) == expected


def test_additions_are_found_in_half_precision_and_not_in_products() -> None:
    module = seeded(PreNorm).bfloat16()
    call = Call((inputs().bfloat16(),), {})
    assert find_residuals(segment_of(module), call) == {"down": Place("", 0)}

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Identity()

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.last(hidden * self.layer(hidden))

    assert find_residuals(segment_of(seeded(Gated)), Call((inputs(),), {})) == {}


def test_transformers_add_after_attention_and_after_the_perceptron() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    block = transformers.GPT2Model(config).eval().h[0]
    found = find_residuals(segment_of(block), Call((torch.randn(2, 5, 16),), {}))
    assert found == {"attn.c_proj": Place("", 0), "mlp.c_proj": Place("ln_2", 0)}


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("kind", [PreNorm, PostNorm])
def test_the_aim_is_the_least_squares_fit_to_the_dense_sums(
    kind: type[nn.Module], has_bias: bool
) -> None:
    dense, other = seeded(kind), seeded(kind)
    here, there = segment_of(other), segment_of(dense)
    name = list(here.layers)[-1]
    places = find_residuals(there, Call((inputs(),), {}))
    stages(here, Call((inputs(),), {}))
    stages(there, Call((inputs(),), {}))
    with torch.no_grad():
        other.up.weight[:, ::2] = 0.0
    # What comes in differs too, as it does behind compressed blocks.
    calls = [Call((inputs() + 0.3 * inputs(1),), {})]
    found = moments(here, [name], calls, Pair(there, [Call((inputs(),), {})], places))
    layer = there.layers[name]
    weight = layer.weight.detach().double()
    aim = aim_of(name, weight, found, has_bias=has_bias, correction=1.0, damping=0.0)

    def parts(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            hidden = module.norm(x) if kind is PreNorm else x
            return torch.relu(module.up(hidden)).reshape(-1, 6), x.reshape(-1, 4)

    x, around = parts(other, calls[0].args[0])
    d, dense_around = parts(dense, inputs())
    target = (d.double() @ weight.T) + (dense_around - around).double()
    x = x.double()
    if has_bias:
        mean_x, mean_t = x.mean(0), target.mean(0)
        x, target = x - mean_x, target - mean_t
        new = aim.bias(layer.bias.detach(), aim.weight)
        torch.testing.assert_close(
            new.double(), layer.bias.double() + mean_t - aim.weight @ mean_x, rtol=1e-4, atol=1e-5
        )
    gram = x.T @ x
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(gram + ridge, x.T @ target + ridge @ weight.T).T
    torch.testing.assert_close(aim.gram, gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(aim.weight, expected, rtol=1e-3, atol=1e-4)


def test_without_correction_a_layer_keeps_its_weight() -> None:
    segment = segment_of(seeded(PreNorm))
    found = moments(segment, ["up"], [Call((inputs(),), {})])
    weight = segment.layers["up"].weight.detach()
    aim = aim_of("up", weight, found, has_bias=True, correction=0.0, damping=0.01)
    assert torch.equal(aim.weight, weight)
    torch.testing.assert_close(aim.offset, weight.double() @ aim.mean)


def test_a_constant_input_goes_into_the_bias() -> None:
    layer = nn.Linear(3, 2)
    data = torch.randn(40, 3)
    data[:, 1] = 7.0
    segment = Segment(layer, {"": layer})
    found = moments(segment, [""], read_batches([data]))
    weight = layer.weight.detach()
    aim = aim_of("", weight, found, has_bias=True, correction=0.0, damping=0.01)
    assert aim.n_constant == 1
    new = weight.clone()
    new[:, 1] = 0.0
    bias = aim.bias(layer.bias.detach(), new)
    torch.testing.assert_close(data @ new.T + bias, layer(data).detach(), rtol=1e-4, atol=1e-4)


def test_a_layer_called_twice_counts_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    module = Twice()
    segment = segment_of(module)
    calls = read_batches([torch.randn(5, 3)])
    stages(segment, calls[0])
    assert segment.repeated == {"layer"}
    assert moments(segment, ["layer"], calls).n_samples == 10


def test_no_call_is_refused() -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(DataError, match="calibration set is empty"):
        moments(Segment(layer, {"": layer}), [""], [])
