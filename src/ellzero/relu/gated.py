"""The gated program: two-layer networks with fixed gates, a group lasso with an exact gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import Certificate, Measure, Status
from ellzero.errors import DataError, InvalidParameterError
from ellzero.relu.conclusion import conclude
from ellzero.relu.gated_factor import BLOCK
from ellzero.relu.gated_newton import DENSE_SAMPLES, FACTOR_SAMPLES, newton
from ellzero.relu.gated_program import CHUNK, GatedProgram
from ellzero.relu.gated_proximal import proximal
from ellzero.validation import check_choice, check_integer, check_real

Floats = NDArray[np.float64]
NOTE = (
    "The gap is that of the program with these gates; it says nothing about ReLU networks of "
    "other gates or widths."
)


@dataclass(frozen=True, slots=True)
class GatedSolution:
    """Weights of the gates that are used.

    Parameters
    ----------
    penalty : float
        Weight of the sum of norms.
    support : ndarray of int of shape (n_active,)
        Gates with weights that are not zero, in order.
    weights : ndarray of shape (n_active, n_inputs, n_outputs)
        Their U_i.
    constant : ndarray of shape (n_outputs,)
        The intercepts; zeros without.
    point : ndarray of shape (n_samples, n_outputs)
        Dual point, evidence of the bound.
    value : float
        The objective.
    certificate : Certificate
        Lower bound and relative gap over all gates of the program, in float64.
    status : Status
        Why the solver stopped.
    n_rounds : int
        Working sets that were solved.
    n_iter : int
        Newton or proximal steps.
    """

    penalty: float
    support: NDArray[np.int64]
    weights: Floats
    constant: Floats
    point: Floats
    value: float
    certificate: Certificate
    status: Status
    n_rounds: int
    n_iter: int

    @property
    def gap(self) -> float:
        """Relative gap of the program with these gates."""
        return float(self.certificate.gap or 0.0)


def certify_gated(
    program: GatedProgram,
    penalty: float,
    support: NDArray[np.int64],
    weights: Floats,
    constant: Floats,
    points: Sequence[Floats] = (),
) -> tuple[Certificate, float, Floats, Floats]:
    r"""Return certificate, value, dual point and its norms, from the weights alone.

    Parameters
    ----------
    program : GatedProgram
        The program.
    penalty : float
        Weight of the norms.
    support : ndarray of int of shape (n_active,)
        Gates that are used.
    weights : ndarray of shape (n_active, n_inputs, n_outputs)
        Their weights.
    constant : ndarray of shape (n_outputs,)
        Intercepts.
    points : sequence of ndarray of shape (n_samples, n_outputs), default=()
        Further dual points to try beside the residual; any point gives a valid bound.

    Returns
    -------
    tuple of (Certificate, float, ndarray, ndarray)
        Certificate, objective, the best dual point and \|A' D_i V\| at every gate.
    """
    value = program.value(support, weights, constant, penalty)
    candidates = [program.residual(program.outputs(support, weights, constant)), *points]
    rated = [(*program.bound(point, penalty), point) for point in candidates]
    bound, norms, point = max(rated, key=lambda item: item[0])
    measures: dict[str, Measure] = {
        "n_gates": program.n_gates,
        "n_active": len(support),
        "largest_dual_norm_over_penalty": float(norms.max()) / penalty,
    }
    certificate = conclude(
        value,
        bound,
        measures,
        scale=program.loss.value(np.zeros(program.y.size), program.y.ravel()),
        assumptions=(NOTE,),
        gap_name="relative gap of the gated program",
    )
    return certificate, value, point, norms


def memory_needed(
    n_samples: int, n_inputs: int, n_gates: int, n_outputs: int = 1, *, solver: str = "auto"
) -> int:
    """Return about how many bytes a gated program needs at its peak.

    Parameters
    ----------
    n_samples, n_inputs, n_gates : int
        Sizes of the program.
    n_outputs : int, default=1
        Outputs.
    solver : {"auto", "newton", "proximal"}, default="auto"
        Solver.

    Returns
    -------
    int
        Design, patterns, products in blocks, and the matrices of the Newton system.

    Examples
    --------
    >>> from ellzero.relu import memory_needed
    >>> memory_needed(12665, 785, 1000) < 1.5e9
    True
    """
    out = 8 * n_samples * n_inputs + n_samples * n_gates + 8 * n_inputs * n_gates * n_outputs
    out += 8 * min(n_samples * n_gates, CHUNK) * 2
    if resolve_solver(solver, n_samples) == "newton":
        if n_samples <= DENSE_SAMPLES:
            out += 8 * n_samples * n_samples * (4 + n_outputs)
        elif n_samples <= FACTOR_SAMPLES:
            # One matrix in single precision, with three blocks of it while it is formed.
            out += 4 * n_samples * (n_samples + 3 * BLOCK + n_inputs + 3 * n_gates)
    return out


def resolve_solver(solver: str, n_samples: int) -> str:
    """Return the solver that "auto" stands for."""
    check_choice("solver", solver, ("auto", "newton", "proximal"))
    if solver != "auto":
        return solver
    return "newton" if n_samples <= FACTOR_SAMPLES else "proximal"


def check_memory(needed: int, limit: float | None) -> None:
    """Raise when a program needs more memory than allowed, before anything is allocated."""
    if limit is not None and needed > limit:
        raise InvalidParameterError(
            f"The gated program needs about {needed / 2**30:.2f} GiB, above `memory_limit`, "
            f"{limit / 2**30:.2f} GiB.",
            'Use fewer gates or samples, `solver="proximal"`, or raise `memory_limit` (bytes).',
        )


def solve_gated(
    program: GatedProgram,
    penalty: float,
    *,
    tol: float = 1e-7,
    max_iter: int = 20000,
    solver: str = "auto",
    start: GatedSolution | None = None,
) -> GatedSolution:
    """Solve a gated program to a relative gap over all of its gates.

    Parameters
    ----------
    program : GatedProgram
        The program.
    penalty : float
        Weight of the norms. Must be positive; from `largest_penalty` on the answer is zero.
    tol : float, default=1e-7
        Relative gap at which to stop.
    max_iter : int, default=20000
        Most Newton or proximal steps, over all working sets.
    solver : {"auto", "newton", "proximal"}, default="auto"
        "newton" is a dual augmented Lagrangian with semismooth Newton steps: systems of
        n_samples equations up to 4000 samples, conjugate gradients with a single-precision
        factor up to 16,000, and without one beyond; "proximal" is FISTA with restarts; "auto"
        takes Newton up to 16,000 samples.
    start : GatedSolution or None, default=None
        Solution of the same program at another penalty.

    Returns
    -------
    GatedSolution
        With `status` MAX_ITER or STALLED where `tol` was not met; its gap holds all the same.

    Raises
    ------
    InvalidParameterError
        If a setting is out of range.

    Notes
    -----
    Gates with weights stay in a working set; the most violating ones join it, 10, 20, 40, ... at
    a time, until the gap over all gates is small. A Newton step with a active gates costs
    O(n^3 + n^2 a) where a system is factored, with 4 n^2 bytes beyond 4000 samples; one factor
    serves several steps there (not for the logistic loss of several outputs). A proximal step
    costs O(n d m) with m gates in the working set; a check O(n d n_gates). The value of every
    solution is exact for these gates, not for other ReLU networks.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import GatedProgram, read_gates, sample_gates, solve_gated
    >>> from ellzero.relu.losses import SquaredLoss
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((40, 3))
    >>> gates = read_gates(A, sample_gates(100, 3, rng))
    >>> program = GatedProgram(A, gates.patterns, np.abs(A[:, :1]), SquaredLoss())
    >>> solve_gated(program, 0.01 * program.largest_penalty()).gap < 1e-7
    True
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    check_real("tol", tol, low=0.0, open_low=True)
    check_integer("max_iter", max_iter, low=1)
    inner = newton if resolve_solver(solver, len(program.A)) == "newton" else proximal
    n_inputs, n_outputs = program.A.shape[1], program.y.shape[1]
    if start is None:
        support = np.zeros(0, dtype=np.int64)
        weights = np.zeros((0, n_inputs, n_outputs))
        constant = program.constant()
        points: list[Floats] = []
    else:
        support, weights, constant = start.support, start.weights, start.constant
        points = [start.point]
    n_iter = n_rounds = 0
    batch = 10
    sigma = None
    best: GatedSolution | None = None
    stalls = 0
    while True:
        found, value, point, norms = certify_gated(
            program, penalty, support, weights, constant, points
        )
        gap = found.gap or 0.0
        status = None
        if gap <= tol:
            status = Status.CONVERGED
        elif n_iter >= max_iter:
            status = Status.MAX_ITER
        elif best is not None and gap > 0.9 * best.gap:
            stalls += 1
            if stalls > 12:
                status = Status.STALLED
        if best is None or gap < best.gap or status is Status.CONVERGED:
            best = GatedSolution(
                penalty, support, weights, constant, point, value, found,
                status or Status.MAX_ITER, n_rounds, n_iter,
            )  # fmt: skip
        if status is not None:
            return _finished(best, status, n_rounds, n_iter)
        outside = np.ones(program.n_gates, dtype=bool)
        outside[support] = False
        order = np.argsort(-np.where(outside, norms, -1.0), kind="stable")
        fresh = order[:batch]
        fresh = fresh[outside[fresh] & (norms[fresh] > penalty * (1 - 0.1 * min(1.0, gap)))]
        batch *= 2
        if not len(fresh) and not len(support):
            fresh = order[:1]
        working = np.sort(np.concatenate([support, fresh]))
        begin = np.zeros((len(working), n_inputs, n_outputs))
        begin[np.searchsorted(working, support)] = weights
        # A working set that grows need not be solved to the end.
        aim = max(0.3 * tol, min(1e-3, 0.02 * gap)) if len(fresh) else 0.3 * tol
        weights, constant, dual, sigma, steps = inner(
            program, penalty, working, begin, constant, point,
            tol=aim * 0.5 ** min(stalls, 6), max_iter=max_iter - n_iter, sigma=sigma,
        )  # fmt: skip
        n_iter += steps
        n_rounds += 1
        keep = (weights != 0).any(axis=(1, 2))
        support, weights = working[keep], weights[keep]
        points = [dual]


