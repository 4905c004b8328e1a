r"""Planted sparse ReLU networks: hard thresholding, and iterative magnitude pruning beside it.

What the paper states is that planted networks are recovered, exactly for practical purposes, and
that hard thresholding is comparable to pruning or better with less memory; its figures are heat
maps without numbers that could be printed here. The settings of its runs were read from its
public code. Where a setting decides about the outcome, the table has it both ways.

References
----------
.. [1] S. Fridovich-Keil and M. Pilanci, "A Recovery Guarantee for Sparse Neural Networks",
   arXiv:2509.20323.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero._version import __version__
from ellzero.core.problem import Problem
from ellzero.core.solver import AbstractSolver, iterate
from ellzero.papers import Progress
from ellzero.relu import FusedLeastSquares, RectifiedLeastSquares, recover_network
from ellzero.relu.fused import NAME
from ellzero.sets import L0Ball
from ellzero.solvers import HTP, IHT, NIHT
from ellzero.tensors import named

# Relative error at which a network counts as recovered, on samples that it has not seen.
RECOVERED = 1e-6
# Given patterns: features, patterns, planted neurons, nonzeros of each, trials.
GIVEN_D, GIVEN_P, GIVEN_K, GIVEN_C = 30, 6, 2, 3
GIVEN_N, QUICK_GIVEN_N = (25, 50, 100, 200, 400, 800), (30, 300)
GIVEN_TRIALS, QUICK_GIVEN_TRIALS = 12, 2
# Steps after which a run that has not recovered counts as failed.
GIVEN_STEPS, QUICK_GIVEN_STEPS = 500, 200
# Searched patterns: samples, features, then (planted neurons, nonzeros of each, neurons allowed).
SIZE, QUICK_SIZE = (1000, 60), (400, 20)
CASES = ((1, 4, 2), (2, 4, 4), (4, 4, 4), (4, 4, 8), (8, 4, 8), (8, 4, 12))
QUICK_CASES = ((1, 3, 2), (2, 3, 2), (2, 3, 4))
SEEDS, QUICK_SEEDS = (0, 1, 2), (0, 1)
N_STARTS, QUICK_STARTS = 20, 10
# The runs of the paper: full-batch epochs, Adam's step, share that a round prunes.
EPOCHS, IMP_LR, IMP_SHARE = 15, 1e-3, 0.1
# Rounds that let pruning train.
LONG_EPOCHS, QUICK_LONG_EPOCHS, LONG_LR = 200, 100, 1e-2
# Decibels beyond which nothing is left but rounding.
MOST_DB = 400.0


@dataclass(frozen=True, slots=True)
class Planted:
    """A planted network and its samples.

    Parameters
    ----------
    X, fresh : Tensor of shape (n_samples, n_features)
        Gaussian samples to learn from and to judge by.
    y, truth : Tensor of shape (n_samples,)
        Outputs of the network there.
    n_nonzero : int
        Nonzero fused weights.
    """

    X: Tensor
    y: Tensor
    fresh: Tensor
    truth: Tensor
    n_nonzero: int


def plant(n: int, d: int, k: int, c: int, seed: int) -> Planted:
    """Return samples of k neurons with c Gaussian weights each and output weights 1 and -1.

    Parameters
    ----------
    n, d : int
        Samples and features.
    k, c : int
        Neurons and nonzero weights of each.
    seed : int
        Of samples and network.

    Returns
    -------
    Planted
        In float64, with 1000 fresh samples.
    """
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n + 1000, d, generator=generator, dtype=torch.float64)
    hidden = torch.zeros(k, d, dtype=torch.float64)
    for row in hidden:
        places = torch.randperm(d, generator=generator)[:c]
        row[places] = torch.randn(c, generator=generator, dtype=torch.float64)
    signs = torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0).double()
    outputs = torch.relu(X @ hidden.T) @ signs
    return Planted(X[:n], outputs[:n], X[n:], outputs[n:], k * c)


def plant_as_run(d: int, width: int, n_nonzero: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return hidden and output weights with half of the nonzeros at random places in each layer.

    Parameters
    ----------
    d, width : int
        Features and neurons.
    n_nonzero : int
        The budget; either layer gets half of it, rounded down.
    seed : int
        Of places and values.

    Returns
    -------
    tuple of Tensor
        Shapes (width, d) and (width,).
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for size in (width * d, width):
        flat = torch.zeros(size, dtype=torch.float64)
        places = torch.randperm(size, generator=generator)[: n_nonzero // 2]
        flat[places] = torch.randn(len(places), generator=generator, dtype=torch.float64)
        layers.append(flat)
    return layers[0].reshape(width, d), layers[1]


def psnr(y: Tensor, outputs: Tensor) -> float:
    """Return 20 log10 max|y| - 10 log10 of the mean squared error, in decibels up to 400."""
    error = named.to_float((outputs - y).square().mean())
    peak = named.to_float(y.abs().max())
    if error == 0:
        return MOST_DB
    return min(20 * math.log10(peak) - 10 * math.log10(error), MOST_DB)


def relative_error(y: Tensor, outputs: Tensor) -> float:
    """Return the norm of the error over that of y."""
    return named.to_float((outputs - y).norm() / y.norm())


# Hard thresholding ---------------------------------------------------------------------------


def iht_as_run(planted: Planted, n_neurons: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return weights and outputs on fresh samples after the steps that the paper's runs take.

    One random start; 15 steps of the exact line search on the support, each followed by ten
    gradient steps on the support; patterns become those of the fused weights, so that output
    weights are positive.

    Parameters
    ----------
    planted : Planted
        The samples.
    n_neurons : int
        Neurons of the student.
    seed : int
        Of the first patterns.

    Returns
    -------
    tuple of Tensor
        Fused weights (n_neurons, n_features) and outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    d = planted.X.shape[1]
    generators = torch.randn(n_neurons, d, generator=generator, dtype=torch.float64)
    plus = torch.ones(n_neurons, dtype=torch.float64)
    objective = RectifiedLeastSquares(planted.X, planted.y, plus, generators)
    ball = L0Ball(planted.n_nonzero)
    coef = objective.init_params()[NAME]
    for _ in range(EPOCHS):
        _, grad = objective.value_and_grad({NAME: coef})
        support = coef != 0
        on = torch.where(support, grad[NAME], 0.0)
        curved = objective.hessian_vector({NAME: coef}, {NAME: on})[NAME]
        bend = named.to_float((on * curved).sum())
        step = named.to_float(on.square().sum()) / bend if bend > 0 else 1e-14
        coef = ball.project({NAME: coef - step * grad[NAME]})[NAME]
        coef = _ten_steps(objective, coef)
    outputs = torch.relu(planted.fresh @ coef.T).sum(1)
    return coef, outputs


def _ten_steps(objective: RectifiedLeastSquares, coef: Tensor) -> Tensor:
    """Return the point after ten backtracked gradient steps on the support."""
    support = coef != 0
    for _ in range(10):
        value, grad = objective.value_and_grad({NAME: coef})
        on = torch.where(support, grad[NAME], 0.0)
        curved = objective.hessian_vector({NAME: coef}, {NAME: on})[NAME]
        bend = named.to_float((on * curved).sum())
        square = named.to_float(on.square().sum())
        if bend <= 0 or square == 0:
            break
        step = square / bend
        for _ in range(10):
            trial = coef - step * on
            # Of the sum of squares F = 2 n f, with the gradient A'r = n grad f: halves agree.
            if objective.value({NAME: trial}) <= value - 0.45 * step * square:
                coef = trial
                break
            step /= 2
        else:
            break
    return coef


# Iterative magnitude pruning -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pruned:
    """What iterative magnitude pruning ends with.

    Parameters
    ----------
    outputs : Tensor of shape (n_fresh,)
        On fresh samples.
    fitted : Tensor of shape (n_samples,)
        On the samples.
    n_nonzero : int
        Nonzero weights of both layers.
    n_rounds : int
        Trainings.
    """

    outputs: Tensor
    fitted: Tensor
    n_nonzero: int
    n_rounds: int


def prune_by_magnitude(
    planted: Planted, n_neurons: int, n_nonzero: int, *, epochs: int, lr: float, seed: int
) -> Pruned:
    """Train, prune a tenth of the weights, rewind, until the budget is met; then train once more.

    Parameters
    ----------
    planted : Planted
        The samples.
    n_neurons : int
        Neurons of the dense network.
    n_nonzero : int
        Weights of both layers to be left.
    epochs : int
        Full-batch steps of Adam in each round.
    lr : float
        Adam's step.
    seed : int
        Of the initial weights.

    Returns
    -------
    Pruned
        The last network.
    """
    generator = torch.Generator().manual_seed(seed)
    d = planted.X.shape[1]
    initial = [
        torch.randn(n_neurons, d, generator=generator, dtype=torch.float64) / math.sqrt(d),
        torch.randn(n_neurons, generator=generator, dtype=torch.float64) / math.sqrt(n_neurons),
    ]
    masks = [torch.ones_like(w, dtype=torch.bool) for w in initial]
    rounds = 0
    while True:
        weights = [(w * m).requires_grad_() for w, m in zip(initial, masks, strict=True)]
        optimizer = torch.optim.Adam(weights, lr=lr)
        for _ in range(epochs):
            optimizer.zero_grad()
            u, v = (w * m for w, m in zip(weights, masks, strict=True))
            loss = (torch.relu(planted.X @ u.T) @ v - planted.y).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        rounds += 1
        trained = [(w * m).detach() for w, m in zip(weights, masks, strict=True)]
        left = sum(named.to_int(m.sum()) for m in masks)
        if left <= n_nonzero:
            break
        keep = max(n_nonzero, min(left - 1, math.floor((1 - IMP_SHARE) * left)))
        sizes = {str(i): torch.where(m, w.abs() + 1e-300, 0.0)
                 for i, (w, m) in enumerate(zip(trained, masks, strict=True))}  # fmt: skip
        kept = L0Ball(keep).select(named.map_tensors(torch.square, sizes))
        masks = [kept[str(i)] & m for i, m in enumerate(masks)]
    u, v = trained
    count = sum(named.to_int(named.count_nonzero({"w": w})) for w in trained)
    outputs = torch.relu(planted.fresh @ u.T) @ v
    return Pruned(outputs, torch.relu(planted.X @ u.T) @ v, count, rounds)


# Given patterns ------------------------------------------------------------------------------


def given_rates(n: int, trials: int, seed: int, max_iter: int) -> dict[str, float]:
    """Return how often each solver recovers the fused weights when patterns are given.

    Parameters
    ----------
    n : int
        Samples.
    trials : int
        Random problems.
    seed : int
        Of all of them.
    max_iter : int
        Most steps of each run.

    Returns
    -------
    dict of str to float
        Shares of trials with a relative error of the weights of at most 1e-6.
    """
    n_nonzero = GIVEN_K * GIVEN_C
    solvers: dict[str, tuple[AbstractSolver[Any], int]] = {
        "IHT, step 1/L": (IHT(tol=1e-9), n_nonzero),
        "IHT, twice the budget": (IHT(tol=1e-9), 2 * n_nonzero),
        "NIHT": (NIHT(tol=1e-9), n_nonzero),
        "HTP": (HTP(), n_nonzero),
    }
    hits = dict.fromkeys(solvers, 0)
    for trial in range(trials):
        generator = torch.Generator().manual_seed(1000 * seed + trial)
        X = torch.randn(n, GIVEN_D, generator=generator, dtype=torch.float64)
        truth = torch.zeros(GIVEN_P, GIVEN_D, dtype=torch.float64)
        generators = torch.zeros_like(truth)
        for j in range(GIVEN_P):
            places = torch.randperm(GIVEN_D, generator=generator)[:GIVEN_C]
            values = torch.randn(GIVEN_C, generator=generator, dtype=torch.float64)
            generators[j, places] = values
            if j < GIVEN_K:
                truth[j, places] = values if j % 2 == 0 else -values
        objective = FusedLeastSquares(X, X @ generators.T > 0, torch.zeros(n).double())
        y = objective.predict({NAME: truth})
        objective = FusedLeastSquares(X, objective.gates, y)
        for name, (solver, budget) in solvers.items():
            problem = Problem(objective, L0Ball(budget))
            run = iterate(problem, solver, objective.init_params(), max_iter=max_iter)
            error = (run.params[NAME][0] - truth).norm() / truth.norm()
            hits[name] += named.to_float(error) <= RECOVERED
    return {name: count / trials for name, count in hits.items()}


# The experiment ------------------------------------------------------------------------------


def run(*, quick: bool = False, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run everything and return the summary; see `Experiment.run`."""
    tell = progress or (lambda what, done, total: None)
    sizes = QUICK_GIVEN_N if quick else GIVEN_N
    cases, seeds = (QUICK_CASES, QUICK_SEEDS) if quick else (CASES, SEEDS)
    total = len(sizes) + len(cases) * len(seeds)
    rates: dict[int, dict[str, float]] = {}
    for n in sizes:
        tell("patterns given", len(rates), total)
        rates[n] = given_rates(
            n,
            QUICK_GIVEN_TRIALS if quick else GIVEN_TRIALS,
            seed,
            QUICK_GIVEN_STEPS if quick else GIVEN_STEPS,
        )
    rows, certificate = [], None
    for number, case in enumerate(cases):
        found = []
        for i, one in enumerate(seeds):
            done = len(sizes) + number * len(seeds) + i
            tell(f"{case[0]} planted neurons, {case[2]} allowed", done, total)
            result, proven = _compare(case, one + 100 * seed, quick=quick)
            found.append(result)
            certificate = proven if certificate is None else certificate
        rows.append(_row(case, found))
    tell("done", total, total)
    return _summary(rates, rows, certificate, quick=quick, seed=seed)


