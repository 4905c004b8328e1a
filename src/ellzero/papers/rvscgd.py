r"""Sparse teachers of a network of binary activations, found by coarse gradients and splitting.

As in `ellzero.papers.rvsm`, with the activation 1{x > 0}: its derivative vanishes on samples, a
straight-through estimator takes another one. The paper's own tables were not at hand: no number
here is the paper's.

References
----------
.. [1] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting coarse gradient descent
   method for learning sparse weight binarized activation neural networks", arXiv:1901.09731.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from ellzero.certificates import check_splitting
from ellzero.core.problem import Problem
from ellzero.core.solver import SolverState, iterate
from ellzero.objectives import BinaryPatchNetworkLoss
from ellzero.papers import Progress
from ellzero.papers.rvsm import (
    BUDGET,
    DIMENSION_NOTE,
    N_ENTRIES,
    N_PATCHES,
    N_TEACHERS,
    PENALTIES,
    QUICK_TEACHERS,
    ROUNDING,
    THRESHOLD,
    THRESHOLDS,
    TITLES,
    TOL,
    agrees,
    curve_figure,
    grid,
    grid_parts,
    learn,
    mean_of,
    penalty_of,
    rounded,
    short,
    sparse_teachers,
)
from ellzero.penalties import L0
from ellzero.solvers import RVSCGD
from ellzero.solvers.splitting import SplittingState
from ellzero.tensors import named

STEP_SIZE = 0.05
BETAS = (0.1, 0.4, 1.0, 4.0, 10.0)

# Angles of w and u to the teacher of seed 0, measured by independent code.
REFERENCE: tuple[tuple[float, str, float, float], ...] = (
    (0.4, "l1", 4.29e-3, 5.48e-2),
    (0.4, "l0", 0.0, 0.0),
    (0.4, "tl1", 4.06e-3, 4.86e-2),
    (0.1, "l1", 1.06e-3, 5.10e-2),
    (0.1, "tl1", 1.00e-3, 4.51e-2),
)


def _anchors() -> tuple[list[list[Any]], float]:
    """Return the rows of the reference table and the largest remainder of the limit relation."""
    objective = BinaryPatchNetworkLoss(sparse_teachers(1), N_PATCHES)
    rows: list[list[Any]] = []
    remainder = 0.0
    for beta, kind, angle, sparse_angle in REFERENCE:
        solver = RVSCGD(beta, step_size=STEP_SIZE, tol=1e-17)
        found = learn(objective, solver, penalty_of(kind, beta, THRESHOLD))
        remainder = max(remainder, named.to_float(found.remainder.max()))
        label = f"{TITLES[kind]}, beta {beta:g}, threshold {THRESHOLD:g}"
        for what, theirs, mine in (
            ("angle of w", angle, found.angle),
            ("angle of u", sparse_angle, found.sparse_angle),
        ):
            number = named.to_float(mine[0])
            rows.append([f"{label}: {what}", theirs, rounded(number), agrees(number, theirs)])
        rows.append([f"{label}: support exact", True, found.recovery == 1, found.recovery == 1])
    return rows, remainder


def _surrogate(seed: int) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the surrogate over the steps, and its largest rises, with both quantities."""
    objective = BinaryPatchNetworkLoss(sparse_teachers(1), N_PATCHES)
    series, rows = [], []
    for kind in PENALTIES:
        values: list[float] = []
        true: list[float] = []

        def record(
            _: int, state: SolverState, values: list[float] = values, true: list[float] = true
        ) -> None:
            assert isinstance(state, SplittingState)
            surrogate = named.to_float(state.lagrangian[0])
            coarse = named.to_float(objective.coarse_value_and_grad(state.dense)[0][0])
            values.append(surrogate)
            true.append(surrogate - coarse + named.to_float(objective.value(state.dense)[0]))

        problem = Problem(objective, penalty=penalty_of(kind, 0.4, THRESHOLD))
        start = objective.random_params(torch.Generator().manual_seed(seed))
        solver = RVSCGD(0.4, step_size=STEP_SIZE, tol=0.0)
        iterate(problem, solver, start, max_iter=300, callback=record)
        rises = [
            max(0.0, *(b - a for a, b in itertools.pairwise(line))) for line in (values, true)
        ]
        rows.append([TITLES[kind], *rises, rises[0] <= ROUNDING])
        series.append({"name": TITLES[kind], "x": list(range(len(values))), "y": values})
    return series, rows


def _collapse() -> tuple[list[dict[str, Any]], list[list[Any]], list[list[str]]]:
    """Return lengths of w without normalization, what is left of u, and the cautions."""
    objective = BinaryPatchNetworkLoss(sparse_teachers(1), N_PATCHES)
    beta, threshold = 0.4, 0.1
    series: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    cautions: list[list[str]] = []
    for kind, normalize in (("l1", False), ("tl1", False), ("l0", False), ("l1", True)):
        level = THRESHOLD if kind == "l0" else threshold
        penalty = L0(beta * level**2 / 2) if kind == "l0" else penalty_of(kind, beta, level)
        lengths: list[float] = []

        def record(_: int, state: SolverState, lengths: list[float] = lengths) -> None:
            assert isinstance(state, SplittingState)
            lengths.append(named.to_float(named.norm(state.dense)[0]))

        problem = Problem(objective, penalty=penalty)
        solver = RVSCGD(beta, step_size=STEP_SIZE, normalize=normalize)
        run = iterate(problem, solver, objective.random_params(), max_iter=1000, callback=record)
        assert isinstance(run.final, SplittingState)
        check = check_splitting(problem, run.final.dense, beta=beta, normalize=normalize)
        kept = named.to_int(named.count_nonzero(run.final.params)[0])
        name = f"{TITLES[kind]}, {'' if normalize else 'not '}normalized"
        rows.append([name, level, lengths[-1], kept, len(check.cautions)])
        cautions += [[name, caution] for caution in check.cautions]
        series.append({"name": name, "x": list(range(len(lengths))), "y": lengths})
    return series, rows, cautions