def _finished(best: GatedSolution, status: Status, n_rounds: int, n_iter: int) -> GatedSolution:
    """Return the best solution with what happened in the whole run."""
    return GatedSolution(
        best.penalty, best.support, best.weights, best.constant, best.point, best.value,
        best.certificate, status, n_rounds, n_iter,
    )  # fmt: skip


def gated_path(
    program: GatedProgram,
    penalties: Sequence[float] | None = None,
    *,
    n_penalties: int = 10,
    tol: float = 1e-7,
    max_iter: int = 20000,
    solver: str = "auto",
) -> list[GatedSolution]:
    """Solve a gated program at penalties from large to small, each from the one before.

    Parameters
    ----------
    program : GatedProgram
        The program.
    penalties : sequence of float or None, default=None
        The penalties; None means `n_penalties` from the largest useful one to a thousandth of it.
    n_penalties : int, default=10
        How many, where `penalties` is None.
    tol, max_iter, solver : float, int, str
        As in `solve_gated`, for each penalty.

    Returns
    -------
    list of GatedSolution
        In order of falling penalties, each with its own gap.

    Raises
    ------
    InvalidParameterError
        If a setting is out of range.
    DataError
        If `penalties` is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import GatedProgram, gated_path, read_gates, sample_gates
    >>> from ellzero.relu.losses import SquaredLoss
    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((40, 3))
    >>> gates = read_gates(A, sample_gates(100, 3, rng))
    >>> program = GatedProgram(A, gates.patterns, np.abs(A[:, :1]), SquaredLoss())
    >>> path = gated_path(program, n_penalties=4)
    >>> [len(solution.support) > 0 for solution in path]
    [False, True, True, True]
    """
    if penalties is None:
        check_integer("n_penalties", n_penalties, low=1)
        top = program.largest_penalty() or 1.0
        penalties = list(np.geomspace(top, 1e-3 * top, n_penalties))
    if len(penalties) == 0:
        raise DataError("`penalties` is empty.", "Pass at least one penalty.")
    out: list[GatedSolution] = []
    for penalty in sorted((check_real("penalties", p, low=0.0, open_low=True) for p in penalties),
                          reverse=True):  # fmt: skip
        last = out[-1] if out else None
        out.append(
            solve_gated(program, penalty, tol=tol, max_iter=max_iter, solver=solver, start=last)
        )
    return out
