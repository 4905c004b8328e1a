"""Dual augmented Lagrangian with semismooth Newton steps, for the gates of a working set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import xlogy

from ellzero.relu.gated_factor import Factor
from ellzero.relu.gated_program import GatedProgram
from ellzero.relu.losses import LogisticLoss

Floats = NDArray[np.float64]
# Samples up to which Newton systems are formed: a few matrices of this order are held.
DENSE_SAMPLES = 4000
# Samples up to which they are factored in single precision, to precondition.
FACTOR_SAMPLES = 16000
CG_STEPS = 200
# Steps with a factor of another system before a new one is made.
PATIENCE = 25


class _Conjugate:
    """The conjugate of the loss, times the number of targets, at r = n_targets v."""

    def __init__(self, program: GatedProgram) -> None:
        self.y = program.y
        self.logistic = isinstance(program.loss, LogisticLoss)

    def inside(self, r: Floats) -> Floats:
        """Return the point moved into the interior of the domain."""
        if not self.logistic:
            return r
        return self.y * np.clip(self.y * r, 1e-9, 1 - 1e-9)

    def value(self, r: Floats) -> float:
        """Return the conjugate at -r."""
        if not self.logistic:
            return float(np.sum(0.5 * r * r - self.y * r))
        s = self.y * r
        return float(np.sum(xlogy(s, s) + xlogy(1 - s, 1 - s)))

    def slope(self, r: Floats) -> Floats:
        """Return the gradient."""
        if not self.logistic:
            return r - self.y
        s = self.y * r
        return np.asarray(self.y * (np.log(s) - np.log1p(-s)))

    def curvature(self, r: Floats) -> Floats:
        """Return the diagonal of the Hessian."""
        if not self.logistic:
            return np.ones_like(r)
        s = self.y * r
        return np.asarray(1.0 / (s * (1 - s)))

    def longest(self, r: Floats, step: Floats) -> float:
        """Return the longest step that stays in the domain, at most one."""
        if not self.logistic:
            return 1.0
        s, move = self.y * r, self.y * step
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(move > 0, (1 - s) / move, np.where(move < 0, -s / move, np.inf))
        return min(1.0, 0.99 * float(room.min()))


class _Lagrangian:
    """The augmented Lagrangian for fixed multipliers U, c and a fixed sigma."""

    def __init__(
        self, program: GatedProgram, seen: Floats, U: Floats, c: Floats, radius: float,
        sigma: float, conjugate: _Conjugate, factor: Factor | None,
    ) -> None:  # fmt: skip
        self.program, self.seen, self.U, self.c = program, seen, U, c
        self.radius, self.sigma, self.conjugate, self.factor = radius, sigma, conjugate, factor
        self.unit = float(np.linalg.norm(program.y))
        self.n_products = 0
        # Intercepts count as weights of a column as long as the rows, whatever their scale.
        self.free = sigma * program.row_square if program.fit_intercept else 0.0

    def products(self, r: Floats) -> Floats:
        """Return A' D_i r, shape (n_gates, n_inputs, n_outputs)."""
        A = self.program.A
        return np.stack([(A.T @ (self.seen * r[:, [k]])).T for k in range(r.shape[1])], axis=2)

    def outputs(self, U: Floats) -> Floats:
        """Return sum_i D_i A U_i."""
        A = self.program.A
        return np.column_stack(
            [np.einsum("ij,ij->i", A @ U[:, :, k].T, self.seen) for k in range(U.shape[2])]
        )

    def at(self, r: Floats, products: Floats) -> tuple[float, Floats, Floats, Floats, Floats]:
        """Return value, prox of W, norms of W, intercepts, and W itself."""
        W = self.U + self.sigma * products
        norms = np.sqrt((W * W).sum(axis=(1, 2)))
        shrink = np.maximum(0.0, 1.0 - self.sigma * self.radius / np.maximum(norms, 1e-300))
        near = W * shrink[:, None, None]
        c = self.c + self.free * r.sum(axis=0)
        square = float((near * near).sum()) / (2 * self.sigma)
        if self.free > 0:
            square += float(c @ c) / (2 * self.free)
        return self.conjugate.value(r) + square, near, norms, c, W

    def inexact(self, r: Floats, slope: Floats, norms: Floats, W: Floats) -> Floats:
        """Return a Newton step by conjugate gradients, without the matrix in double precision."""
        program, sigma = self.program, self.sigma
        active = np.flatnonzero(norms > sigma * self.radius)
        share = (sigma * self.radius / norms[active])[:, None, None]
        unit = W[active] / norms[active, None, None]
        part = _Lagrangian(
            program, np.ascontiguousarray(self.seen[:, active]), unit, self.c, self.radius,
            sigma, self.conjugate, self.factor,
        )  # fmt: skip
        root = 1.0 / np.sqrt(self.conjugate.curvature(r))

        def apply(v: Floats) -> Floats:
            moved = root * v
            image = self.free * np.broadcast_to(moved.sum(axis=0), moved.shape)
            if len(active):
                P = part.products(moved)
                along = (unit * P).sum(axis=(1, 2), keepdims=True)
                image = image + sigma * part.outputs((1.0 - share) * P + share * along * unit)
            return np.asarray(v + root * image)

        rest = root * slope
        step = np.zeros_like(rest)
        square = float((rest * rest).sum())
        goal = square * min(0.1, float(np.sqrt(square)) / max(self.unit, 1e-300)) ** 2
        goal = max(goal, 1e-30 * self.unit**2)
        # A factor of an earlier system first; a new one where that does not do.
        for fresh in (False, True):
            if square <= goal:
                break
            if fresh:
                if self.factor is None or not len(active):
                    break
                self.factor.build(
                    program.A, part.seen, sigma * (1.0 - share[:, 0, 0]),
                    self._thin(part.seen, unit, sigma * share[:, 0, 0]), root.mean(axis=1),
                    self.free,
                )  # fmt: skip
            limit = CG_STEPS if fresh or self.factor is None else PATIENCE
            step, rest, square = self._conjugate(apply, step, rest, goal, limit)
        return -root * step

    def _thin(self, seen: Floats, unit: Floats, weights: Floats) -> Floats:
        """Return columns whose squares add up to the part of the system that is not a kernel."""
        n_outputs = unit.shape[2]
        columns = [
            seen * (self.program.A @ unit[:, :, k].T) * np.sqrt(weights / n_outputs)
            for k in range(n_outputs)
        ]
        return np.hstack(columns)

    def _conjugate(
        self, apply: Callable[[Floats], Floats], step: Floats, rest: Floats, goal: float,
        limit: int,
    ) -> tuple[Floats, Floats, float]:  # fmt: skip
        """Return step, residual and its square after at most `limit` preconditioned steps."""
        solve = self.factor.solve if self.factor is not None else np.asarray
        near = solve(rest)
        way, inner = near, float((rest * near).sum())
        square = float((rest * rest).sum())
        for _ in range(limit):
            if square <= goal:
                break
            image = apply(way)
            length = inner / float((way * image).sum())
            step = step + length * way
            rest = rest - length * image
            square = float((rest * rest).sum())
            near = solve(rest)
            last, inner = inner, float((rest * near).sum())
            way = near + (inner / last) * way
            self.n_products += 1
        return step, rest, square

    def direction(self, r: Floats, slope: Floats, norms: Floats, W: Floats) -> Floats:
        """Return the Newton step."""
        if len(r) > DENSE_SAMPLES:
            return self.inexact(r, slope, norms, W)
        program, sigma, A = self.program, self.sigma, self.program.A
        n, n_outputs = r.shape
        active = np.flatnonzero(norms > sigma * self.radius)
        share = sigma * self.radius / norms[active]
        seen = self.seen[:, active]
        common = np.zeros((n, n))
        if len(active):
            common = sigma * program.kernel() * ((seen * (1.0 - share)) @ seen.T)
        common += self.free
        unit = np.sqrt(sigma * share) / norms[active]
        B = np.stack(
            [seen * (A @ W[active, :, k].T) * unit for k in range(n_outputs)]
        )  # (n_outputs, n, n_active)
        curvature = self.conjugate.curvature(r)
        if n_outputs == 1:
            common += B[0] @ B[0].T
        # Scaled so that the identity is the smallest part, whatever the curvature of the loss.
        root = 1.0 / np.sqrt(curvature)
        step = np.empty_like(r)
        factors = []
        for k in range(n_outputs):
            system = common * np.outer(root[:, k], root[:, k])
            system[np.diag_indices(n)] += 1.0
            factors.append(cho_factor(system, lower=True, overwrite_a=True, check_finite=False))
            step[:, k] = root[:, k] * cho_solve(
                factors[k], root[:, k] * slope[:, k], check_finite=False
            )
        if n_outputs > 1 and len(active):
            inner = np.eye(len(active))
            solved = []
            for k in range(n_outputs):
                scaled = root[:, [k]] * B[k]
                solved.append(cho_solve(factors[k], scaled, check_finite=False))
                inner += scaled.T @ solved[k]
            pull = sum(B[k].T @ step[:, k] for k in range(n_outputs))
            weights = np.linalg.solve(inner, pull)
            for k in range(n_outputs):
                step[:, k] -= root[:, k] * (solved[k] @ weights)
        return -step


