"""`solve` and `solve_path`: choices, starts, wrong inputs, results."""

import pytest
import torch

import ellzero
from ellzero import Batch, L0Ball, LeastSquares, NMPattern, Problem, Status, solve, solve_path
from ellzero.errors import EllzeroError, IncompatibleError, InvalidParameterError
from ellzero.solvers import HTP, IHT, Newton, SubsetSearch
from tests.problems import ENUMERATED, random_problem
from tests.registry import PROBLEMS, least_squares, logistic, module


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("least-squares", "BranchAndBound"),
        ("softmax-free", "BranchAndBound"),
        ("no-ridge", "LocalSearch"),
        ("free", "Newton"),
        ("l1", "ProximalGradient"),
        ("groups", "IHT"),
        ("box", "IHT"),
        ("bounded-ball", "IHT"),
        ("module", "IHT"),
    ],
)
def test_default_solver(name, chosen):
    assert type(ellzero.choose_solver(PROBLEMS[name]())).__name__ == chosen


def test_no_proof_is_searched_above_64_entries():
    wide = LeastSquares(torch.eye(65).double(), torch.ones(65).double(), ridge=0.1)
    assert type(ellzero.choose_solver(Problem(wide, L0Ball(1)))) is SubsetSearch


def problem():
    return PROBLEMS["least-squares"]()


def zeros(**tensors):
    return {"coef": torch.zeros(6).double(), **tensors}


START = "\nhint: Start from `objective.init_params()`."
INSTANCE = "\nhint: Pass `ellzero.solvers.IHT()`, or None to have one chosen."
BUDGET = (
    "`budgets` must be an integer between 0 and 6, the number of entries that share the budget"
)
WRONG = [
    (
        lambda: solve(problem().objective),
        "`problem` must be a Problem, got LeastSquares.\n"
        "hint: Pass `ellzero.Problem(objective, constraint)`.",
    ),
    (lambda: solve(problem(), IHT), f"`solver` must be a solver instance, got ABCMeta.{INSTANCE}"),
    (lambda: solve(problem(), "iht"), f"`solver` must be a solver instance, got str.{INSTANCE}"),
    (
        lambda: solve(problem(), max_iter=-1),
        "`max_iter` must be an integer of at least 0, got -1.",
    ),
    (
        lambda: solve(problem(), max_iter=1.5),
        "`max_iter` must be an integer of at least 0, got 1.5.",
    ),
    (
        lambda: solve(problem(), time_limit=-1),
        "`time_limit` must be a number of at least 0, got -1.",
    ),
    (lambda: solve(problem(), starts=-1), "`starts` must be an integer of at least 0, got -1."),
    (
        lambda: solve(problem(), IHT(), {"coef": torch.zeros(5)}),
        f"`params` must hold a tensor 'coef' of shape (6,), got shape (5,).{START}",
    ),
    (
        lambda: solve(problem(), IHT(), {}),
        f"`params` must hold a tensor 'coef' of shape (6,), got no such tensor.{START}",
    ),
    (
        lambda: solve(problem(), IHT(), zeros(coeff=torch.zeros(2))),
        "Unknown tensor 'coeff' in `params`. Did you mean 'coef'? Known tensors: coef.",
    ),
    (
        lambda: solve(problem(), IHT(), torch.zeros(6)),
        f"`params` must be a mapping of names to tensors, got Tensor.{START}",
    ),
    (
        lambda: solve(problem(), IHT(), Batch({"coef": torch.zeros(0, 6)})),
        "`params` must hold the same positive number of points in every tensor, got 0.",
    ),
    (
        lambda: solve(
            PROBLEMS["logistic-free"](),
            IHT(),
            Batch({"coef": torch.zeros(2, 6), "intercept": torch.zeros(3)}),
        ),
        "`params` must hold the same positive number of points in every tensor, got 2 and 3.",
    ),
    (
        lambda: solve(problem(), IHT(), {"coef": torch.full((6,), torch.nan)}),
        "`params` must be finite, got NaN or infinity.",
    ),
    (
        lambda: solve(PROBLEMS["logistic"](), HTP()),
        "`HTP` cannot treat this problem: it needs a quadratic objective, got `Logistic`.\n"
        "hint: `BranchAndBound`, `LocalSearch`, `IHT` accept it.",
    ),
    (
        lambda: solve(PROBLEMS["box"](), HTP()),
        "`HTP` cannot treat this problem: it needs a sparse constraint, such as `L0Ball`.\n"
        "hint: `IHT` accepts it.",
    ),
    (
        lambda: solve(PROBLEMS["module-l1"]()),
        "No solver can treat this problem. "
        "`BranchAndBound`: it needs a smooth convex objective, got `ModuleLoss`; "
        "`SubsetSearch`: it needs a quadratic objective, got `ModuleLoss`; "
        "`LocalSearch`: it needs a smooth convex objective, got `ModuleLoss`; "
        "`Newton`: it needs a convex objective with bounded curvature, got `ModuleLoss`; "
        "`ProximalGradient`: it needs `step_size` where the objective has no curvature bound; "
        "`IHT`: it needs a constraint, such as `L0Ball`.",
    ),
    (
        lambda: solve_path(problem(), []),
        "`budgets` must hold at least one budget, got none.",
    ),
    (lambda: solve_path(problem(), [1, 7]), f"{BUDGET}, got 7."),
    (lambda: solve_path(problem(), [-1]), f"{BUDGET}, got -1."),
    (lambda: solve_path(problem(), [2.0]), f"{BUDGET}, got 2.0."),
    (lambda: solve_path(problem(), [True]), f"{BUDGET}, got True."),
    (lambda: solve_path(PROBLEMS["least-squares-free"](), [7]), f"{BUDGET}, got 7."),
    (
        lambda: solve_path(problem(), 3),
        "`budgets` must hold integers, got 3.\nhint: Pass `[3]`.",
    ),
    (
        lambda: solve_path(problem(), [1], starts=-1),
        "`starts` must be an integer of at least 0, got -1.",
    ),
    (
        lambda: solve_path(problem(), [1], IHT),
        f"`solver` must be a solver instance, got ABCMeta.{INSTANCE}",
    ),
    (
        lambda: solve_path(Problem(least_squares(), NMPattern(1, 2)), [1]),
        "`problem` must have an `L0Ball` or no constraint, got `NMPattern`.\n"
        "hint: Call `solve` for each set of your own.",
    ),
    (
        lambda: Problem(least_squares(), L0Ball(7)),
        "`n_nonzero` must be an integer between 0 and 6, the number of entries in 'coef', got 7.\n"
        "hint: Pass `n_nonzero=6` to keep every entry.",
    ),
]


