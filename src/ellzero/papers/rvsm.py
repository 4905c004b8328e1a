r"""Sparse teachers of a convolutional ReLU network, found by relaxed variable splitting.

The network has one hidden layer on disjoint patches of Gaussian input, its population loss a
closed form. Teachers have s entries of magnitude 0.5 to 1.5 with random signs, scaled to length 1,
and each run starts from a uniform point of the sphere. Every curve is over 100 teachers, which are
one batch. The paper's own tables were not at hand: no number here is the paper's.

References
----------
.. [1] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting method for learning sparse
   neural networks via l1, l0, and transformed-l1 penalties", arXiv:1812.05719.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.certificates import check_splitting, lagrangian_descent, limit_relation
from ellzero.core.problem import AbstractObjective, AbstractPenalty, Problem
from ellzero.core.solver import SolverState, iterate
from ellzero.objectives import BinaryPatchNetworkLoss, PatchNetworkLoss
from ellzero.papers import Progress
from ellzero.penalties import L0, L1, TransformedL1
from ellzero.sets import L0Ball
from ellzero.solvers import RVSCGD, RVSM
from ellzero.solvers.splitting import SplittingState
from ellzero.tensors import named
from ellzero.typing import Params

N_PATCHES, N_ENTRIES, BUDGET = 20, 50, 10
BETA, THRESHOLD = 4e-3, 0.05
N_TEACHERS, QUICK_TEACHERS = 100, 20
MAX_ITER = 4000
# A run is done when a step moves it by this share of its length.
TOL = 1e-7
PENALTIES = ("l1", "l0", "tl1")
TITLES = {"l1": "l1", "l0": "l0", "tl1": "transformed l1", "top-s": "exact budget"}
BETAS = (1e-3, 1e-2, 5e-2, 0.1, 0.2)
THRESHOLDS = (0.01, 0.03, 0.05, 0.1, 0.15)

DIMENSION_NOTE = (
    "Entries of a filter of length 1 shrink as it grows: with 500, 100 of them nonzero, the "
    "smallest are 0.05, the threshold, which drops them."
)

# Angle, |w - w*|, |u - w*|: measured by independent code on the teacher of seed 0.
REFERENCE: tuple[tuple[float, str, float, float, float, float], ...] = (
    (4e-3, "l1", 0.02, 1.36e-3, 1.52e-3, 6.43e-2),
    (4e-3, "l0", 0.04, 0.0, 2.7e-15, 2.7e-15),
    (4e-3, "tl1", 0.02, 1.22e-3, 1.29e-3, 3.96e-2),
    (4e-3, "l1", 0.05, 3.42e-3, 3.83e-3, 1.61e-1),
    (4e-3, "tl1", 0.05, 3.24e-3, 3.40e-3, 1.02e-1),
    (1e-3, "l1", 0.05, 8.46e-4, 9.50e-4, 1.59e-1),
)
# Where the reference is rounding, ours must be rounding too.
ROUNDING = 1e-13


def sparse_teachers(
    size: int, d: int = N_ENTRIES, n_nonzero: int = BUDGET, *, seed: int = 0
) -> Tensor:
    """Return sparse filters of length 1, each from its own seed.

    Parameters
    ----------
    size : int
        How many.
    d, n_nonzero : int
        Entries, and nonzeros, of each.
    seed : int, default=0
        Seed of the first; the next have the next ones.

    Returns
    -------
    Tensor of shape (size, d), float64
        Nonzeros of magnitude 0.5 to 1.5 before scaling, with random signs and places.
    """
    out = np.zeros((size, d))
    for row, teacher in enumerate(out):
        rng = np.random.default_rng(seed + row)
        places = rng.choice(d, n_nonzero, replace=False)
        teacher[places] = rng.choice([-1, 1], n_nonzero) * rng.uniform(0.5, 1.5, n_nonzero)
    return torch.from_numpy(out / np.linalg.norm(out, axis=1, keepdims=True))


def decaying_teachers(size: int, d: int = N_ENTRIES, *, seed: int = 0) -> Tensor:
    """Return filters of length 1 with no zero: magnitudes 1, 1/2, 1/3, ... in a random order."""
    rng = np.random.default_rng(seed)
    out = np.stack([rng.permutation(1 / np.arange(1, d + 1)) for _ in range(size)])
    out *= rng.choice([-1, 1], out.shape)
    return torch.from_numpy(out / np.linalg.norm(out, axis=1, keepdims=True))


def penalty_of(kind: str, beta: float, threshold: float) -> AbstractPenalty:
    """Return the penalty whose prox under the coupling `beta` has this threshold."""
    if kind == "l1":
        return L1(beta * threshold)
    if kind == "l0":
        return L0(beta * threshold**2 / 2)
    # Continuous for thresholds up to a / 2, where level (a + 1) / a is the threshold.
    return TransformedL1(beta * threshold / 2, 1.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The limits of a batch of runs.

    Parameters
    ----------
    problem : Problem
        What was run.
    state : SplittingState
        The final state.
    found : Tensor of bool
        Runs whose sparse point has the support of the teacher, or its size where it is dense.
    error, sparse_error, angle, sparse_angle, remainder : Tensor
        As in `LimitRelation`.
    n_nonzero : Tensor
        Nonzeros of the sparse points.
    n_iter : int
        Steps of the longest run.
    seconds : float
        Wall time.
    """

    problem: Problem
    state: SplittingState
    found: Tensor
    error: Tensor
    sparse_error: Tensor
    angle: Tensor
    sparse_angle: Tensor
    remainder: Tensor
    n_nonzero: Tensor
    n_iter: int
    seconds: float

    @property
    def recovery(self) -> float:
        """Share of the runs that found the support."""
        return named.to_float(self.found.to(torch.float64).mean())


