import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, schedules
from ellzero.sets import BlockL0Ball, NMPattern
from ellzero.tensors import thresholded


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).to(dtype)


def train(model, optimizer, steps, seed=1, check=None):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(16, 12, generator=generator).to(dtype)
        y = torch.randn(16, 5, generator=generator).to(dtype)
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if check is not None:
            check()


def nonzeros(model):
    return sum(int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2)


SCHEDULES = st.one_of(
    st.just(schedules.constant()),
    st.builds(
        lambda a, b, n: schedules.ramp(a, min(a + b, 1.0), n),
        st.floats(0, 0.5),
        st.floats(0.1, 0.5),
        st.integers(1, 12),
    ),
    st.builds(schedules.phases, st.integers(1, 3), st.integers(1, 3), st.integers(2, 12)),
)


@given(
    SCHEDULES,
    st.sampled_from(["lazy", "iht", "acdc"]),
    st.sampled_from([None, 2.0, 3.0]),
    st.integers(1, 5),
    st.integers(1, 339),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from(["normal", "ties", "zeros", "tiny"]),
)
@settings(max_examples=40, deadline=None)
def test_the_count_is_the_integer_asked_for(schedule, recipe, power, every, count, dtype, kind):
    model = network(dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            if kind == "ties":
                p.copy_((p * 8).round() / 8)
            elif kind == "zeros":
                p.mul_(torch.rand(p.shape) < 0.1)
            elif kind == "tiny":
                p.mul_(torch.finfo(dtype).tiny)
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        model,
        n_nonzero=count,
        schedule=schedule,
        recipe=recipe,
        power=power,
        every=every,
    )

    def check():
        assert nonzeros(model) == optimizer.n_nonzero == optimizer.budget
        if schedule.is_final(optimizer.n_steps):
            assert optimizer.budget == count

    check()
    train(model, optimizer, 13, check=check)
    if schedule.is_final(optimizer.n_steps):
        optimizer.finalize()
        check()
        train(model, optimizer, 2, check=check)


@pytest.mark.parametrize("power", [2.0, 3.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_the_model_holds_the_thresholded_latent_values(power, dtype, density):
    torch.manual_seed(0)
    model = nn.Linear(50, 37, bias=False).to(dtype)
    latent = model.weight.detach().clone().double().numpy()
    HardThresholding(
        torch.optim.SGD(model.parameters(), lr=0.1), model, n_nonzero=density, power=power
    )
    count = int(density * latent.size)
    tau = np.sort(np.abs(latent).ravel())[-count]
    kept = np.abs(latent) >= tau
    expected = np.where(kept, latent, 0.0)
    if power is not None:
        share = np.maximum(1 - (tau / np.abs(latent).clip(tau)) ** power, 0) ** (1 / power)
        expected *= np.maximum(share, 2.0**-10)
    got = model.weight.detach().double().numpy()
    assert ((got != 0) == kept).all()
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4 * tau)


def test_kernels_agree_with_torch_and_with_the_interpreter():
    from ellzero.kernels import thresholded as kernels

    torch.manual_seed(0)
    latent = torch.randn(333)
    latent[:3] = torch.tensor([0.0, 1e-30, -1e20])
    mask = torch.rand(333) < 0.5
    mask[:3] = True
    for level in (0.0, 0.3, 1e-40):
        wide = torch.where(mask, thresholded._shrink(latent.double(), level, 3.0), 0.0)
        index = mask.nonzero().reshape(-1).to(torch.int32)
        for run in (kernels.shrink, kernels.shrink.py_func):
            out = torch.empty(333)
            with np.errstate(all="ignore"):
                run(latent.numpy(), mask.numpy(), np.float32(level), out.numpy())
            torch.testing.assert_close(out.double(), wide, rtol=2e-4, atol=2e-4 * level + 1e-37)
            assert torch.equal(out != 0, mask)
        sparse = torch.zeros(333)
        kernels.shrink_at(latent.numpy(), index.numpy(), np.float32(level), sparse.numpy())
        kernels.shrink(latent.numpy(), mask.numpy(), np.float32(level), out.numpy())
        assert torch.equal(sparse, out)
    found = torch.empty(len(index) + 1, dtype=torch.int32)
    kernels.positions(mask.view(torch.uint8).numpy(), found.numpy())
    assert torch.equal(found[:-1], index)


def test_a_wrong_guess_of_the_threshold_changes_nothing():
    torch.manual_seed(0)
    scores = {"a": torch.randn(300, 200), "b": torch.randn(7)}
    held = {"a": torch.zeros(300, 200, dtype=torch.bool)}
    right, level = thresholded.top_k(scores, 600, held)
    order = torch.cat([t.abs().reshape(-1) for t in scores.values()]).sort(descending=True)
    assert level == float(order.values[599])
    for near in ((level * 0.99, level * 1.01), (0.0, 0.1), (5.0, 6.0), (level, level)):
        masks, same = thresholded.top_k(scores, 600, held, near)
        assert same == level
        assert all(torch.equal(masks[n], right[n]) for n in scores)


def test_incumbents_win_ties():
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 1, 1, 1, 2, 2, 2, 2]])
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=1.0), model, n_nonzero=3, power=None, every=1
    )
    assert model.weight.nonzero()[:, 1].tolist() == [4, 5, 6]
    # Now everything is equal: the support stays, though other positions come first.
    model.weight.grad = torch.tensor([[-1.0, -1, -1, -1, 0, 0, 0, 0]])
    optimizer.step()
    assert model.weight.nonzero()[:, 1].tolist() == [4, 5, 6]