def run(*, quick: bool = False, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the recovery experiment and return its summary; see `Experiment.run`."""
    count = QUICK_TEACHERS if quick else N_TEACHERS
    betas = BETAS[::2] if quick else BETAS
    thresholds = THRESHOLDS[::2] if quick else THRESHOLDS
    dimensions = (20, 50) if quick else (20, 50, 100, 200, 500)
    total = 3 * (len(betas) * len(thresholds) + len(dimensions)) + 2
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("runs", done, total)

    began = time.perf_counter()
    rows, remainder = _anchors()
    rows.append(
        ["largest remainder of the limit relation", 1e-12, rounded(remainder), remainder < 1e-12]
    )
    tell()
    teachers = sparse_teachers(count, seed=1000 * (seed + 1))
    cells = grid(
        lambda: BinaryPatchNetworkLoss(teachers, N_PATCHES),
        lambda beta: RVSCGD(beta, tol=TOL),
        betas, thresholds, seed, tell,
    )  # fmt: skip
    maps, table = grid_parts(cells, betas, thresholds, "sparse_angle")
    curves: dict[str, list[float]] = {}
    rows_d: list[list[Any]] = []
    for kind in PENALTIES:
        shares = []
        for d in dimensions:
            drawn = sparse_teachers(count, d, d // 5, seed=1000 * (seed + 1))
            objective = BinaryPatchNetworkLoss(drawn, N_PATCHES)
            found = learn(
                objective, RVSCGD(0.4, tol=TOL), penalty_of(kind, 0.4, THRESHOLD), seed=seed
            )
            shares.append(found.recovery)
            rows_d.append(
                [TITLES[kind], d, found.recovery, mean_of(found.angle),
                 mean_of(found.sparse_angle), found.n_iter]
            )  # fmt: skip
            tell()
        curves[TITLES[kind]] = shares
    series, rows_surrogate = _surrogate(seed)
    lengths, rows_collapse, cautions = _collapse()
    tell()
    good = sum(bool(row[-1]) for row in rows)
    nearest = min(thresholds, key=lambda t: abs(t - THRESHOLD))
    shares_text = ", ".join(
        f"{TITLES[k]} {cells[k][betas[0], nearest].recovery:.0%}" for k in PENALTIES
    )
    return {
        "title": "Sparse networks of binary activations by coarse gradients",
        "headline": (
            f"Supports found at beta {betas[0]:g}: {shares_text}; {good} of {len(rows)} "
            "reference figures met; without normalization l1 ends with "
            f"{rows_collapse[0][3]} nonzeros"
        ),
        "settings": {
            "paper": "arXiv:1901.09731",
            "patches": N_PATCHES,
            "entries": N_ENTRIES,
            "n_nonzero": BUDGET,
            "teachers": count,
            "estimator": "ReLU",
            "seed": seed,
            "seconds": time.perf_counter() - began,
        },
        "reference": {
            "title": "Reference (measured) beside ours",
            "columns": ["quantity", "reference", "ours", "agrees"],
            "rows": rows,
            "note": (
                "The tables of the paper were not at hand. The reference figures were measured by "
                "independent code on the same teacher, from another start. Below 1e-13 both are "
                "rounding."
            ),
        },
        "figures": [
            *maps,
            curve_figure(
                "Recovery over the dimension, a fifth of the entries nonzero",
                "entries of the filter", dimensions, curves, percent_y=True, integer_x=True,
            ),
            {
                "kind": "line_chart",
                "options": {
                    "title": "Length of w with and without normalization",
                    "x_label": "step",
                    "y_label": "|w|",
                    "series": lengths,
                    "log_y": True,
                    "note": "The penalty shrinks w until it is as short as the threshold, since "
                    "the loss does not see its length; l0 alone survives.",
                },
            },
        ],
        "tables": [
            {
                "title": "Recovery and error over coupling and threshold",
                "columns": [
                    "penalty", "beta", "threshold", "share found", "mean angle of w",
                    "mean angle of u", "mean nonzeros",
                ],
                "rows": [short(row) for row in table],
                "note": (
                    f"c = {teacher_constant():.3g}: the angle of w is about beta / c times the "
                    "gap between w and u."
                ),
            },
            {
                "title": f"Over the dimension (beta 0.4, threshold {THRESHOLD:g})",
                "columns": ["penalty", "entries", "share found", "mean angle of w",
                            "mean angle of u", "steps"],
                "rows": [short(row) for row in rows_d],
                "note": DIMENSION_NOTE,
            },
            {
                "title": "Rises over 300 steps of length 0.05",
                "columns": ["penalty", "of the surrogate", "with the true loss",
                            "surrogate monotone"],
                "rows": [short(row) for row in rows_surrogate],
                "note": "The true loss has a kink at the teacher: only the surrogate must fall.",
            },
            {
                "title": "Collapse without normalization",
                "columns": ["run", "threshold", "|w| at the end", "nonzeros of u",
                            "cautions"],
                "rows": [short(row) for row in rows_collapse],
            },
            {
                "title": "What `check_splitting` says at these ends",
                "columns": ["run", "caution"],
                "rows": cautions,
            },
        ],
        "trace": {"series": series, "y_label": "surrogate"},
    }  # fmt: skip


def teacher_constant() -> float:
    """Return the constant c of the experiment."""
    return BinaryPatchNetworkLoss(sparse_teachers(1), N_PATCHES).coarse_curvature()