def learn(
    objective: PatchNetworkLoss | BinaryPatchNetworkLoss,
    solver: RVSM | RVSCGD,
    penalty: AbstractPenalty | None = None,
    constraint: L0Ball | None = None,
    *,
    seed: int = 0,
    max_iter: int = MAX_ITER,
) -> Outcome:
    """Run all teachers of an objective as one batch, from random starts."""
    problem = Problem(objective, constraint, penalty)
    start = named.to_batch(objective.random_params(torch.Generator().manual_seed(seed)))
    began = time.perf_counter()
    run = iterate(problem, solver, start, max_iter=max_iter)
    seconds = time.perf_counter() - began
    state = run.final
    assert isinstance(state, SplittingState)
    relation = limit_relation(objective, state.dense, state.params, beta=solver.beta)
    return Outcome(
        problem,
        state,
        ((state.params["filter"] != 0) == (objective.teacher != 0)).all(-1),
        relation.error,
        relation.sparse_error,
        relation.angle,
        relation.sparse_angle,
        relation.remainder,
        named.count_nonzero(state.params),
        named.to_int(run.n_iter.max()),
        seconds,
    )


def mean_of(values: Tensor) -> float:
    """Return the mean over runs, without NaN."""
    return named.to_float(values.nanmean())


def rounded(value: float) -> float:
    """Return a number with three significant digits."""
    return float(f"{value:.3g}")


def short(row: Sequence[Any]) -> list[Any]:
    """Return a row of a table with three significant digits, so that it fits a terminal."""
    return [rounded(v) if isinstance(v, float) else v for v in row]


def agrees(ours: float, reference: float) -> bool:
    """Return whether a number is the reference to its three digits, or rounding like it."""
    if reference < ROUNDING:
        return ours < ROUNDING
    return abs(ours - reference) <= 5e-3 * reference


def _anchors() -> tuple[list[list[Any]], float]:
    """Return the rows of the reference table and the largest remainder of the limit relation."""
    teacher = sparse_teachers(1)
    rows: list[list[Any]] = []
    remainder = 0.0
    for beta, kind, threshold, *reference in REFERENCE:
        solver = RVSM(beta, step_size=0.5, tol=1e-17)
        found = learn(
            PatchNetworkLoss(teacher, N_PATCHES),
            solver,
            penalty_of(kind, beta, threshold),
            max_iter=3000,
        )
        remainder = max(remainder, named.to_float(found.remainder.max()))
        ours = (found.angle, found.error, found.sparse_error)
        label = f"{TITLES[kind]}, beta {beta:g}, threshold {threshold:g}"
        for what, theirs, mine in zip(
            ("angle of w", "|w - w*|", "|u - w*|"), reference, ours, strict=True
        ):
            number = named.to_float(mine[0])
            rows.append([f"{label}: {what}", theirs, rounded(number), agrees(number, theirs)])
        rows.append([f"{label}: support exact", True, found.recovery == 1, found.recovery == 1])
    return rows, remainder


def curve_figure(
    title: str, x_label: str, xs: Sequence[float], curves: dict[str, list[float]], **options: Any
) -> dict[str, Any]:
    """Return a chart with one line for each name."""
    return {
        "kind": "line_chart",
        "options": {
            "title": title,
            "x_label": x_label,
            "y_label": options.pop("y_label", "share of teachers found"),
            "series": [{"name": name, "x": list(xs), "y": ys} for name, ys in curves.items()],
            **options,
        },
    }