def test_density_one_is_the_plain_optimizer():
    plain, sparse = network(), network()
    base = torch.optim.AdamW(plain.parameters(), lr=0.01)
    train(plain, base, 12)
    ours = torch.optim.AdamW(sparse.parameters(), lr=0.01)
    train(sparse, HardThresholding(ours, sparse, n_nonzero=1.0), 12)
    for a, b in zip(plain.parameters(), sparse.parameters(), strict=True):
        assert torch.equal(a, b)


def test_iht_matches_its_formula():
    model = nn.Linear(6, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, -2.0, 1.0, 0.5, 0.1, 0.05]])
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=0.5), model, n_nonzero=2, recipe="iht", every=1
    )
    assert model.weight.tolist() == [[3.0, -2.0, 0, 0, 0, 0]]
    model.weight.grad = torch.tensor([[0.0, -3.0, 0.0, 8.0, 0.0, 0.0]])
    optimizer.step()
    assert model.weight.tolist() == [[3.0, 0, 0, -4.0, 0, 0]]


def test_pruned_entries_can_come_back_in_the_lazy_recipe():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.9]])
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=0.1), model, n_nonzero=1, power=None, every=1
    )
    for _ in range(2):
        model.weight.grad = torch.tensor([[0.0, -1.0]])
        optimizer.step()
    assert model.weight.tolist() == [[0.0, pytest.approx(1.1)]]


def test_patterns_and_blocks_hold_at_every_step():
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))
    optimizer = HardThresholding(
        torch.optim.Adam(model.parameters(), lr=0.01), model, constraint=NMPattern(2, 4)
    )

    def check():
        for p in (model[0].weight, model[2].weight):
            assert ((p != 0).reshape(-1, 4).sum(1) == 2).all()

    train(model, optimizer, 7, check=check)
    optimizer.finalize()
    train(model, optimizer, 2, check=check)
    model = nn.Linear(8, 8)
    optimizer = HardThresholding(
        torch.optim.Adam(model.parameters(), lr=0.01),
        model,
        constraint=BlockL0Ball(3, (2, 4), names=("weight",)),
    )
    for _ in range(6):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        blocks = (model.weight != 0).reshape(4, 2, 2, 4).sum((1, 3))
        assert sorted(blocks.reshape(-1).tolist()) == [0] * 5 + [8] * 3


def test_mapping_and_allocation_hold_in_every_tensor():
    model = network()
    budget = {"0.weight": 31, "2.weight": 0.25}
    optimizer = HardThresholding(
        torch.optim.Adam(model.parameters(), lr=0.01), model, n_nonzero=budget
    )
    train(model, optimizer, 6)
    assert [int((model[i].weight != 0).sum()) for i in (0, 2)] == [31, 25]


def test_a_whole_layer_never_disappears(caplog):
    model = network()
    model[2].weight.data.mul_(1e-3)
    with caplog.at_level(logging.WARNING, "ellzero"):
        optimizer = HardThresholding(
            torch.optim.SGD(model.parameters(), lr=0.0), model, n_nonzero=40, every=1, floor=0.5
        )
        train(model, optimizer, 3)
    # Half of a uniform share: 0.5 * 40 * 100 / 340 = 5.88.
    assert [int((model[i].weight != 0).sum()) for i in (0, 2)] == [35, 5]
    assert [r.getMessage() for r in caplog.records] == [
        "The budget left '2.weight' with less than 50 % of a uniform share; `floor` keeps its 5 "
        "largest entries."
    ]
    caplog.clear()
    model[2].weight.data.mul_(1e-3)
    with caplog.at_level(logging.WARNING, "ellzero"):
        HardThresholding(
            torch.optim.SGD(model.parameters(), lr=0.0), model, n_nonzero=20, floor=0.0
        )
    assert [r.getMessage() for r in caplog.records] == [
        "The budget left '2.weight' without a nonzero entry."
    ]


def test_channels_last_weights():
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    largest = model.weight.detach().abs().reshape(-1).sort(descending=True).values[19]
    expected = model.weight.detach().abs() >= largest
    optimizer = HardThresholding(torch.optim.SGD(model.parameters(), lr=0.1), model, n_nonzero=20)
    assert torch.equal(model.weight != 0, expected)
    model(torch.randn(2, 4, 5, 5)).square().mean().backward()
    optimizer.step()
    assert optimizer.n_nonzero == 20
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_wrong_arguments_are_refused():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidParameterError, match="Exactly one of `n_nonzero` and `constraint`"):
        HardThresholding(base, model)
    with pytest.raises(InvalidParameterError, match="Did you mean 'lazy'"):
        HardThresholding(base, model, n_nonzero=3, recipe="lzay")
    with pytest.raises(IncompatibleError, match="got `LBFGS`"):
        HardThresholding(torch.optim.LBFGS(model.parameters()), model, n_nonzero=3)
    with pytest.raises(IncompatibleError, match=r"does not hold the parameter '0\.weight'"):
        HardThresholding(torch.optim.SGD(model[2].parameters(), lr=0.1), model, n_nonzero=3)
    mixed = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    base = torch.optim.SGD(mixed.parameters(), lr=0.1)
    with pytest.raises(IncompatibleError, match="several devices: cpu, meta"):
        HardThresholding(base, mixed, n_nonzero=3)
