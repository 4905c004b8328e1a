"""Train under one or several budgets, with checkpoints and gentle interrupts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ellzero.certificates import verify
from ellzero.core.problem import AbstractSmoothObjective, Problem
from ellzero.core.result import Result, Status
from ellzero.core.solver import SolverState, iterate
from ellzero.datasets import Table
from ellzero.models import proof_tensors, read_proof
from ellzero.sets import L0Ball
from ellzero.solvers import IHT, LocalSearch, random_starts
from ellzero.solving import PROOF_ENTRIES, PathResult, solve, solve_dense, solve_path
from ellzero.storage import Checkpoint
from ellzero.tensors import named
from ellzero.training.experiment import Experiment, build_experiment, swap_option
from ellzero.training.networks import solve_network
from ellzero.training.outcomes import Outcome, make_outcome, scores
from ellzero.training.settings import (
    EVERY_BUDGET,
    GROWTH,
    GROWTH_LARGE,
    NETWORK_BRACKET,
    NETWORK_DENSITIES,
    Between,
    Progress,
    TrainSettings,
)

# Points that the exchange search of larger models goes on with, and exchanges tried at each.
SEARCHED_POINTS = 2
SEARCH_TRIES = 32


@dataclass(frozen=True, slots=True)
class TrainRun:
    """Outcome of `train`.

    Parameters
    ----------
    experiment : Experiment
        Data and problem.
    dense : dict
        Value and accuracies of the dense reference.
    outcomes : tuple of Outcome
        One for each budget done, by budget.
    selected : int
        The budget of the chosen model.
    interrupted : bool
        Whether the run was cut short.
    seconds : float
        Wall time of this call.
    """

    experiment: Experiment
    dense: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    selected: int
    interrupted: bool
    seconds: float

    @property
    def chosen(self) -> Outcome:
        """The outcome of the selected budget."""
        return next(o for o in self.outcomes if o.budget == self.selected)


def _solve_budget(
    experiment: Experiment,
    budget: int,
    dense: Result,
    known: list[Outcome],
    between: Between,
) -> Result:
    """Solve one budget; `known` are outcomes of other budgets, used as starts."""
    settings = experiment.settings

    def callback(iteration: int, state: SolverState) -> bool:
        return between(iteration)

    assert settings.starts is not None
    problem = experiment.problem(budget)
    generator = torch.Generator().manual_seed(settings.seed)
    smooth = isinstance(experiment.objective, AbstractSmoothObjective)
    if smooth and experiment.n_parameters <= PROOF_ENTRIES:
        path: PathResult = solve_path(
            problem,
            [budget],
            starts=settings.starts,
            time_limit=settings.time_limit,
            generator=generator,
            dense=dense,
            warm=[o.params for o in known],
            callback=callback,
        )
        return path[budget]
    if not smooth:
        return solve_network(experiment, problem, budget, between, callback)
    near = sorted(known, key=lambda o: abs(math.log(o.budget / budget)))[:2]
    points = [dense.params, *(o.params for o in near)]
    ball = L0Ball(budget)
    batch = named.concatenate([named.to_batch(ball.project(p)) for p in points])
    if settings.starts:
        drawn = random_starts(problem, settings.starts, generator=generator)
        batch = named.concatenate([batch, drawn])
    wide = iterate(problem, IHT(), batch, callback=callback)
    best = wide.value.argsort()[:SEARCHED_POINTS]
    result = solve(
        problem,
        LocalSearch(tries=SEARCH_TRIES),
        named.take(wide.params, best),
        time_limit=settings.time_limit,
        callback=callback,
        certify=False,
    )
    swaps = swap_option(experiment, budget)
    certificate = verify(problem, result.params, dense=dense.params, swaps=swaps)
    measures: dict[str, Any] = {
        "starts": batch.size,
        "median_value": named.to_float(wide.value.median()),
        "worst_value": named.to_float(wide.value.max()),
    }
    measures = {**result.measures, "hit_rate": None, **measures}
    return replace(result, measures=measures, certificate=certificate)


def _budget_plan(experiment: Experiment) -> tuple[int, ...] | None:
    """Return the budgets to do, or None when the smallest good one is to be searched for."""
    if experiment.settings.n_nonzero is not None:
        return tuple(sorted(set(experiment.settings.n_nonzero)))
    n, settings = experiment.n_parameters, experiment.settings
    if settings.search:
        return None
    if n <= EVERY_BUDGET:
        return tuple(range(1, n + 1))
    if settings.hidden:
        return tuple(sorted({max(1, round(d * n)) for d in NETWORK_DENSITIES}))
    return None


def _next_budget(outcomes: dict[int, Outcome], experiment: Experiment) -> int | None:
    """Return the next budget of the search for the smallest good one; None when found."""
    epsilon, n = experiment.settings.epsilon, experiment.n_parameters
    network = bool(experiment.settings.hidden)
    if network and not outcomes:
        return max(1, n // 100)
    good = [b for b, o in outcomes.items() if o.row["epsilon"] <= epsilon]
    if not good:
        largest = max(outcomes, default=0)
        growth = GROWTH if n <= PROOF_ENTRIES else GROWTH_LARGE
        return None if largest >= n else min(n, max(largest + 1, math.ceil(growth * largest)))
    low = max((b for b in outcomes if b < min(good)), default=0)
    width = NETWORK_BRACKET * min(good) if network else 1
    return (low + min(good)) // 2 if min(good) - low > max(width, 1) else None


def _select(outcomes: Iterable[Outcome], epsilon: float) -> int:
    """Return the smallest budget within epsilon of the dense loss, else the best value."""
    done = sorted(outcomes, key=lambda o: o.budget)
    good = [o.budget for o in done if o.row["epsilon"] <= epsilon]
    return good[0] if good else min(done, key=lambda o: o.row["value"]).budget


def _save_step(checkpoint: Checkpoint | None, outcome: Outcome) -> None:
    if checkpoint is None:
        return
    data = {"budget": outcome.budget, "row": outcome.row, "certificate": outcome.certificate}
    tensors = {f"params.{n}": t for n, t in outcome.params.items()}
    if outcome.proof is not None:
        tensors.update(proof_tensors(outcome.proof))
    checkpoint.save(f"budget-{outcome.budget}", data, tensors)


def _load_steps(checkpoint: Checkpoint | None) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}
    for step in checkpoint.load().values() if checkpoint is not None else ():
        params = {n[7:]: t for n, t in step.tensors.items() if n.startswith("params.")}
        budget = step.data["budget"]
        found[budget] = Outcome(
            budget,
            params,
            step.data["row"],
            step.data["certificate"],
            read_proof("checkpoint", step.tensors),
        )
    return found


def train(
    settings: TrainSettings,
    *,
    table: Table | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainRun:
    """Train models under one or several budgets and certify each.

    Parameters
    ----------
    settings : TrainSettings
        What to train.
    table : Table or None, default=None
        The data, when it has been read already.
    checkpoint : Checkpoint or None, default=None
        Where finished budgets are kept; those found there are not done again.
    progress : callable or None, default=None
        Called as ``progress(what, done, total)``; `total` is None while it is not known.
    stop : callable or None, default=None
        Asked between steps; True ends the run with what is there, as an interrupt does.

    Returns
    -------
    TrainRun
        Every outcome, and the selected budget: the smallest one whose loss is within `epsilon` of
        the dense loss, or the best when none is.

    Raises
    ------
    DataError, InvalidParameterError
        If the data or a setting cannot be used.
    KeyboardInterrupt
        If interrupted before the first budget was done. Later interrupts end the run with what
        is there.

    Examples
    --------
    >>> from ellzero.training import TrainSettings, train
    >>> run = train(TrainSettings(n_nonzero=(5,), starts=5))
    >>> run.chosen.row["n_nonzero"], round(run.chosen.row["value"], 3)
    (5, 0.308)
    """
    began = time.perf_counter()
    experiment = build_experiment(settings, table)
    tell = progress or (lambda what, done, total: None)
    outcomes = _load_steps(checkpoint)
    tell("dense reference", 0, None)
    dense = solve_dense(Problem(experiment.objective))
    if dense.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    reference = {
        "value": dense.value,
        **scores(experiment, dense.params),
        "n_parameters": experiment.n_parameters,
        "status": dense.status.name.lower(),
        "status_sentence": dense.status.value,
    }
    plan = _budget_plan(experiment)
    interrupted = False
    what, total = "", None if plan is None else len(plan)

    def between(iteration: int) -> bool:
        tell(f"{what}, step {iteration}", len(outcomes), total)
        return stop is not None and stop()

    while True:
        if plan is None:
            budget = _next_budget(outcomes, experiment)
        else:
            budget = next((b for b in plan if b not in outcomes), None)
        if budget is None:
            break
        what = f"{budget} nonzeros"
        tell(what, len(outcomes), total)
        try:
            known = list(outcomes.values())
            result = _solve_budget(experiment, budget, dense, known, between)
        except KeyboardInterrupt:
            if not outcomes:
                raise
            interrupted = True
            break
        cut = result.status is Status.INTERRUPTED
        outcomes[budget] = make_outcome(experiment, result, budget, dense.value)
        if cut:
            interrupted = True
            break
        _save_step(checkpoint, outcomes[budget])
        tell(what, len(outcomes), total)
    ordered = tuple(outcomes[b] for b in sorted(outcomes))
    selected = _select(ordered, settings.epsilon)
    for outcome in ordered:
        outcome.row["selected"] = outcome.budget == selected
    seconds = time.perf_counter() - began
    return TrainRun(experiment, reference, ordered, selected, interrupted, seconds)
