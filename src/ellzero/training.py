"""Train exactly sparse models on a table, and check saved ones again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ellzero._version import __version__
from ellzero.certificates import verify
from ellzero.core.problem import (
    AbstractObjective,
    AbstractSmoothObjective,
    Problem,
)
from ellzero.core.result import Certificate, Claim, Result, Status
from ellzero.core.solver import Callback, SolverState, iterate
from ellzero.datasets import Split, Table, load_table, split
from ellzero.errors import IncompatibleError, InvalidParameterError, ModelFileError
from ellzero.models import SavedModel, load_model, predict, proof_tensors, read_proof
from ellzero.nn import HardThresholding, schedules
from ellzero.objectives import LeastSquares, Logistic, ModuleLoss, Softmax
from ellzero.sets import L0Ball
from ellzero.smoothness import restricted_smoothness
from ellzero.solvers import IHT, LocalSearch, random_starts, refit
from ellzero.solving import (
    PROOF_ENTRIES,
    PROOF_SECONDS,
    PathResult,
    solve,
    solve_dense,
    solve_path,
)
from ellzero.storage import Checkpoint
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_choice, check_integer, check_real

# Up to this many parameters every budget is tried when none is asked for.
EVERY_BUDGET = 20
# Growth of the budget while the smallest good one is searched for: fine for small models.
GROWTH, GROWTH_LARGE = 1.5, 2.0
# Random starts for each budget by default: (largest number of parameters, starts).
DEFAULT_STARTS = ((50, 100), (PROOF_ENTRIES, 20))
DEFAULT_STARTS_LARGE = 8
# Seconds for each budget by default, where no proof is searched for.
SEARCH_SECONDS = 6.0
NETWORK_SECONDS = 20.0
# Points that the exchange search of larger models goes on with, and exchanges tried at each.
SEARCHED_POINTS = 2
SEARCH_TRIES = 32
# Exchanges up to which those of larger models are certified.
CERTIFIED_EXCHANGES = 10_000
# Polish of networks: steps and rounds of hard thresholding, iterations of each refit.
NETWORK_STEPS = 300
NETWORK_ROUNDS = 5
NETWORK_REFIT = 1000
NETWORK_SOLVER = IHT(step_size="backtracking", tol=1e-9)
# Iterations of the demonstration run that the report draws.
SHOWN_ITERATIONS = 300

# Training of networks, before the polish; the rate is Adam's.
NETWORK_EPOCHS = 60
NETWORK_BATCH = 64
NETWORK_LR = 4e-3
# Densities tried for networks when no budget is asked for.
NETWORK_DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Relative width of the bracket at which the search for the smallest good budget ends.
NETWORK_BRACKET = 0.1

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
}

Progress = Callable[[str, int, int | None], None]
# Called with a step number between steps; True ends the work.
Between = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What to train, and how.

    Parameters
    ----------
    data : str, default="iris"
        Name of a bundled data set, or path of a file.
    target : str or None, default=None
        Column to predict, for files.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means as the data says.
    hidden : tuple of int, default=()
        Sizes of the hidden layers; empty means one linear layer.
    activation : {"gelu", "tanh", "softplus", "sigmoid", "relu"}, default="gelu"
        Between the layers. Smooth ones let a network be certified stationary; the kinks of "relu"
        mostly prevent that.
    n_nonzero : tuple of int or None, default=None
        Budgets; None means every budget for small models, else a search with `epsilon`.
    epsilon : float, default=0.05
        A budget is good when its loss is within `epsilon` of the dense loss.
    search : bool, default=False
        Whether to look for the smallest good budget instead of trying all of them.
    ridge : float, default=0.01
        The lambda of (lambda/2)||theta||^2.
    starts : int or None, default=None
        Random starts for each budget; None means 100 up to 50 parameters, 20 up to 64, 8 above,
        and none for networks.
    seed : int, default=0
        Seed of the split, the starts and the initial weights of networks.
    test_size : float, default=0.2
        Share of the rows held out.
    device : str, default="cpu"
        Device of the training.
    time_limit : float or None, default=None
        Seconds for each budget; None means 20 where a proof is searched for and for networks, 6
        for other models.

    Raises
    ------
    InvalidParameterError
        If a value is of a wrong type or out of range.
    """

    data: str = "iris"
    target: str | None = None
    task: str | None = None
    hidden: tuple[int, ...] = ()
    activation: str = "gelu"
    n_nonzero: tuple[int, ...] | None = None
    epsilon: float = 0.05
    search: bool = False
    ridge: float = 0.01
    starts: int | None = None
    seed: int = 0
    test_size: float = 0.2
    device: str = "cpu"
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for size in self.hidden:
            check_integer("hidden", size, 1)
        check_choice("activation", self.activation, ACTIVATIONS)
        for budget in self.n_nonzero or ():
            check_integer("n_nonzero", budget, 1)
        check_real("epsilon", self.epsilon, 0.0)
        check_real("ridge", self.ridge, 0.0)
        if self.starts is not None:
            check_integer("starts", self.starts, 0)
        check_integer("seed", self.seed, 0)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0, open_low=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        out = asdict(self)
        out["hidden"] = list(self.hidden)
        out["n_nonzero"] = None if self.n_nonzero is None else list(self.n_nonzero)
        return out

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSettings:
        """Return the settings that `to_dict` wrote."""
        budgets = values.get("n_nonzero")
        return cls(
            **{
                **values,
                "hidden": tuple(values.get("hidden", ())),
                "n_nonzero": None if budgets is None else tuple(budgets),
            }
        )


