"""`solve` and `solve_path`: choose a solver, iterate, certify, return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ellzero.certificates import check_splitting, verify
from ellzero.core.problem import AbstractSmoothObjective, Problem
from ellzero.core.result import Measure, Result, Status
from ellzero.core.solver import AbstractSolver, Callback, Run, iterate
from ellzero.errors import IncompatibleError, InvalidParameterError, did_you_mean
from ellzero.sets import L0Ball
from ellzero.solvers import (
    IHT,
    RVSCGD,
    RVSM,
    BranchAndBound,
    ExactSubset,
    LocalSearch,
    Newton,
    ProximalGradient,
    SubsetSearch,
    make_starts,
)
from ellzero.solvers.starts import dense_minimizer
from ellzero.tensors import named
from ellzero.tensors.coverage import restrict
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_integer, check_real

log = logging.getLogger("ellzero")

# The order in which `solve` asks; the first solver that does not refuse is used.
DEFAULT_SOLVERS: tuple[Callable[[], AbstractSolver[Any]], ...] = (
    BranchAndBound,
    SubsetSearch,
    LocalSearch,
    Newton,
    ProximalGradient,
    IHT,
)
# Entries up to which the default search goes on to a proof.
PROOF_ENTRIES = 64
# Seconds and steps after which the default search for a proof stops with the gap it has.
PROOF_SECONDS = 20.0
N_STARTS = 20
# Two values closer than this, relatively, are the same optimum when hits are counted.
SAME_VALUE = 1e-6


def choose_solver(problem: Problem) -> AbstractSolver[Any]:
    """Return the default solver of a problem.

    `BranchAndBound` for strongly convex objectives of at most 64 entries under an `L0Ball`, else
    `SubsetSearch` for quadratic ones, `LocalSearch` for smooth convex ones, `Newton` without
    constraint, `ProximalGradient` for penalties, `IHT` with backtracking for the rest.

    Parameters
    ----------
    problem : Problem
        What to minimize.

    Returns
    -------
    AbstractSolver
        The first solver of the list that accepts the problem.

    Raises
    ------
    IncompatibleError
        If no solver accepts the problem; the message quotes every reason.

    Examples
    --------
    >>> import torch, ellzero
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.ones(3))
    >>> type(ellzero.choose_solver(ellzero.Problem(objective, ellzero.L0Ball(1)))).__name__
    'BranchAndBound'
    """
    n = named.size(problem.objective.init_params())
    reasons = []
    for build in DEFAULT_SOLVERS:
        solver = build()
        if isinstance(solver, BranchAndBound) and n > PROOF_ENTRIES:
            continue
        if isinstance(solver, Newton) and problem.constraint is not None:
            continue
        reason = solver.refusal(problem)
        if reason is None:
            return solver
        reasons.append(f"`{type(solver).__name__}`: {reason}")
    raise IncompatibleError("No solver can treat this problem. " + "; ".join(reasons) + ".")


def _check_solver(problem: Problem, solver: AbstractSolver[Any]) -> None:
    if not isinstance(solver, AbstractSolver):
        raise IncompatibleError(
            f"`solver` must be a solver instance, got {type(solver).__name__}.",
            "Pass `ellzero.solvers.IHT()`, or None to have one chosen.",
        )
    reason = solver.refusal(problem)
    if reason is not None:
        name = type(solver).__name__
        accepting = [
            f"`{type(other()).__name__}`"
            for other in DEFAULT_SOLVERS
            if other().refusal(problem) is None
            and not (other is Newton and problem.constraint is not None)
        ]
        verb = "accepts" if len(accepting) == 1 else "accept"
        hint = f"{', '.join(accepting)} {verb} it." if accepting else None
        raise IncompatibleError(f"`{name}` cannot treat this problem: {reason}.", hint)


def _check_problem(problem: Problem) -> None:
    if not isinstance(problem, Problem):
        raise IncompatibleError(
            f"`problem` must be a Problem, got {type(problem).__name__}.",
            "Pass `ellzero.Problem(objective, constraint)`.",
        )


def _check_limits(max_iter: int, time_limit: float | None, starts: int | None) -> None:
    check_integer("max_iter", max_iter, 0)
    if time_limit is not None:
        check_real("time_limit", time_limit, 0.0)
    if starts is not None:
        check_integer("starts", starts, 0)


def _check_start(problem: Problem, params: Params) -> Params:
    """Return the start with the names in the order of the objective, or raise."""
    zero = problem.objective.init_params()
    if not isinstance(params, Mapping):
        raise InvalidParameterError(
            f"`params` must be a mapping of names to tensors, got {type(params).__name__}.",
            "Start from `objective.init_params()`.",
        )
    for name in params:
        if name not in zero:
            raise InvalidParameterError(
                f"Unknown tensor {name!r} in `params`.{did_you_mean(str(name), zero)} "
                f"Known tensors: {', '.join(zero)}."
            )
    lead = 1 if named.is_batch(params) else 0
    for name, tensor in zero.items():
        given = params.get(name)
        shape = None if given is None else tuple(given.shape[lead:])
        if shape != tuple(tensor.shape):
            raise InvalidParameterError(
                f"`params` must hold a tensor {name!r} of shape {tuple(tensor.shape)}, "
                f"got {'no such tensor' if shape is None else f'shape {shape}'}.",
                "Start from `objective.init_params()`.",
            )
    out = named.like(params, {name: params[name].detach().to(zero[name]) for name in zero})
    if isinstance(out, Batch):
        sizes = sorted({tensor.shape[0] for tensor in out.values()})
        if len(sizes) > 1 or sizes[0] == 0:
            raise InvalidParameterError(
                "`params` must hold the same positive number of points in every tensor, got "
                f"{' and '.join(str(size) for size in sizes)}."
            )
    if not named.all_true(named.is_finite(out)):
        raise InvalidParameterError("`params` must be finite, got NaN or infinity.")
    return out


def _starts(
    problem: Problem,
    solver: AbstractSolver[Any],
    params: Params | None,
    starts: int | None,
    generator: torch.Generator | None,
) -> Batch:
    if params is not None and starts is None:
        return named.to_batch(params)
    many = isinstance(solver, LocalSearch | BranchAndBound)
    count = (N_STARTS if many else None) if starts is None else starts
    if count is None:
        current = getattr(problem.objective, "current_params", problem.objective.init_params)
        return named.to_batch(current())
    made = make_starts(problem, count, generator=generator)
    return made if params is None else named.concatenate([named.to_batch(params), made])


def _run(
    problem: Problem,
    solver: AbstractSolver[Any],
    batch: Batch,
    *,
    max_iter: int,
    time_limit: float | None,
    callback: Callback | None,
) -> tuple[Run, dict[str, Measure]]:
    """Iterate; a search for a proof first takes its incumbent from every start."""
    if isinstance(solver, ExactSubset) and solver.time_limit is None:
        # It does all of its work before the first step.
        solver = replace(solver, time_limit=time_limit)
    if not isinstance(solver, BranchAndBound):
        run = iterate(
            problem, solver, batch, max_iter=max_iter, time_limit=time_limit, callback=callback
        )
        return run, _measures(run)
    search = iterate(
        problem, LocalSearch(), batch, max_iter=max_iter, time_limit=time_limit, callback=callback
    )
    measures = _measures(search)
    if search.interrupted:
        return search, measures
    start = named.take(search.params, slice(search.best, search.best + 1))
    if time_limit is not None:
        time_limit = max(0.0, time_limit - search.seconds)
    try:
        run = iterate(
            problem,
            replace(solver, n_starts=0),
            start,
            max_iter=max_iter,
            time_limit=time_limit,
            callback=callback,
        )
    except KeyboardInterrupt:
        # Before its first box the proof has nothing; the point is that of the search.
        codes = torch.full_like(search.codes, Status.INTERRUPTED.code)
        return replace(search, codes=codes), measures
    if run.proof is not None:
        measures["boxes"] = len(run.proof)
    return run, measures


def _measures(run: Run) -> dict[str, Measure]:
    values = run.value.nan_to_num(nan=torch.inf)
    best = values.min()
    same = values <= best + SAME_VALUE * best.abs()
    supports = torch.unique(named.flatten(named.nonzero_masks(run.params)), dim=0)
    return {
        "starts": run.params.size,
        "hit_rate": named.to_float(same.to(torch.float64).mean()),
        "median_value": named.to_float(values.median()),
        "worst_value": named.to_float(values.max()),
        "distinct_supports": int(supports.shape[0]),
        "increases": named.to_int(run.n_increases.sum()),
    }


def _splitting_measures(problem: Problem, solver: RVSM | RVSCGD, run: Run) -> dict[str, Measure]:
    """Return what is known of the dense points; log where the theory does not hold."""
    final: Any = run.final
    check = check_splitting(
        problem,
        final.dense,
        final.params,
        beta=solver.beta,
        step_size=solver.length(problem),
        normalize=solver.normalize,
    )
    for caution in check.cautions:
        log.warning("%s: %s", type(solver).__name__, caution)
    row = run.best
    return {
        "lagrangian": named.to_float(check.lagrangian[row]),
        "lagrangian_grad_norm": named.to_float(check.grad_norm[row]),
        "splitting_gap": named.to_float(check.gap[row]),
        "cautions": " ".join(check.cautions),
    }


def solve(
    problem: Problem,
    solver: AbstractSolver[Any] | None = None,
    params: Params | None = None,
    *,
    starts: int | None = None,
    max_iter: int = 1000,
    time_limit: float | None = None,
    callback: Callback | None = None,
    certify: bool = True,
    generator: torch.Generator | None = None,
) -> Result:
    r"""Minimize an objective over a constraint and certify the point found.

    .. math:: \min_\theta f(\theta) + r(\theta) \quad \text{subject to} \quad \theta \in C

    Parameters
    ----------
    problem : Problem
        Objective f, constraint C, penalty r.
    solver : AbstractSolver or None, default=None
        How. None takes the first solver that accepts the problem (see `choose_solver`).
    params : mapping of str to Tensor, Batch or None, default=None
        One start or a batch of starts; None means the present parameters of a module, else zero.
    starts : int or None, default=None
        Random starts to add, with zero and the dense minimizer. None means 20 for `LocalSearch`
        and none for others.
    max_iter : int, default=1000
        Largest number of steps of the solver.
    time_limit : float or None, default=None
        Wall time in seconds after which no further step begins. None means no limit, and 20
        seconds where `solve` chose to search for a proof by itself.
    callback : callable or None, default=None
        Called as ``callback(iteration, state)``; a true return value stops the run.
    certify : bool, default=True
        Whether to run `verify` on the point.
    generator : torch.Generator or None, default=None
        Source of the random starts; None means one seeded with 0.

    Returns
    -------
    Result
        The best point over all starts, with status, trace and certificate.

    Raises
    ------
    IncompatibleError
        If the solver refuses the problem; the message says why and who accepts it.
    InvalidParameterError
        If a parameter is out of range or a start has the wrong shapes.

    See Also
    --------
    solve_path : The same over several budgets.
    verify : The certificate alone.

    Notes
    -----
    A keyboard interrupt ends the run and returns the best point so far with status INTERRUPTED.
    For strongly convex objectives of at most 64 entries the default proves global optimality, or
    reports the gap it reached.

    Examples
    --------
    >>> import torch, ellzero
    >>> X = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.2, 0.1, 1.0]])
    >>> y = X.double() @ torch.tensor([2.0, 0.0, 1.0]).double()
    >>> objective = ellzero.LeastSquares(X.double(), y)
    >>> result = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(2)))
    >>> result.support, result.certificate.claim.name
    ({'coef': [0, 2]}, 'OPTIMAL')
    """
    _check_problem(problem)
    _check_limits(max_iter, time_limit, starts)
    if params is not None:
        params = _check_start(problem, params)
    began = time.perf_counter()
    if solver is None:
        chosen: AbstractSolver[Any] = choose_solver(problem)
        if isinstance(chosen, BranchAndBound) and time_limit is None:
            time_limit = PROOF_SECONDS
            max_iter = max(max_iter, 100_000)
    else:
        _check_solver(problem, solver)
        chosen = solver
    batch = _starts(problem, chosen, params, starts, generator)
    run, measures = _run(
        problem, chosen, batch, max_iter=max_iter, time_limit=time_limit, callback=callback
    )
    if isinstance(chosen, RVSM | RVSCGD):
        measures |= _splitting_measures(problem, chosen, run)
    result = _result_of(problem, chosen, run, measures, certify=certify)
    return replace(result, seconds=time.perf_counter() - began)


def _result_of(
    problem: Problem,
    solver: AbstractSolver[Any],
    run: Run,
    measures: dict[str, Measure],
    *,
    certify: bool = True,
    dense: Params | None = None,
) -> Result:
    """Return the `Result` of the best row of a run, certified."""
    row = run.best
    params = {n: t.detach().clone() for n, t in named.row(run.params, row).items()}
    status = Status.INTERRUPTED if run.interrupted else run.status(row)
    certificate = None
    if certify and status is not Status.NON_FINITE:
        certificate = verify(problem, params, proof=run.proof, dense=dense)
    return Result(
        params=params,
        value=named.to_float(run.value[row]),
        status=status,
        n_iter=named.to_int(run.n_iter[row]),
        certificate=certificate,
        trace=run.trace(row),
        seconds=run.seconds,
        solver=repr(solver),
        proof=run.proof,
        measures=measures,
    )


@dataclass(frozen=True, slots=True)
class PathResult:
    """Outcome of `solve_path`: one result for each budget.

    Parameters
    ----------
    budgets : tuple of int
        The budgets, in the order given.
    results : tuple of Result
        Their results.
    dense : Result
        Minimization without the constraint.
    seconds : float
        Wall time of the whole path.
    """

    budgets: tuple[int, ...]
    results: tuple[Result, ...]
    dense: Result
    seconds: float = field(default=0.0)

    def __getitem__(self, budget: int) -> Result:
        """Return the result of a budget."""
        if budget not in self.budgets:
            raise InvalidParameterError(
                f"`budget` must be one of the budgets of the path, got {budget}.",
                f"The path has {self.budgets[0]} to {self.budgets[-1]}.",
            )
        return self.results[self.budgets.index(budget)]

    def epsilon(self, budget: int) -> float:
        """Return the distance of a budget's value to the dense one."""
        return self[budget].value - self.dense.value

    def smallest_within(self, epsilon: float) -> int | None:
        """Return the smallest budget whose value is within `epsilon` of the dense one, or None."""
        good = [b for b in self.budgets if self.epsilon(b) <= epsilon]
        return min(good) if good else None


