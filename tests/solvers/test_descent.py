"""AdaGrad and gradient descent against torch's optimizers, theory, and their own promises."""

import math

import pytest
import torch

from ellzero import Problem, Quadratic, Status, iterate, solve
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.objectives import (
    CosineWells,
    FiniteSum,
    LeastSquares,
    NoisyGradient,
    StiffRamps,
    random_rotation,
)
from ellzero.solvers import AdaGrad, GradientDescent
from ellzero.tensors import named


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem_and_start(seed=0, n=7):
    source = generator(seed)
    curvatures = torch.rand(n, generator=source, dtype=torch.float64) + 0.1
    rotation = random_rotation(n, source)
    objective = CosineWells(curvatures, rotation=rotation)
    start = {"coef": 2 * torch.randn(n, generator=source, dtype=torch.float64)}
    return Problem(objective), start


def by_torch(problem, start, make, steps):
    x = start["coef"].clone().requires_grad_()
    optimizer = make([x])
    for _ in range(steps):
        optimizer.zero_grad()
        problem.objective.value({"coef": x}).backward()
        optimizer.step()
    return x.detach()


def after(problem, solver, start, steps):
    state = solver.init(problem, named.to_batch(start))
    for _ in range(steps):
        state = solver.step(problem, state)
    return state.params["coef"][0]


def test_adagrad_takes_the_steps_of_torch():
    problem, start = problem_and_start()
    theirs = by_torch(problem, start, lambda p: torch.optim.Adagrad(p, lr=0.3, eps=0.0), 40)
    # The floor of 1e-8 of the largest entry enters squared.
    assert torch.allclose(after(problem, AdaGrad(0.3), start, 40), theirs, rtol=1e-12, atol=1e-12)


def test_descent_takes_the_steps_of_torch():
    problem, start = problem_and_start()
    theirs = by_torch(problem, start, lambda p: torch.optim.SGD(p, lr=0.3), 40)
    ours = after(problem, GradientDescent(0.3), start, 40)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_falling_steps_fall_with_the_root_of_the_count():
    problem = Problem(Quadratic(torch.eye(1).double(), torch.zeros(1).double()))
    x, solver = 1.0, GradientDescent(0.5, schedule="sqrt")
    for t in range(1, 6):
        x -= 0.5 / math.sqrt(t) * x
        point = after(problem, solver, {"coef": torch.ones(1).double()}, t)
        assert float(point) == pytest.approx(x, rel=1e-14)


@pytest.mark.parametrize("kind", [AdaGrad, GradientDescent])
def test_many_step_sizes_are_one_batch(kind):
    problem, start = problem_and_start()
    steps = (0.05, 0.2, 0.7)
    run = iterate(problem, kind(steps, tol=0.0), named.expand(start, 3), max_iter=25)
    for i, step in enumerate(steps):
        alone = iterate(problem, kind(step, tol=0.0), start, max_iter=25)
        assert torch.allclose(run.params["coef"][i], alone.params["coef"][0], rtol=1e-12)
        assert float(run.value[i]) == pytest.approx(float(alone.value[0]), rel=1e-12)


def test_the_default_step_of_adagrad_is_that_of_theory():
    f = StiffRamps(16)
    state = AdaGrad().init(Problem(f), named.to_batch(f.start()))
    # |L|_1 = 1 + 4 eps^2 / (rho Delta) = 1.4; the ramps begin rounded: Delta is 1 - rho / 2.
    value = 0.125 + 0.95
    assert float(state.value) == pytest.approx(1 - 0.1 / 2 + 0.125, rel=1e-12)
    assert float(state.step_size) == pytest.approx(math.sqrt(value / 1.4), rel=1e-9)


