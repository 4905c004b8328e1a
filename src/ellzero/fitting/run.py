"""From a table to the best subset of every size: search, cross-validation, certificates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ellzero.core.result import Certificate, TreeProof
from ellzero.datasets import Table, load_table
from ellzero.errors import DataError, InvalidParameterError, did_you_mean
from ellzero.fitting.settings import FitSettings
from ellzero.models import SavedModel
from ellzero.subset.results import Subset
from ellzero.tensors import named

# Budgets tried when none are given.
AUTO_BUDGETS = 20

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class FitData:
    """A table, ready to be fitted.

    Parameters
    ----------
    table : Table
        The data, without the column of weights.
    loss : {"squared", "huber", "logistic", "softmax", "poisson"}
        Loss of one sample.
    weights : Tensor of shape (n_samples,) or None
        Sample weights.
    train_rows, test_rows : Tensor of int64
        Rows that are fitted, and rows that are only scored.
    groups : tuple of int or None
        Label of every feature, where features of a column are kept together.
    """

    table: Table
    loss: str
    weights: torch.Tensor | None
    train_rows: torch.Tensor
    test_rows: torch.Tensor
    groups: tuple[int, ...] | None

    @property
    def unit(self) -> str:
        """What a budget counts."""
        return "features" if self.groups is None else "columns"

    @property
    def n_units(self) -> int:
        """How many of them there are."""
        return self.table.n_features if self.groups is None else len(set(self.groups))


@dataclass(frozen=True, slots=True)
class Fit:
    """One budget: the model, its scores, what is proven.

    Parameters
    ----------
    budget : int
        Most features or columns.
    subset : Subset
        Support, coefficients, intercept, objective.
    row : dict
        The line of the table, see `ellzero.report.schema.PathRow`.
    certificate : Certificate
        What is proven.
    proof : TreeProof or None, default=None
        Evidence of its lower bound.
    """

    budget: int
    subset: Subset
    row: dict[str, Any]
    certificate: Certificate
    proof: TreeProof | None = None


@dataclass(frozen=True, slots=True)
class FitRun:
    """Outcome of `fit_table`.

    Parameters
    ----------
    settings : FitSettings
        What was asked for.
    data : FitData
        What was fitted.
    fits : tuple of Fit
        One for each budget, ascending.
    selected : int
        Position of the chosen one.
    ridge : float
        The lambda that was used.
    criteria : mapping of str to list of float
        Every information criterion of every budget.
    seconds : float
        Wall time.
    """

    settings: FitSettings
    data: FitData
    fits: tuple[Fit, ...]
    selected: int
    ridge: float
    criteria: dict[str, list[float]]
    seconds: float

    @property
    def chosen(self) -> Fit:
        """The chosen model."""
        return self.fits[self.selected]


def read_fit_data(settings: FitSettings) -> FitData:
    """Read the table and check what the settings say of its columns.

    Raises
    ------
    DataError
        If the data cannot be read or do not fit the loss.
    InvalidParameterError
        If a column is unknown or a budget does not fit.
    """
    task = settings.task
    if settings.loss is not None and task is None:
        task = "classification" if settings.loss == "logistic" else "regression"
    table = load_table(settings.data, target=settings.target, task=task)
    table, weights = _take_weights(table, settings.weights)
    loss = _loss_of(settings, table)
    for option in ("always", "forbidden"):
        for name in getattr(settings, option):
            feature_positions(table, name, option)
    labels = _column_labels(table) if settings.group_categories else None
    train, test = _rows(table, settings)
    data = FitData(table, loss, weights, train, test, labels)
    for budget in settings.n_nonzero or ():
        if budget > data.n_units:
            raise InvalidParameterError(
                f"`n_nonzero` must be at most {data.n_units}, the number of {data.unit}, got "
                f"{budget}."
            )
    return data


def _take_weights(table: Table, column: str | None) -> tuple[Table, torch.Tensor | None]:
    """Return the table without its column of weights, and the weights."""
    if column is None:
        return table, None
    if column not in table.feature_names:
        near = did_you_mean(column, table.feature_names)
        raise InvalidParameterError(
            f"`weights` must be a column of numbers, got {column!r}.{near}",
            f"Columns: {', '.join(table.feature_names[:20])}.",
        )
    j = table.feature_names.index(column)
    weights = table.X[:, j].clone()
    if named.any_true(weights < 0):
        low = named.to_float(weights.min())
        raise DataError(f"The weights in {column!r} must not be negative, got {low:g}.")
    keep = [k for k in range(table.n_features) if k != j]
    if not keep:
        raise DataError(f"'{table.name}' has no feature besides the weights {column!r}.")
    return replace(
        table,
        X=table.X[:, keep].contiguous(),
        feature_names=tuple(table.feature_names[k] for k in keep),
        sources=tuple(s for s in table.sources if s.name != column),
    ), weights


def _loss_of(settings: FitSettings, table: Table) -> str:
    if table.task == "classification":
        if settings.loss not in (None, "logistic"):
            raise InvalidParameterError(
                f"`loss` must be 'logistic' for a target of classes, got {settings.loss!r}.",
                "Pass `--task regression` to take the target as a number.",
            )
        assert table.class_names is not None
        return "logistic" if len(table.class_names) == 2 else "softmax"
    if settings.loss == "poisson" and named.any_true(table.y < 0):
        low = named.to_float(table.y.min())
        raise DataError(
            f"The target {table.target_name!r} must hold counts, got {low:g}.",
            "Pass `--loss squared` for numbers that can be negative.",
        )
    return settings.loss or "squared"


def feature_positions(table: Table, name: str, option: str) -> list[int]:
    """Return the features of a column, given by the column's or the feature's name.

    Raises
    ------
    InvalidParameterError
        If there is no such column.
    """
    if name in table.feature_names:
        return [table.feature_names.index(name)]
    for source in table.sources:
        if source.name == name:
            found = [f for f in source.features if f in table.feature_names]
            return [table.feature_names.index(f) for f in found]
    known = [*(s.name for s in table.sources), *table.feature_names]
    raise InvalidParameterError(
        f"Unknown column {name!r} in `{option}`.{did_you_mean(name, known)}",
        f"Columns: {', '.join(dict.fromkeys(known[:20]))}.",
    )


def _column_labels(table: Table) -> tuple[int, ...] | None:
    """Return the column that every feature comes from; None when all are columns."""
    owner = {feature: s.name for s in table.sources for feature in s.features}
    names = [owner.get(feature, feature) for feature in table.feature_names]
    if len(set(names)) == len(names):
        return None
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return tuple(place[name] for name in names)


def _rows(table: Table, settings: FitSettings) -> tuple[torch.Tensor, torch.Tensor]:
    from ellzero.datasets import split

    everything = torch.arange(table.n_samples)
    if table.n_train is not None:
        return everything[: table.n_train], everything[table.n_train :]
    if settings.test_size == 0:
        return everything, everything[:0]
    parts = split(
        table,
        test_size=settings.test_size,
        seed=settings.seed,
        stratify=table.task == "classification",
    )
    return parts.train_rows, parts.test_rows


def make_estimator(settings: FitSettings, data: FitData, **more: Any) -> Any:
    """Return the unfitted estimator that the settings describe; `more` are its arguments."""
    from ellzero import estimators

    plain = {
        "squared": estimators.L0Regressor,
        "huber": estimators.L0HuberRegressor,
        "logistic": estimators.L0Classifier,
        "softmax": estimators.L0Classifier,
        "poisson": estimators.L0PoissonRegressor,
    }
    folds = {
        "squared": estimators.L0RegressorCV,
        "huber": estimators.L0HuberRegressorCV,
        "logistic": estimators.L0ClassifierCV,
        "softmax": estimators.L0ClassifierCV,
        "poisson": estimators.L0PoissonRegressorCV,
    }
    kind = (folds if "cv" in more else plain)[data.loss]
    table = data.table
    kept, banned = (
        [j for name in getattr(settings, option) for j in feature_positions(table, name, option)]
        for option in ("always", "forbidden")
    )
    return kind(
        always=kept or None,
        forbidden=banned or None,
        groups=None if data.groups is None else list(data.groups),
        nonnegative=settings.nonnegative,
        effort=settings.effort,
        time_limit=settings.time_limit,
        **more,
    )


def fit_table(
    settings: FitSettings,
    *,
    data: FitData | None = None,
    progress: Progress | None = None,
) -> FitRun:
    """Fit the best subset of every size, choose one, and say what is proven of each.

    Parameters
    ----------
    settings : FitSettings
        What to fit.
    data : FitData or None, default=None
        The table, where it has been read already.
    progress : callable or None, default=None
        Called as ``progress(text, done, total)``.

    Returns
    -------
    FitRun
        Models, table and choice.

    Raises
    ------
    DataError
        If the data cannot be read or used.
    InvalidParameterError
        If the settings do not fit the data.
    """
    began = time.perf_counter()
    data = read_fit_data(settings) if data is None else data
    table, rows = data.table, data.train_rows
    X, y = table.X[rows].numpy(), table.y[rows].numpy()
    weights = None if data.weights is None else data.weights[rows].numpy()
    n_kept = len({j for n in settings.always for j in feature_positions(table, n, "always")})
    least = max(1, min(n_kept, data.n_units))
    most = min(max(AUTO_BUDGETS, least), data.n_units)
    budgets = sorted(set(settings.n_nonzero or range(least, most + 1)))

    def tell(done: int, text: str) -> None:
        if progress is not None:
            progress(text, done, 3)

    ridge, cv = settings.ridge[0], None
    if settings.cv:
        tell(0, "cross-validation")
        cv = _cross_validate(settings, data, budgets, X, y, weights)
        ridge = float(cv.ridge_)
    tell(1, "search and certificates")
    criterion = settings.select if settings.select in ("ebic", "bic", "aic", "sic") else "ebic"
    solver = "exact" if settings.exact else "auto"
    model = make_estimator(
        settings, data, n_nonzero_coefs=budgets, criterion=criterion, ridge=ridge,
        solver=solver, certify="path",
    ).fit(X, y, sample_weight=weights)  # fmt: skip
    tell(2, "scores")
    path = model.path_
    fits = []
    for i, (budget, subset) in enumerate(zip(path.budgets, path.subsets, strict=True)):
        certificate = path.certificates[i]
        row = _row(data, subset, certificate)
        row["budget"] = int(budget)
        row[criterion] = float(path.criteria[criterion][i])
        if cv is not None:
            row |= _cv_row(cv, int(budget), ridge, data.loss)
        fits.append(Fit(int(budget), subset, row, certificate, path.proofs[i]))
    selected = _select(settings, fits, path, cv)
    fits[selected].row["selected"] = True
    tell(3, "done")
    return FitRun(
        settings,
        data,
        tuple(fits),
        selected,
        ridge,
        {name: np.asarray(v).tolist() for name, v in path.criteria.items()},
        time.perf_counter() - began,
    )


def _cross_validate(
    settings: FitSettings, data: FitData, budgets: list[int], X: Any, y: Any, weights: Any
) -> Any:
    from sklearn.model_selection import KFold, StratifiedKFold

    n_folds, n = settings.cv, int(X.shape[0])
    smallest = n if data.loss not in ("logistic", "softmax") else int(np.bincount(y).min())
    if n_folds > smallest:
        what = "samples" if smallest == n else "samples of the smallest class"
        raise InvalidParameterError(
            f"`cv` must be at most {smallest}, the number of {what}, got {n_folds}.",
            "Pass fewer folds, or `--cv 0`.",
        )
    kind = StratifiedKFold if data.loss in ("logistic", "softmax") else KFold
    folds = kind(n_folds, shuffle=True, random_state=settings.seed)
    model = make_estimator(
        settings, data, n_nonzero_coefs=budgets, ridge=list(settings.ridge), cv=folds,
        solver="search", certify=False,
    )  # fmt: skip
    return model.fit(X, y, sample_weight=weights)


def _cv_row(cv: Any, budget: int, ridge: float, loss: str) -> dict[str, float]:
    """Return the mean loss over the folds and its standard error, in units of the objective."""
    # Scores of squares and of counts are twice the loss.
    unit = 0.5 if loss in ("squared", "poisson") else 1.0
    table = cv.cv_results_
    here = (table["param_n_nonzero_coefs"] == budget) & (table["param_ridge"] == ridge)
    at = int(np.flatnonzero(here)[0])
    splits = [table[k][at] for k in table if k.startswith("split")]
    error = float(np.std(splits, ddof=1)) / math.sqrt(len(splits)) if len(splits) > 1 else 0.0
    return {"cv": -unit * float(table["mean_test_score"][at]), "cv_error": unit * error}


def _select(settings: FitSettings, fits: list[Fit], path: Any, cv: Any) -> int:
    if settings.select == "largest":
        return len(fits) - 1
    if settings.select == "cv":
        return [fit.budget for fit in fits].index(int(cv.n_nonzero_))
    return int(path.selected)


def saved_model(run: FitRun, fit: Fit) -> SavedModel:
    """Return a model of the path with everything that is needed to use it and to check it."""
    table = run.data.table
    kind = {"squared": "least-squares", "softmax": "linear-softmax"}.get(
        run.data.loss, run.data.loss
    )
    coef = torch.from_numpy(fit.subset.dense(table.n_features))
    intercept = torch.from_numpy(np.array(fit.subset.intercept))
    flat = run.data.loss != "softmax"
    return SavedModel(
        kind=kind,
        params={
            "coef": coef[0] if flat else coef,
            "intercept": intercept[:1] if flat else intercept,
        },
        task=table.task,
        feature_names=table.feature_names,
        class_names=table.class_names,
        target_name=table.target_name,
        settings={
            "fit": {**run.settings.to_dict(), "n_nonzero": [fit.budget], "ridge": [run.ridge]}
        },
        data={
            "name": table.name,
            "fingerprint": table.fingerprint,
            "n_samples": table.n_samples,
            "columns": [source.to_dict() for source in table.sources],
        },
        claims={**fit.certificate.to_dict(), "value": fit.subset.value},
        proof=fit.proof,
    )


def _row(data: FitData, subset: Subset, certificate: Certificate) -> dict[str, Any]:
    claim = certificate.claim
    table = data.table
    return {
        "n_nonzero": subset.n_nonzero,
        "value": subset.value,
        **_scores(data, subset),
        "claim": None if claim is None else claim.name.lower(),
        "claim_sentence": None if claim is None else claim.sentence,
        "gap": certificate.gap,
        "lower_bound": certificate.lower_bound,
        "support": _support_names(table, data.groups, subset),
        "selected": False,
    }


def _support_names(table: Table, groups: tuple[int, ...] | None, subset: Subset) -> list[str]:
    """Return the names of the chosen features, or of their columns where those count."""
    if groups is None:
        return [table.feature_names[j] for j in subset.support]
    owner = {feature: s.name for s in table.sources for feature in s.features}
    names = [owner.get(table.feature_names[j], table.feature_names[j]) for j in subset.support]
    return list(dict.fromkeys(names))


def _scores(data: FitData, subset: Subset) -> dict[str, float | None]:
    """Return accuracies, R^2, or the explained deviance of counts, on train and test rows."""
    out: dict[str, float | None] = {}
    table = data.table
    dense = torch.from_numpy(subset.dense(table.n_features))
    for name, rows in (("train", data.train_rows), ("test", data.test_rows)):
        if rows.numel() == 0:
            out[f"accuracy_{name}"] = None
            continue
        u = table.X[rows] @ dense.T + torch.from_numpy(np.array(subset.intercept))
        y = table.y[rows]
        w = torch.ones(len(rows), dtype=torch.float64)
        if data.weights is not None:
            w = data.weights[rows]
        if table.task == "classification":
            guess = (u[:, 0] > 0).long() if u.shape[1] == 1 else u.argmax(1)
            score = (w * (guess == y)).sum() / w.sum()
        elif data.loss == "poisson":
            mean = ((w * y).sum() / w.sum()).log()
            null = (w * (torch.xlogy(y, y) - y * mean - y + mean.exp())).sum()
            left = (w * (torch.xlogy(y, y) - y * u[:, 0] - y + u[:, 0].exp())).sum()
            score = 1 - left / null
        else:
            mean = (w * y).sum() / w.sum()
            score = 1 - (w * (u[:, 0] - y).square()).sum() / (w * (y - mean).square()).sum()
        value = named.to_float(score)
        out[f"accuracy_{name}"] = value if math.isfinite(value) else None
    return out
