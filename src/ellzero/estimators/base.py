"""What all estimators share: parameters, reading of data, search, selection, attributes."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator  # noqa: TID253
from sklearn.exceptions import ConvergenceWarning  # noqa: TID253
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: TID253

from ellzero.core.result import Certificate, Result, Status, TreeProof
from ellzero.errors import DataError, IncompatibleError, InvalidParameterError
from ellzero.estimators import inputs
from ellzero.estimators.certify import certify, verify_fully
from ellzero.estimators.criteria import CRITERIA, information_criteria
from ellzero.estimators.inputs import Encoding, Floats, Integers
from ellzero.estimators.losses import Found, Job
from ellzero.estimators.options import check_ridge, find_budgets, make_shape
from ellzero.estimators.path import L0Path
from ellzero.subset.exact import ExactResult
from ellzero.subset.results import Subset, SubsetPath
from ellzero.validation import check_choice, check_integer, check_real

# Columns and boxes up to which `solver="auto"` goes on to a proof: about the time of a search.
# Boxes of groups, several targets and bounds cost more.
PROOF_COLUMNS = 64
PROOF_NODES, UNIT_NODES = 100, 40
# Share of the sum of squares below which an objective is computed from the data again.
EXACT_FIT = 1e-9
EFFORTS = ("fast", "normal", "thorough")
SOLVERS = ("auto", "search", "exact")


@dataclass(frozen=True, slots=True)
class Training:
    """Data of `fit`, read and checked: samples with positive weight only."""

    X: Any
    y: Any
    weight: Floats | None
    encoding: Encoding
    target: Any
    """The target of all samples, as it was given."""
    rows: Integers | None
    """Samples with positive weight among all; None where these are all."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Path of a search and the model selected on it."""

    job: Job
    found: Found
    criteria: dict[str, Floats]
    selected: int

    @property
    def path(self) -> SubsetPath:
        """The models of all budgets."""
        return self.found.path

    @property
    def subset(self) -> Subset:
        """The selected model."""
        return self.path.subsets[self.selected]

    @property
    def budget(self) -> int:
        """Its budget."""
        return int(self.path.budgets[self.selected])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the coefficients that are returned."""
        return np.dtype(np.float32 if "float32" in str(self.job.X.dtype) else np.float64)

    def with_subset(self, subset: Subset) -> Choice:
        """Return the same with another selected model."""
        subsets = list(self.path.subsets)
        subsets[self.selected] = subset
        path = replace(self.path, subsets=tuple(subsets))
        return replace(self, found=replace(self.found, path=path))


class AbstractL0Estimator(BaseEstimator):
    """Shared parameters and steps; the losses are in the subclasses."""

    _encoding: Encoding

    def __init__(
        self,
        n_nonzero_coefs: Any = "auto",
        *,
        criterion: str = "ebic",
        ebic_gamma: float = 1.0,
        ridge: Any = 0.0,
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
        self.criterion = criterion
        self.ebic_gamma = ebic_gamma
        self.ridge = ridge
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

    # What the subclasses say ------------------------------------------------------------

    @abstractmethod
    def _loss(self) -> str:
        """Return the name of the loss; called once the target has been read."""

    @abstractmethod
    def _read_target(self, y: Any, n_samples: int) -> Any:
        """Return the target as the search takes it, for every sample."""

    def _options(self) -> dict[str, Any]:
        """Return more arguments of the loss."""
        return {}

    def _reweight(self, y: Any, weight: Floats | None) -> Floats | None:
        """Return the sample weights with those of the classes."""
        return weight

    def _prepare(self, y: Any) -> Any:
        """Check and encode the target of the samples that count."""
        return y

    # Reading ------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may expect."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    def _check_parameters(self) -> None:
        """Raise for wrong options before any data are looked at."""
        if hasattr(self, "criterion"):
            check_choice("criterion", self.criterion, CRITERIA)
            check_real("ebic_gamma", self.ebic_gamma, 0.0)
        check_choice("solver", self.solver, SOLVERS)
        check_choice("effort", self.effort, EFFORTS)
        check_real("tol", self.tol, 0.0, open_low=True)
        check_integer("max_iter", self.max_iter, 1)
        if not isinstance(self.certify, bool):
            check_choice("certify", self.certify, ("full", "path"))
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0)
        self._check_ridge()

    def _check_ridge(self) -> None:
        check_ridge(self.ridge)

    def _match_features(self, X: Any, *, reset: bool) -> None:
        """Set or compare the number and the names of the features."""
        try:
            validate_data(self, X, reset=reset, skip_check_array=True)
        except ValueError as error:
            if reset:
                raise
            hint = "Pass the columns of `feature_names_in_` in their order: "
            hint += "`X[model.feature_names_in_]`."
            said = str(error).strip().replace(":\n- ", ": ").replace("\n- ", ", ")
            said = said.replace(".\n", ". ").replace("\n", ". ")
            raise DataError(said, hint if "names" in said else None) from None

    def _read_features(self, X: Any, *, reset: bool, min_samples: int = 1) -> Any:
        """Return X as a matrix; note or compare its columns."""
        name = type(self).__name__
        if inputs.is_table(X):
            if not reset:
                self._match_features(X, reset=False)
            encoding = None if reset else self._encoding
            table, encoding = inputs.read_table(X, encoding, drop_first=self.fit_intercept)
            matrix = inputs.read_matrix(table, name, min_samples=min_samples)
            if reset:
                self._match_features(X, reset=True)
                self._encoding = encoding
        else:
            matrix = inputs.read_matrix(X, name, min_samples=min_samples)
            self._match_features(X if hasattr(X, "shape") else matrix, reset=reset)
            if reset:
                self._encoding = Encoding(None, None, self.fit_intercept, matrix.shape[1])
            elif self._encoding.levels is not None:
                raise DataError(
                    "`X` must be a data frame, because columns were categorical in `fit`, got "
                    f"{type(X).__name__}."
                )
        inputs.check_finite(matrix, self._encoding.expanded_names)
        return matrix

    def _read_training(self, X: Any, y: Any, sample_weight: Any) -> Training:
        """Return the data of `fit`, without samples of weight zero."""
        if y is None:
            raise DataError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        matrix = self._read_features(X, reset=True, min_samples=2)
        n = int(matrix.shape[0])
        target = self._read_target(inputs.to_numpy(y), n)
        if target.shape[0] != n:
            raise DataError(
                f"`X` and `y` must have the same number of samples, got {n} and {target.shape[0]}."
            )
        weight = read_weights(sample_weight, n)
        rows, used = None, target
        if weight is not None and not weight.all():
            rows = np.flatnonzero(weight).astype(np.int64)
            matrix, used, weight = inputs.take_rows(matrix, rows), target[rows], weight[rows]
        used = self._prepare(used)
        weight = self._reweight(used, weight)
        return Training(matrix, used, weight, self._encoding, target, rows)

    # Fitting ------------------------------------------------------------

    def _job(self, data: Training, ridge: float) -> Job:
        """Return the search that the parameters ask for."""
        return Job(
            loss=self._loss(),
            X=data.X,
            y=data.y,
            weight=data.weight,
            shape=make_shape(self, data.encoding),
            fit_intercept=bool(self.fit_intercept),
            ridge=float(ridge),
            standardize=bool(self.standardize),
            effort=self.effort,
            time_limit=self.time_limit,
            options=self._options(),
            n_classes=len(getattr(self, "classes_", ())),
        )

    def _criteria(self, job: Job, found: Found) -> dict[str, Floats]:
        """Return all information criteria of a path."""
        path = found.path
        chosen = np.array([job.shape.count_units(s.support) for s in path.subsets], dtype=float)
        counts = np.array([s.n_nonzero for s in path.subsets], dtype=float)
        return information_criteria(
            job.deviance(found),
            counts * job.n_free,
            chosen,
            n_samples=job.n_samples,
            n_candidates=job.shape.n_units,
            gamma=getattr(self, "ebic_gamma", 1.0),
        )

    def _choose(self, data: Training) -> Choice:
        """Search, and select a budget by the criterion where there are several."""
        job = self._job(data, self.ridge)
        budgets, several = find_budgets(self.n_nonzero_coefs, job.shape, job.n_samples)
        found = job.run(budgets)
        criteria = self._criteria(job, found)
        selected = int(np.argmin(criteria[self.criterion])) if several else 0
        return Choice(job, found, criteria, selected)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Search for the best model, select its size where several are allowed, certify it.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Features. Categorical columns of a data frame are expanded and chosen together.
        y : array, series or Tensor of shape (n_samples,)
            Target.
        sample_weight : array of shape (n_samples,) or None, default=None
            Weight of every sample: a weight of 2 counts as the sample twice, also in criteria.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        DataError
            If the data cannot be used; the message names the columns.
        InvalidParameterError
            If a parameter is out of range.
        """
        began = time.perf_counter()
        self._check_parameters()
        data = self._read_training(X, y, sample_weight)
        self._store(self._choose(data), began)
        return self

    def _store(self, choice: Choice, began: float) -> None:
        """Set what was learned, once the selected model is proven as far as asked for."""
        certificates: list[Certificate] = []
        proofs: list[ExactResult | None] = []
        if self.certify == "path":
            selected = choice.selected
            for i in range(len(choice.path)):
                choice, exact, certificate = self._settle(replace(choice, selected=i))
                assert certificate is not None
                certificates.append(certificate)
                proofs.append(exact)
            choice = replace(choice, selected=selected)
            exact, certificate = proofs[selected], certificates[selected]
        else:
            choice, exact, certificate = self._settle(choice)
        job, path, subset = choice.job, choice.path, choice.subset
        dtype = choice.dtype
        n_columns = int(job.X.shape[1])
        coef = subset.dense(n_columns).astype(dtype)
        self.coef_ = self._shape_coef(coef)
        self.intercept_ = self._shape_intercept(subset.intercept.astype(dtype))
        self.support_ = subset.support.copy()
        self.selected_features_ = np.unique(self._encoding.sources[subset.support])
        self.n_iter_ = count_work(path)
        self.path_ = L0Path(
            budgets=path.budgets,
            subsets=path.subsets,
            criteria=choice.criteria,
            n_features=n_columns,
            names=self._encoding.expanded_names,
            selected=choice.selected,
            unit="groups" if job.shape.grouped else "features",
            certificates=tuple(certificates),
            proofs=tuple(None if e is None else e.proof for e in proofs),
            _dtype=dtype,
        )
        self.certificate_ = certificate
        self.lower_bound_ = None if self.certificate_ is None else self.certificate_.lower_bound
        self.gap_ = None if self.certificate_ is None else self.certificate_.gap
        if exact is not None and self.certificate_ is None:
            self.lower_bound_ = min(exact.lower_bound, choice.subset.value)
            self.gap_ = exact.gap
        status = path.status
        if exact is not None and self.solver == "exact":
            status = exact.status
        self.result_ = self._result(choice, status, began, exact)
        if not status.is_success:
            message = describe_stop(status, self)
            warnings.warn(message, ConvergenceWarning, stacklevel=3)

    def _settle(self, choice: Choice) -> tuple[Choice, ExactResult | None, Certificate | None]:
        """Prove the selected model as far as asked for, and certify it."""
        # Without a certificate nobody asked for the short proof of "auto".
        solver = self.solver if self.certify or self.solver == "exact" else "search"
        exact = prove_choice(choice, solver, self.max_iter, self.tol, self.time_limit)
        if exact is not None and exact.subset.value < choice.subset.value:
            choice = choice.with_subset(exact.subset)
        choice = exact_fit(choice)
        coef = choice.subset.dense(int(choice.job.X.shape[1])).astype(choice.dtype)
        return choice, exact, self._certify(choice, coef, exact)

    def certify_model(
        self,
        X: Any,
        y: Any,
        coef: Any,
        intercept: Any,
        sample_weight: Any = None,
        proof: TreeProof | None = None,
    ) -> tuple[Certificate, float]:
        """Return what is proven of given coefficients, and their objective.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Features.
        y : array, series or Tensor of shape (n_samples,)
            Target.
        coef : ndarray of the shape of `coef_`
            Coefficients; `n_nonzero_coefs` is the budget they are held against.
        intercept : float or ndarray of the shape of `intercept_`
            Intercept.
        sample_weight : array of shape (n_samples,) or None, default=None
            Weight of every sample.
        proof : TreeProof or None, default=None
            Evidence of a lower bound, which is checked; None searches a bound as `fit` does.

        Returns
        -------
        certificate : Certificate
            What is proven of them.
        value : float
            Their objective.

        Raises
        ------
        DataError
            If the data cannot be used.
        InvalidParameterError
            If `n_nonzero_coefs` is not one number, or the coefficients have another shape.
        """
        self._check_parameters()
        data = self._read_training(X, y, sample_weight)
        job = self._job(data, self.ridge)
        budgets, several = find_budgets(self.n_nonzero_coefs, job.shape, job.n_samples)
        dense = np.atleast_2d(np.asarray(coef, dtype=np.float64))
        shift = np.atleast_1d(np.asarray(intercept, dtype=np.float64))
        wanted = (job.n_outputs, int(job.X.shape[1]))
        if several or dense.shape != wanted:
            raise InvalidParameterError(
                f"`coef` must have shape {wanted} and `n_nonzero_coefs` be one number, got shape "
                f"{dense.shape} and {self.n_nonzero_coefs!r}."
            )
        support = np.flatnonzero(dense.any(axis=0)).astype(np.int64)
        subset = Subset(support, dense[:, support].T.copy(), shift, 0.0)
        gram = job.gram() if job.loss == "squared" else None
        ridge = job.ridge_per_column(gram)
        lam = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (wanted[1],))
        penalty = 0.5 * float((lam[support, None] * subset.coef**2).sum())
        subset = replace(subset, value=job.mean_loss(job.scores(subset)) + penalty)
        choice = Choice(job, Found(SubsetPath(budgets, (subset,)), ridge, gram), {}, 0)
        if proof is None or why_no_proof(job) is not None:
            exact = prove_choice(choice, self.solver, self.max_iter, self.tol, self.time_limit)
        else:
            exact = ExactResult(subset, 0.0, Status.CONVERGED, len(proof), 0.0, 0.0, proof=proof)
        return certify(
            job, dense, subset, choice.budget, ridge, tol=self.tol, exact=exact
        ), subset.value

    def _certify(self, choice: Choice, coef: Any, exact: ExactResult | None) -> Certificate | None:
        """Return what is proven of the selected model."""
        if not self.certify:
            return None
        job, subset, ridge = choice.job, choice.subset, choice.found.ridge
        reason = None
        if self.certify == "full":
            full = verify_fully(job, coef, subset, choice.budget, ridge, tol=self.tol)
            if isinstance(full, Certificate):
                return full
            reason = full
        certificate = certify(job, coef, subset, choice.budget, ridge, tol=self.tol, exact=exact)
        if reason is None:
            return certificate
        said = f"The full certificate cannot be had: {reason}."
        return replace(certificate, assumptions=(said, *certificate.assumptions))

    def _result(
        self, choice: Choice, status: Status, began: float, exact: ExactResult | None
    ) -> Result:
        """Return the outcome as the rest of the library reports it."""
        import torch

        params = {"coef": torch.as_tensor(np.array(self.coef_))}
        if self.fit_intercept:
            params["intercept"] = torch.as_tensor(np.array(self.intercept_))
        return Result(
            params=params,
            value=choice.subset.value,
            status=status,
            n_iter=self.n_iter_,
            certificate=self.certificate_,
            trace=tuple(float(v) for v in self.path_.values),
            seconds=time.perf_counter() - began,
            solver=f"subset search, effort {self.effort!r}, solver {self.solver!r}",
            proof=None if exact is None else exact.proof,
            measures=dict(choice.path.measures),
        )

    def _shape_coef(self, coef: Any) -> Any:
        """Return coefficients (n_outputs, n_columns) in the shape of `coef_`."""
        return coef[0]

    def _shape_intercept(self, intercept: Any) -> Any:
        """Return intercepts (n_outputs,) in the shape of `intercept_`."""
        return intercept[0]

    # Predicting ------------------------------------------------------------

    def _scores(self, X: Any) -> Any:
        """Return the linear predictor of new samples, (n_samples, n_outputs)."""
        check_is_fitted(self)
        matrix = self._read_features(X, reset=False)
        coef = np.atleast_2d(self.coef_)
        return inputs.scores_of(matrix, coef, np.atleast_1d(self.intercept_))

    def plot_path(self, ax: Any = None) -> Any:
        """Draw every coefficient against the budget.

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
        return self.path_.plot(ax)


def read_weights(value: Any, n_samples: int) -> Floats | None:
    """Return sample weights, finite, nonnegative and not all zero; None where there are none."""
    if value is None:
        return None
    try:
        weight = np.asarray(inputs.to_numpy(value), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("`sample_weight` must hold numbers.") from None
    if weight.ndim == 0:
        weight = np.full(n_samples, float(weight))
    if weight.shape != (n_samples,):
        raise DataError(
            f"`sample_weight` must have one entry for each of {n_samples} samples, got shape "
            f"{weight.shape}."
        )
    if not np.isfinite(weight).all():
        raise DataError("`sample_weight` must be finite, got NaN or infinity.")
    if (weight < 0).any():
        raise DataError(f"`sample_weight` must not be negative, got {weight.min():g}.")
    if not weight.any():
        raise DataError("`sample_weight` must have a positive entry, got only zeros.")
    return weight


def count_work(path: SubsetPath) -> int:
    """Return a count of the work of a search, at least 1."""
    for name in ("n_iter", "scans", "swaps", "kicks"):
        value = path.measures.get(name)
        if isinstance(value, int | float) and value > 0:
            return int(value)
    return 1


def describe_stop(status: Status, estimator: AbstractL0Estimator) -> str:
    """Return why a search ended early and what to do."""
    gap = "" if estimator.gap_ is None else f", within a proven gap of {estimator.gap_:.2g}"
    if status is Status.TIME_LIMIT:
        return (
            f"The search stopped at `time_limit={estimator.time_limit}` seconds; the model is the "
            f"best so far{gap}.\nhint: Raise `time_limit`, or choose a smaller `effort`."
        )
    if status is Status.MAX_ITER:
        return (
            f"Branch and bound stopped at `max_iter={estimator.max_iter}` boxes; the model is the "
            f"best so far{gap}.\nhint: Raise `max_iter`, or add `ridge`, which shortens proofs."
        )
    return f"{status.value}\nhint: The model is the best so far; `certificate_` says what holds."


def why_no_proof(job: Job) -> str | None:
    """Return why branch and bound cannot treat a problem; None where it can."""
    if job.loss != "squared":
        return "it proves least squares only"
    return None


def exact_fit(choice: Choice) -> Choice:
    """Return the same with its objective from the data, where inner products leave rounding."""
    job, subset = choice.job, choice.subset
    if job.loss != "squared" or choice.found.gram is None:
        return choice
    if subset.value > EXACT_FIT * float(choice.found.gram.energy.sum()) / (2 * job.n_samples):
        return choice
    ridge = np.broadcast_to(np.asarray(choice.found.ridge, dtype=np.float64), job.X.shape[1])
    penalty = 0.5 * float((ridge[subset.support, None] * subset.coef**2).sum())
    value = job.mean_loss(job.scores(subset)) + penalty
    return choice.with_subset(replace(subset, value=value))


def prove_choice(
    choice: Choice, solver: str, max_nodes: int, tol: float, time_limit: float | None
) -> ExactResult | None:
    """Return what branch and bound proves of the selected model; None where it is not asked."""
    job = choice.job
    why = why_no_proof(job)
    if solver == "exact" and why is not None:
        raise IncompatibleError(
            f"`solver='exact'` cannot treat this problem: {why}.", "Pass `solver='auto'`."
        )
    small = job.X.shape[1] <= PROOF_COLUMNS
    if why is not None or solver == "search" or (solver == "auto" and not small):
        return None
    from ellzero.subset.exact import prove

    gram = choice.found.gram
    assert gram is not None
    plain = job.n_outputs == 1 and not job.shape.grouped and not job.shape.bounded
    few = PROOF_NODES if plain else UNIT_NODES
    return prove(
        gram,
        choice.budget,
        ridge=choice.found.ridge,
        always=job.shape.always.tolist(),
        forbidden=job.shape.forbidden.tolist(),
        groups=job.shape.groups,
        lower=job.shape.lower,
        upper=job.shape.upper,
        start=choice.subset,
        time_limit=time_limit,
        max_nodes=max_nodes if solver == "exact" else few,
        tol=tol,
    )