def solve_dense(problem: Problem, *, max_iter: int = 5000) -> Result:
    """Minimize the objective of a problem without its constraint.

    Parameters
    ----------
    problem : Problem
        Its objective and penalty are used.
    max_iter : int, default=5000
        Largest number of steps.

    Returns
    -------
    Result
        The dense reference. Smooth convex objectives are solved by Newton's method; others by
        L-BFGS from `current_params` of the objective, where it has them.

    Examples
    --------
    >>> import torch, ellzero
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.ones(3))
    >>> ellzero.solve_dense(ellzero.Problem(objective)).value
    0.0
    """
    free = replace(problem, constraint=None)
    if problem.penalty is not None or isinstance(problem.objective, AbstractSmoothObjective):
        return solve(free, max_iter=max_iter)
    began = time.perf_counter()
    current = getattr(problem.objective, "current_params", problem.objective.init_params)
    params = dense_minimizer(problem, current())
    value = named.to_float(problem.objective.value(params))
    return Result(
        params=dict(params),
        value=value,
        status=Status.CONVERGED,
        n_iter=0,
        certificate=None,
        trace=(value,),
        seconds=time.perf_counter() - began,
        solver="L-BFGS",
    )


def _check_budgets(problem: Problem, ball: L0Ball, budgets: Iterable[int]) -> list[int]:
    if not isinstance(budgets, Iterable):
        raise InvalidParameterError(
            f"`budgets` must hold integers, got {budgets!r}.", f"Pass `[{budgets!r}]`."
        )
    n = named.size(restrict(problem.objective.init_params(), ball.names))
    meaning = "the number of entries that share the budget"
    out = [check_integer("budgets", b, 0, n, meaning=meaning) for b in budgets]
    if not out:
        raise InvalidParameterError("`budgets` must hold at least one budget, got none.")
    return out


