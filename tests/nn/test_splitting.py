"""The training facade of relaxed variable splitting, and binary activations."""

import copy
import io
import itertools
import logging

import pytest
import torch
from torch import nn

from ellzero import L0, L1, GroupL0, L0Ball, TransformedL1
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import RVSM, BinaryActivation, HardThresholding


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))


def loss_of(model, i):
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(16, 12, generator=generator)
    y = torch.randn(16, 5, generator=generator)
    return ((model(x) - y) ** 2).mean()


def train(model, optimizer, start, stop):
    for i in range(start, stop):
        optimizer.zero_grad()
        loss_of(model, i).backward()
        optimizer.step()


def wrap(model, penalty=None, *, base=None, **options):
    options = {"beta": 0.5, **options}
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if base is None else base
    return RVSM(base, model, penalty, **options)


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim >= 2}


@pytest.mark.parametrize("order", ["gauss-seidel", "jacobi"])
@pytest.mark.parametrize("kind", ["l1", "l0", "tl1", "top-s"])
def test_steps_are_those_of_the_paper(order, kind):
    # Plain gradient steps, written out; the thresholds by their textbook forms.
    beta, lr, mu, n = 0.5, 0.1, 0.04, 60
    penalty = {"l1": L1(mu * beta), "l0": L0(mu * beta), "tl1": TransformedL1(mu * beta)}.get(kind)

    def threshold(w):
        flat = torch.cat([t.flatten() for t in w.values()])
        if kind == "top-s":
            level = flat.abs().sort(descending=True).values[n - 1]
            return {k: torch.where(t.abs() >= level, t, 0.0) for k, t in w.items()}
        if kind == "l1":
            return {k: t.sign() * (t.abs() - mu).clamp_min(0) for k, t in w.items()}
        if kind == "l0":
            return {k: torch.where(t.abs() > (2 * mu) ** 0.5, t, 0.0) for k, t in w.items()}
        out = {}
        for k, t in w.items():
            phi = torch.arccos(1 - 27 * mu * 2 / (2 * (1 + t.abs()) ** 3))
            root = 2 / 3 * (1 + t.abs()) * torch.cos(phi / 3) - 2 / 3 + t.abs() / 3
            out[k] = torch.where(t.abs() <= 2 * mu, 0.0, t.sign() * root)
        return out

    model, plain = network().double(), network().double()
    base = torch.optim.SGD(model.parameters(), lr=lr)
    budget = {"n_nonzero": n} if kind == "top-s" else {}
    optimizer = RVSM(base, model, penalty, beta=beta, order=order, **budget)
    u = threshold(weights(plain))
    for i in range(6):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(16, 12, generator=generator).double()
        y = torch.randn(16, 5, generator=generator).double()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ((plain(x) - y) ** 2).mean().backward()
        new = threshold(weights(plain))
        seen = new if order == "gauss-seidel" else u
        with torch.no_grad():
            for name, p in plain.named_parameters():
                pull = beta * (p - seen[name]) if name in seen else 0.0
                p.sub_(lr * (p.grad + pull))
                p.grad = None
        u = new
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)
    optimizer.finalize()
    for name, tensor in threshold(weights(plain)).items():
        assert torch.allclose(model.state_dict()[name], tensor, rtol=1e-8, atol=1e-10)
    assert sum(int((t != 0).sum()) for t in weights(model).values()) > 0


def test_finalize_has_exact_zeros_and_free_biases():
    model = network()
    optimizer = wrap(model, n_nonzero=30)
    assert optimizer.n_entries == 340
    train(model, optimizer, 0, 20)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert all((t != 0).all() for n, t in before.items() if n.endswith("weight"))
    assert 0 < optimizer.gap < 1
    optimizer.finalize()
    optimizer.finalize()
    after = dict(model.named_parameters())
    assert sum(int((p != 0).sum()) for n, p in after.items() if n.endswith("weight")) == 30
    assert optimizer.n_nonzero == 30
    for name, tensor in before.items():
        kept = after[name] != 0
        assert torch.equal(after[name][kept], tensor[kept])
        assert kept.all() or name.endswith("weight")
    # What was dropped is smaller than what was kept.
    flat = torch.cat([before[n].flatten() for n in ("0.weight", "2.weight")]).abs()
    mask = torch.cat([after[n].flatten() for n in ("0.weight", "2.weight")]) != 0
    assert flat[~mask].max() <= flat[mask].min()
    with pytest.raises(IncompatibleError) as error:
        optimizer.step()
    assert str(error.value) == (
        "`step` cannot follow `finalize`: the model holds the sparse weights.\n"
        "hint: Call `nn.freeze_support(model)` and train on with a plain optimizer."
    )