def test_the_default_step_of_descent_is_one_over_the_curvature():
    Q = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).double()
    state = GradientDescent().init(
        Problem(Quadratic(Q, torch.ones(2).double())), named.to_batch({"coef": torch.zeros(2)})
    )
    assert float(state.step_size) == pytest.approx(0.25, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_descent_keeps_the_promise_of_its_rate(seed):
    source = generator(seed)
    A = torch.randn(9, 6, generator=source, dtype=torch.float64)
    f = LeastSquares(A, torch.randn(9, generator=source, dtype=torch.float64))
    problem, norms = Problem(f), []
    run = iterate(
        problem,
        GradientDescent(tol=0.0),
        f.init_params(),
        max_iter=30,
        callback=lambda _, s: norms.append(float(named.norm_squared(s.grad))),
    )
    lowest = solve(problem).value
    decrease = float(run.values[0]) - lowest
    for T in range(1, 30):
        assert min(norms[:T]) <= 2 * decrease * f.smoothness() / T * (1 + 1e-9)


def test_descent_diverges_beyond_two_over_the_curvature():
    problem = Problem(StiffRamps(8))
    far = iterate(problem, GradientDescent(2.1), problem.objective.start(), max_iter=200)
    near = iterate(problem, GradientDescent(1.9), problem.objective.start(), max_iter=200)
    assert float(far.values[-1]) > 1e6
    assert float(near.values[-1]) < float(near.values[0])


def test_a_zero_gradient_moves_nothing():
    problem = Problem(Quadratic(torch.eye(2).double(), torch.zeros(2).double()))
    for solver in (AdaGrad(), AdaGrad(1.0), GradientDescent()):
        run = iterate(problem, solver, problem.objective.init_params(), max_iter=5)
        assert run.status(0) is Status.CONVERGED
        assert run.n_iter.tolist() == [0]
    f = Quadratic(torch.diag(torch.tensor([1.0, 0.0])).double(), torch.tensor([1.0, 0.0]).double())
    point = after(Problem(f), AdaGrad(0.1), {"coef": torch.tensor([3.0, 5.0]).double()}, 4)
    assert point[1] == 5.0


def test_adagrad_does_not_depend_on_the_scale_of_the_objective():
    X = torch.randn(20, 5, generator=generator(1), dtype=torch.float64)
    y = X.sum(1) + torch.randn(20, generator=generator(2), dtype=torch.float64)
    points = [
        after(Problem(LeastSquares(s * X, s * y)), AdaGrad(), {"coef": torch.zeros(5)}, 50)
        for s in (1.0, 1e3)
    ]
    assert torch.allclose(*points, rtol=1e-6)


def test_noise_has_its_mean_and_its_size():
    f = StiffRamps(4)
    sigma = {"coef": torch.tensor([1.0, 0.0, 0.5, 0.0]).double()}
    noisy = NoisyGradient(f, sigma)
    start = named.expand(f.start(), 20_000)
    sample = noisy.sampled_grad(start, generator())["coef"]
    exact = f.value_and_grad(f.start())[1]["coef"]
    # Four standard errors of a mean and of a standard deviation.
    assert bool(((sample.mean(0) - exact).abs() <= 4 * sigma["coef"] / math.sqrt(20_000)).all())
    assert torch.allclose(sample.std(0), sigma["coef"], rtol=4 / math.sqrt(40_000))
    assert bool((sample[:, [1, 3]] == exact[[1, 3]]).all())


def finite_sum():
    X = torch.randn(30, 4, generator=generator(3), dtype=torch.float64)
    y = torch.randn(30, generator=generator(4), dtype=torch.float64)
    terms = [LeastSquares(X[a:b], y[a:b]) for a, b in ((0, 5), (5, 15), (15, 30))]
    return FiniteSum(terms, [5, 10, 15]), LeastSquares(X, y), terms


def test_a_finite_sum_is_its_whole_and_its_samples_average_to_it():
    f, whole, terms = finite_sum()
    point = {"coef": torch.ones(4).double()}
    value, grad = f.value_and_grad(point)
    assert float(value) == pytest.approx(float(whole.value(point)), rel=1e-12)
    exact = whole.value_and_grad(point)[1]["coef"]
    assert torch.allclose(grad["coef"], exact, rtol=1e-12)
    each = torch.stack([t.value_and_grad(point)[1]["coef"] for t in terms])
    shares = torch.tensor([1 / 6, 1 / 3, 1 / 2]).double().unsqueeze(1)
    sigma = (shares * (each - exact).square()).sum(0).sqrt()
    assert torch.allclose(f.noise_vector(point)["coef"], sigma, rtol=1e-10)
    count = 5000
    samples = f.sampled_grad(named.expand(point, count), generator())["coef"]
    assert bool(((samples.mean(0) - exact).abs() <= 4 * sigma / math.sqrt(count)).all())
    # Every sample is the gradient of one term.
    distance = (samples.unsqueeze(1) - each).norm(dim=2).amin(1)
    assert float(distance.max()) <= 1e-12


@pytest.mark.parametrize("kind", [AdaGrad, GradientDescent])
def test_sampled_runs_repeat_with_their_seed_and_fall(kind):
    f, whole, _ = finite_sum()
    problem = Problem(f)
    runs = [
        iterate(problem, kind(0.2, generator=generator(s)), f.init_params(), max_iter=300)
        for s in (5, 5, 6)
    ]
    assert torch.equal(runs[0].params["coef"], runs[1].params["coef"])
    assert not torch.equal(runs[0].params["coef"], runs[2].params["coef"])
    lowest = solve(Problem(whole)).value
    start = float(whole.value(whole.init_params()))
    assert float(runs[0].value) - lowest <= 0.2 * (start - lowest)
    assert runs[0].status(0) is Status.MAX_ITER


def test_messages():
    f = StiffRamps(4)
    with pytest.raises(IncompatibleError) as error:
        solve(Problem(f), AdaGrad(generator=generator()), f.start())
    assert error.value.message == (
        "`AdaGrad` cannot treat this problem: it was given a `generator`, but the objective has "
        "no sampled gradients, as `FiniteSum` and `NoisyGradient` have."
    )
    with pytest.raises(InvalidParameterError) as caught:
        iterate(Problem(f), AdaGrad((1.0, 2.0)), named.expand(f.start(), 3))
    assert str(caught.value) == (
        "`step_size` must hold one number or one for each of 3 starts, got 2."
    )
    with pytest.raises(InvalidParameterError) as caught:
        iterate(Problem(f), AdaGrad(lower_bound=5.0), f.start())
    assert str(caught.value) == (
        "`lower_bound` must be below the value at the start, got 5 and a value of 1.075.\n"
        "hint: Give a number below all values, or a `step_size`."
    )


def test_solvers_show_no_memory_address():
    assert "object at" not in repr(AdaGrad(generator=generator()))


def test_the_descent_bound_of_the_instance_is_a_bound():
    f = StiffRamps(12, n_stiff=1)
    tol = 0.1 / float(f.value_and_grad(f.start())[1]["coef"].abs().sum())
    for step in (0.5, 1.0, 1.9):
        run = iterate(Problem(f), GradientDescent(step, tol=tol), f.start(), max_iter=2000)
        assert run.status(0) is Status.CONVERGED
        assert int(run.n_iter) >= f.descent_steps()
