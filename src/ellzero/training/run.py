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
from ellzero.models import proof_tensors, read_proof
from ellzero.sets import L0Ball
from ellzero.solvers import IHT, LocalSearch, random_starts
from ellzero.solving import PROOF_ENTRIES, PathResult, solve, solve_dense, solve_path
from ellzero.storage import Checkpoint
from ellzero.tensors import named
from ellzero.training.experiment import Experiment, build_experiment, swap_option
from ellzero.training.large import LargeExperiment, solve_large
from ellzero.training.minibatch import UNDER_WAY
from ellzero.training.networks import solve_network
from ellzero.training.outcomes import Outcome
from ellzero.training.scoring import make_outcome, scores
from ellzero.training.settings import (
    EVERY_BUDGET,
    GROWTH,
    GROWTH_LARGE,
    NETWORK_BRACKET,
    NETWORK_DENSITIES,
    Between,
    Moment,
    Progress,
    TrainSettings,
    Watch,
)

# Points that the exchange search of larger models goes on with, and exchanges tried at each.
SEARCHED_POINTS = 2
SEARCH_TRIES = 32
# Name of the step of a checkpoint that holds the dense reference of a large network.
DENSE = "dense"


@dataclass(frozen=True, slots=True)
class TrainRun:
    """Outcome of `train`.

    Parameters
    ----------
    experiment : Experiment or LargeExperiment
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

    experiment: Experiment | LargeExperiment
    dense: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    selected: int
    interrupted: bool
    seconds: float

    @property
    def chosen(self) -> Outcome:
        """The outcome of the selected budget."""
        return next(o for o in self.outcomes if o.budget == self.selected)


def _solve_small(
    experiment: Experiment,
    budget: int,
    dense: Result,
    known: list[Outcome],
    between: Between,
    *,
    checkpoint: Checkpoint | None,
    watch: Watch | None,
    stop: Callable[[], bool] | None,
) -> Outcome:
    """Solve one budget; `known` are outcomes of other budgets, used as starts."""
    if isinstance(experiment.objective, AbstractSmoothObjective):
        result, curves = _solve_linear(experiment, budget, dense, known, between), None
    else:
        result, curves = solve_network(
            experiment, budget, between, checkpoint=checkpoint, watch=watch, stop=stop
        )
    return make_outcome(experiment, result, budget, dense.value, curves)


def _solve_linear(
    experiment: Experiment,
    budget: int,
    dense: Result,
    known: list[Outcome],
    between: Between,
) -> Result:
    """Solve one budget of a linear model: by proof where it is small, else from many starts."""
    settings = experiment.settings

    def callback(iteration: int, state: SolverState) -> bool:
        return between(iteration)

    assert settings.starts is not None
    problem = experiment.problem(budget)
    generator = torch.Generator().manual_seed(settings.seed)
    if experiment.n_parameters <= PROOF_ENTRIES:
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


def _budget_plan(experiment: Experiment | LargeExperiment) -> tuple[int, ...] | None:
    """Return the budgets to do, or None when the smallest good one is to be searched for."""
    if experiment.settings.budgets is not None:
        return tuple(sorted(set(experiment.settings.budgets)))
    n, settings = experiment.largest_budget, experiment.settings
    if settings.search:
        return None
    if n <= EVERY_BUDGET:
        return tuple(range(1, n + 1))
    if settings.is_network:
        return tuple(sorted({max(1, round(d * n)) for d in NETWORK_DENSITIES}))
    return None


def _next_budget(
    outcomes: dict[int, Outcome], experiment: Experiment | LargeExperiment
) -> int | None:
    """Return the next budget of the search for the smallest good one; None when found."""
    epsilon, n = experiment.settings.epsilon, experiment.largest_budget
    network = experiment.settings.is_network
    if network and not outcomes:
        return max(experiment.least_budget, n // 100)
    good = [b for b, o in outcomes.items() if o.row["epsilon"] <= epsilon]
    if not good:
        largest = max(outcomes, default=0)
        growth = GROWTH if n <= PROOF_ENTRIES else GROWTH_LARGE
        return None if largest >= n else min(n, max(largest + 1, math.ceil(growth * largest)))
    low = max((b for b in outcomes if b < min(good)), default=experiment.least_budget - 1)
    width = NETWORK_BRACKET * min(good) if network else 1
    return (low + min(good)) // 2 if min(good) - low > max(width, 1) else None


def _select(outcomes: Iterable[Outcome], epsilon: float) -> int:
    """Return the smallest budget within epsilon of the dense loss, else the best value."""
    done = sorted(outcomes, key=lambda o: o.budget)
    known = [o for o in done if o.row["epsilon"] is not None]
    good = [o.budget for o in known if o.row["epsilon"] <= epsilon]
    return good[0] if good else min(done, key=lambda o: o.row["value"]).budget


def _save_step(checkpoint: Checkpoint | None, name: str, outcome: Outcome) -> None:
    if checkpoint is None:
        return
    data = {
        "budget": outcome.budget,
        "row": outcome.row,
        "certificate": outcome.certificate,
        "curves": outcome.curves,
    }
    tensors = {f"params.{n}": t for n, t in outcome.params.items()}
    # Copies: tied tensors share memory, which the file refuses.
    tensors |= {f"state.{n}": t.clone() for n, t in outcome.state.items()}
    if outcome.proof is not None:
        tensors.update(proof_tensors(outcome.proof))
    checkpoint.save(name, data, tensors)


def _load_steps(checkpoint: Checkpoint | None) -> dict[str, Outcome]:
    """Return the outcomes that a checkpoint holds, by the names of their steps."""
    found: dict[str, Outcome] = {}
    for name, step in checkpoint.load().items() if checkpoint is not None else ():
        if name == UNDER_WAY:
            continue
        parts: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
        for key, tensor in step.tensors.items():
            kind, _, rest = key.partition(".")
            if kind in parts:
                parts[kind][rest] = tensor
        found[name] = Outcome(
            step.data["budget"],
            parts["params"],
            step.data["row"],
            step.data["certificate"],
            read_proof("checkpoint", step.tensors),
            state=parts["state"],
            curves=step.data.get("curves", {}),
        )
    return found


def train(
    settings: TrainSettings,
    *,
    experiment: Experiment | LargeExperiment | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainRun:
    """Train models under one or several budgets and certify each.

    Parameters
    ----------
    settings : TrainSettings
        What to train.
    experiment : Experiment, LargeExperiment or None, default=None
        What `build_experiment` made of the settings, when it was called already.
    checkpoint : Checkpoint or None, default=None
        Where finished budgets are kept, and the state of the training of a network after each
        epoch; what is found there is not done again.
    progress : callable or None, default=None
        Called as ``progress(what, done, total)``; `total` is None while it is not known.
    watch : callable or None, default=None
        Called with a `Moment` now and then while a network is trained.
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
    NonFiniteError
        If the loss of a network becomes NaN or infinite.
    KeyboardInterrupt
        If interrupted before the first budget was done. Later interrupts end the run with what
        is there.

    Notes
    -----
    Linear models and small networks are problems over all samples in double precision. Small
    networks are trained by minibatches, polished to stationarity and certified there. Networks of
    a user, and those with more than 20 million parameters times training samples, are trained by
    minibatches alone, in their own precision; the budget counts their weights of two axes or more,
    and the certificate is computed on a sample of the training data.

    Examples
    --------
    >>> from ellzero.training import TrainSettings, train
    >>> run = train(TrainSettings(n_nonzero=(5,), starts=5))
    >>> run.chosen.row["n_nonzero"], round(run.chosen.row["value"], 3)
    (5, 0.308)
    """
    began = time.perf_counter()
    experiment = build_experiment(settings) if experiment is None else experiment
    tell = progress or (lambda what, done, total: None)
    steps = _load_steps(checkpoint)
    outcomes = {o.budget: o for name, o in steps.items() if name != DENSE}
    plan = _budget_plan(experiment)
    interrupted = False
    what, total = "dense reference", None if plan is None else len(plan)

    def between(iteration: int) -> bool:
        tell(f"{what}, step {iteration}", len(outcomes), total)
        return stop is not None and stop()

    def say(text: str) -> None:
        tell(f"{what}, {text}", len(outcomes), total)

    def look(moment: Moment) -> None:
        tell(f"{what}, epoch {moment.epoch} of {moment.n_epochs}", len(outcomes), total)
        if watch is not None:
            watch(moment)

    tell(what, 0, None)
    if isinstance(experiment, LargeExperiment):
        dense = steps.get(DENSE)
        if dense is None and experiment.settings.dense:
            dense = solve_large(
                experiment, None, None, checkpoint=checkpoint, watch=look, stop=stop, say=say
            )
            _save_step(checkpoint, DENSE, dense)
        reference = _reference_large(experiment, dense)
    else:
        found = solve_dense(Problem(experiment.objective))
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        reference = _reference_small(experiment, found)
    while True:
        if plan is None:
            budget = _next_budget(outcomes, experiment)
        else:
            budget = next((b for b in plan if b not in outcomes), None)
        if budget is None:
            break
        unit = settings.unit
        what = f"{budget:,} {unit}" if budget >= 10_000 else f"{budget} {unit}"
        tell(what, len(outcomes), total)
        common: dict[str, Any] = {"checkpoint": checkpoint, "watch": look, "stop": stop}
        try:
            if isinstance(experiment, LargeExperiment):
                outcome = solve_large(experiment, budget, dense, say=say, **common)
            else:
                known = list(outcomes.values())
                outcome = _solve_small(experiment, budget, found, known, between, **common)
        except KeyboardInterrupt:
            if not outcomes:
                raise
            interrupted = True
            break
        outcomes[budget] = outcome
        if outcome.row["status"] == Status.INTERRUPTED.name.lower():
            interrupted = True
            break
        _save_step(checkpoint, f"budget-{budget}", outcome)
        tell(what, len(outcomes), total)
    ordered = tuple(outcomes[b] for b in sorted(outcomes))
    selected = _select(ordered, settings.epsilon)
    for outcome in ordered:
        outcome.row["selected"] = outcome.budget == selected
    seconds = time.perf_counter() - began
    return TrainRun(experiment, reference, ordered, selected, interrupted, seconds)


def _reference_small(experiment: Experiment, dense: Result) -> dict[str, Any]:
    return {
        "value": dense.value,
        **scores(experiment, dense.params),
        "n_parameters": experiment.n_parameters,
        "status": dense.status.name.lower(),
        "status_sentence": dense.status.value,
    }


def _reference_large(experiment: LargeExperiment, dense: Outcome | None) -> dict[str, Any]:
    known = {"n_parameters": experiment.n_parameters, "n_all": experiment.n_all}
    if dense is None:
        return known
    scored = ("value", "accuracy_train", "accuracy_test")
    return {**{k: dense.row[k] for k in scored}, **known, "curves": dense.curves}