def test_sparse_weights_within_a_block():
    model = network()
    optimizer = wrap(model, L0(0.5 * 0.2**2 / 2))
    train(model, optimizer, 0, 5)
    before = weights(model)
    with optimizer.sparse_weights():
        inside = weights(model)
        count = sum(int((t != 0).sum()) for t in inside.values())
        assert 0 < count == optimizer.n_nonzero < 340
        assert all(((t == 0) | (t.abs() > 0.2)).all() for t in inside.values())
    after = weights(model)
    assert all(torch.equal(before[n], after[n]) for n in before)
    with pytest.raises(ZeroDivisionError), optimizer.sparse_weights():
        _ = 1 / 0
    assert all(torch.equal(before[n], t) for n, t in weights(model).items())


def test_lagrangian_falls_on_a_fixed_batch():
    model = network()
    optimizer = RVSM(torch.optim.SGD(model.parameters(), lr=0.05), model, L1(0.01), beta=0.5)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        values.append(optimizer.lagrangian(loss))
        loss.backward()
        optimizer.step()
    assert all(b <= a + 1e-7 for a, b in itertools.pairwise(values))
    loss = loss_of(model, 0).item()
    sparse = optimizer.sparse
    apart = sum(((p - sparse[n]) ** 2).sum() for n, p in weights(model).items())
    price = 0.01 * sum(t.abs().sum() for t in sparse.values())
    assert optimizer.lagrangian(loss) == pytest.approx(
        float(loss + price + 0.25 * apart), rel=1e-5
    )