def _warm_starts(problem: Problem, points: Sequence[Params]) -> list[Batch]:
    """Return points of other budgets, cut to the constraint, as starts."""
    assert problem.constraint is not None
    return [named.to_batch(problem.constraint.project(point)) for point in points]


def solve_path(
    problem: Problem,
    budgets: Iterable[int],
    solver: AbstractSolver[Any] | None = None,
    *,
    starts: int = 20,
    max_iter: int = 1000,
    time_limit: float | None = None,
    certify: bool = True,
    generator: torch.Generator | None = None,
    dense: Result | None = None,
    warm: Sequence[Params] = (),
    progress: Callable[[int, Result], None] | None = None,
    callback: Callback | None = None,
) -> PathResult:
    r"""Solve a problem for several budgets, each from many starts.

    Parameters
    ----------
    problem : Problem
        Objective and an `L0Ball`, or no constraint; the budget of the ball is replaced.
    budgets : iterable of int
        Numbers of nonzeros. Each must be between 0 and the number of parameters.
    solver : AbstractSolver or None, default=None
        As in `solve`.
    starts : int, default=20
        Random starts for each budget, with zero, the dense minimizer and the solutions of the two
        budgets before.
    max_iter : int, default=1000
        Largest number of steps for each budget.
    time_limit : float or None, default=None
        Seconds for each budget.
    certify : bool, default=True
        Whether to certify each point.
    generator : torch.Generator or None, default=None
        Source of the random starts; None means one seeded with 0.
    dense : Result or None, default=None
        The dense reference, when it is known already; None means that `solve_dense` finds it.
    warm : sequence of mapping of str to Tensor, default=()
        Points that are cut to each budget and used as starts.
    progress : callable or None, default=None
        Called as ``progress(budget, result)`` after each budget.
    callback : callable or None, default=None
        As in `solve`, for every budget.

    Returns
    -------
    PathResult
        A result for each budget and the dense reference. After a keyboard interrupt, the budgets
        that were reached, the last one with status INTERRUPTED.

    Raises
    ------
    InvalidParameterError
        If a budget is out of range, or the constraint is not an `L0Ball`.

    Examples
    --------
    >>> import torch, ellzero
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> path = ellzero.solve_path(ellzero.Problem(objective), range(1, 4))
    >>> [path[s].support["coef"] for s in path.budgets]
    [[0], [0, 2], [0, 1, 2]]
    """
    _check_problem(problem)
    _check_limits(max_iter, time_limit, starts)
    if problem.constraint is None:
        ball = L0Ball(0)
    elif isinstance(problem.constraint, L0Ball):
        ball = problem.constraint
    else:
        raise InvalidParameterError(
            f"`problem` must have an `L0Ball` or no constraint, got "
            f"`{type(problem.constraint).__name__}`.",
            "Call `solve` for each set of your own.",
        )
    chosen_budgets = _check_budgets(problem, ball, budgets)
    began = time.perf_counter()
    if dense is None:
        dense = solve_dense(problem)
    results: list[Result] = []
    done: list[int] = []
    for budget in chosen_budgets:
        here = replace(problem, constraint=replace(ball, n_nonzero=budget))
        method = solver if solver is not None else choose_solver(here)
        if solver is not None:
            _check_solver(here, solver)
        limit, steps = time_limit, max_iter
        if solver is None and isinstance(method, BranchAndBound):
            limit = PROOF_SECONDS if limit is None else limit
            steps = max(steps, 100_000)
        began_here = time.perf_counter()
        points = [*warm, *(result.params for result in results[-2:])]
        pieces = [make_starts(here, starts, generator=generator), *_warm_starts(here, points)]
        run, measures = _run(
            here,
            method,
            named.concatenate(pieces),
            max_iter=steps,
            time_limit=limit,
            callback=callback,
        )
        result = _result_of(here, method, run, measures, certify=certify, dense=dense.params)
        result = replace(result, seconds=time.perf_counter() - began_here)
        results.append(result)
        done.append(budget)
        if progress is not None:
            progress(budget, result)
        if result.status is Status.INTERRUPTED:
            break
    return PathResult(tuple(done), tuple(results), dense, time.perf_counter() - began)
