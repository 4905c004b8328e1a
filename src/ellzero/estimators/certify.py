"""What is proven of a model, from the data and the coefficients alone.

For least squares the minima after all exchanges of one feature have a closed form, so the check
costs about as much as a look at the data; `ellzero.verify` proves more and costs more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg, special

from ellzero.certificates.exchanges import Products
from ellzero.certificates.score_exchanges import (
    AbstractScoreLoss,
    HuberLoss,
    ScalarLoss,
    ScoreModel,
    SoftmaxLoss,
    check_score_exchanges,
)
from ellzero.certificates.tree import SquaresProblem, check_tree
from ellzero.core.problem import Problem
from ellzero.core.result import Certificate, Check, Claim, Measure
from ellzero.estimators import inputs
from ellzero.estimators.inputs import Floats
from ellzero.estimators.losses import Job, sample_losses
from ellzero.subset.exact import ExactResult
from ellzero.subset.reading import CHUNK, column_moments, transpose_product
from ellzero.subset.results import Subset

# What rounding can leave of a sum of squares, relative to that of the target.
ROUNDING = 1e-13
# Share of its squares that a column must have left, given the support, to be exchanged for.
COLLINEAR = 1e-9
# Largest curvature of each loss in its scores.
CURVATURE = {"logistic": 0.25, "softmax": 0.5, "huber": 1.0}
# Exchanges within bounds that are solved where their price proves nothing.
SOLVES = 300
# Share of the value below which a lower bound is called empty.
VACUOUS = 0.01


@dataclass(slots=True)
class _Findings:
    checks: list[Check] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    measures: dict[str, Measure] = field(default_factory=dict)

    def check(self, name: str, value: float, bound: float, claim: Claim) -> None:
        self.checks.append(Check(name, float(value), float(bound), claim))

    def claim(self) -> Claim | None:
        """Return the strongest claim below which nothing fails."""
        best = None
        for claim in Claim:
            verdicts = [c.passed for c in self.checks if c.claim is claim]
            if not all(verdicts):
                break
            if verdicts:
                best = claim
        return best


@dataclass(frozen=True, slots=True)
class _Squares:
    """A least squares problem with weights and means taken out, seen from one support."""

    weight: Floats
    mean: Floats
    columns: Floats
    residual: Floats
    penalty: Floats
    energy: float


def _feasible(job: Job, coef: Any, subset: Subset, budget: int, found: _Findings) -> None:
    broken = int((~np.isfinite(coef)).sum())
    found.check("entries that are not finite", broken, 0, Claim.FEASIBLE)
    support = np.flatnonzero((coef != 0).any(axis=0)).astype(np.int64)
    what = "groups" if job.shape.grouped else "features"
    count = job.shape.count_units(support)
    found.check(f"chosen {what}", count, budget, Claim.FEASIBLE)
    found.measures |= {"n_nonzero": int(support.size), "budget": budget}
    banned = int(np.isin(support, job.shape.forbidden).sum())
    if job.shape.forbidden.size:
        found.check("chosen features that are forbidden", banned, 0, Claim.FEASIBLE)
    for name, bound, sign in (("lower", job.shape.lower, 1), ("upper", job.shape.upper, -1)):
        if bound is not None:
            excess = float((sign * (bound - coef)).max(initial=-np.inf))
            found.check(f"largest excess over the {name} bound", excess, 0.0, Claim.FEASIBLE)


def certify(
    job: Job,
    coef: Any,
    subset: Subset,
    budget: int,
    ridge: float | Floats,
    *,
    tol: float,
    exact: ExactResult | None = None,
) -> Certificate:
    """Return what is proven of a model.

    Parameters
    ----------
    job : Job
        Data and what is allowed.
    coef : ndarray of shape (n_outputs, n_columns)
        Coefficients as they are returned.
    subset : Subset
        The same in float64, with intercepts.
    budget : int
        Most features, or groups.
    ridge : float or ndarray of shape (n_columns,)
        The lambda of every coefficient.
    tol : float
        Decrease of the value that does not count, relative to it.
    exact : ExactResult or None, default=None
        What branch and bound has proven of the problem.

    Returns
    -------
    Certificate
        Checks, the strongest claim, the lower bound where there is one.
    """
    found = _Findings()
    _feasible(job, coef, subset, budget, found)
    if found.claim() is not None:
        lam = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (job.X.shape[1],))
        if job.loss == "squared":
            value = _squares_checks(job, subset, budget, lam, tol, found)
        else:
            value = _gradient_checks(job, subset, budget, lam, tol, found)
        found.measures |= {"value": value, "tol": tol}
    else:
        value = subset.value
    bound = gap = None
    if exact is not None and found.claim() is not None:
        bound, gap = _gap_checks(job, value, budget, lam, exact, tol, found)
    found.assumptions.append("Everything is computed in float64, up to rounding.")
    return Certificate(
        found.claim(),
        tuple(sorted(found.checks, key=lambda check: check.claim)),
        tuple(found.assumptions),
        bound,
        gap,
        found.measures,
    )


def _gap_checks(
    job: Job,
    value: float,
    budget: int,
    lam: Floats,
    exact: ExactResult,
    tol: float,
    found: _Findings,
) -> tuple[float, float]:
    """Check the lower bound of branch and bound; return it and the relative gap."""
    bound = exact.lower_bound
    if exact.proof is None:
        found.assumptions.append(
            "The lower bound is that of branch and bound, whose evidence outgrew its limit: it is "
            "not rechecked."
        )
    else:
        checked = check_tree(squares_problem(job, budget, lam), exact.proof)
        found.measures["proof_boxes"] = len(exact.proof)
        wrong = float(checked.reason is not None)
        found.check("boxes of the proof that make no sense", wrong, 0.0, Claim.GAP)
        if checked.reason is None:
            bound = min(checked.lower_bound / (2 * job.n_samples), value)
            found.assumptions.append(
                "The lower bound is recomputed from the data and the evidence of branch and bound."
            )
        else:
            bound = 0.0
            found.assumptions.append(f"The proof is refused. {checked.reason}")
    distance = value - bound
    rounding = found.measures["rounding"]
    assert isinstance(rounding, float)
    slack = max(tol * abs(value), rounding)
    found.check("lower bound", bound, value + slack, Claim.GAP)
    found.check("distance to the lower bound", distance, slack, Claim.OPTIMAL)
    found.measures["n_nodes"] = exact.n_nodes
    if distance > slack and bound <= VACUOUS * value:
        found.assumptions.append(
            "The lower bound says nothing here: it is less than 1 % of the value. More ridge, or "
            "fewer features to choose from, make it better."
        )
    # What the proof leaves below rounding is no gap.
    return bound, 0.0 if distance <= rounding else distance / max(abs(value), abs(bound))


def squares_problem(job: Job, budget: int, lam: Floats) -> SquaresProblem:
    """Return the sums of squares and products that least squares minimizes."""
    n, p = job.X.shape
    weight = np.ones(n) if job.weight is None else job.weight
    total = float(weight.sum())
    mean, squares = column_moments(job.X, weight, center=job.fit_intercept)
    target = np.asarray(job.y, dtype=np.float64)
    if job.fit_intercept:
        target = target - np.average(target, axis=0, weights=weight)
    if hasattr(job.X, "tocsc"):
        scaled = job.X.multiply(weight[:, None]).tocsc()
        matrix = np.asarray((job.X.T @ scaled).todense()) - total * np.outer(mean, mean)
    else:
        matrix = np.zeros((p, p))
        step = max(1, CHUNK // max(p, 1))
        for i in range(0, n, step):
            rows = inputs.to_numpy(job.X[i : i + step]).astype(np.float64) - mean
            matrix += rows.T @ (weight[i : i + step, None] * rows)
    linear = transpose_product(job.X, weight[:, None] * target, mean)
    dead = np.flatnonzero(squares <= 1e-12 * (squares + total * mean**2))
    matrix[np.diag_indices(p)] += total * lam
    return SquaresProblem(
        matrix,
        linear[:, 0] if linear.shape[1] == 1 else linear,
        float((weight @ target**2).sum()),
        budget,
        always=tuple(job.shape.always.tolist()),
        forbidden=tuple(job.shape.forbidden.tolist()),
        useless=tuple(dead.tolist()),
        least=0.0,
        units=job.shape.groups,
        lower=job.shape.lower,
        upper=job.shape.upper,
    )


def _look(job: Job, subset: Subset, lam: Floats) -> tuple[_Squares, Floats]:
    """Return the problem at a model, and the sum of squares of every column."""
    n = job.X.shape[0]
    weight = np.ones(n) if job.weight is None else job.weight
    mean, squares = column_moments(job.X, weight, center=job.fit_intercept)
    columns = inputs.to_numpy(inputs.take_columns(job.X, subset.support))
    columns = columns.toarray() if hasattr(columns, "toarray") else columns
    columns = columns.astype(np.float64) - mean[subset.support]
    target = np.asarray(job.y, dtype=np.float64)
    if job.fit_intercept:
        target = target - np.average(target, axis=0, weights=weight)
    energy = float((weight[:, None] * target**2).sum())
    residual = target - columns @ subset.coef
    penalty = weight.sum() * lam
    return _Squares(weight, mean, columns, residual, penalty, energy), squares


def _squares_checks(
    job: Job, subset: Subset, budget: int, lam: Floats, tol: float, found: _Findings
) -> float:
    """Check support and exchanges of least squares; return the value."""
    look, squares = _look(job, subset, lam)
    S, beta, w = subset.support, subset.coef, look.weight
    total = float(w.sum())
    penalty = look.penalty
    rss = float((w[:, None] * look.residual**2).sum())
    value = (rss + float((penalty[S, None] * beta**2).sum())) / (2 * total)
    rounding = ROUNDING * look.energy / (2 * total)
    slack = max(tol * value, rounding)
    found.measures["rounding"] = rounding
    weighted = w[:, None] * look.columns
    normal = look.columns.T @ weighted + np.diag(penalty[S])
    vectors = np.column_stack([w[:, None] * look.residual, weighted])
    products = transpose_product(job.X, vectors, look.mean)
    m = beta.shape[1]
    slope, cross = products[:, :m], products[:, m:]
    on = slope[S] - penalty[S, None] * beta
    free = _free(job, subset, on)
    inverse = _inverse(normal)
    decrease = 0.0
    for o in range(m):
        f = free[:, o]
        if f.any():
            part = on[f, o]
            inner = inverse if f.all() else _inverse(normal[np.ix_(f, f)])
            decrease += float(part @ inner @ part) / (2 * total)
    found.check("value above the minimum on the same support", decrease, slack, Claim.STATIONARY)
    if job.shape.grouped or job.shape.bounded:
        _stability(job, subset, budget, slope / total, squares / total, lam, found)
    # Where a bound holds a coefficient back, its slope is a multiplier: without it, and without
    # the bounds, the function is nowhere larger, has the same value here, and is minimal here on
    # the support. So prices are exact without bounds, and lower bounds with them.
    diagonal = squares + penalty
    seen = Products(
        normal, cross, slope, beta, diagonal, lower=job.shape.lower, upper=job.shape.upper,
        spanned=COLLINEAR,
    )  # fmt: skip
    alive = squares > 1e-14 * (squares + total * look.mean**2)
    out = np.ones(job.X.shape[1], dtype=bool)
    out[job.shape.forbidden] = False
    out[np.isin(job.shape.units, job.shape.units[S])] = False
    out &= alive
    short = job.shape.count_units(S) < budget
    if job.shape.grouped:
        best, n_checked = _best_group(job, subset, look, seen, out, short)
        what = "group"
    elif short:
        best, n_checked = float(seen.additions(out).max(initial=0.0)), int(out.sum())
        what = "feature"
    else:
        loose = np.flatnonzero(~np.isin(S, job.shape.always))
        rows = (seen.exchanges([i], out) for i in loose.tolist())
        if job.shape.bounded and m == 1:
            prices = np.full((S.size, out.size), -np.inf)
            prices[loose] = list(rows) if loose.size else prices[loose]
            best = float(prices.max(initial=-np.inf))
            if best > 2 * total * slack:
                refits = _Refits(job, subset, normal, cross, slope[:, 0], diagonal)
                best, found.measures["swaps_solved"] = refits.best(prices, 2 * total * slack)
        else:
            best = max((float(row.max(initial=-np.inf)) for row in rows), default=-np.inf)
        n_checked, what = int(loose.size * out.sum()), "feature"
    found.measures["swaps_checked"] = n_checked
    name = f"best further {what}" if short else f"best exchange of one {what}"
    # No sum of squares falls below zero, whatever rounding says of an exact fit.
    decrease = min(max(best, 0.0) / (2 * total), value)
    found.check(f"decrease by the {name}", decrease, slack, Claim.COORDINATEWISE)
    return value


def _best_group(
    job: Job, subset: Subset, look: _Squares, products: Products, out: Any, short: bool
) -> tuple[float, int]:
    """Return the largest decrease by an exchange of a group, or by one more, and their number."""
    units, S = job.shape.units, subset.support
    own = units[S]
    kept = units[job.shape.always]
    leaving = [np.flatnonzero(own == u) for u in np.unique(own) if u not in kept]
    names, counts = np.unique(units[out], return_counts=True)
    best, n_checked = -np.inf, 0
    for size in np.unique(counts).tolist():
        columns = np.flatnonzero(out & np.isin(units, names[counts == size]))
        members = columns[np.argsort(units[columns], kind="stable")].reshape(-1, size)
        step = max(1, CHUNK // max(size * job.X.shape[0], 1))
        for begin in range(0, len(members), step):
            part = members[begin : begin + step]
            blocks = _blocks(job, look, part)
            if short:
                gains = [products.group_additions(part, blocks)]
            else:
                gains = [products.group_exchanges(rows, part, blocks) for rows in leaving]
            n_checked += sum(g.size for g in gains)
            best = max([best, *(float(g.max(initial=-np.inf)) for g in gains)])
    return best, n_checked


def _blocks(job: Job, look: _Squares, members: Any) -> Floats:
    """Return the matrix on groups of one size, (u, q) to (u, q, q)."""
    flat = members.ravel()
    columns = inputs.to_numpy(inputs.take_columns(job.X, flat))
    columns = columns.toarray() if hasattr(columns, "toarray") else columns
    columns = (columns.astype(np.float64) - look.mean[flat]).T.reshape(*members.shape, -1)
    blocks = (columns * look.weight) @ columns.transpose(0, 2, 1)
    at = np.arange(members.shape[1])
    blocks[:, at, at] += look.penalty[members]
    return np.asarray(blocks)


@dataclass(frozen=True, slots=True)
class _Refits:
    """Exact minima within bounds after an exchange, from inner products."""

    job: Job
    subset: Subset
    normal: Floats
    cross: Floats
    slope: Floats
    diagonal: Floats

    def best(self, prices: Floats, enough: float) -> tuple[float, int]:
        """Return the largest decrease of twice the objective, and how many were solved.

        `prices` are upper bounds on the decreases, (k, n_columns); those up to `enough` need no
        solution. Beyond `SOLVES` the bounds stand for what is left.
        """
        rows, columns = np.nonzero(prices > enough)
        order = np.argsort(-prices[rows, columns], kind="stable")
        rows, columns = rows[order], columns[order]
        found = [self._solve(int(i), int(j)) for i, j in zip(rows[:SOLVES], columns, strict=False)]
        rest = prices[rows[SOLVES:], columns[SOLVES:]]
        largest = float(prices[prices <= enough].max(initial=-np.inf))
        return max([largest, *found, *rest.tolist()]), len(found)

    def _solve(self, row: int, column: int) -> float:
        from scipy import optimize

        stays = np.delete(np.arange(self.subset.support.size), row)
        beta = self.subset.coef[:, 0]
        matrix = np.block(
            [
                [self.normal[np.ix_(stays, stays)], self.cross[column, stays][:, None]],
                [self.cross[column, stays][None], self.diagonal[column]],
            ]
        )
        # The gradient of the function at zero, without the sign.
        linear = self.cross @ beta + self.slope
        S = self.subset.support
        chosen = np.append(S[stays], column)
        target = linear[chosen]
        scale = np.sqrt(matrix.diagonal())
        factor = linalg.cholesky(matrix / scale / scale[:, None])
        right = linalg.solve_triangular(factor, target / scale, trans=1)
        low = np.full(chosen.size, -np.inf)
        high = -low
        if self.job.shape.lower is not None:
            low = self.job.shape.lower[chosen] * scale
        if self.job.shape.upper is not None:
            high = self.job.shape.upper[chosen] * scale
        minimize: Any = optimize.lsq_linear
        solved = minimize(factor, right, (low, np.maximum(high, low + 1e-300)), method="bvls")
        after = 2 * float(solved.cost) - float(right @ right)
        before = float(beta @ self.normal @ beta - 2 * linear[S] @ beta)
        return before - after


def _free(job: Job, subset: Subset, slope: Floats) -> Any:
    """Return which chosen coefficients no bound holds back."""
    free = np.ones(slope.shape, dtype=bool)
    S = subset.support
    if job.shape.lower is not None:
        free &= ~((subset.coef <= job.shape.lower[S, None]) & (slope < 0))
    if job.shape.upper is not None:
        free &= ~((subset.coef >= job.shape.upper[S, None]) & (slope > 0))
    return free


def _inverse(matrix: Floats) -> Floats:
    """Return the inverse of a positive matrix, whatever the scales of its rows."""
    if matrix.shape[0] == 0:
        return matrix
    scale = np.sqrt(np.maximum(np.diag(matrix), np.finfo(float).tiny))
    unit = matrix / np.outer(scale, scale)
    try:
        inner = linalg.cho_solve(linalg.cho_factor(unit), np.eye(len(scale)))
    except linalg.LinAlgError:
        inner = linalg.pinvh(unit)
    return np.asarray(inner / np.outer(scale, scale))


def _gradient_checks(
    job: Job, subset: Subset, budget: int, lam: Floats, tol: float, found: _Findings
) -> float:
    """Check that a model of another loss is the minimizer on its support; return the value."""
    scores = job.scores(subset)
    weight = np.ones(job.X.shape[0]) if job.weight is None else job.weight
    weight = weight / weight.sum()
    S = subset.support
    losses = sample_losses(job, scores)
    value = float(weight @ losses) + 0.5 * float((lam[S, None] * subset.coef**2).sum())
    slope, curvature = _derivatives(job, scores)
    columns = inputs.to_numpy(inputs.take_columns(job.X, S))
    columns = columns.toarray() if hasattr(columns, "toarray") else np.asarray(columns)
    columns = columns.astype(np.float64)
    on = columns.T @ (weight[:, None] * slope) + lam[S, None] * subset.coef
    rows = np.vstack([columns.T, np.ones(columns.shape[0])]) if job.fit_intercept else columns.T
    extra = lam[S]
    free = _free(job, subset, -on)
    if job.fit_intercept:
        on = np.vstack([on, weight @ slope])
        extra = np.append(extra, 0.0)
        free = np.vstack([free, np.ones((1, free.shape[1]), dtype=bool)])
    decrease = 0.0
    for o in range(on.shape[1]):
        f = free[:, o]
        normal = (rows * (weight * curvature[:, o])) @ rows.T + np.diag(extra)
        part = on[f, o]
        decrease += 0.5 * float(part @ _inverse(normal[np.ix_(f, f)]) @ part)
    rounding = ROUNDING * max(abs(value), float(weight @ np.abs(losses)))
    found.measures["rounding"] = rounding
    found.check(
        "decrease that a Newton step on the same support predicts",
        decrease,
        max(tol * abs(value), rounding),
        Claim.STATIONARY,
    )
    slopes = -transpose_product(job.X, weight[:, None] * slope, np.zeros(job.X.shape[1]))
    steepest = CURVATURE.get(job.loss)
    if steepest is None:
        # The largest of all samples would be far too pessimistic.
        squares = column_moments(job.X, weight * curvature.max(axis=1), center=False)[1]
        found.assumptions.append(
            "The curvature is that at the model: the loss has no bound on it."
        )
    else:
        squares = steepest * column_moments(job.X, weight, center=False)[1]
    _stability(job, subset, budget, slopes, squares, lam, found)
    _score_exchanges(job, subset, budget, lam, value, max(tol * abs(value), rounding), found)
    return value


def _score_exchanges(
    job: Job,
    subset: Subset,
    budget: int,
    lam: Floats,
    value: float,
    slack: float,
    found: _Findings,
) -> None:
    """Check exchanges of features for a loss of scores, where they can be bounded."""
    shape, S = job.shape, subset.support
    if shape.grouped or shape.bounded:
        what = "groups" if shape.grouped else "bounds on coefficients"
        found.assumptions.append(
            f"Exchanges are not checked: for this loss they are not priced with {what}."
        )
        return
    if found.claim() is not Claim.STATIONARY:
        # Where the model is not even the minimizer on its support, exchanges prove nothing.
        return
    n = job.X.shape[0]
    weight = np.full(n, 1.0 / n) if job.weight is None else job.weight / job.weight.sum()
    coef, shift = subset.coef, subset.intercept if job.fit_intercept else None
    loss: AbstractScoreLoss
    if job.loss == "softmax":
        loss = SoftmaxLoss(np.asarray(job.y), job.n_classes)
        coef = coef @ loss.basis
        shift = None if shift is None else shift @ loss.basis
    elif job.loss == "huber":
        loss = HuberLoss(np.asarray(job.y, dtype=np.float64), float(job.options["delta"]))
    else:
        loss = ScalarLoss(job.loss, np.asarray(job.y, dtype=np.float64))
    outside = np.setdiff1d(np.arange(job.X.shape[1]), np.union1d(S, shape.forbidden))

    def columns(index: Any) -> Floats:
        part = inputs.to_numpy(inputs.take_columns(job.X, index))
        part = part.toarray() if hasattr(part, "toarray") else part
        return np.asarray(part, dtype=np.float64)

    stays, short = np.isin(S, shape.always), S.size < budget
    model = ScoreModel(
        loss, columns, weight, S, coef, shift, lam, stays, outside, short
    )  # fmt: skip
    known = check_score_exchanges(model, value, slack)
    if known.reason is not None:
        found.assumptions.append(f"Exchanges are not checked: {known.reason}.")
        return
    found.measures |= {"swaps_checked": known.n_checked, "swaps_solved": known.n_solved}
    if known.n_open:
        found.assumptions.append(
            f"Exchanges are not checked to the end: of {known.n_checked}, {known.n_open} are "
            "neither excluded by a bound nor known to help; `certify='full'` minimizes on each."
        )
        return
    name = "decrease by the best exchange of one feature"
    name = "decrease by the best further feature" if short else name
    found.check(name, known.best_decrease, slack, Claim.COORDINATEWISE)
    found.assumptions.append(
        "Exchanges are excluded by bounds on the curvature; those that are left were minimized."
    )


def _stability(
    job: Job,
    subset: Subset,
    budget: int,
    slope: Floats,
    squares: Floats,
    lam: Floats,
    found: _Findings,
) -> None:
    """Check that a gradient step and hard thresholding give the model back.

    `slope` is minus the gradient of the loss, (n_columns, n_outputs), and `squares` bounds the
    curvature along every column; the sum of the largest of them bounds it along every direction
    between two models of the budget.
    """
    if budget == 0:
        # The model of nothing is the only one.
        return
    units, n_units = job.shape.units, job.shape.n_units
    S = subset.support
    on = np.zeros(n_units, dtype=bool)
    on[units[S]] = True
    banned = np.zeros(n_units, dtype=bool)
    banned[units[job.shape.forbidden]] = True
    curved = np.bincount(units, squares, n_units)
    smoothness = float(np.sort(curved)[::-1][: 2 * budget].sum() + lam.max(initial=0.0))
    found.measures["smoothness"] = smoothness
    # What a column gains as a step of 1 / L is projected on its bounds, in squares of steps.
    here = np.zeros((slope.shape[0], slope.shape[1]))
    here[S] = subset.coef
    pulled = slope.copy()
    # On the support the gradient is zero, or a bound holds against it.
    net = slope[S] - lam[S, None] * subset.coef
    pulled[S] = np.where(_free(job, subset, net), 0.0, net)
    moved = here * smoothness + pulled
    kept = moved.copy()
    if job.shape.lower is not None:
        kept = np.maximum(kept, smoothness * job.shape.lower[:, None])
    if job.shape.upper is not None:
        kept = np.minimum(kept, smoothness * job.shape.upper[:, None])
    gain = np.bincount(units, (kept * (2 * moved - kept)).sum(axis=1), n_units)
    outside = np.sqrt(np.maximum(gain[~on & ~banned], 0.0))
    smallest = np.sqrt(gain[on].min()) if on.sum() == budget and budget else 0.0
    found.check(
        "largest slope off the support",
        float(outside.max(initial=0.0)),
        # Within rounding of the slope at zero, where the budget is not used up.
        max(float(smallest), 1e-9 * float(np.sqrt((slope**2).sum(axis=1).max(initial=0.0)))),
        Claim.STATIONARY,
    )


def _derivatives(job: Job, scores: Floats) -> tuple[Floats, Floats]:
    """Return slope and curvature of the loss of every sample in its scores."""
    y = job.y
    if job.loss == "logistic":
        p = special.expit(scores)
        return p - y[:, None], p * (1 - p)
    if job.loss == "softmax":
        p = special.softmax(scores, axis=1)
        hot = np.zeros_like(p)
        hot[np.arange(len(y)), y] = 1.0
        return p - hot, p * (1 - p)
    if job.loss == "poisson":
        mean = np.exp(scores)
        return mean - y[:, None], mean
    delta = float(job.options["delta"])
    residual = scores - y[:, None]
    # Samples outside bend nothing; a little curvature keeps the step finite.
    inside = np.where(np.abs(residual) <= delta, 1.0, 1e-6)
    return np.clip(residual, -delta, delta), inside


def verify_fully(
    job: Job, coef: Any, subset: Subset, budget: int, ridge: float | Floats, *, tol: float
) -> Certificate | str:
    """Return the certificate of `ellzero.verify`, or why it cannot be had."""
    import torch

    from ellzero.certificates import verify
    from ellzero.objectives import Huber, LeastSquares, Logistic, Poisson, Softmax
    from ellzero.sets import GroupL0Ball, L0Ball

    if hasattr(job.X, "tocsc"):
        return "X is sparse"
    if job.shape.always.size or job.shape.forbidden.size:
        return "features are always kept or forbidden"
    if job.shape.bounded:
        return "coefficients have bounds"
    lam = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (job.X.shape[1],))
    used = lam[lam > 0]
    # One lambda for all columns: with `standardize`, that of columns of unit size.
    level = float(used.max(initial=0.0))
    scale = np.sqrt(lam / level) if level > 0 else np.ones_like(lam)
    scale[scale == 0] = 1.0
    X = np.asarray(inputs.to_numpy(job.X), dtype=np.float64)
    theta = torch.as_tensor(np.asarray(subset.dense(X.shape[1])) * scale)
    params: dict[str, Any]
    objective: Any
    if job.loss == "squared":
        weight = np.ones(X.shape[0]) if job.weight is None else job.weight
        y = np.asarray(job.y, dtype=np.float64)
        if job.fit_intercept:
            X = X - np.average(X, axis=0, weights=weight)
            y = y - np.average(y, axis=0, weights=weight)
        flat = y.shape[1] == 1
        target = torch.as_tensor(y[:, 0] if flat else y)
        objective = LeastSquares(
            torch.as_tensor(X / scale), target, level, sample_weight=torch.as_tensor(weight)
        )
        params = {"coef": theta[0] if flat else theta}
    else:
        kinds: dict[str, Any] = {"logistic": Logistic, "softmax": Softmax, "poisson": Poisson}
        kind = kinds.get(job.loss, Huber)
        flat = job.loss != "softmax"
        objective = kind(
            torch.as_tensor(X / scale),
            torch.as_tensor(job.y),
            ridge={"coef": level, "intercept": 0.0} if job.fit_intercept else level,
            fit_intercept=job.fit_intercept,
            sample_weight=None if job.weight is None else torch.as_tensor(job.weight),
            **job.options,
        )
        params = {"coef": theta[0] if flat else theta}
        if job.fit_intercept:
            shift = torch.as_tensor(subset.intercept)
            params["intercept"] = shift[0] if flat else shift
    constraint: Any
    if job.shape.grouped or not flat:
        labels = torch.as_tensor(job.shape.units).repeat(1 if flat else theta.shape[0])
        constraint = GroupL0Ball(budget, labels, names=("coef",))
    else:
        constraint = L0Ball(budget, names=("coef",))
    return verify(Problem(objective, constraint), params, tol=tol)
