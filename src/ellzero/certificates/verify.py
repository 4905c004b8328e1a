"""From a problem and a point to everything that can be proven of the point."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ellzero.certificates.bounds import LowerBound, lower_bound
from ellzero.certificates.epsilon import epsilon_optimality
from ellzero.certificates.existence import why_no_bound
from ellzero.certificates.flat import ROUNDING, FlatObjective, check_point, moduli
from ellzero.certificates.minimize import DENSE_ENTRIES, dense_minimizer
from ellzero.certificates.proof import check_proof
from ellzero.certificates.relaxation import to_array
from ellzero.certificates.stability import TIE, ht_stability
from ellzero.certificates.swaps import SOLVE_LIMIT, check_swaps
from ellzero.certificates.tree import SquaresProblem, check_tree
from ellzero.core.problem import (
    AbstractConvexObjective,
    AbstractLinearObjective,
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractSparseSet,
    AbstractTwiceDifferentiable,
    Problem,
)
from ellzero.core.result import Certificate, Check, Claim, Measure, Proof, TreeProof
from ellzero.errors import InvalidParameterError
from ellzero.objectives import LeastSquares
from ellzero.sets import GroupL0Ball, L0Ball
from ellzero.smoothness import restricted_smoothness
from ellzero.tensors import named, supports
from ellzero.typing import Params
from ellzero.validation import check_choice, check_real

# Relative gap beyond which a lower bound says nothing.
VACUOUS_GAP = 0.5
# Entries up to which the matrix of a tree of boxes is formed.
TREE_ENTRIES = 6000


@dataclass(slots=True)
class _Findings:
    """What has been found so far."""

    checks: list[Check] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    measures: dict[str, Measure] = field(default_factory=dict)

    def check(self, name: str, value: float, bound: float, claim: Claim) -> None:
        self.checks.append(Check(name, float(value), float(bound), claim))

    def passes(self, claim: Claim) -> bool | None:
        """Return whether the checks of one claim pass; None when there is none."""
        of_claim = [check.passed for check in self.checks if check.claim is claim]
        return all(of_claim) if of_claim else None

    def claim(self, exchanges: bool) -> Claim | None:
        """Return the strongest claim; `exchanges` tells whether exchanges exist to be checked."""
        best = None
        for claim in Claim:
            verdict = self.passes(claim)
            if verdict is False:
                break
            if verdict:
                best = claim
            elif claim is Claim.COORDINATEWISE and (not exchanges or self.passes(Claim.OPTIMAL)):
                # There is nothing to exchange, or optimality implies that no exchange helps.
                continue
            else:
                break
        return best


@dataclass(frozen=True, slots=True)
class _Case:
    """One problem and one point, in float64."""

    problem: Problem
    flat: FlatObjective
    theta: Tensor
    params: Params
    value: float
    grad: Tensor
    counted: Tensor
    tol: float
    floor: float

    @property
    def slack(self) -> float:
        """Decrease of the value that does not count."""
        return max(self.tol * abs(self.value), self.floor)

    @property
    def ball(self) -> L0Ball | None:
        """The constraint, when it is an L0 ball."""
        constraint = self.problem.constraint
        return constraint if isinstance(constraint, L0Ball) else None

    @property
    def is_plain(self) -> bool:
        """Whether the constraint is an L0 ball without bounds and there is no penalty."""
        ball = self.ball
        return (
            ball is not None
            and ball.lower is None
            and ball.upper is None
            and self.problem.penalty is None
        )

    def scale(self, smoothness: float) -> float:
        """Return the size of entries that `tol` is relative to."""
        largest = named.to_float(self.theta.abs().max()) if self.theta.numel() else 0.0
        if largest > 0:
            return largest
        # At zero: the distance over which curvature L changes the value by its own size.
        return (2 * abs(self.value) / smoothness) ** 0.5 if smoothness > 0 else 1.0


def verify(
    problem: Problem,
    params: Params,
    *,
    tol: float = 1e-6,
    proof: Proof | TreeProof | None = None,
    dense: Params | None = None,
    step_size: float | None = None,
    swaps: str = "auto",
    generator: torch.Generator | None = None,
) -> Certificate:
    r"""Prove what can be proven of a point, from the problem and the point alone.

    Parameters
    ----------
    problem : Problem
        What is minimized over what.
    params : mapping of str to Tensor
        The point (not a batch).
    tol : float, default=1e-6
        Accuracy: moves are relative to the largest entry of the point, values to the value.
    proof : Proof, TreeProof or None, default=None
        Boxes of supports whose bounds prove optimality; recomputed and refused when wrong.
    dense : mapping of str to Tensor or None, default=None
        Minimizer without the constraint, to compare with; None means that it is computed for
        smooth convex objectives of up to 2000 entries.
    step_size : float or None, default=None
        Step size of the test of stability; None means 1 / L with the restricted smoothness
        constant L for twice the budget.
    swaps : {"auto", "all", "none"}, default="auto"
        Whether to look at exchanges of one support entry: as long as at most 20000 need a
        minimization, always, or never.
    generator : torch.Generator or None, default=None
        Randomness for local estimates of the smoothness; None means a fixed seed.

    Returns
    -------
    Certificate
        The strongest claim whose checks, and those of all weaker claims, pass; the checks, the
        lower bound and the numbers behind them.

    Raises
    ------
    InvalidParameterError
        If `params` is a batch or does not fit the objective, or an option is out of range.

    Notes
    -----
    Computes in float64 and uses no state of any solver. The claims:

    * feasible: every entry is finite, the number of nonzero entries as stored is within the
      budget, the distance to the constraint is exactly zero;
    * stationary: the gradient vanishes on the support and the point is stable under hard
      thresholding at `step_size`; for other constraints it is its own projected gradient step;
    * coordinatewise: no exchange of one support entry lowers the value, by bounds where they
      suffice and by minimization elsewhere (convex objectives);
    * gap: a lower bound on the global optimum is known (strongly convex objectives);
    * optimal: the bound reaches the value, by itself or through a proof.

    The cost is a few gradients, at most s (n - s) restricted minimizations and up to 100 Newton
    steps for the bound.

    References
    ----------
    .. [1] A. Beck and Y. C. Eldar, "Sparsity constrained nonlinear optimization: optimality
       conditions and algorithms", arXiv:1203.4580.
    .. [2] S. Damadi and J. Shen, "Gradient properties of hard thresholding operator",
       arXiv:2209.08247.

    Examples
    --------
    >>> import torch, ellzero
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> point = {"coef": torch.tensor([3.0, 0.0, 2.0], dtype=torch.float64)}
    >>> ellzero.verify(problem, point).claim.name
    'OPTIMAL'
    >>> point = {"coef": torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)}
    >>> ellzero.verify(problem, point).claim.name
    'FEASIBLE'
    """
    check_real("tol", tol, 0.0, open_low=True)
    check_choice("swaps", swaps, ("auto", "all", "none"))
    if step_size is not None:
        check_real("step_size", step_size, 0.0, open_low=True)
    if named.is_batch(params):
        raise InvalidParameterError(
            "`params` must be one point, got a batch.", "Pass `named.row(params, 0)`."
        )
    flat = FlatObjective.of(problem.objective)
    check_point(params, flat.template)
    params = {name: params[name].detach() for name in flat.template}
    found = _Findings()
    if not _feasible(problem, params, found):
        return Certificate(None, tuple(found.checks), measures=found.measures)
    case = _make_case(problem, flat, params, tol)
    found.measures["value"] = case.value
    found.measures["tol"] = tol
    if not (torch.isfinite(case.grad).all() and abs(case.value) < float("inf")):
        found.check("entries of the gradient that are not finite", 1, 0, Claim.STATIONARY)
        return Certificate(
            Claim.FEASIBLE, tuple(found.checks), ("The value or the gradient is not finite.",)
        )
    _stationary(case, found, step_size, generator)
    given_dense = dense is not None
    if dense is None and problem.penalty is None:
        dense = dense_minimizer(flat)
    _dense_gap(case, found, dense, given_dense)
    bound = _gap(case, found, dense, proof)
    exchanges = _coordinatewise(case, found, swaps)
    gap = None if bound is None else _relative_gap(case, bound)
    _say_plainly(case, found, gap)
    found.assumptions.append("Everything is computed in float64, up to rounding.")
    return Certificate(
        claim=found.claim(exchanges),
        checks=tuple(sorted(found.checks, key=lambda check: check.claim)),
        assumptions=tuple(found.assumptions),
        lower_bound=bound,
        gap=gap,
        measures=found.measures,
    )


def _feasible(problem: Problem, params: Params, found: _Findings) -> bool:
    """Check the point as it is stored."""
    finite = named.map_tensors(torch.isfinite, params)
    broken = sum(named.to_int((~t).sum()) for t in finite.values())
    found.check("entries that are not finite", broken, 0, Claim.FEASIBLE)
    count = named.to_int(named.count_nonzero(params))
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in params.values()})
    found.measures |= {"n_nonzero": count, "n_entries": named.size(params)}
    found.measures["dtype"] = ", ".join(dtypes)
    constraint = problem.constraint
    if isinstance(constraint, L0Ball):
        covered = supports.covered(constraint.names, params)
        spent = named.to_int((named.flatten(params)[covered] != 0).sum())
        found.measures |= {"budget": constraint.n_nonzero, "n_nonzero": spent}
        free = named.to_int((~covered).sum())
        if free:
            found.measures["n_free"] = free
        found.check("nonzero entries", spent, constraint.n_nonzero, Claim.FEASIBLE)
    elif isinstance(constraint, AbstractSparseSet):
        found.measures["budget"] = constraint.max_nonzero(params)
    if constraint is not None and broken == 0:
        violation = named.to_float(constraint.violation(params))
        found.check("distance to the constraint", violation, 0.0, Claim.FEASIBLE)
    return found.passes(Claim.FEASIBLE) is True


def _make_case(problem: Problem, flat: FlatObjective, params: Params, tol: float) -> _Case:
    theta = flat.flatten(params)
    value, grad = flat.value_and_grad(theta)
    point = named.row(flat.unflatten(theta), 0)
    total = named.to_float(value[0])
    if problem.penalty is not None:
        total += named.to_float(problem.penalty.value(point))
    names = None if problem.constraint is None else problem.constraint.names
    return _Case(
        problem=problem,
        flat=flat,
        theta=theta[0],
        params=point,
        value=total,
        grad=grad[0],
        counted=supports.covered(names, flat.template),
        tol=tol,
        floor=ROUNDING * max(abs(total), abs(flat.value_at_zero())),
    )


def _smoothness(
    case: _Case, found: _Findings, step_size: float | None, generator: torch.Generator | None
) -> float | None:
    """Return L and note its kind; None when nothing is known."""
    objective = case.flat.objective
    constraint = case.problem.constraint
    n = case.flat.size
    k = n
    if isinstance(constraint, AbstractSparseSet):
        k = max(1, min(n, 2 * constraint.max_nonzero(case.params)))
    wide = case.flat.size > DENSE_ENTRIES and isinstance(objective, AbstractLinearObjective)
    if wide and isinstance(objective, AbstractSmoothObjective):
        # The sum of the largest diagonal entries needs no matrix of n by n.
        largest = named.to_float(objective.curvature_diagonal().topk(k).values.sum())
        kind, value = "upper bound", largest * (1 + 1e-12)
        found.measures |= {
            "smoothness": value,
            "smoothness_kind": kind,
            "smoothness_n_nonzero": k,
        }
        return value
    if isinstance(objective, AbstractSmoothObjective):
        estimate = restricted_smoothness(objective, k, method="bound")
    elif step_size is not None or not isinstance(objective, AbstractTwiceDifferentiable):
        return None if step_size is None else 1.0 / step_size
    else:
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        estimate = restricted_smoothness(
            objective, k, method="power", params=case.params, generator=generator
        )
        found.assumptions.append(
            "The smoothness constant is a local lower estimate by the truncated power method at "
            "this point; no bound is known."
        )
    found.measures |= {
        "smoothness": estimate.value,
        "smoothness_kind": str(getattr(estimate.kind, "value", estimate.kind)),
        "smoothness_n_nonzero": k,
    }
    return float(estimate.value)


def _stationary(
    case: _Case, found: _Findings, step_size: float | None, generator: torch.Generator | None
) -> None:
    smoothness = _smoothness(case, found, step_size, generator)
    if smoothness is None:
        found.assumptions.append(
            "Stationarity is not checked: no smoothness constant is known; pass `step_size`."
        )
        return
    given = step_size is not None
    if step_size is None:
        step_size = 1.0 / smoothness if smoothness > 0 else 1.0
    scale = case.scale(smoothness if smoothness > 0 else 1.0 / step_size)
    found.measures |= {"step_size": step_size, "step_size_given": given}
    if case.is_plain:
        _stable(case, found, step_size, smoothness, scale)
        return
    problem = case.problem
    off = torch.where(case.theta != 0, 0.0, case.grad.abs())
    on = torch.where(case.theta != 0, case.grad.abs(), 0.0)
    found.measures["grad_on_support"] = named.to_float(on.max())
    found.measures["grad_off_support"] = named.to_float(off.max())
    if problem.penalty is not None:
        if problem.constraint is not None:
            found.assumptions.append(
                "Stationarity is not checked: a penalty together with a constraint is not covered."
            )
            return
        grad = named.row(case.flat.unflatten(case.grad.unsqueeze(0)), 0)
        residual = named.to_float(problem.penalty.residual(case.params, grad))
        found.measures["residual"] = step_size * residual
        found.check(
            "step_size times the distance of -grad to the subdifferential",
            step_size * residual,
            case.tol * scale,
            Claim.STATIONARY,
        )
        return
    target = case.theta - step_size * case.grad
    if problem.constraint is not None:
        moved = named.unflatten(target, case.flat.template)
        incumbents = named.nonzero_masks(case.params)
        target = named.flatten(problem.constraint.project(moved, incumbents=incumbents))
    move = named.to_float((target - case.theta).abs().max())
    found.measures["residual"] = named.to_float((target - case.theta).norm())
    found.check(
        "largest move by a projected gradient step"
        if problem.constraint is not None
        else "largest move by a gradient step",
        move,
        case.tol * scale,
        Claim.STATIONARY,
    )


def _stable(
    case: _Case, found: _Findings, step_size: float, smoothness: float, scale: float
) -> None:
    """Check stability under hard thresholding, also with what rounding leaves of the gradient."""
    ball = case.ball
    assert ball is not None
    report = ht_stability(case.problem.objective, ball, case.params, step_size, tol=case.tol)
    on, off = named.to_float(report.grad_on_support), named.to_float(report.grad_off_support)
    smallest = named.to_float(report.smallest_magnitude)
    short, tied = named.any_true(report.short_support), named.any_true(report.tied)
    found.measures |= {
        "grad_on_support": on,
        "grad_off_support": off,
        "smallest_magnitude": smallest,
        "largest_stable_step": named.to_float(report.largest_stable_step),
        "margin": named.to_float(report.margin),
        "tied": tied,
        "short_support": short,
        "residual": named.to_float(report.residual),
    }
    found.check(
        "largest move on the support by a gradient step",
        step_size * on,
        case.tol * scale,
        Claim.STATIONARY,
    )
    if short:
        found.check(
            "largest move off the support by a gradient step (support smaller than the budget)",
            step_size * off,
            case.tol * scale,
            Claim.STATIONARY,
        )
        return
    found.check(
        "step_size times the largest gradient off the support, against the smallest magnitude",
        step_size * off,
        smallest + (TIE * smallest if tied else 0.0),
        Claim.STATIONARY,
    )
    convexity = _support_convexity(case)
    if convexity > 0:
        support = (case.theta != 0) | ~case.counted
        delta = named.to_float(case.grad[support].norm()) / convexity
        proven = step_size * (off + smoothness * delta) <= smallest - delta
        found.measures |= {"distance_to_stationary": delta, "stability_proven": proven}
        sufficient = off + smoothness * delta <= _convexity(case) * (smallest - delta)
        found.measures["sufficient_test"] = bool(sufficient and _convexity(case) > 0)
        if not proven and tied:
            found.assumptions.append(
                "The stability condition holds with equality: another point is as near."
            )
    else:
        found.measures["sufficient_test"] = False


def _convexity(case: _Case) -> float:
    """Return the modulus of strong convexity; 0.0 when there is none."""
    return named.to_float(moduli(case.flat)[0].min())


def _support_convexity(case: _Case) -> float:
    """Return a modulus of strong convexity on the support."""
    known = _convexity(case)
    support = ((case.theta != 0) | ~case.counted).nonzero().flatten()
    k = support.shape[0]
    if not isinstance(case.problem.objective, AbstractQuadraticObjective) or not (
        0 < k <= DENSE_ENTRIES
    ):
        return known
    block = case.flat.hessian_on(case.theta.unsqueeze(0), support.unsqueeze(0))[0]
    eigenvalues = torch.linalg.eigvalsh(block)
    lowest = named.to_float(eigenvalues[0]) - 1e-13 * named.to_float(eigenvalues[-1])
    return max(known, lowest, 0.0)


def _dense_gap(case: _Case, found: _Findings, dense: Params | None, given: bool) -> None:
    """Compare with the dense minimizer."""
    if dense is None:
        return
    epsilon = epsilon_optimality(case.problem, case.params, dense)
    found.measures |= {
        "dense_value": epsilon.dense_value,
        "dense_given": given,
        "dense_residual": epsilon.dense_residual,
        "epsilon": epsilon.epsilon,
        "epsilon_relative": epsilon.relative,
    }


def _gap(
    case: _Case, found: _Findings, dense: Params | None, proof: Proof | TreeProof | None
) -> float | None:
    """Check lower bounds; return the best."""
    problem = case.problem
    objective = problem.objective
    if isinstance(objective, AbstractConvexObjective):
        found.measures["strong_convexity"] = _convexity(case)
    if problem.penalty is not None:
        found.assumptions.append("No lower bound: a penalty is not covered.")
        return None
    sparse = problem.constraint if isinstance(problem.constraint, AbstractSparseSet) else None
    candidates = {"at the point": case.params}
    if dense is not None:
        candidates["at the dense minimizer"] = dense
    best = lower_bound(objective, sparse, candidates, target=case.value - case.slack)
    if isinstance(proof, TreeProof):
        best, proof = _by_tree(case, found, proof, best), None
    if best is None:
        found.assumptions.append(why_no_bound(case.flat, (case.theta != 0) | ~case.counted))
        if proof is not None:
            found.check("proofs without strong convexity", 1, 0, Claim.OPTIMAL)
        return None
    best = _proven(case, found, proof, best)
    found.measures["lower_bound_method"] = best.method
    # A bound above the value would refute the certificate itself.
    found.check("lower bound", best.value, case.value + case.slack, Claim.GAP)
    found.check("gap to the lower bound", _relative_gap(case, best.value), case.tol, Claim.OPTIMAL)
    return best.value


def _proven(case: _Case, found: _Findings, proof: Proof | None, best: LowerBound) -> LowerBound:
    """Check a proof; return the better of its bound and the one at hand."""
    if proof is None:
        return best
    ball, objective = case.ball, case.problem.objective
    if ball is None or not isinstance(objective, AbstractConvexObjective):
        found.check("proofs for another set than an `L0Ball`", 1, 0, Claim.OPTIMAL)
        return best
    checked = check_proof(objective, ball, proof, case.value, case.tol)
    found.checks.extend(checked.checks)
    found.measures["proof_boxes"] = len(proof)
    if checked.reason is not None:
        found.assumptions.append(f"The proof is refused. {checked.reason}")
    if checked.lower_bound > best.value:
        return LowerBound(checked.lower_bound, "proof over boxes of supports", best.point)
    return best


def _by_tree(
    case: _Case, found: _Findings, proof: TreeProof, best: LowerBound | None
) -> LowerBound | None:
    """Check a tree of boxes; return the better of its bound and the one at hand."""
    ball, objective, n = case.problem.constraint, case.problem.objective, case.flat.size
    known = isinstance(ball, L0Ball | GroupL0Ball)
    found.measures["proof_boxes"] = len(proof)
    squares = isinstance(objective, LeastSquares)
    least = 0.0 if squares else None if best is None else best.value
    reason = None
    if not known or not isinstance(objective, AbstractQuadraticObjective):
        reason = (
            "It is for another problem than a quadratic objective under an `L0Ball` or a "
            "`GroupL0Ball`."
        )
    elif n > TREE_ENTRIES:
        reason = f"Its matrix would have more than {TREE_ENTRIES} rows."
    elif least is None:
        reason = "Nothing bounds the objective from below."
    else:
        zero = torch.zeros_like(case.theta).unsqueeze(0)
        assert isinstance(ball, L0Ball | GroupL0Ball)
        value, grad = case.flat.value_and_grad(zero)
        index = torch.arange(n, device=zero.device).unsqueeze(0)
        free = (~case.counted).nonzero().flatten()
        units, budget = None, 0
        if isinstance(ball, GroupL0Ball):
            labels = ball.unit_labels(case.params)
            # A free entry is a group of its own, which is always in.
            labels[free] = labels.max() + 1 + torch.arange(free.shape[0], device=labels.device)
            units, budget = np.array(named.to_list(labels)), ball.n_groups
        else:
            budget = ball.n_nonzero
        inside = np.array(named.to_list(case.counted))
        matrix = to_array(case.flat.hessian_on(zero, index)[0])
        # Twice the distance of the objective to what bounds it.
        problem = SquaresProblem(
            matrix,
            -to_array(grad[0]),
            2 * (named.to_float(value[0]) - least),
            budget + free.shape[0],
            always=tuple(named.to_list(free)),
            useless=tuple(map(int, (matrix.diagonal() <= 0).nonzero()[0])),
            least=0.0,
            units=units,
            lower=None if ball.lower is None else np.where(inside, ball.lower, -np.inf),
            upper=None if ball.upper is None else np.where(inside, ball.upper, np.inf),
        )
        checked = check_tree(problem, proof)
        reason = checked.reason
        bound = least + checked.lower_bound / 2
        if reason is None and (best is None or bound > best.value):
            best = LowerBound(bound, "proof over boxes of supports", case.theta)
    wrong = float(reason is not None)
    found.check("boxes of the proof that make no sense", wrong, 0.0, Claim.OPTIMAL)
    if reason is not None:
        found.assumptions.append(f"The proof is refused. {reason}")
    return best


def _say_plainly(case: _Case, found: _Findings, gap: float | None) -> None:
    """Say what a missing or a vacuous bound leaves."""
    if gap is not None and gap > VACUOUS_GAP:
        share = f"{100 * gap:.0f} %" if gap < 1 else "all"
        found.assumptions.append(
            f"The lower bound is vacuous, {share} of the value is unexplained: it says nothing "
            "about how good this point is. More ridge gives a better bound."
        )
    unknown = gap is None or gap > VACUOUS_GAP
    if unknown and found.passes(Claim.COORDINATEWISE):
        exact = isinstance(case.problem.objective, AbstractQuadraticObjective)
        found.assumptions.append(
            "No single swap improves this model, which is exact: every one was priced with "
            "everything refitted."
            if exact
            else "No single swap improves this model."
        )


def _relative_gap(case: _Case, bound: float) -> float:
    distance = case.value - bound
    if distance <= case.floor:
        return 0.0
    return distance / max(abs(case.value), abs(bound))


def _coordinatewise(case: _Case, found: _Findings, swaps: str) -> bool:
    """Check exchanges; return whether there are any that a claim would need."""
    problem = case.problem
    objective = problem.objective
    if not isinstance(problem.constraint, AbstractSparseSet):
        return False
    reason = None
    if not isinstance(objective, AbstractSmoothObjective):
        convex = isinstance(objective, AbstractConvexObjective)
        lacks = "to have bounded curvature" if convex else "to be convex"
        reason = f"`{type(objective).__name__}` is not known {lacks}"
    elif not case.is_plain:
        reason = "they are defined for an `L0Ball` without bounds and without a penalty"
    elif swaps == "none":
        reason = 'of `swaps="none"`'
    if reason is None:
        assert isinstance(objective, AbstractSmoothObjective)
        assert case.ball is not None
        report = check_swaps(
            objective,
            case.ball,
            case.params,
            tol=case.tol,
            limit=SOLVE_LIMIT if swaps == "auto" else None,
        )
        reason = report.reason
        if reason is None:
            found.measures |= {
                "swaps_checked": report.n_checked,
                "swaps_solved": report.n_solved,
                "swap_best_decrease": report.best_decrease,
            }
            found.check(
                "decrease by the best exchange of one support entry",
                report.best_decrease,
                case.slack,
                Claim.COORDINATEWISE,
            )
            if report.n_solved and _convexity(case) <= 0:
                found.assumptions.append(
                    "Without strong convexity the minima after an exchange are those of Newton's "
                    "method."
                )
            return True
    found.assumptions.append(f"Exchanges are not checked: {reason}.")
    return True