def check_device(device: str) -> torch.device:
    """Return a device that exists and computes.

    Raises
    ------
    InvalidParameterError
        If the device is unknown or not there.
    """
    hint = "Pass `--device cpu`."
    try:
        found = torch.device(device)
        torch.zeros(1, device=found, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InvalidParameterError(
            f"`device` must be a device of this machine, got {device!r}.", hint
        ) from error
    return found


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table, its split, and the problem they make.

    Parameters
    ----------
    table : Table
        The data.
    parts : Split
        Its training and test rows.
    objective : AbstractObjective
        Training loss with ridge.
    kind : str
        Kind of model, as in `SavedModel`.
    settings : TrainSettings
        What was asked for.
    """

    table: Table
    parts: Split
    objective: AbstractObjective
    kind: str
    settings: TrainSettings

    @property
    def n_parameters(self) -> int:
        """Number of parameters, biases included."""
        return named.size(self.objective.init_params())

    def problem(self, budget: int) -> Problem:
        """Return the problem with a budget over all parameters."""
        return Problem(self.objective, L0Ball(budget))


def build_network(settings: TrainSettings, n_inputs: int, n_outputs: int) -> nn.Module:
    """Return a fully connected network in float64 with seeded weights."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for size in settings.hidden:
            layers += [nn.Linear(n_inputs, size), ACTIVATIONS[settings.activation]()]
            n_inputs = size
        layers.append(nn.Linear(n_inputs, n_outputs))
    return nn.Sequential(*layers).double().eval()


def _squeezed_mse(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction.squeeze(-1) - y).square().mean() / 2


def build_experiment(settings: TrainSettings, table: Table | None = None) -> Experiment:
    """Load the data and build the training loss.

    Parameters
    ----------
    settings : TrainSettings
        What to train.
    table : Table or None, default=None
        The data, when it has been read already.

    Returns
    -------
    Experiment
        Everything that the training needs.

    Raises
    ------
    DataError, InvalidParameterError
        If the data or a setting cannot be used.
    """
    device = check_device(settings.device)
    if table is None:
        table = load_table(settings.data, target=settings.target, task=settings.task)
    parts = split(table, test_size=settings.test_size, seed=settings.seed)
    X, y = parts.X_train.to(device), parts.y_train.to(device)
    n_classes = len(table.class_names or ())
    objective: AbstractObjective
    if settings.hidden:
        model = build_network(settings, X.shape[1], max(n_classes, 1))
        loss = nn.functional.cross_entropy if n_classes else _squeezed_mse
        objective = ModuleLoss(model.to(device), loss, X, y, ridge=settings.ridge)
        kind = "module-mlp"
    elif table.task == "regression":
        objective = LeastSquares(X, y, ridge=settings.ridge, fit_intercept=True)
        kind = "least-squares"
    elif n_classes == 2:
        objective, kind = Logistic(X, y, ridge=settings.ridge, fit_intercept=True), "logistic"
    else:
        objective = Softmax(X, y, ridge=settings.ridge, fit_intercept=True)
        kind = "linear-softmax"
    n = named.size(objective.init_params())
    experiment = Experiment(table, parts, objective, kind, _with_defaults(settings, n))
    for budget in settings.n_nonzero or ():
        check_integer(
            "n_nonzero",
            budget,
            1,
            n,
            meaning="the number of parameters",
            hint=f"Pass `--n-nonzero {n}` to keep every parameter.",
        )
    return experiment


def _with_defaults(settings: TrainSettings, n_parameters: int) -> TrainSettings:
    """Return the settings with what was left to the size of the model."""
    starts, limit = settings.starts, settings.time_limit
    if starts is None:
        few = next((k for n, k in DEFAULT_STARTS if n_parameters <= n), DEFAULT_STARTS_LARGE)
        starts = 0 if settings.hidden else few
    if limit is None:
        small = PROOF_SECONDS if n_parameters <= PROOF_ENTRIES else SEARCH_SECONDS
        limit = NETWORK_SECONDS if settings.hidden else small
    return replace(settings, starts=starts, time_limit=limit)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found for one budget, in plain values and tensors.

    Parameters
    ----------
    budget : int
        Most nonzeros allowed.
    params : mapping of str to Tensor
        The point.
    row : dict
        The line of the path table.
    certificate : dict
        `Certificate.to_dict`.
    proof : Proof or None
        Evidence of global optimality.
    """

    budget: int
    params: Params
    row: dict[str, Any]
    certificate: dict[str, Any]
    proof: Any = None


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


def saved_model(experiment: Experiment, outcome: Outcome) -> SavedModel:
    """Return the model of an outcome with everything that is needed to check it again."""
    table, settings = experiment.table, experiment.settings
    stored = {**settings.to_dict(), "n_nonzero": [outcome.budget], "device": "cpu"}
    return SavedModel(
        kind=experiment.kind,
        params={n: t.detach().cpu() for n, t in outcome.params.items()},
        task=table.task,
        feature_names=table.feature_names,
        class_names=table.class_names,
        target_name=table.target_name,
        architecture={"hidden": list(settings.hidden), "activation": settings.activation},
        settings=stored,
        data={
            "name": table.name,
            "fingerprint": table.fingerprint,
            "n_samples": table.n_samples,
        },
        claims={**outcome.certificate, "value": outcome.row["value"]},
        mean=experiment.parts.mean,
        scale=experiment.parts.scale,
        proof=outcome.proof,
    )


def _scores(experiment: Experiment, params: Params) -> dict[str, float | None]:
    """Return accuracies (or R^2) on the training and the test rows."""
    table, parts = experiment.table, experiment.parts
    empty = Outcome(0, params, {"value": 0.0}, {})
    model = saved_model(experiment, empty)
    out: dict[str, float | None] = {}
    for name, rows in (("train", parts.train_rows), ("test", parts.test_rows)):
        if rows.numel() == 0:
            out[f"accuracy_{name}"] = None
            continue
        y, guess = table.y[rows], predict(model, table.X[rows])
        if table.task == "classification":
            score = (guess == y).double().mean()
        else:
            score = 1 - (guess - y).square().sum() / (y - y.mean()).square().sum()
        value = named.to_float(score)
        out[f"accuracy_{name}"] = value if math.isfinite(value) else None
    return out


def _row(experiment: Experiment, result: Result, budget: int, dense: float) -> dict[str, Any]:
    certificate = result.certificate
    claim = None if certificate is None else certificate.claim
    measures = {} if certificate is None else certificate.measures
    epsilon = result.value - dense
    return {
        "n_nonzero": result.n_nonzero,
        "budget": budget,
        "value": result.value,
        "epsilon": epsilon,
        **_scores(experiment, result.params),
        "status": result.status.name.lower(),
        "claim": None if claim is None else claim.name.lower(),
        "claim_sentence": None if claim is None else claim.sentence,
        "gap": result.gap,
        "lower_bound": result.lower_bound,
        "n_starts": result.measures.get("starts"),
        "hit_rate": result.measures.get("hit_rate"),
        "median_value": result.measures.get("median_value"),
        "worst_value": result.measures.get("worst_value"),
        "stable": certificate is not None and certificate.supports(Claim.STATIONARY),
        "largest_stable_step": measures.get("largest_stable_step"),
        "swap_level": int(certificate is not None and certificate.supports(Claim.COORDINATEWISE)),
        "seconds": result.seconds,
        "selected": False,
    }


def _outcome(experiment: Experiment, result: Result, budget: int, dense: float) -> Outcome:
    return Outcome(
        budget,
        result.params,
        _row(experiment, result, budget, dense),
        {} if result.certificate is None else result.certificate.to_dict(),
        result.proof,
    )


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
        point = _polish(problem, _train_network(experiment, budget, between), callback)
        return solve(problem, NETWORK_SOLVER, point, max_iter=NETWORK_STEPS, callback=callback)
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
    swaps = _swap_option(experiment, budget)
    certificate = verify(problem, result.params, dense=dense.params, swaps=swaps)
    measures: dict[str, Any] = {
        "starts": batch.size,
        "median_value": named.to_float(wide.value.median()),
        "worst_value": named.to_float(wide.value.max()),
    }
    measures = {**result.measures, "hit_rate": None, **measures}
    return replace(result, measures=measures, certificate=certificate)


def _train_network(experiment: Experiment, budget: int, between: Between) -> Params:
    """Train a network with a budget that falls to the one asked for; biases count too."""
    settings, parts = experiment.settings, experiment.parts
    n_classes = len(experiment.table.class_names or ())
    loss_fn = nn.functional.cross_entropy if n_classes else _squeezed_mse
    X, y = (t.to(settings.device) for t in (parts.X_train, parts.y_train))
    model = build_network(settings, X.shape[1], max(n_classes, 1)).to(X)
    base = torch.optim.Adam(model.parameters(), lr=NETWORK_LR)
    n_batches = math.ceil(parts.n_train / NETWORK_BATCH)
    total = NETWORK_EPOCHS * n_batches
    names = [name for name, _ in model.named_parameters()]
    schedule = schedules.ramp(start=0.0, end=0.5, total_steps=total)
    optimizer = HardThresholding(base, model, budget, names=names, schedule=schedule, floor=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(NETWORK_EPOCHS):
        order = torch.randperm(parts.n_train, generator=generator).to(X.device)
        for rows in torch.split(order, NETWORK_BATCH):
            loss = loss_fn(model(X[rows]), y[rows])
            for parameter in model.parameters():
                loss = loss + 0.5 * settings.ridge * parameter.square().sum()
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            decay.step()
        if between(epoch):
            break
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    return L0Ball(budget).project(trained)


def _polish(problem: Problem, point: Params, callback: Callback) -> Params:
    """Alternate hard thresholding and minimization on the support until the support stays."""
    batch = named.to_batch(point)
    for _ in range(NETWORK_ROUNDS):
        run = iterate(problem, NETWORK_SOLVER, batch, max_iter=NETWORK_STEPS, callback=callback)
        before, masks = named.nonzero_masks(batch), named.nonzero_masks(run.params)
        batch = refit(problem.objective, masks, run.params, max_iter=NETWORK_REFIT)
        same = all(torch.equal(masks[n], m) for n, m in before.items())
        if same or run.status(0) is Status.INTERRUPTED:
            break
    return named.row(batch, 0)


def _swap_option(experiment: Experiment, budget: int) -> str:
    """Return whether exchanges are certified: beyond some thousands that takes minutes."""
    n = experiment.n_parameters
    few = n <= PROOF_ENTRIES or budget * (n - budget) <= CERTIFIED_EXCHANGES
    return "auto" if few else "none"


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
        **_scores(experiment, dense.params),
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
        outcomes[budget] = _outcome(experiment, result, budget, dense.value)
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


def smoothness_estimates(experiment: Experiment, outcome: Outcome) -> list[dict[str, Any]]:
    """Return the estimates of L_2s by every method that applies, for the report."""
    objective, k = experiment.objective, min(2 * outcome.budget, experiment.n_parameters)
    samples = 2000 if experiment.n_parameters <= PROOF_ENTRIES else 200
    methods: list[tuple[str, dict[str, Any]]] = [
        ("monte-carlo", {"n_samples": samples, "generator": torch.Generator().manual_seed(0)}),
        ("power", {"params": outcome.params}),
    ]
    if isinstance(objective, AbstractSmoothObjective):
        methods += [("power", {}), ("bound", {})]
    rows = []
    for method, options in methods:
        estimate = restricted_smoothness(objective, k, method=method, **options)
        where = " at the model" if "params" in options else " at zero"
        rows.append(
            {
                "method": method + (where if method == "power" else ""),
                "kind": estimate.kind,
                "n_nonzero": k,
                "value": estimate.value,
                "note": str(estimate.details.get("statement", "")),
            }
        )
    return rows


def shown_run(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Run IHT once from the first random start and record supports and values."""
    problem = experiment.problem(outcome.budget)
    iterations: list[int] = []
    masks: list[list[int]] = []

    def record(iteration: int, state: SolverState) -> None:
        flat = named.to_list(named.flatten(named.nonzero_masks(state.params))[0].to(torch.int8))
        if not masks or masks[-1] != flat:
            iterations.append(iteration)
            masks.append(flat)

    generator = torch.Generator().manual_seed(experiment.settings.seed)
    start = random_starts(problem, 1, generator=generator)
    run = iterate(problem, IHT(), start, max_iter=SHOWN_ITERATIONS, callback=record)
    trace = list(run.trace(0))
    return {
        "supports": {
            "iterations": iterations,
            "masks": masks,
            "labels": entry_labels(experiment),
            "n_iter": len(trace) - 1,
        },
        "trace": {"iterations": list(range(len(trace))), "values": trace},
    }


def entry_labels(experiment: Experiment) -> list[str]:
    """Return a readable name for every parameter, in flattened order."""
    table = experiment.table
    classes = table.class_names or ()
    outputs = list(classes) if len(classes) > 2 else [table.target_name]
    labels: list[str] = []
    for name, tensor in experiment.objective.init_params().items():
        if name == "coef":
            labels += [
                f"{o}: {f}" if len(outputs) > 1 else f
                for o in outputs
                for f in table.feature_names
            ]
        elif name == "intercept":
            labels += [f"{o}: bias" if len(outputs) > 1 else "bias" for o in outputs]
        else:
            labels += [f"{name}[{i}]" for i in range(tensor.numel())]
    return labels


def _weights(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    table = experiment.table
    classes = table.class_names or ()
    outputs = list(classes) if len(classes) > 2 else [table.target_name]
    tensors: list[dict[str, Any]] = []
    if "coef" in outcome.params:
        coef = outcome.params["coef"].reshape(len(outputs), -1)
        bias = outcome.params["intercept"].reshape(-1, 1)
        tensors.append(
            {
                "name": "weights and bias",
                "shape": [len(outputs), coef.shape[1] + 1],
                "values": named.to_list(torch.cat([coef, bias], 1)),
                "row_labels": outputs,
                "column_labels": [*table.feature_names, "bias"],
            }
        )
    else:
        tensors += [
            {
                "name": name,
                "shape": list(tensor.shape),
                "values": named.to_list(tensor),
                "row_labels": None,
                "column_labels": None,
            }
            for name, tensor in outcome.params.items()
        ]
    return {"tensors": tensors}


def headline(run: TrainRun) -> str:
    """Return the sentence that answers what was found and how sure that is."""
    row, n = run.chosen.row, run.experiment.n_parameters
    claim = row["claim_sentence"] or "no claim"
    gap = row["gap"]
    sure = claim if gap is None else f"{claim} (gap {max(gap, 0.0):.1e})"
    score = row["accuracy_test"]
    name = "test accuracy" if run.experiment.table.task == "classification" else "test R2"
    tested = "" if score is None else f", {name} {score:.1%}"
    return f"{row['n_nonzero']} of {n} parameters, train loss {row['value']:.4f}{tested}, {sure}"


def summarize(run: TrainRun, *, command: str = "") -> dict[str, Any]:
    """Return the run as plain values: the input of every report.

    Parameters
    ----------
    run : TrainRun
        What `train` returned.
    command : str, default=""
        The command that repeats the run.

    Returns
    -------
    dict
        See `ellzero.report.schema`.
    """
    experiment, outcome = run.experiment, run.chosen
    table, parts = experiment.table, experiment.parts
    return {
        "schema_version": 1,
        "title": f"Sparse {'network' if experiment.settings.hidden else 'model'} on {table.name}",
        "headline": headline(run),
        "command": command,
        "interrupted": run.interrupted,
        "settings": experiment.settings.to_dict(),
        "versions": {"ellzero": __version__, "torch": torch.__version__},
        "data": {
            "name": table.name,
            "n_samples": table.n_samples,
            "n_features": table.n_features,
            "n_classes": len(table.class_names) if table.class_names else None,
            "features": list(table.feature_names),
            "target": table.target_name,
            "classes": list(table.class_names) if table.class_names else None,
            "n_train": parts.n_train,
            "n_test": parts.n_test,
            "task": table.task,
            "fingerprint": table.fingerprint,
            "messages": [*table.messages, *parts.messages],
        },
        "dense": run.dense,
        "path": [o.row for o in run.outcomes],
        "weights": _weights(experiment, outcome),
        "support": [
            {"name": label, "value": value}
            for label, value in zip(
                entry_labels(experiment),
                named.to_list(named.flatten(outcome.params)),
                strict=True,
            )
            if value != 0
        ],
        "certificate": outcome.certificate,
        "smoothness": smoothness_estimates(experiment, outcome),
        **shown_run(experiment, outcome),
        "seconds": run.seconds,
    }


@dataclass(frozen=True, slots=True)
class Recheck:
    """Outcome of `recertify`.

    Parameters
    ----------
    model : SavedModel
        The model that was read.
    certificate : Certificate
        What is proven now.
    rows : tuple of (str, str, str, bool)
        Claim by claim: name, what the file says, what was found, whether it holds.
    """

    model: SavedModel
    certificate: Certificate
    rows: tuple[tuple[str, str, str, bool], ...]

    @property
    def holds(self) -> bool:
        """Whether every claim of the file holds."""
        return all(row[3] for row in self.rows)


def recertify(
    path: str, data: str, *, target: str | None = None, task: str | None = None
) -> Recheck:
    """Recompute every claim of a saved model from the file and the data alone.

    Parameters
    ----------
    path : str
        The model file.
    data : str
        The data it was trained on: a bundled name or a file.
    target : str or None, default=None
        Column to predict; None means the one that the model names.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means what the model says.

    Returns
    -------
    Recheck
        Claim by claim, what the file says and what was found.

    Raises
    ------
    ModelFileError
        If the model cannot be read, or was trained on other data.
    DataError
        If the data cannot be read.
    """
    model = load_model(path)
    settings = TrainSettings.from_dict(dict(model.settings))
    bundled = settings.target is None
    wanted = target if target is not None or bundled else model.target_name
    table = load_table(data, target=wanted, task=task or (None if bundled else model.task))
    if table.fingerprint != model.data.get("fingerprint"):
        raise ModelFileError(
            f"The model was trained on other data than '{data}': the fingerprints differ.",
            f"It was trained on {model.data.get('name')!r} "
            f"({model.data.get('n_samples')} samples); give that data.",
        )
    experiment = build_experiment(replace(settings, device="cpu"), table)
    budget = (settings.n_nonzero or (model.n_nonzero,))[0]
    problem = experiment.problem(budget)
    try:
        swaps = _swap_option(experiment, budget)
        certificate = verify(problem, model.params, proof=model.proof, swaps=swaps)
        value = named.to_float(problem.value(model.params))
    except (KeyError, RuntimeError) as error:
        raise IncompatibleError(
            f"The parameters of '{path}' do not fit the model it describes.",
            "Train the model again.",
        ) from error
    return Recheck(model, certificate, _compare(model, certificate, value, budget))


def _compare(
    model: SavedModel, certificate: Certificate, value: float, budget: int
) -> tuple[tuple[str, str, str, bool], ...]:
    """Return every claim of the file beside what was recomputed."""
    stored = model.claims
    said = stored.get("claim")
    now = certificate.claim
    level = None if said is None else Claim[str(said).upper()]
    rows = [
        (
            "nonzeros within the budget",
            f"at most {budget}",
            str(model.n_nonzero),
            model.n_nonzero <= budget,
        ),
        (
            "value",
            f"{stored.get('value'):.10g}",
            f"{value:.10g}",
            math.isclose(value, float(stored.get("value", math.nan)), rel_tol=1e-9, abs_tol=1e-12),
        ),
        (
            "claim",
            str(said),
            "none" if now is None else now.name.lower(),
            level is None or certificate.supports(level),
        ),
    ]
    old = stored.get("lower_bound")
    if old is not None:
        new = certificate.lower_bound
        slack = 1e-9 * abs(old) + 1e-12
        rows.append(
            (
                "proven lower bound",
                f"{old:.10g}",
                "none" if new is None else f"{new:.10g}",
                new is not None and new >= old - slack,
            )
        )
    found = {check.name: check for check in certificate.checks}
    for check in stored.get("checks", ()):
        if not check["passed"]:
            continue
        again = found.get(check["name"])
        rows.append(
            (
                check["name"],
                f"{check['value']:.3g} <= {check['bound']:.3g}",
                "not recomputed" if again is None else f"{again.value:.3g} <= {again.bound:.3g}",
                again is not None and again.passed,
            )
        )
    return tuple(rows)