def newton(
    program: GatedProgram,
    penalty: float,
    working: NDArray[np.int64],
    weights: Floats,
    constant: Floats,
    point: Floats,
    *,
    tol: float,
    max_iter: int,
    sigma: float | None,
) -> tuple[Floats, Floats, Floats, float, int]:
    r"""Solve a gated program with the gates of a working set.

    Parameters
    ----------
    program : GatedProgram
        The program.
    penalty : float
        Weight of the norms.
    working : ndarray of int of shape (m,)
        Gates.
    weights : ndarray of shape (m, n_inputs, n_outputs)
        Start.
    constant : ndarray of shape (n_outputs,)
        Start of the intercepts.
    point : ndarray of shape (n_samples, n_outputs)
        Start of the dual point.
    tol : float
        Relative gap of the restricted program at which to stop.
    max_iter : int
        Most Newton steps.
    sigma : float or None
        Weight of the augmentation, from the working set before.

    Returns
    -------
    tuple of (weights, constant, point, sigma, n_iter)
        Weights are exactly zero where gates are not used.

    Notes
    -----
    With W_i = U_i + sigma A' D_i r the augmented Lagrangian of the dual has the Hessian
    diag(conjugate'') + sigma [(A A') o (D diag(1 - share) D') + B B'], the columns of B being
    D_i A W_i / \|W_i\| sqrt(share_i) over the active gates and share_i = sigma radius / \|W_i\|.
    Between Newton solves U becomes the prox of W and sigma grows threefold.
    """
    sub = program.restricted(working)
    seen = program.patterns[:, working].astype(np.float64)
    n_targets = program.y.size
    radius = penalty * n_targets
    conjugate = _Conjugate(program)
    r = conjugate.inside(point * n_targets)
    U, c = weights, constant
    # Several outputs of the logistic loss have systems of their own, too different for one factor.
    alike = r.shape[1] == 1 or not conjugate.logistic
    factor = Factor() if alike and DENSE_SAMPLES < len(r) <= FACTOR_SAMPLES else None
    if sigma is None:
        sigma = 10.0 / program.row_square
        if factor is not None:
            # Weights per unit of dual norm, as the value of the zero network bounds them: larger
            # ones make the first systems hard, which is dear where samples are many.
            zero = program.loss.value(np.zeros(program.y.size), program.y.ravel())
            sigma = min(sigma, 0.1 * zero / (penalty * radius) or np.inf)
    unit = float(np.linalg.norm(program.y)) or 1.0
    n_iter = 0
    accuracy = 1e-3
    best = (np.inf, U, c, point)
    failures = 0
    while n_iter < max_iter:
        lagrangian = _Lagrangian(program, seen, U, c, radius, sigma, conjugate, factor)
        products = lagrangian.products(r)
        value, near, norms, shift, W = lagrangian.at(r, products)
        if n_iter == 0 and factor is not None:
            # Gates that have joined may pull far: a feasible point on the ray is another start.
            top = float(np.sqrt((products * products).sum(axis=(1, 2))).max(initial=0.0))
            if top > radius:
                fit = radius / top
                new = lagrangian.at(fit * r, fit * products)
                if new[0] < value:
                    r, products = fit * r, fit * products
                    value, near, norms, shift, W = new
        while True:
            slope = conjugate.slope(r) + lagrangian.outputs(near) + shift
            size = float(np.linalg.norm(slope))
            if conjugate.logistic:
                size = float(np.linalg.norm(slope / np.sqrt(conjugate.curvature(r))))
            if size <= accuracy * unit or n_iter >= max_iter:
                break
            try:
                step = lagrangian.direction(r, slope, norms, W)
            except LinAlgError:
                failures += 1
                break
            n_iter += 1
            along = float((slope * step).sum())
            moved = lagrangian.products(step)
            length = conjugate.longest(r, step)
            while True:
                trial = r + length * step
                new = lagrangian.at(trial, products + length * moved)
                if new[0] <= value + 1e-4 * length * along + 1e-15 * abs(value):
                    break
                length *= 0.5
                if length < 1e-10:
                    break
            if length < 1e-10:
                failures += 1
                break
            r, products = trial, products + length * moved
            value, near, norms, shift, W = new
        U, c = near, shift
        used = (U != 0).any(axis=(1, 2))
        objective = sub.value(np.flatnonzero(used), U[used], c, penalty)
        residual = sub.residual(sub.outputs(np.flatnonzero(used), U[used], c))
        bounds = [(sub.bound(v, penalty)[0], v) for v in (residual, r / n_targets)]
        bound, v = max(bounds, key=lambda item: item[0])
        gap = (objective - bound) / max(objective, 1e-300)
        if gap < best[0]:
            best = (gap, U, c, v)
        if gap <= tol or failures > 3:
            break
        accuracy = max(0.2 * accuracy, 1e-13)
        sigma *= 3.0
    return best[1], best[2], best[3], sigma, n_iter
