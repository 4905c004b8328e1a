"""Options of the recipe: scores, gradients of pruned entries, averages, ramps."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, schedules
from ellzero.sets import NMPattern
from ellzero.tensors import scores as scoring
from tests.ranks import run_ranks

STEPS = 20
RANKS = 2
ADAM = {"lr": 0.01, "betas": (0.9, 0.99)}


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 7)).to(dtype)


def wrap(model, base=None, **arguments):
    arguments.setdefault("n_nonzero", 61)
    arguments.setdefault("schedule", schedules.ramp(0.0, 0.5, STEPS, freeze=0.7))
    base = base or torch.optim.AdamW(model.parameters(), **ADAM)
    return HardThresholding(base, model, **arguments)


def train(model, optimizer, start, stop, rank=None, check=None):
    dtype = next(model.parameters()).dtype
    for i in range(start, stop):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(16, 12, generator=generator).to(dtype)
        y = torch.randn(16, 7, generator=generator).to(dtype)
        if rank is not None:
            x, y = x[rank::RANKS], y[rank::RANKS]
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if check is not None:
            check()


def count(model):
    return sum(int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2)


def state(model, optimizer):
    ours = {i: v["hard_thresholding"] for i, v in optimizer.state_dict()["state"].items()}
    named = {f"{k} {i}": v[k] for i, v in ours.items() for k in ("means", "masks") if k in v}
    named |= {f"latent {n}": t for n, t in optimizer.latent.items()}
    return {**model.state_dict(), **named}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def largest(size, n):
    """Return a mask of the n largest, by a stable sort."""
    order = np.argsort(-size.ravel(), kind="stable")[:n]
    out = np.zeros(size.size, bool)
    out[order] = True
    return out.reshape(size.shape)


def shrunk(latent, level, power):
    """Return sign(x) (|x|^p - level^p)^(1/p), no smaller than 2^-10 of the value."""
    size = np.abs(latent)
    if power is not None:
        size = np.maximum(np.maximum(size**power - level**power, 0) ** (1 / power), size / 1024)
    return np.sign(latent) * size


def close(got, want, latents, power):
    """Compare powers: the root at the threshold turns one rounding into 1 %."""
    p, kept = power or 1, got != 0
    size = np.concatenate([np.abs(t).ravel() for t in latents])[kept]
    off = (
        np.sign(got[kept]) * np.abs(got[kept]) ** p - np.sign(want[kept]) * np.abs(want[kept]) ** p
    )
    assert (np.abs(off) <= 4e-6 * size**p).all()


@given(
    st.sampled_from(["magnitude", "relative", "curvature"]),
    st.sampled_from(["lazy", "straight_through", "iht"]),
    st.sampled_from([1.0, 0.5, 0.0]),
    st.booleans(),
    st.sampled_from(["cubic", "exponential"]),
    st.integers(1, 626),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from(["normal", "ties", "zeros", "tiny"]),
)
@settings(max_examples=20, deadline=None)
def test_the_count_is_exact_under_every_option(
    scores, recipe, factor, average, shape, n_nonzero, dtype, kind
):
    model = network(dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            if kind == "ties":
                p.copy_((p * 8).round() / 8)
            elif kind == "zeros":
                p.mul_(torch.rand(p.shape) < 0.1)
            elif kind == "tiny":
                p.mul_(torch.finfo(dtype).tiny)
    optimizer = wrap(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4),
        n_nonzero=n_nonzero,
        schedule=schedules.ramp(0.0, 0.5, 12, freeze=0.7, shape=shape),
        scores=scores,
        recipe=recipe,
        pruned_gradient=factor,
        average=average,
        every=2,
    )

    def check():
        assert count(model) == optimizer.n_nonzero == optimizer.budget

    train(model, optimizer, 0, 12, check=check)
    assert optimizer.budget == n_nonzero
    optimizer.finalize()
    check()
    train(model, optimizer, 12, 14, check=check)


@pytest.mark.parametrize("power", [None, 2.0, 3.0])
@pytest.mark.parametrize("n_nonzero", [40, 400])
def test_relative_scores_follow_their_formula(power, n_nonzero):
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(100)
    latents = [model[i].weight.detach().double().numpy() for i in (0, 2)]
    latents = [t.copy() for t in latents]
    wrap(model, schedule=None, n_nonzero=n_nonzero, scores="relative", power=power, floor=0.0)
    scales = [np.sqrt((t**2).mean()) for t in latents]
    scores = np.concatenate([np.abs(t).ravel() / s for t, s in zip(latents, scales, strict=True)])
    kept, tau = largest(scores, n_nonzero), np.sort(scores)[-n_nonzero]
    got = np.concatenate([model[i].weight.detach().double().numpy().ravel() for i in (0, 2)])
    np.testing.assert_array_equal(got != 0, kept)
    want = [shrunk(t, tau * s, power).ravel() for t, s in zip(latents, scales, strict=True)]
    close(got, np.concatenate(want), latents, power)


@pytest.mark.parametrize("power", [None, 2.0, 3.0])
@pytest.mark.parametrize("n_nonzero", [40, 400])
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_curvature_scores_follow_their_formula(power, n_nonzero, make):
    model = network()
    base = make(model.parameters(), lr=0.01)
    optimizer = wrap(
        model,
        base,
        schedule=None,
        n_nonzero=n_nonzero,
        scores="curvature",
        power=power,
        floor=0.0,
        every=1,
    )
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(7))
    x[:, 3] = 0  # entries that have no gradient
    (model(x) ** 2).mean().backward()
    optimizer.step()
    key = {"AdamW": "exp_avg_sq", "RMSprop": "square_avg", "Adagrad": "sum"}[make.__name__]
    latents = optimizer.latent
    latents = [t.double().numpy() for t in latents.values()]
    moments = [base.state[model[i].weight][key].double().numpy() for i in (0, 2)]
    # With few entries kept no path leads to the first layer: there magnitudes count alone.
    factors = [(v / v.mean() + 1e-6) ** 0.25 if v.any() else v + 1 for v in moments]
    scores = np.concatenate(
        [(np.abs(t) * c).ravel() for t, c in zip(latents, factors, strict=True)]
    )
    tau = np.sort(scores)[-n_nonzero]
    got = np.concatenate([model[i].weight.detach().double().numpy().ravel() for i in (0, 2)])
    np.testing.assert_array_equal(got != 0, largest(scores, n_nonzero))
    want = [shrunk(t, tau / c, power).ravel() for t, c in zip(latents, factors, strict=True)]
    close(got, np.concatenate(want), latents, power)


def planted(scores):
    """Train a linear model whose inputs differ in scale 300-fold; return what it keeps."""
    generator = torch.Generator().manual_seed(0)
    n_features, n_planted = 60, 6
    support = torch.randperm(n_features, generator=generator)[:n_planted]
    scale = torch.full((n_features,), 0.1)
    scale[support] = 30.0
    X = torch.randn(400, n_features, generator=generator) * scale
    truth = torch.zeros(n_features)
    truth[support] = torch.randn(n_planted, generator=generator).sign() / 30
    y = (X @ truth)[:, None] + 0.1 * torch.randn(400, 1, generator=generator)
    torch.manual_seed(1)
    model = nn.Linear(n_features, 1, bias=False)
    optimizer = HardThresholding(
        torch.optim.Adam(model.parameters(), lr=1e-3),
        model,
        n_nonzero=n_planted,
        schedule=schedules.ramp(0.0, 0.5, 400),
        scores=scores,
    )
    for _ in range(400):
        ((model(X) - y) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return set(model.weight.nonzero()[:, 1].tolist()), set(support.tolist())


def test_curvature_finds_the_planted_support_of_badly_scaled_inputs():
    # By luck: 1 in C(60, 6) = 5e7.
    kept, wanted = planted("curvature")
    assert kept == wanted
    kept, wanted = planted("magnitude")
    assert len(kept & wanted) < len(wanted)


def test_relative_scores_do_not_see_the_scale_of_a_tensor():
    masks = []
    for factor in (1.0, 2.0**10):
        model = network()
        with torch.no_grad():
            model[0].weight.mul_(factor)
        wrap(model, schedule=None, scores="relative", floor=0.0)
        masks.append([model[i].weight != 0 for i in (0, 2)])
    for a, b in zip(*masks, strict=True):
        assert torch.equal(a, b)


def test_scores_choose_patterns_too():
    model = nn.Linear(8, 4, bias=False)
    optimizer = HardThresholding(
        torch.optim.Adam(model.parameters(), lr=1e-3),
        model,
        constraint=NMPattern(2, 4),
        scores="curvature",
        every=1,
    )
    model.weight.grad = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    latent = optimizer.latent["weight"]
    v = optimizer.state[model.weight]["exp_avg_sq"].double()
    size = (latent.double().abs() * (v / v.mean() + 1e-6) ** 0.25).reshape(-1, 4)
    kept = size >= size.sort(1).values[:, 2:3]
    assert torch.equal(model.weight != 0, kept.reshape(4, 8))


def test_gradients_off_the_support_are_scaled():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, -3.0, 1.0, 0.5]])
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=1.0),
        model,
        n_nonzero=2,
        recipe="straight_through",
        pruned_gradient=0.25,
        every=1,
    )
    assert model.weight.tolist() == [[4.0, -3.0, 0.0, 0.0]]
    model.weight.grad = torch.tensor([[1.0, 1.0, 8.0, 40.0]])
    optimizer.step()
    latent = optimizer.latent["weight"]
    assert latent.tolist() == [[3.0, -4.0, -1.0, -9.5]]
    assert model.weight.tolist() == [[0.0, -4.0, 0.0, -9.5]]


def test_straight_through_is_lazy_without_shrinking():
    found = []
    for arguments in ({"recipe": "straight_through"}, {"recipe": "lazy", "power": None}):
        model = network()
        optimizer = wrap(model, **arguments)
        train(model, optimizer, 0, STEPS)
        found.append(state(model, optimizer))
    same(*found)
    # Kept entries are the latent ones, whatever `power` says.
    latent, weight = found[0]["latent 0.weight"], found[0]["0.weight"]
    assert torch.equal(weight, torch.where(weight != 0, latent, 0.0))


def test_the_average_is_the_mean_over_the_frozen_steps():
    model = network()
    optimizer = wrap(model, average=True)
    seen = []

    def check():
        if optimizer.n_steps >= 14:  # 0.7 of 20
            seen.append([p.detach().double().clone() for p in model.parameters()])

    train(model, optimizer, 0, STEPS, check=check)
    assert optimizer.n_averaged == len(seen) == 7
    last = [p.detach().clone() for p in model.parameters()]
    optimizer.finalize()
    for p, q, *all_p in zip(model.parameters(), last, *seen, strict=True):
        torch.testing.assert_close(p.double(), sum(all_p) / 7, rtol=1e-5, atol=1e-7)
        assert not torch.equal(p, q)
    assert count(model) == 61
    train(model, optimizer, 0, 2)
    assert count(model) == 61


def test_entries_whose_mean_is_zero_are_counted():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0, 0.1]])
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=1.0),
        model,
        n_nonzero=2,
        schedule=schedules.ramp(0.0, 0.5, 4, freeze=0.5),
        recipe="straight_through",
        average=True,
    )
    for grad in (0.0, 0.0, 2.0):
        model.weight.grad = torch.tensor([[grad, 0.0, 0.0]])
        optimizer.step()
    optimizer.finalize()
    tiny = torch.finfo(torch.float32).tiny
    assert model.weight.abs().tolist() == [[tiny, 2.0, 0.0]]


def test_weights_written_in_the_frozen_phase_start_the_average_again():
    model, other = network(), network(seed=5)
    optimizer = wrap(model, average=True, base=torch.optim.SGD(model.parameters(), lr=0.0))
    train(model, optimizer, 0, 18)
    assert optimizer.n_averaged == 5
    model.load_state_dict(other.state_dict())
    train(model, optimizer, 18, STEPS)
    assert optimizer.n_averaged == 2
    shown = [p.detach().clone() for p in model.parameters()]
    optimizer.finalize()
    for p, q in zip(model.parameters(), shown, strict=True):
        assert torch.equal(p, q)
    assert count(model) == 61


def test_options_that_are_off_change_nothing():
    # The state after training, by a loop that knows no options.
    model, plain = network(), network()
    optimizer = wrap(model, schedule=None, n_nonzero=100, power=None, every=1, floor=0.0)
    base = torch.optim.AdamW(plain.parameters(), **ADAM)
    latents = {n: p.detach().clone() for n, p in plain.named_parameters()}

    def threshold():
        sizes = torch.cat([latents[n].abs().reshape(-1) for n in ("0.weight", "2.weight")])
        level = sizes.sort().values[-100]
        for name, p in plain.named_parameters():
            keep = latents[name].abs() >= level if p.ndim == 2 else True
            p.data = torch.where(torch.as_tensor(keep), latents[name], 0.0)

    threshold()
    for i in range(STEPS):
        train(model, optimizer, i, i + 1)
        generator = torch.Generator().manual_seed(i)
        x, y = (torch.randn(16, n, generator=generator) for n in (12, 7))
        ((plain(x) - y) ** 2).mean().backward()
        for name, p in plain.named_parameters():
            p.data = latents[name]
        base.step()
        base.zero_grad()
        latents = {n: p.detach().clone() for n, p in plain.named_parameters()}
        threshold()
        same(dict(model.state_dict()), dict(plain.state_dict()))


OPTIONS = [
    {"scores": "curvature"},
    {"scores": "relative", "pruned_gradient": 0.5},
    {"average": True},
    {"average": True, "scores": "curvature", "n_nonzero": 300},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("at", "dtype"),
    [(8, torch.float32), (13, torch.float32), (17, torch.float32), (13, torch.bfloat16)],
)
def test_resume_is_bit_for_bit(options, at, dtype):
    # 13 lies between two choices of the support, 17 within the averaged phase.
    straight = network(dtype=dtype)
    optimizer = wrap(straight, **options)
    train(straight, optimizer, 0, STEPS)
    first = network(dtype=dtype)
    theirs = wrap(first, **options)
    train(first, theirs, 0, at)
    buffer = io.BytesIO()
    torch.save([first.state_dict(), theirs.state_dict()], buffer)
    buffer.seek(0)
    weights, saved = torch.load(buffer, weights_only=True)
    again = network(seed=3, dtype=dtype)
    resumed = wrap(again, **options)
    train(again, resumed, 0, 2)
    again.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(again, resumed, at, STEPS)
    same(state(again, resumed), state(straight, optimizer))
    assert resumed.n_averaged == optimizer.n_averaged == (7 if "average" in options else 0)
    for twin in (optimizer, resumed):
        twin.finalize()
    same(state(again, resumed), state(straight, optimizer))


def test_copies_go_on_alike():
    model = network()
    optimizer = wrap(model, average=True, scores="curvature")
    train(model, optimizer, 0, 16)
    twin, theirs = copy.deepcopy((model, optimizer))
    for a, b in ((model, optimizer), (twin, theirs)):
        train(a, b, 16, STEPS)
        b.finalize()
    same(state(model, optimizer), state(twin, theirs))


def test_moving_the_model_to_another_type_goes_on():
    model = network()
    optimizer = wrap(
        model, torch.optim.RMSprop(model.parameters()), scores="curvature", average=True
    )
    train(model, optimizer, 0, 16)
    model.double()
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 16, STEPS)
    optimizer.finalize()
    assert count(model) == 61
    assert model[0].weight.dtype == torch.float64


def refused(error, **arguments):
    model = network()
    base = arguments.pop("base", torch.optim.AdamW)(model.parameters(), lr=0.01)
    with pytest.raises(error) as caught:
        wrap(model, base, **arguments)
    return str(caught.value)


def test_wrong_options_are_refused():
    assert refused(InvalidParameterError, scores="curvatur") == (
        "`scores` must be one of 'magnitude', 'relative', 'curvature', got 'curvatur'. Did you "
        "mean 'curvature'?"
    )
    assert refused(InvalidParameterError, pruned_gradient=1.5) == (
        "`pruned_gradient` must be a number between 0 and 1, got 1.5."
    )
    assert refused(InvalidParameterError, pruned_gradient=0.5, recipe="acdc") == (
        "`pruned_gradient` must be 1.0 with recipe 'acdc', got 0.5.\n"
        "hint: In its sparse phases gradients off the support are zero already."
    )
    assert refused(InvalidParameterError, average=True, schedule=schedules.ramp(0.0, 0.5, 20)) == (
        "`average` must be False unless the schedule freezes the support, got Ramp(start=0.0, "
        "end=0.5, total_steps=20, freeze=1.0, shape='cubic').\n"
        "hint: Give `schedules.ramp` a `freeze` below 1, such as 0.8."
    )
    assert refused(IncompatibleError, scores="curvature", base=torch.optim.SGD) == (
        "`scores='curvature'` needs an optimizer that averages squared gradients, got `SGD`.\n"
        "hint: Use `torch.optim.AdamW`, or another score."
    )


def test_an_unknown_optimizer_without_curvature_is_told_at_its_first_choice():
    class Signs(torch.optim.Optimizer):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.grad.sign())

    model = network()
    base = Signs(model.parameters(), {"lr": 0.01})
    optimizer = wrap(model, base, scores="curvature", every=1)
    with pytest.raises(IncompatibleError, match=r"averages squared gradients, got `Signs`\."):
        train(model, optimizer, 0, 1)


def test_an_average_needs_frozen_steps():
    model = network()
    optimizer = wrap(model, average=True)
    train(model, optimizer, 0, 12)
    with pytest.raises(InvalidParameterError) as caught:
        optimizer.finalize()
    assert str(caught.value) == (
        "`finalize` must come after the support was frozen, since `average` is True, got step 12."
        "\nhint: Train on, or give a schedule with a smaller `freeze`."
    )
    assert not optimizer.is_finalized


def test_a_checkpoint_with_other_options_is_refused():
    model = network()
    optimizer = wrap(model, scores="relative")
    saved = wrap(network()).state_dict()
    with pytest.raises(InvalidParameterError) as caught:
        optimizer.load_state_dict(saved)
    assert caught.value.message == (
        "`state_dict` was saved with scores magnitude, this optimizer has relative."
    )


def test_the_exponential_ramp_follows_its_formula():
    ramp = schedules.ramp(0.2, 0.6, 100, shape="exponential")
    for step in range(110):
        u = min(max((step / 100 - 0.2) / 0.4, 0), 1)
        wanted = math.exp((1 - u) * math.log(266200) + u * math.log(2662))
        assert abs(ramp.budget(step, 2662, 266200) - wanted) <= 0.5 + 1e-6 * wanted
    assert ramp.budget(20, 2662, 266200) == 266200
    assert ramp.budget(40, 2662, 266200) == 26620
    assert ramp.budget(60, 2662, 266200) == 2662
    n = 2**53
    assert ramp.budget(0, 1, n) == n
    assert ramp.budget(100, n - 1, n) == n - 1
    with pytest.raises(InvalidParameterError) as caught:
        schedules.ramp(0.0, 0.5, 10, shape="cubical")
    assert str(caught.value) == (
        "`shape` must be one of 'cubic', 'exponential', got 'cubical'. Did you mean 'cubic'?"
    )


@given(st.integers(1, 200), st.integers(1, 500), st.integers(0, 500), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_exponential_ramp_falls_from_all_to_the_budget(total, budget, more, start):
    ramp = schedules.ramp(start, min(start + 0.4, 1.0), total, shape="exponential")
    counts = [ramp.budget(t, budget, budget + more) for t in range(total + 3)]
    assert counts[0] == budget + more
    assert counts[-1] == budget
    assert counts == sorted(counts, reverse=True)
    assert all(type(c) is int for c in counts)


def test_an_optimizer_state_without_squares_has_no_second_moment():
    assert scoring.second_moment({"step": torch.tensor(1.0), "momentum_buffer": None}) is None


def check_rank(rank):
    mesh = init_device_mesh("cpu", (RANKS,))
    for scores in ("curvature", "relative"):
        options = {"scores": scores, "average": True, "pruned_gradient": 0.5}
        single, model = network(), network()
        first = wrap(single, **options)
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = wrap(model, **options)
        for i in range(STEPS):
            train(single, first, i, i + 1)
            train(model, optimizer, i, i + 1, rank)
            assert optimizer.budget == first.budget == optimizer.n_nonzero
        saved = copy.deepcopy(optimizer.state_dict())
        again = network()
        fully_shard(again[0], mesh=mesh)
        fully_shard(again, mesh=mesh)
        theirs = wrap(again, **options)
        again.load_state_dict(model.state_dict())
        theirs.load_state_dict(saved)
        for one in (first, optimizer, theirs):
            one.finalize()
        for p, q, r in zip(
            single.parameters(), model.parameters(), again.parameters(), strict=True
        ):
            whole = q.full_tensor()
            torch.testing.assert_close(whole, p.detach(), rtol=1e-3, atol=1e-4)
            assert torch.equal(whole != 0, p != 0)
            assert torch.equal(whole, r.full_tensor())
        assert count(single) == optimizer.n_nonzero == 61


@pytest.mark.sharded
def test_two_processes_choose_the_support_of_one(tmp_path):
    run_ranks(check_rank, RANKS, tmp_path)
