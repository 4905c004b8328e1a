"""Cross-validation of size and ridge over whole paths."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import is_classifier  # noqa: TID253
from sklearn.utils.validation import check_is_fitted  # noqa: TID253

from ellzero.errors import InvalidParameterError
from ellzero.estimators import inputs
from ellzero.estimators.base import AbstractL0Estimator, Choice, Training
from ellzero.estimators.classification import AbstractClassifier
from ellzero.estimators.counts import AbstractPoisson
from ellzero.estimators.documents import document
from ellzero.estimators.inputs import Encoding, Floats, Integers
from ellzero.estimators.losses import Found, Job
from ellzero.estimators.options import find_budgets
from ellzero.estimators.plots import plot_cv
from ellzero.estimators.regression import AbstractRegression
from ellzero.subset.inner import AbstractGram
from ellzero.subset.results import Subset
from ellzero.validation import check_choice, check_real

RULES = ("best", "one_se")
# Errors on left-out samples hardly tell a good local optimum from the best: folds search less.
FOLD_EFFORT = {"fast": "fast", "normal": "fast", "thorough": "normal"}
# Mean scores this near to the best, relative to their range, are equal to it.
SAME_SCORE = 1e-9


class AbstractL0CV(AbstractL0Estimator):
    """Cross-validation, for every loss."""

    classes_: Any
    n_features_in_: int
    _grid: tuple[float, ...] = (0.0, 0.02, 0.1, 0.5)

    def __init__(
        self,
        n_nonzero_coefs: Any = "auto",
        *,
        ridge: Any = "auto",
        cv: Any = 5,
        scoring: Any = None,
        rule: str = "best",
        n_jobs: int | None = None,
        standardize: bool = True,
        fit_intercept: bool = True,
        always: Any = None,
        forbidden: Any = None,
        groups: Any = None,
        nonnegative: bool = False,
        lower: Any = None,
        upper: Any = None,
        solver: str = "auto",
        effort: str = "normal",
        max_iter: int = 1_000_000,
        tol: float = 1e-6,
        time_limit: float | None = None,
        certify: Any = True,
    ) -> None:
        self.n_nonzero_coefs = n_nonzero_coefs
        self.ridge = ridge
        self.cv = cv
        self.scoring = scoring
        self.rule = rule
        self.n_jobs = n_jobs
        self.standardize = standardize
        self.fit_intercept = fit_intercept
        self.always = always
        self.forbidden = forbidden
        self.groups = groups
        self.nonnegative = nonnegative
        self.lower = lower
        self.upper = upper
        self.solver = solver
        self.effort = effort
        self.max_iter = max_iter
        self.tol = tol
        self.time_limit = time_limit
        self.certify = certify

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice("rule", self.rule, RULES)

    def _check_ridge(self) -> None:
        self._ridges()

    def _ridges(self) -> list[float]:
        """Return the lambdas to choose from, ascending."""
        if isinstance(self.ridge, str):
            if self.ridge != "auto":
                raise InvalidParameterError(
                    f"`ridge` must be a number, a sequence of numbers or 'auto', "
                    f"got {self.ridge!r}."
                )
            return list(self._grid)
        given = list(self.ridge) if isinstance(self.ridge, Iterable) else [self.ridge]
        if not given:
            raise InvalidParameterError("`ridge` must hold at least one number, got none.")
        return sorted({check_real("ridge", value, 0.0) for value in given})

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Any:
        """Cross-validate sizes and lambdas, fit the best on all samples and certify it.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Features. Categorical columns of a data frame are expanded and chosen together.
        y : array, series or Tensor of shape (n_samples,)
            Target.
        sample_weight : array of shape (n_samples,) or None, default=None
            Weight of every sample, in fits and in scores (where the scorer takes weights).
        groups : array of shape (n_samples,) or None, default=None
            Labels of samples for splitters such as `GroupKFold`; nothing to do with groups of
            features.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        DataError
            If the data cannot be used; the message names the columns.
        InvalidParameterError
            If a parameter is out of range, or a fold cannot be used.
        """
        began = time.perf_counter()
        self._check_parameters()
        data = self._read_training(X, y, sample_weight)
        splits = self._splits(data, groups)
        self._store(self._cross_validate(data, splits), began)
        return self

    def _splits(self, data: Training, groups: Any) -> list[tuple[Integers, Integers]]:
        """Return train and test rows of every fold, among the samples that count."""
        from sklearn.model_selection import check_cv

        n = int(data.target.shape[0])
        cv = check_cv(self.cv, data.target, classifier=is_classifier(self))
        place = np.arange(n)
        if data.rows is not None:
            place = np.full(n, -1)
            place[data.rows] = np.arange(data.rows.size)
        out = []
        for number, pair in enumerate(cv.split(np.zeros((n, 1)), data.target, groups)):
            train, test = (place[np.arange(n)[np.asarray(rows)]] for rows in pair)
            train, test = train[train >= 0], test[test >= 0]
            if train.size == 0 or test.size == 0:
                side = "train" if train.size == 0 else "test"
                raise InvalidParameterError(
                    f"`cv` must leave samples with positive weight in every part, got none in the "
                    f"{side} rows of fold {number}."
                )
            if is_classifier(self):
                missing = np.setdiff1d(data.y, data.y[train])
                if missing.size:
                    raise InvalidParameterError(
                        f"`cv` must leave every class in the train rows, got none of class "
                        f"{self.classes_[missing[0]]!r} in fold {number}.",
                        "Use fewer folds, or StratifiedKFold with shuffle=True.",
                    )
            out.append((train, test))
        if not out:
            raise InvalidParameterError("`cv` must give at least one split, got none.")
        return out

    def _cross_validate(self, data: Training, splits: list[tuple[Integers, Integers]]) -> Choice:
        """Score all sizes and lambdas, select, and search again on all samples."""
        ridges = self._ridges()
        job = self._job(data, ridges[0])
        budgets, _ = find_budgets(self.n_nonzero_coefs, job.shape, job.n_samples)
        if self.time_limit is not None:
            # The searches on folds and the last one share the time.
            share = self.time_limit / (len(splits) * len(ridges) + 1)
            job = replace(job, time_limit=share)
        quick = replace(job, effort=FOLD_EFFORT[job.effort])
        found = None
        if self.scoring is None and job.loss == "squared" and are_folds(job, splits):
            tests = [test for _, test in splits]
            parts, found = score_shared(quick, tests, ridges, budgets, job)
        else:
            parts = self._fold_scores(data, quick, splits, ridges, budgets)
        scores = np.stack(parts, axis=-1)
        size, row = self._select(scores)
        self.cv_results_ = results_table(budgets, ridges, scores)
        self.ridge_ = ridges[row]
        self.n_nonzero_ = int(budgets[size])
        self.best_score_ = float(scores[size, row].mean())
        final = replace(job, ridge=self.ridge_)
        found = final.run(budgets) if found is None else found
        criteria = self._criteria(final, found)
        criteria["cv_score"] = scores[:, row].mean(axis=-1)
        return Choice(final, found, criteria, size)

    def _fold_scores(
        self,
        data: Training,
        job: Job,
        splits: list[tuple[Integers, Integers]],
        ridges: list[float],
        budgets: Integers,
    ) -> list[Floats]:
        """Return the scores of every fold, (n_budgets, n_ridges) each."""
        from joblib import Parallel, delayed

        score = None if self.scoring is None else self._scorer(data)
        run = delayed(score_fold)
        return list(
            Parallel(n_jobs=self.n_jobs)(
                run(job, train, test, ridges, budgets, score) for train, test in splits
            )
        )

    def _scorer(self, data: Training) -> Scorer:
        """Return the scorer, with a fitted estimator to put models into."""
        from sklearn.metrics import check_scoring

        model = copy.copy(self)
        # Scorers see the columns that models see, after categorical ones are expanded.
        n_columns = int(data.X.shape[1])
        model._encoding = Encoding(None, None, bool(self.fit_intercept), n_columns)
        model.n_features_in_ = n_columns
        model.__dict__.pop("feature_names_in_", None)
        model.coef_ = np.zeros((1, n_columns))
        return Scorer(check_scoring(self, scoring=self.scoring), model, data)

    def _select(self, scores: Floats) -> tuple[int, int]:
        """Return the positions of the selected budget and lambda."""
        mean = scores.mean(axis=-1)
        if not np.isfinite(mean).any():
            raise InvalidParameterError(
                "`scoring` must give finite numbers, got NaN for every model."
            )
        mean = np.where(np.isfinite(mean), mean, -np.inf)
        top = float(mean.max())
        finite = mean[np.isfinite(mean)]
        slack = SAME_SCORE * float(top - finite.min())
        if self.rule == "one_se":
            best = np.unravel_index(int(mean.argmax()), mean.shape)
            n = scores.shape[-1]
            if n > 1:
                slack = max(slack, float(scores[best].std(ddof=1)) / n**0.5)
        good = mean >= top - slack
        size = int(np.flatnonzero(good.any(axis=1))[0])
        # Of equally small models the best, of equally good ones the most shrunken.
        row = mean[size]
        return size, int(np.flatnonzero(row >= row.max())[-1])

    def plot_cv(self, ax: Any = None) -> Any:
        """Draw mean score and standard error of every lambda against the budget.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes.
        """
        check_is_fitted(self)
        return plot_cv(self.cv_results_, (self.n_nonzero_, self.ridge_), self.path_.unit, ax)


class Scorer:
    """A scorer of scikit-learn, applied to models of a path.

    Parameters
    ----------
    scorer : callable
        Called as ``scorer(estimator, X, y)``, with weights where it takes them.
    model : estimator
        A fitted estimator that is given the coefficients.
    data : Training
        Says how targets were given.
    """

    def __init__(self, scorer: Any, model: Any, data: Training) -> None:
        self._scorer, self._model = scorer, model
        self._target = data.target if data.rows is None else data.target[data.rows]
        self._dtype = np.float32 if "float32" in str(data.X.dtype) else np.float64
        self._weighted = data.weight is not None and takes_weights(scorer)

    def __call__(self, job: Job, subset: Subset, X: Any, test: Integers) -> float:
        """Return the score of a model on the rows `test`, whose features are `X`."""
        model = self._model
        coef = subset.dense(int(X.shape[1])).astype(self._dtype)
        model.coef_ = model._shape_coef(coef)
        model.intercept_ = model._shape_intercept(subset.intercept.astype(self._dtype))
        model.support_ = subset.support
        more = {}
        if self._weighted:
            assert job.weight is not None
            more["sample_weight"] = job.weight[test]
        return float(self._scorer(model, X, self._target[test], **more))


def takes_weights(scorer: Any) -> bool:
    """Return whether a scorer takes sample weights."""
    import inspect

    inner = getattr(scorer, "_score_func", scorer)
    if type(scorer).__name__ == "_PassthroughScorer":
        return True
    try:
        return "sample_weight" in inspect.signature(inner).parameters
    except (TypeError, ValueError):
        return False


def score_fold(
    job: Job,
    train: Integers,
    test: Integers,
    ridges: list[float],
    budgets: Integers,
    scorer: Scorer | None,
) -> Floats:
    """Return the scores of all sizes and lambdas on one fold, (n_budgets, n_ridges)."""
    fitted = job.take(train)
    held = job.take(test)
    gram = fitted.gram() if job.loss == "squared" else None
    out = np.empty((len(budgets), len(ridges)))
    for column, ridge in enumerate(ridges):
        here = replace(fitted, ridge=ridge)
        found = here.run(budgets) if gram is None else here.run_on(gram, budgets)
        for row, subset in enumerate(found.path.subsets):
            if scorer is None:
                out[row, column] = default_score(held, subset)
            else:
                out[row, column] = scorer(job, subset, held.X, test)
    return out


def are_folds(job: Job, splits: list[tuple[Integers, Integers]]) -> bool:
    """Return whether test rows are disjoint and train rows are all others, in memory at hand."""
    from ellzero.subset.wide import WIDE

    if inputs.is_tensor(job.X):
        return False
    if hasattr(job.X, "tocsr") and job.X.shape[1] > WIDE:
        # Columns of products are dense: every fold searches on its own, in little memory.
        return False
    n = int(job.X.shape[0])
    seen = np.zeros(n, dtype=np.int64)
    for train, test in splits:
        inside = np.zeros(n, dtype=bool)
        inside[train] = True
        if np.unique(train).size != train.size or np.unique(test).size != test.size:
            return False
        if inside[test].any() or train.size + test.size != n:
            return False
        seen[test] += 1
    return bool((seen <= 1).all())


def score_shared(
    job: Job, tests: list[Integers], ridges: list[float], budgets: Integers, final: Job
) -> tuple[list[Floats], Found | None]:
    """Return the scores of all folds from inner products that are computed once.

    Where there is one lambda only, `final` runs on the same products, and is returned as well.
    """
    from ellzero.subset.folds import fold_grams, whole_gram
    from ellzero.subset.inner import FULL

    folds = fold_grams(
        job.X, job.y, tests, sample_weight=job.weight, fit_intercept=job.fit_intercept
    )
    found = None
    if len(ridges) == 1 and job.X.shape[1] > FULL:
        # Folds choose mostly the same columns, which are computed in larger blocks here.
        found = final.run_on(whole_gram(folds), budgets)
    out = []
    for fold in folds:
        scores = np.empty((len(budgets), len(ridges)))
        for column, ridge in enumerate(ridges):
            path = replace(job, ridge=ridge).run_on(fold.train, budgets).path
            for row, subset in enumerate(path.subsets):
                scores[row, column] = -squared_error(fold.test, subset)
        out.append(scores)
    return out, found


def squared_error(gram: AbstractGram, subset: Subset) -> float:
    """Return the mean squared error of a model on the samples behind inner products."""
    if subset.n_nonzero:
        error = gram.squared_error(subset.support, subset.coef, subset.intercept)
    else:
        error = gram.energy + gram.n_samples * (gram.y_mean - subset.intercept) ** 2
    return float(np.mean(error)) / gram.n_samples


def default_score(held: Job, subset: Subset) -> float:
    """Return minus the mean squared error, log loss or Poisson deviance of new samples."""
    loss = held.mean_loss(held.scores(subset))
    if held.loss == "squared":
        return -2 * loss / held.n_outputs
    return -2 * loss if held.loss == "poisson" else -loss


def results_table(budgets: Integers, ridges: list[float], scores: Floats) -> dict[str, Any]:
    """Return the scores as a table with a row for each size and lambda."""
    n_budgets, n_ridges, n_splits = scores.shape
    flat = scores.reshape(-1, n_splits)
    mean = flat.mean(axis=1)
    order = np.argsort(np.argsort(-mean, kind="stable"), kind="stable")
    ranks = np.array([order[mean == value].min() for value in mean]) + 1
    table: dict[str, Any] = {
        "param_n_nonzero_coefs": np.repeat(budgets, n_ridges),
        "param_ridge": np.tile(np.array(ridges), n_budgets),
        "mean_test_score": mean,
        "std_test_score": flat.std(axis=1),
        "rank_test_score": ranks.astype(np.int32),
    }
    return table | {f"split{i}_test_score": flat[:, i] for i in range(n_splits)}


@document
class L0RegressorCV(AbstractL0CV, AbstractRegression):
    r"""Least squares with a budget; size and ridge by cross-validation.

    The problem is that of `L0Regressor`. All lambdas of a fold share its inner products.

    [parameters]

    [attributes]

    See Also
    --------
    L0Regressor : The same with an information criterion.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0RegressorCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> y = 3 * X[:, 4] - 2 * X[:, 7] + rng.standard_normal(100)
    >>> model = L0RegressorCV(range(1, 8), rule="one_se").fit(X, y)
    >>> model.n_nonzero_, model.support_.tolist()
    (2, [4, 7])
    """


@document
class L0PoissonRegressorCV(AbstractL0CV, AbstractPoisson):
    r"""Poisson regression with a budget; size and ridge by cross-validation.

    The problem is that of `L0PoissonRegressor`.

    [parameters]

    [attributes]

    See Also
    --------
    L0PoissonRegressor : The same with an information criterion.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0PoissonRegressorCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 10))
    >>> y = rng.poisson(np.exp(1 + 0.7 * X[:, 3] - 0.7 * X[:, 8]))
    >>> L0PoissonRegressorCV(range(1, 5), ridge=0.0, rule="one_se").fit(X, y).support_.tolist()
    [3, 8]
    """


@document
class L0ClassifierCV(AbstractL0CV, AbstractClassifier):
    r"""Logistic or softmax classification with a budget; size and ridge by cross-validation.

    The problem is that of `L0Classifier`.

    [parameters]

    [attributes]

    See Also
    --------
    L0Classifier : The same with an information criterion.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0ClassifierCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 10))
    >>> y = (X[:, 3] - X[:, 8] + 0.3 * rng.logistic(size=200) > 0).astype(int)
    >>> L0ClassifierCV(range(1, 5), ridge=0.001, rule="one_se").fit(X, y).support_.tolist()
    [3, 8]
    """

    _grid = (1e-4, 1e-3, 1e-2, 1e-1)

    def __init__(
        self,
        n_nonzero_coefs: Any = "auto",
        *,
        class_weight: Any = None,
        ridge: Any = "auto",
        cv: Any = 5,
        scoring: Any = None,
        rule: str = "best",
        n_jobs: int | None = None,
        standardize: bool = True,
        fit_intercept: bool = True,
        always: Any = None,
        forbidden: Any = None,
        groups: Any = None,
        nonnegative: bool = False,
        lower: Any = None,
        upper: Any = None,
        solver: str = "auto",
        effort: str = "normal",
        max_iter: int = 1_000_000,
        tol: float = 1e-6,
        time_limit: float | None = None,
        certify: Any = True,
    ) -> None:
        super().__init__(
            n_nonzero_coefs,
            ridge=ridge,
            cv=cv,
            scoring=scoring,
            rule=rule,
            n_jobs=n_jobs,
            standardize=standardize,
            fit_intercept=fit_intercept,
            always=always,
            forbidden=forbidden,
            groups=groups,
            nonnegative=nonnegative,
            lower=lower,
            upper=upper,
            solver=solver,
            effort=effort,
            max_iter=max_iter,
            tol=tol,
            time_limit=time_limit,
            certify=certify,
        )
        self.class_weight = class_weight