@pytest.mark.parametrize("order", ["gauss-seidel", "jacobi"])
@pytest.mark.parametrize("every", [1, 3])
def test_resume_is_bit_for_bit(order, every):
    def make(seed):
        model = network(seed)
        base = torch.optim.Adam(model.parameters(), lr=0.01)
        optimizer = wrap(model, L0(0.01), base=base, order=order, every=every)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return model, optimizer, scheduler

    def run(model, optimizer, scheduler, start, stop):
        for i in range(start, stop):
            train(model, optimizer, i, i + 1)
            scheduler.step()

    whole = make(0)
    run(*whole, 0, 11)
    first = make(0)
    run(*first, 0, 5)
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in first], saved)
    saved.seek(0)
    second = make(7)
    for part, state in zip(second, torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*second, 5, 11)
    for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(p, q)
    assert second[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"] < 0.01
    twin_model, twin, _ = copy.deepcopy(whole)
    train(twin_model, twin, 11, 13)
    train(whole[0], whole[1], 11, 13)
    for p, q in zip(whole[0].parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_every_keeps_the_copy_in_between():
    model = network()
    optimizer = wrap(model, L1(0.02), every=3)
    copies = []
    for i in range(7):
        train(model, optimizer, i, i + 1)
        copies.append(optimizer._sparse["0.weight"].clone())
    same = [torch.equal(a, b) for a, b in itertools.pairwise(copies)]
    assert same == [True, True, False, True, True, False]


def test_group_penalty_and_constraint():
    model = network()
    labels = {"0.weight": torch.arange(20).repeat_interleave(12)}
    optimizer = wrap(model, GroupL0(0.15, labels), beta=1.0)
    assert optimizer.n_entries == 240
    train(model, optimizer, 0, 5)
    optimizer.finalize()
    rows = (model[0].weight != 0).sum(1).tolist()
    assert set(rows) == {0, 12}
    assert (model[2].weight != 0).all()
    model = network()
    optimizer = wrap(model, constraint=L0Ball(17))
    optimizer.finalize()
    assert sum(int((t != 0).sum()) for t in weights(model).values()) == 17


def test_a_step_that_is_not_finite_is_skipped(caplog):
    model = network()
    optimizer = wrap(model, L1(0.01))
    loss_of(model, 0).backward()
    model[0].weight.grad[0, 0] = float("nan")
    before = weights(model)
    with caplog.at_level(logging.WARNING, logger="ellzero"):
        optimizer.step()
    assert all(torch.equal(before[n], t) for n, t in weights(model).items())
    assert (optimizer.n_skipped, optimizer.n_steps) == (1, 0)
    assert caplog.messages == ["Step 1 skipped: a gradient is not finite."]


def test_closure_is_called_once():
    model = network()
    optimizer = wrap(model, L1(0.01))
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == calls[0]
    assert len(calls) == 1


def test_warnings():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=4.0)
    with pytest.warns(UserWarning, match="diverges") as caught:
        RVSM(base, model, L1(1e-3), beta=0.5)
    assert [str(w.message) for w in caught] == [
        "`lr` 4 times `beta` 0.5 is not below 2: the attraction to the sparse weights alone "
        "diverges. Lower one of them."
    ]
    with pytest.warns(UserWarning, match="threshold") as caught:
        wrap(model, L1(5.0))
    assert [str(w.message) for w in caught] == [
        "The threshold 10 sets all 340 counted weights to zero at the start. Lower the weight of "
        "the penalty, or raise `beta`."
    ]
    assert caught[0].filename == __file__


HINT = "\nhint: It couples the dense and the sparse weights."
ONE = "Exactly one of `penalty`, `n_nonzero` and `constraint` must be given, got "
WRONG = [
    (lambda m: wrap(m, L1(0.1), beta=0.0), f"`beta` must be positive, got 0.{HINT}"),
    (wrap, f"{ONE}none."),
    (lambda m: wrap(m, L1(0.1), n_nonzero=3), f"{ONE}`penalty` and `n_nonzero`."),
    (
        lambda m: wrap(m, "l1"),
        "`penalty` must be a penalty object, got 'l1'.\n"
        "hint: Pass `ellzero.L0(1e-6)`, for example; its weight is the lambda.",
    ),
    (
        lambda m: wrap(m, L1(0.1, ("0.weigth",))),
        "Unknown tensor '0.weigth' in `names`. Did you mean '0.weight'? Known tensors: 0.weight, "
        "0.bias, 2.weight, 2.bias.",
    ),
    (
        lambda m: wrap(m, L1(0.1), order="jacobean"),
        "`order` must be one of 'gauss-seidel', 'jacobi', got 'jacobean'. Did you mean 'jacobi'?",
    ),
    (lambda m: wrap(m, L1(0.1), every=0), "`every` must be an integer of at least 1, got 0."),
    (
        lambda m: wrap(m, L1(0.1), base=m),
        "`optimizer` must be a torch optimizer, got Sequential.\n"
        "hint: Pass `torch.optim.SGD(model.parameters(), lr=0.1)`, for example, then the model.",
    ),
    (
        lambda m: wrap(m, L1(0.1), base=torch.optim.LBFGS(m.parameters())),
        "`optimizer` must take one step for one gradient, got `LBFGS`.\n"
        "hint: Use a first-order optimizer, such as `torch.optim.SGD`.",
    ),
    (
        lambda m: wrap(m, L1(0.1), base=torch.optim.SGD(m[2].parameters(), lr=0.1)),
        "`optimizer` does not hold the parameter '0.weight' that the budget counts.\n"
        "hint: Build it on `model.parameters()`.",
    ),
    (
        lambda m: wrap(m, L1(0.1)).load_state_dict(
            HardThresholding(torch.optim.SGD(m.parameters(), lr=0.1), m, 5).state_dict()
        ),
        "`state_dict` must come from an `RVSM`, got one of another optimizer.\n"
        "hint: Resume with the optimizer state that was saved by the run.",
    ),
    (
        lambda m: wrap(m, L1(0.1)).load_state_dict(
            wrap(network(), L1(0.1), beta=0.6).state_dict()
        ),
        "`state_dict` was saved with beta 0.6, this optimizer has 0.5.\n"
        "hint: Build the optimizer with the settings of the checkpoint.",
    ),
    (
        lambda m: wrap(m, L1(0.1)).add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        "A parameter cannot be added after construction.\n"
        "hint: Build the optimizer and `RVSM` again with all parameters.",
    ),
    (
        lambda m: (wrap(m, L1(0.1)), m[0].weight.requires_grad_(False))[0].step(),
        "'0.weight' was frozen (`requires_grad` is False) after construction.\n"
        "hint: Set its learning rate to 0 instead, or build the optimizer anew.",
    ),
    (
        lambda m: BinaryActivation("reluu"),
        "`estimator` must be one of 'relu', 'clipped_relu', 'identity', got 'reluu'. "
        "Did you mean 'relu'?",
    ),
]


@pytest.mark.parametrize(("call", "text"), WRONG)
def test_messages(call, text):
    with pytest.raises((InvalidParameterError, IncompatibleError)) as error:
        call(network())
    assert str(error.value) == text


# Binary activations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "slope"),
    [("relu", [0, 0, 1, 1]), ("clipped_relu", [0, 0, 1, 0]), ("identity", [1, 1, 1, 1])],
)
def test_values_and_estimators(estimator, slope):
    x = torch.tensor([-3.0, -0.2, 0.7, 40.0], requires_grad=True)
    activation = BinaryActivation(estimator)
    out = activation(x)
    assert out.tolist() == [0, 0, 1, 1]
    out.backward(torch.tensor([2.0, 3.0, 5.0, 7.0]))
    assert x.grad.tolist() == [a * b for a, b in zip(slope, [2, 3, 5, 7], strict=True)]
    with torch.no_grad():
        assert activation(torch.tensor([0.0, float("nan"), 1e-30])).tolist() == [0, 0, 1]
    # Under functional transforms, the same.
    slopes = torch.func.vmap(torch.func.grad(activation))(x.detach())
    assert slopes.tolist() == slope
    assert activation(x.detach().half()).dtype == torch.float16
    assert repr(activation) == f"BinaryActivation(estimator={estimator!r})"


def test_a_binary_network_learns():
    # Signs of one feature: the true gradient is zero, the coarse one finds the rule.
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    y = (x[:, 0] > 0).float()
    model = nn.Sequential(nn.Linear(4, 1, bias=False), BinaryActivation("clipped_relu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        (model(x)[:, 0] - y).square().mean().backward()
        optimizer.step()
    assert ((model(x)[:, 0] > 0.5) == (y > 0.5)).float().mean() > 0.97
