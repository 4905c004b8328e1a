"""Losses by their formulas, and recovery training under exact counts."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ellzero.errors import (
    DataError,
    IncompatibleError,
    InvalidParameterError,
    NonFiniteError,
)
from ellzero.language import compress
from ellzero.language.calibration import call_of, matrix
from ellzero.language.distillation import (
    DistilBERTLoss,
    HiddenLoss,
    HintonLoss,
    Outputs,
    TinyBERTLoss,
    distill,
    read_outputs,
    soft_targets,
)


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.BertModel(config).eval()


def texts(n_batches: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(n_batches):
        ids = torch.randint(0, 30, (6, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def pruned(density: float = 0.3) -> tuple[nn.Module, nn.Module]:
    dense = bert()
    sparse = copy.deepcopy(dense)
    compress(sparse, texts(), density=density, with_bounds=False)
    return sparse, dense


def test_soft_targets_follow_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    own, known = (torch.randn(5, 4, generator=generator) for _ in range(2))
    expected = 0.0
    for s, t in zip(own.tolist(), known.tolist(), strict=True):
        p = [math.exp(v / 3.0) for v in t]
        q = [math.exp(v / 3.0) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += 9.0 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    assert float(soft_targets(own, known, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(soft_targets(known + 2.0, known, 3.0)) == pytest.approx(0.0, abs=1e-6)


def test_hinton_adds_the_labels() -> None:
    own, known = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1])
    hard = -(math.log(math.e / (1 + math.e)) + math.log(math.exp(2) / (1 + math.exp(2)))) / 2
    pair = Outputs(own, ()), Outputs(known, ())
    soft = float(HintonLoss(temperature=4.0)(*pair))
    mixed = HintonLoss(temperature=4.0, alpha=0.25)(*pair, labels)
    assert float(mixed) == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-5)


def test_padding_does_not_count() -> None:
    tokens = torch.tensor([[1, 1, 0]])
    own, known = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    own[0, 0], known[0, 0], known[0, 1], own[0, 1] = 1.0, 1.0, 2.0, 2.0
    own[0, 2], known[0, 2] = 9.0, -9.0
    for loss in (DistilBERTLoss(), TinyBERTLoss(), HiddenLoss()):
        pair = (Outputs(x, (x,), (), tokens) for x in (own, known))
        assert float(loss(*pair)) == pytest.approx(0.0, abs=1e-6)


def test_distilbert_adds_cosine_and_soft_targets() -> None:
    own = Outputs(torch.tensor([[1.0, 0.0]]), (torch.tensor([[3.0, 4.0]]),))
    known = Outputs(torch.tensor([[0.0, 1.0]]), (torch.tensor([[4.0, 3.0]]),))
    assert own.logits is not None
    assert known.logits is not None
    soft = float(soft_targets(own.logits, known.logits, 2.0))
    assert float(DistilBERTLoss()(own, known)) == pytest.approx(5 * soft + 1 - 24 / 25, rel=1e-5)


def test_tinybert_compares_scores_up_to_a_constant_and_without_padding() -> None:
    model = bert()
    call = call_of(texts()[0])
    found = read_outputs(model, call, with_scores=True)
    assert len(found.hidden) == 3
    assert len(found.scores) == 2
    part = model.encoder.layer[0].attention.self
    with torch.no_grad():
        hidden = found.hidden[0]
        q, k = (f(hidden).view(6, 9, 2, 8).transpose(1, 2) for f in (part.query, part.key))
        raw = q @ k.mT / math.sqrt(8.0)
    mask = call.kwargs["attention_mask"].bool()
    for text in range(6):
        real = raw[text][:, :, mask[text]]
        got = found.scores[0][text][:, :, mask[text]]
        torch.testing.assert_close(got, real - real.mean(-1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert bool((found.scores[0][0][:, :, 5:] <= -100).all())
    other = Outputs(None, found.hidden, tuple(s + 0.5 for s in found.scores), found.tokens)
    real = sum(float((s > -100).float().mean()) for s in found.scores)
    assert float(TinyBERTLoss()(found, other).detach()) == pytest.approx(0.25 * real, rel=1e-4)


@pytest.mark.parametrize("support", ["fixed", "moving"])
def test_training_nears_the_dense_model_and_keeps_every_count(support: str) -> None:
    sparse, dense = pruned()
    names = [n for n, m in sparse.named_modules() if isinstance(m, nn.Linear) and "layer" in n]
    before = {n: matrix(sparse.get_submodule(n)) != 0 for n in names}
    others = {n: p.detach().clone() for n, p in sparse.named_parameters() if p.dim() > 1}
    # Entries off the support start at zero and have to overtake others.
    lr = 5e-3 if support == "fixed" else 2e-2
    result = distill(sparse, dense, texts(), 40, lr=lr, support=support)
    assert sum(result.losses[-4:]) < 0.7 * sum(result.losses[:4])
    moved = 0
    for name in names:
        after = matrix(sparse.get_submodule(name)) != 0
        assert int(after.sum()) == int(before[name].sum())
        moved += int((after & ~before[name]).sum())
        del others[f"{name}.weight"]
    assert (moved > 0) == (support == "moving")
    assert result.n_changed == moved
    for name, old in others.items():
        assert torch.equal(sparse.get_parameter(name), old)
    assert all(p.requires_grad and p.grad is None for p in sparse.parameters())


def test_a_moving_pattern_is_kept() -> None:
    dense = bert()
    sparse = copy.deepcopy(dense)
    compress(sparse, texts(), pattern="2:4", with_bounds=False)
    distill(sparse, dense, texts(), 10, lr=5e-3, support="moving", pattern=(2, 4))
    weight = matrix(sparse.encoder.layer[1].intermediate.dense)
    assert int((weight.reshape(32, 4, 4) != 0).sum(2).max()) == 2


@pytest.mark.parametrize("support", ["fixed", "moving"])
def test_an_interrupted_training_goes_on_to_the_same_bits(support: str, tmp_path: Path) -> None:
    whole, dense = pruned()
    start = copy.deepcopy(whole)
    expected = distill(whole, dense, texts(), 60, support=support)

    class Stopped(Exception):
        pass

    def stop(step: int, value: float) -> None:
        if step == 31:
            raise Stopped

    options: dict[str, Any] = {"support": support, "checkpoint": tmp_path / "run.pt"}
    with pytest.raises(Stopped):
        distill(copy.deepcopy(start), dense, texts(), 60, callback=stop, **options)
    again = copy.deepcopy(start)
    steps: list[int] = []
    result = distill(again, dense, texts(), 60, callback=lambda n, _: steps.append(n), **options)
    assert steps[0] == 26
    assert result.losses == expected.losses
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    with pytest.raises(DataError, match=r"'run\.pt' is of another distillation"):
        distill(copy.deepcopy(start), dense, texts(), 61, **options)
    (tmp_path / "run.pt").write_bytes(b"no")
    with pytest.raises(DataError, match=r"'run\.pt' cannot be read"):
        distill(copy.deepcopy(start), dense, texts(), 60, **options)


def test_compress_trains_after_the_last_layer(tmp_path: Path) -> None:
    model, dense = bert(), bert()
    result = compress(
        model, texts(), density=0.3, with_bounds=False, distill=5, checkpoint=tmp_path / "run"
    )
    by_hand = bert()
    compress(by_hand, texts(), density=0.3, with_bounds=False)
    distill(by_hand, dense, texts(), 5, layers=[layer.name for layer in result.layers])
    for name, parameter in by_hand.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
    table = result.to_dict()
    assert table["distillation"]["n_steps"] == 5
    assert table["n_nonzero"] == table["distillation"]["n_nonzero"]
    assert (tmp_path / "run" / "distillation.pt").is_file()


def test_refusals() -> None:
    sparse, dense = pruned()
    with pytest.raises(InvalidParameterError, match="No linear layer of the model holds a zero"):
        distill(dense, dense, texts(), 1)
    with pytest.raises(InvalidParameterError, match="names of layers of the model, got 'no'"):
        distill(sparse, dense, texts(), 1, layers=["no"])
    with pytest.raises(InvalidParameterError, match="`support`"):
        distill(sparse, dense, texts(), 1, support="free")
    with pytest.raises(DataError, match="calibration set is empty"):
        distill(sparse, dense, [], 1)
    with pytest.raises(IncompatibleError, match="compares logits, and the model has none"):
        distill(sparse, dense, texts(), 1, loss=HintonLoss())
    with pytest.raises(
        InvalidParameterError, match=r"`labels` must be given, since `alpha` is 0\.5"
    ):
        HintonLoss(alpha=0.5)(*[Outputs(torch.ones(1, 2), ())] * 2)
    with pytest.raises(InvalidParameterError, match="`temperature`"):
        DistilBERTLoss(temperature=0.0)
    with pytest.raises(NonFiniteError, match="distillation loss became nan at step 1"):
        distill(sparse, dense, texts(), 1, loss=lambda s, t: s.hidden[-1].sum() * float("nan"))

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "text"

    with pytest.raises(IncompatibleError, match="returns a str, which no loss can compare"):
        read_outputs(Odd(), call_of(torch.ones(1)))


def test_a_transposed_layer_keeps_its_zeros_but_moves_no_pattern() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=False,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    dense = transformers.GPT2LMHeadModel(config).eval()
    sparse = copy.deepcopy(dense)
    compress(sparse, texts(), pattern="2:4", with_bounds=False)
    before = {n: p.detach() != 0 for n, p in sparse.named_parameters() if "c_" in n}
    table = sparse.transformer.wte.weight.detach().clone()
    result = distill(sparse, dense, texts(), 8, loss=DistilBERTLoss())
    assert result.losses[-1] < result.losses[0]
    for name, mask in before.items():
        if name.endswith("weight"):
            assert torch.equal(sparse.get_parameter(name) != 0, mask)
    # Tied to the head: not trained.
    assert torch.equal(sparse.transformer.wte.weight, table)
    with pytest.raises(IncompatibleError, match="cannot keep a pattern along the inputs of 'tra"):
        distill(sparse, dense, texts(), 1, support="moving", pattern=(2, 4))