@pytest.mark.parametrize(("call", "text"), WRONG, ids=range(len(WRONG)))
def test_wrong_input_has_its_message(call, text):
    with pytest.raises(EllzeroError) as error:
        call()
    assert str(error.value) == text


def test_errors_are_also_builtin_ones():
    assert issubclass(InvalidParameterError, ValueError)
    assert issubclass(IncompatibleError, TypeError)


def test_names_may_come_in_any_order():
    free = PROBLEMS["least-squares-free"]()
    start = {"intercept": torch.tensor(1.0), "coef": torch.arange(6.0)}
    result = solve(free, Newton(), start, certify=False)
    expected = solve(free, Newton(), {n: start[n] for n in ("coef", "intercept")}, certify=False)
    assert list(result.params) == ["coef", "intercept"]
    assert result.support == {"coef": [4, 5], "intercept": [()]}
    assert torch.equal(result.params["coef"], expected.params["coef"])


def test_a_module_starts_where_it_is():
    inside = Problem(module(), L0Ball(8))
    result = solve(inside, IHT(), max_iter=0, certify=False)
    start = inside.constraint.project(inside.objective.current_params())
    assert all(torch.equal(t, start[n]) for n, t in result.params.items())


@pytest.mark.parametrize(
    "kind", ["least squares", "logistic", pytest.param("softmax", marks=pytest.mark.slow)]
)
def test_path_finds_the_optimum_of_every_budget(kind):
    problem, _, _ = random_problem(2, kind)
    n = problem.objective.init_params()["coef"].numel()
    path = solve_path(problem, range(n + 1), starts=3)
    values = [path[s].value for s in range(n + 1)]
    assert values == sorted(values, reverse=True)
    assert path[0].n_nonzero == 0
    assert path[n].value == pytest.approx(path.dense.value, rel=1e-9)
    for budget in (1, 2, 3):
        _, best, _ = random_problem(2, kind, budget=budget)
        assert path[budget].value == pytest.approx(best, rel=ENUMERATED)
        assert path[budget].certificate.claim.name == "OPTIMAL"
    assert path.smallest_within(float("inf")) == 0
    assert path.smallest_within(-1.0) is None


def test_path_ends_at_an_interrupt():
    def interrupt(budget, result):
        stop.append(budget)

    stop = []

    def callback(iteration, state):
        if len(stop) == 1:
            raise KeyboardInterrupt

    path = solve_path(
        PROBLEMS["logistic"](), [1, 2, 3], certify=False, progress=interrupt, callback=callback
    )
    assert path.budgets == (1, 2)
    assert path[2].status is Status.INTERRUPTED


def test_time_limit_holds_for_search_and_proof_together():
    slow = Problem(logistic(ridge=1e-6), L0Ball(3))
    result = solve(slow, time_limit=0.0, certify=False)
    assert result.status is Status.TIME_LIMIT
    assert result.n_iter == 0