def grid(
    make: Callable[[], PatchNetworkLoss | BinaryPatchNetworkLoss],
    solver: Callable[[float], RVSM | RVSCGD],
    betas: Sequence[float],
    thresholds: Sequence[float],
    seed: int,
    tell: Callable[[], None],
) -> dict[str, dict[tuple[float, float], Outcome]]:
    """Return the outcome for every penalty, coupling and threshold."""
    out: dict[str, dict[tuple[float, float], Outcome]] = {}
    for kind in PENALTIES:
        out[kind] = {}
        for beta in betas:
            for threshold in thresholds:
                penalty = penalty_of(kind, beta, threshold)
                out[kind][beta, threshold] = learn(make(), solver(beta), penalty, seed=seed)
                tell()
    return out


def grid_parts(
    cells: dict[str, dict[tuple[float, float], Outcome]],
    betas: Sequence[float],
    thresholds: Sequence[float],
    sparse_error: str,
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return a heat map for each penalty, and the rows of a table of everything."""
    maps = [
        {
            "kind": "heat_map",
            "options": {
                "title": f"Share of supports found, {TITLES[kind]}",
                "values": [[cells[kind][b, t].recovery for t in thresholds] for b in betas],
                "row_labels": [f"beta {b:g}" for b in betas],
                "column_labels": [f"{t:g}" for t in thresholds],
                "note": (
                    "Rows are couplings, columns thresholds of the prox; each cell is the share "
                    "of teachers whose support was found exactly."
                ),
            },
        }
        for kind in PENALTIES
    ]
    rows = [
        [
            TITLES[kind],
            beta,
            threshold,
            found.recovery,
            mean_of(found.error if sparse_error == "sparse_error" else found.angle),
            mean_of(getattr(found, sparse_error)),
            mean_of(found.n_nonzero.to(torch.float64)),
        ]
        for kind in PENALTIES
        for (beta, threshold), found in cells[kind].items()
    ]
    return maps, rows


def _sizes(
    values: Sequence[int],
    make: Callable[[int], PatchNetworkLoss],
    seed: int,
    tell: Callable[[], None],
) -> tuple[dict[str, list[float]], list[list[Any]]]:
    """Return curves over a size of the problem, at the default coupling and threshold."""
    curves: dict[str, list[float]] = {}
    rows: list[list[Any]] = []
    for kind in PENALTIES:
        shares = []
        for value in values:
            penalty = penalty_of(kind, BETA, THRESHOLD)
            found = learn(make(value), RVSM(BETA, tol=TOL), penalty, seed=seed)
            shares.append(found.recovery)
            rows.append(
                [TITLES[kind], value, found.recovery, mean_of(found.error),
                 mean_of(found.sparse_error), found.n_iter]
            )  # fmt: skip
            tell()
        curves[TITLES[kind]] = shares
    return curves, rows


def _trade_off(
    count: int, thresholds: Sequence[float], budgets: Sequence[int], seed: int
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return loss of the sparse network against its nonzeros, on teachers without zeros."""
    teachers = decaying_teachers(count, seed=seed)
    objective = PatchNetworkLoss(teachers, N_PATCHES)
    series, rows = [], []
    for kind in (*PENALTIES, "top-s"):
        xs, ys = [], []
        for level in budgets if kind == "top-s" else thresholds:
            solver = RVSM(BETA, tol=TOL)
            if kind == "top-s":
                found = learn(objective, solver, constraint=L0Ball(int(level)), seed=seed)
            else:
                found = learn(objective, solver, penalty_of(kind, BETA, level), seed=seed)
            xs.append(mean_of(found.n_nonzero.to(torch.float64)))
            ys.append(mean_of(objective.value(found.state.params)))
            rows.append([TITLES[kind], level, xs[-1], ys[-1], mean_of(found.sparse_error)])
        # Where nothing was dropped there is no trade, and the loss of l0 is rounding.
        sparse = [(x, y) for x, y in zip(xs, ys, strict=True) if x < N_ENTRIES]
        series.append(
            {"name": TITLES[kind], "x": [x for x, _ in sparse], "y": [y for _, y in sparse]}
        )
    return series, rows


def _recorder(path: list[Params]) -> Callable[[int, SolverState], None]:
    """Return a callback that keeps the dense points."""

    def record(_: int, state: SolverState) -> None:
        assert isinstance(state, SplittingState)
        path.append(state.dense)

    return record


def _descent(seed: int) -> tuple[dict[str, Any], list[list[Any]]]:
    """Return the Lagrangian over the steps for each penalty, and its certificates."""
    series: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    teacher = sparse_teachers(1)
    objective = PatchNetworkLoss(teacher, N_PATCHES)
    step_size = 0.5
    for kind in PENALTIES:
        problem = Problem(objective, penalty=penalty_of(kind, BETA, THRESHOLD))
        path: list[Params] = []
        solver = RVSM(BETA, step_size=step_size, tol=0.0)
        start = objective.random_params(torch.Generator().manual_seed(seed))
        iterate(problem, solver, start, max_iter=600, callback=_recorder(path))
        found = lagrangian_descent(problem, path, beta=BETA, step_size=step_size)
        values = found.values[:, 0]
        rise = named.to_float((values[1:] - values[:-1]).max())
        rows.append(
            [TITLES[kind], found.rate, max(rise, 0.0), named.to_float(found.least_grad[0]),
             named.to_float(found.bound[0]), named.all_true(found.holds)]
        )  # fmt: skip
        shown = range(0, len(path), 5)
        series.append({"name": TITLES[kind], "x": list(shown), "y": named.to_list(values[::5])})
    return {"series": series, "y_label": "Lagrangian"}, rows


def _steps() -> list[list[Any]]:
    """Return what large steps do with two and with five patches."""
    rows: list[list[Any]] = []
    for k, step_size in ((2, 2.0), (2, 4.0), (5, 4.0)):
        objective = PatchNetworkLoss(sparse_teachers(1), k)
        penalty = penalty_of("l1", BETA, 0.02)
        problem = Problem(objective, penalty=penalty)
        solver = RVSM(BETA, step_size=step_size)
        run = iterate(problem, solver, objective.random_params(), max_iter=500)
        assert isinstance(run.final, SplittingState)
        check = check_splitting(problem, run.final.dense, beta=BETA)
        settles = named.to_float(check.grad_norm[0]) < 1e-6
        expected = (k, step_size) != (2, 4.0)
        rows.append([k, step_size, check.step_limit, settles, settles == expected])
    return rows


def one_at_a_time(objective: AbstractObjective, steps: int, sample: int) -> tuple[float, float]:
    """Return seconds a teacher as one batch, and one at a time on a sample."""
    assert isinstance(objective, PatchNetworkLoss)
    penalty = penalty_of("l1", BETA, THRESHOLD)
    solver = RVSM(BETA, tol=0.0)
    problem = Problem(objective, penalty=penalty)
    start = named.to_batch(objective.random_params())
    began = time.process_time()
    iterate(problem, solver, start, max_iter=steps)
    together = (time.process_time() - began) / start.size
    began = time.process_time()
    for row in range(sample):
        alone = Problem(PatchNetworkLoss(objective.teacher[row], N_PATCHES), penalty=penalty)
        iterate(alone, solver, named.row(start, row), max_iter=steps)
    return together, (time.process_time() - began) / sample


def run(*, quick: bool = False, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the recovery experiment and return its summary; see `Experiment.run`."""
    count = QUICK_TEACHERS if quick else N_TEACHERS
    betas = BETAS[::2] if quick else BETAS
    thresholds = THRESHOLDS[::2] if quick else THRESHOLDS
    dimensions = (20, 50) if quick else (20, 50, 100, 200, 500)
    patches = (2, 20) if quick else (2, 5, 10, 20, 50)
    levels = (0.02, 0.05, 0.1) if quick else (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
    budgets = (2, 5, 10) if quick else (1, 2, 3, 5, 8, 12, 20, 30, 45)
    total = 3 * (len(betas) * len(thresholds) + len(dimensions) + len(patches)) + 3
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("runs", done, total)

    began = time.perf_counter()
    rows, remainder = _anchors()
    tell()
    teachers = sparse_teachers(count, seed=1000 * (seed + 1))
    cells = grid(
        lambda: PatchNetworkLoss(teachers, N_PATCHES),
        lambda beta: RVSM(beta, tol=TOL),
        betas, thresholds, seed, tell,
    )  # fmt: skip
    maps, table = grid_parts(cells, betas, thresholds, "sparse_error")
    by_d, rows_d = _sizes(
        dimensions,
        lambda d: PatchNetworkLoss(
            sparse_teachers(count, d, d // 5, seed=1000 * (seed + 1)), N_PATCHES
        ),
        seed, tell,
    )  # fmt: skip
    by_k, rows_k = _sizes(patches, lambda k: PatchNetworkLoss(teachers, k), seed, tell)
    series, rows_off = _trade_off(count, levels, budgets, seed)
    trace, rows_descent = _descent(seed)
    tell()
    rows_steps = _steps()
    together, alone = one_at_a_time(
        PatchNetworkLoss(sparse_teachers(1000), N_PATCHES), 20 if quick else 100, 5
    )
    tell()
    rows.append(
        ["largest remainder of the limit relation", 1e-12, rounded(remainder), remainder < 1e-12]
    )
    good = sum(bool(row[-1]) for row in rows)
    at_default = {
        TITLES[k]: cells[k][betas[0], min(thresholds, key=lambda t: abs(t - THRESHOLD))].recovery
        for k in PENALTIES
    }
    shares = ", ".join(f"{name} {share:.0%}" for name, share in at_default.items())
    columns = ["penalty", "share found", "mean |w - w*|", "mean |u - w*|"]
    return {
        "title": "Sparse teachers by relaxed variable splitting",
        "headline": (
            f"Supports found at beta {betas[0]:g}: {shares}; {good} of {len(rows)} reference "
            f"figures met; 1000 teachers at once {alone / together:.0f} times as fast as one by "
            "one"
        ),
        "settings": {
            "paper": "arXiv:1812.05719",
            "patches": N_PATCHES,
            "entries": N_ENTRIES,
            "n_nonzero": BUDGET,
            "teachers": count,
            "seed": seed,
            "seconds": time.perf_counter() - began,
        },
        "reference": {
            "title": "Reference (measured) beside ours",
            "columns": ["quantity", "reference", "ours", "agrees"],
            "rows": rows,
            "note": (
                "The tables of the paper were not at hand. The reference figures were measured by "
                "independent code on the same teacher, from another start; the limit does not "
                "depend on it. Below 1e-13 both are rounding."
            ),
        },
        "figures": [
            *maps,
            curve_figure(
                "Recovery over the dimension, a fifth of the entries nonzero",
                "entries of the filter", dimensions, by_d, percent_y=True, integer_x=True,
            ),
            curve_figure(
                "Recovery over the number of patches",
                "patches", patches, by_k, percent_y=True, integer_x=True,
            ),
            {
                "kind": "line_chart",
                "options": {
                    "title": "Loss of the sparse network over its nonzeros",
                    "x_label": "nonzeros (mean over teachers)",
                    "y_label": "population loss",
                    "series": series,
                    "log_y": True,
                },
            },
        ],
        "tables": [
            {
                "title": "Recovery and error over coupling and threshold",
                "columns": [
                    "penalty", "beta", "threshold", "share found", "mean |w - w*|",
                    "mean |u - w*|", "mean nonzeros",
                ],
                "rows": [short(row) for row in table],
                "note": (
                    "The transformed l1 penalty has a = 1. Large beta holds w back at the sparse "
                    "point, and thresholds of the size of "
                    f"the smallest entries ({0.5 / math.sqrt(10 * 1.08):.2f} here) drop them."
                ),
            },
            {
                "title": f"Over the dimension (beta {BETA:g}, threshold {THRESHOLD:g})",
                "columns": [columns[0], "entries", *columns[1:], "steps"],
                "rows": [short(row) for row in rows_d],
                "note": DIMENSION_NOTE,
            },
            {
                "title": f"Over the patches (beta {BETA:g}, threshold {THRESHOLD:g})",
                "columns": [columns[0], "patches", *columns[1:], "steps"],
                "rows": [short(row) for row in rows_k],
            },
            {
                "title": "Trade-off on teachers without zeros (magnitudes 1, 1/2, 1/3, ...)",
                "columns": ["penalty", "threshold or budget", "mean nonzeros",
                            "mean loss of u", "mean |u - w*|"],
                "rows": [short(row) for row in rows_off],
                "note": "l1 pays for its bias; l0 and the exact budget have none.",
            },
            {
                "title": "Descent of the Lagrangian, 600 steps of length 0.5",
                "columns": ["penalty", "rate", "largest rise", "least squared gradient",
                            "its bound", "holds"],
                "rows": [short(row) for row in rows_descent],
            },
            {
                "title": "Step sizes against 2 / (beta + L)",
                "columns": ["patches", "step size", "limit", "settles", "as measured before"],
                "rows": [
                    [*short(row[:3]), "yes" if row[3] else "no", row[4]] for row in rows_steps
                ],
                "note": (
                    "The condition is sufficient. Beyond it, two patches never settle: the "
                    "filter jumps to and fro, or grows without bound when it starts long."
                ),
            },
            {
                "title": "1000 teachers as one program",
                "columns": ["way", "processor seconds a teacher"],
                "rows": [short(["one batch", together]), short(["one at a time", alone])],
            },
        ],
        "trace": trace,
    }  # fmt: skip
