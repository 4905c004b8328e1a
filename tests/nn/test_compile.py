"""A compiled training trains like the one that is not."""

import shutil

import pytest
import torch
from torch import nn

from ellzero.nn import HardThresholding, schedules

STEPS = 12
BUDGET = 40

BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ],
    ),
]
OPTIMIZERS = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "foreach": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
}

# The compiler warns about profilers, graph breaks and its own deprecations.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(optimizer, recipe="lazy", device="cpu"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).to(device)
    base = optimizer(model.parameters())
    return model, HardThresholding(
        base,
        model,
        n_nonzero=BUDGET,
        schedule=schedules.ramp(0.0, 0.6, STEPS),
        recipe=recipe,
    )


def batch(i, device="cpu"):
    generator = torch.Generator().manual_seed(i)
    x, y = (torch.randn(16, n, generator=generator) for n in (12, 5))
    return x.to(device), y.to(device)


def one_step(model, optimizer, x, y, step=None):
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    (optimizer.step if step is None else step)()
    optimizer.zero_grad()
    return loss.detach()


def compare(model, optimizer, eager, theirs, **tolerance):
    assert optimizer.n_steps == theirs.n_steps == STEPS
    assert optimizer.n_nonzero == BUDGET
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        assert torch.equal(p != 0, q != 0)
        torch.testing.assert_close(p, q, **tolerance)


def train_eagerly(*arguments, **named):
    model, optimizer = build(*arguments, **named)
    device = model[0].weight.device
    for i in range(STEPS):
        one_step(model, optimizer, *batch(i, device))
    return model, optimizer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["lazy", "iht"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_is_the_step(name, recipe, backend):
    eager, theirs = train_eagerly(OPTIMIZERS[name], recipe)
    model, optimizer = build(OPTIMIZERS[name], recipe)
    step = torch.compile(optimizer.step, backend=backend)
    for i in range(STEPS):
        one_step(model, optimizer, *batch(i), step)
    compare(model, optimizer, eager, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_training_step_trains_alike(name, backend):
    eager, theirs = train_eagerly(OPTIMIZERS[name])
    model, optimizer = build(OPTIMIZERS[name])
    compiled = torch.compile(one_step, backend=backend)
    for i in range(STEPS):
        loss = compiled(model, optimizer, *batch(i))
        assert loss.isfinite()
    compare(model, optimizer, eager, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["lazy", "iht"])
def test_the_wrapped_optimizer_may_be_compiled(recipe, backend):
    eager, theirs = train_eagerly(OPTIMIZERS["adamw"], recipe)
    model, optimizer = build(OPTIMIZERS["adamw"], recipe)
    base = optimizer.optimizer
    calls = []
    compiled = torch.compile(base.step, backend=backend)
    base.step = lambda: calls.append(compiled())
    for i in range(STEPS):
        one_step(model, optimizer, *batch(i))
    assert len(calls) == STEPS
    compare(model, optimizer, eager, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_sees_every_step(backend):
    eager, theirs = train_eagerly(OPTIMIZERS["adamw"])
    model, _ = build(OPTIMIZERS["adamw"])
    compiled = torch.compile(model, backend=backend)
    # Built on the compiled module, whose parameters have other names.
    optimizer = HardThresholding(
        OPTIMIZERS["adamw"](compiled.parameters()),
        compiled,
        n_nonzero=BUDGET,
        schedule=schedules.ramp(0.0, 0.6, STEPS),
    )
    for i in range(STEPS):
        x, y = batch(i)
        one_step(compiled, optimizer, x, y)
        torch.testing.assert_close(compiled(x), model(x))
    compare(model, optimizer, eager, theirs, rtol=1e-3, atol=1e-5)
    # Its state is one of the plain model.
    theirs.load_state_dict(optimizer.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("capturable", [False, True])
def test_on_a_gpu_compiled_and_capturable_steps_train_alike(capturable):
    def adamw(params):
        return torch.optim.AdamW(params, lr=0.01, capturable=capturable)

    eager, theirs = train_eagerly(adamw, device="cuda")
    for how in ("step", "whole", "base"):
        torch._dynamo.reset()
        model, optimizer = build(adamw, device="cuda")
        step, whole = None, one_step
        if how == "step":
            step = torch.compile(optimizer.step)
        elif how == "whole":
            whole = torch.compile(one_step)
        else:
            optimizer.optimizer.step = torch.compile(optimizer.optimizer.step)
        for i in range(STEPS):
            whole(model, optimizer, *batch(i, "cuda"), step)
        compare(model, optimizer, eager, theirs, rtol=1e-3, atol=1e-5)