def _compare(
    case: tuple[int, int, int], seed: int, *, quick: bool
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Return errors, decibels, counts and seconds of every method on one planted network."""
    k, c, width = case
    n, d = QUICK_SIZE if quick else SIZE
    planted = plant(n, d, k, c, seed)
    out: dict[str, dict[str, float]] = {}

    def note(name: str, began: float, count: int, fitted: Tensor, outputs: Tensor) -> None:
        out[name] = {
            "seconds": time.process_time() - began,
            "psnr": psnr(planted.y, fitted),
            "error": relative_error(planted.truth, outputs),
            "count": count,
        }

    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    found = recover_network(
        planted.X,
        planted.y,
        planted.n_nonzero,
        width,
        n_starts=QUICK_STARTS if quick else N_STARTS,
        generator=generator,
    )
    module = found.to_module()
    with torch.no_grad():
        fitted, outputs = module(planted.X)[:, 0], module(planted.fresh)[:, 0]
    note("ours", began, found.n_nonzero, fitted, outputs)
    out["ours"]["starts"] = len(found.starts)
    began = time.process_time()
    coef, outputs = iht_as_run(planted, width, seed)
    count = named.to_int(named.count_nonzero({NAME: coef}))
    note("iht", began, count, torch.relu(planted.X @ coef.T).sum(1), outputs)
    # Pruning also gets the output weights that fused weights do not count.
    long = QUICK_LONG_EPOCHS if quick else LONG_EPOCHS
    for name, epochs, lr in (("imp", EPOCHS, IMP_LR), ("long", long, LONG_LR)):
        began = time.process_time()
        pruned = prune_by_magnitude(
            planted, width, planted.n_nonzero + k, epochs=epochs, lr=lr, seed=seed
        )
        note(name, began, pruned.n_nonzero, pruned.fitted, pruned.outputs)
        out[name]["rounds"] = pruned.n_rounds
    return out, found.certificate.to_dict()


def _row(case: tuple[int, int, int], found: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the means of one case over seeds."""
    names = ("ours", "iht", "imp", "long")
    mean = {
        name: {key: sum(f[name][key] for f in found) / len(found) for key in found[0][name]}
        for name in names
    }
    hits = {name: sum(f[name]["error"] <= RECOVERED for f in found) for name in names}
    beaten = sum(f["ours"]["error"] <= min(f["imp"]["error"], f["long"]["error"]) for f in found)
    return {"case": case, "mean": mean, "hits": hits, "trials": len(found), "beaten": beaten}


def _summary(
    rates: dict[int, dict[str, float]],
    rows: list[dict[str, Any]],
    certificate: dict[str, Any] | None,
    *,
    quick: bool,
    seed: int,
) -> dict[str, Any]:
    n, d = QUICK_SIZE if quick else SIZE
    hits, trials = sum(r["hits"]["ours"] for r in rows), sum(r["trials"] for r in rows)
    beaten = sum(r["beaten"] for r in rows)
    most = max(rates)
    long = QUICK_LONG_EPOCHS if quick else LONG_EPOCHS
    k, c, p = rows[-1]["case"]
    stored, dense = 2 * k * c, 3 * p * (d + 1)
    names = {"ours": "ours", "iht": "IHT as run", "imp": "IMP as run", "long": "IMP, longer"}
    headline = (
        f"{hits} of {trials} planted networks recovered to {RECOVERED:g} on fresh samples, with "
        f"exactly as many nonzeros as planted; hard thresholding with the settings of the "
        f"paper's code: {sum(r['hits']['iht'] for r in rows)}, pruning: "
        f"{sum(r['hits']['imp'] for r in rows)}, pruning with longer rounds: "
        f"{sum(r['hits']['long'] for r in rows)}."
    )
    return {
        "title": "Sparse ReLU networks, recovered",
        "headline": headline,
        "settings": {
            "samples": n,
            "features": d,
            "seed": seed,
            "quick": quick,
            "starts": QUICK_STARTS if quick else N_STARTS,
            "Adam steps of a round, as run": EPOCHS,
            "Adam steps of a round, longer": long,
        },
        "reference": {
            "title": "What the paper states, beside ours",
            "columns": ["statement", "paper", "ours", "agrees"],
            "rows": [
                [
                    "planted networks are recovered",
                    "essentially exactly",
                    f"{hits} of {trials}",
                    hits >= 0.9 * trials,
                ],
                [
                    "with patterns given and enough samples, IHT recovers (Theorem 1)",
                    "with high probability",
                    f"{rates[most]['IHT, step 1/L']:.0%} at {most} samples",
                    rates[most]["IHT, step 1/L"] >= 0.9,
                ],
                [
                    "hard thresholding is comparable to pruning or better",
                    "yes",
                    f"{beaten} of {trials}",
                    beaten >= 0.9 * trials,
                ],
                [
                    "numbers kept while training: sparse weights, dense network with Adam",
                    "O(s), O(dp)",
                    f"{stored}, {dense}",
                    stored < dense,
                ],
            ],
            "note": (
                "The paper shows heat maps; no table of it was available, so its column is in "
                "words. Agreement means at least nine in ten. The sparse weights are values and "
                "positions of the last case; the patterns of a step are counted in neither "
                "column. Our search keeps one gradient of d p numbers, which a stream over "
                "neurons would not need."
            ),
        },
        "tables": [
            {
                "title": f"Networks recovered, {n} samples of {d} features",
                "columns": [
                    "neurons",
                    "nonzeros",
                    "allowed",
                    *names.values(),
                    "starts of ours",
                ],
                "rows": [
                    [
                        r["case"][0],
                        r["case"][0] * r["case"][1],
                        r["case"][2],
                        *(f"{r['hits'][m]}/{r['trials']}" for m in names),
                        round(r["mean"]["ours"]["starts"], 1),
                    ]
                    for r in rows
                ],
                "note": (
                    "Every budget is the planted count; pruning gets the output weights on top, "
                    "which fused weights do not count. "
                    f"As run: one start and {EPOCHS} steps for IHT, whose patterns follow w_j so "
                    f"that output weights are positive; rounds of {EPOCHS} full-batch steps of "
                    f"Adam at {IMP_LR:g} for IMP, in which weights hardly move. Longer: rounds of "
                    f"{long} steps at {LONG_LR:g}."
                ),
            },
            {
                "title": "Decibels on the training samples, and seconds",
                "columns": [
                    "neurons, allowed, nonzeros",
                    *(f"{label}, dB" for label in names.values()),
                    *(f"{label}, s" for label in names.values()),
                ],
                "rows": [
                    [
                        _case_name(r),
                        *(round(r["mean"][m]["psnr"], 1) for m in names),
                        *(round(r["mean"][m]["seconds"], 2) for m in names),
                    ]
                    for r in rows
                ],
                "note": "The paper's measure; mean over networks, processor time.",
            },
            {
                "title": "Patterns given: share of fused weights recovered",
                "columns": ["samples", "samples / nonzeros", *next(iter(rates.values()))],
                "rows": [
                    [n, round(n / (GIVEN_K * GIVEN_C), 1), *found.values()]
                    for n, found in rates.items()
                ],
                "note": (
                    f"{GIVEN_P} patterns of sparse generators among which are those of the "
                    f"{GIVEN_K} planted neurons with {GIVEN_C} nonzeros each, {GIVEN_D} features."
                ),
            },
            _zero_table(d, seed),
        ],
        "certificate": certificate,
        "figures": [_rate_figure(rates), _psnr_figure(rows, names)],
        "versions": {"ellzero": __version__, "torch": torch.__version__},
    }


def _zero_table(d: int, seed: int) -> dict[str, Any]:
    """Return how often networks planted by the recipe of the paper's code are zero."""
    widths, budgets = (2, 10, 100, 1000), (1, 2, 10, 100, 1000)
    rows: list[list[Any]] = []
    for width in widths:
        zeros = []
        for budget in budgets:
            draws = [plant_as_run(d, width, budget, 50 * seed + i) for i in range(20)]
            dead = sum(
                not named.any_true((hidden != 0).any(1) & (out != 0)) for hidden, out in draws
            )
            zeros.append(f"{dead}/20")
        rows.append([width, *zeros])
    return {
        "title": "Networks planted by the recipe of the paper's code that are zero everywhere",
        "columns": ["neurons", *(f"s = {budget}" for budget in budgets)],
        "rows": rows,
        "note": (
            "Half of the nonzeros at random places in each layer: where neurons outnumber them, "
            "no neuron has both, and recovering zero is no feat. Our networks give every neuron "
            "an output weight of 1 or -1, as Assumption 1 of the paper has it."
        ),
    }


def _case_name(row: dict[str, Any]) -> str:
    k, c, p = row["case"]
    return f"{k}, {p}, {k * c}"


def _rate_figure(rates: dict[int, dict[str, float]]) -> dict[str, Any]:
    names = next(iter(rates.values()))
    return {
        "kind": "line_chart",
        "options": {
            "title": "Patterns given: recovery and samples",
            "series": [
                {"name": name, "x": list(rates), "y": [found[name] for found in rates.values()]}
                for name in names
            ],
            "x_label": "samples (log scale)",
            "y_label": "share recovered",
            "log_x": True,
            "percent_y": True,
        },
    }


def _psnr_figure(rows: list[dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    labels = [_case_name(r) for r in rows]
    return {
        "kind": "heat_map",
        "options": {
            "title": "Decibels on the training samples, by method",
            "values": [[r["mean"][m]["psnr"] for m in names] for r in rows],
            "row_labels": labels,
            "column_labels": list(names.values()),
            "note": (
                "Rows are planted neurons, neurons allowed and nonzeros. Above 200 dB is recovery "
                "to rounding."
            ),
        },
    }
