"""Networks with fixed gates behind scikit-learn's conventions, with the gap of their program."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # noqa: TID253
from sklearn.exceptions import ConvergenceWarning  # noqa: TID253
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: TID253

from ellzero.core.result import Status
from ellzero.errors import DataError
from ellzero.relu.gated import check_memory, memory_needed, resolve_solver, solve_gated
from ellzero.relu.gated_network import GatedReLU, GatedReLUModule
from ellzero.relu.gated_program import GatedProgram
from ellzero.relu.gates import read_gates, vectors_of
from ellzero.relu.inputs import check_magnitudes
from ellzero.relu.losses import AbstractLoss, loss_of
from ellzero.relu.settings import (
    check_effort,
    check_penalty,
    draw_gates,
    read_classes,
    with_bias,
)
from ellzero.validation import check_integer, check_real

Floats = NDArray[np.float64]
LOG = logging.getLogger("ellzero")


class _GatedReLU(BaseEstimator):
    """What the regressor and the classifier share."""

    def __init__(
        self,
        penalty: float | None = None,
        *,
        n_gates: int = 500,
        gates: Any = None,
        fit_intercept: bool = True,
        fit_bias: bool = True,
        solver: str = "auto",
        max_iter: int = 20000,
        tol: float = 1e-7,
        memory_limit: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.penalty = penalty
        self.n_gates = n_gates
        self.gates = gates
        self.fit_intercept = fit_intercept
        self.fit_bias = fit_bias
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.memory_limit = memory_limit
        self.random_state = random_state

    def _check_settings(self) -> None:
        """Raise when a setting is out of range."""
        check_penalty(self.penalty)
        check_integer("n_gates", self.n_gates, low=1)
        check_effort(self.max_iter, self.tol, open_tol=True)
        resolve_solver(self.solver, 1)
        if self.memory_limit is not None:
            check_real("memory_limit", self.memory_limit, low=0.0, open_low=True)

    def _train(self, X: Floats, Y: Floats, loss: AbstractLoss, shift: Floats) -> None:
        """Solve the program of targets Y - shift; store what is found."""
        n_inputs = X.shape[1] + bool(self.fit_bias)
        given = None
        if self.gates is not None:
            given = vectors_of(self.gates, n_inputs, biased=self.fit_bias)
        n_gates = self.n_gates if given is None else len(given)
        self.memory_ = memory_needed(len(X), n_inputs, n_gates, Y.shape[1], solver=self.solver)
        limit = _physical_memory() if self.memory_limit is None else self.memory_limit
        LOG.info("The gated program needs about %.2f GiB.", self.memory_ / 2**30)
        check_memory(self.memory_, limit)
        A = with_bias(X, self.fit_bias)
        vectors = draw_gates(self.random_state, n_gates, n_inputs) if given is None else given
        gates = read_gates(A, vectors)
        if gates.message:
            # Sampled duplicates are nobody's fault; given ones are news.
            LOG.info("%s", gates.message)
            if given is not None:
                warnings.warn(gates.message, UserWarning, stacklevel=3)
        program = GatedProgram(A, gates.patterns, Y - shift, loss, self.fit_intercept)
        largest = program.largest_penalty()
        # All targets alike: no gate helps at any penalty.
        level = (0.01 * largest or 1.0) if self.penalty is None else float(self.penalty)
        if self.penalty is not None and level >= largest:
            warnings.warn(
                f"`penalty`, {level:.6g}, is not below the largest useful one, {largest:.6g}: "
                "the network is zero.\nhint: Pass a fraction of `largest_penalty_`.",
                UserWarning,
                stacklevel=3,
            )
        found = solve_gated(
            program, level, tol=self.tol, max_iter=self.max_iter, solver=self.solver
        )
        if found.status is not Status.CONVERGED:
            warnings.warn(
                f"{found.status.value} The relative gap is {found.gap:.1e}, above "
                f"`tol={self.tol:g}`.\n"
                "hint: Raise `max_iter` or `tol`, or scale the columns of X.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.network_ = GatedReLU(
            gates.vectors[found.support],
            found.weights,
            found.constant + shift if self.fit_intercept else None,
            bool(self.fit_bias),
        )
        self.gates_message_ = gates.message
        self.n_gates_ = len(gates)
        self.n_active_ = len(found.support)
        self.penalty_, self.largest_penalty_ = level, largest
        self.value_, self.certificate_ = found.value, found.certificate
        self.lower_bound_, self.gap_ = found.certificate.lower_bound, found.gap
        self.n_iter_ = max(found.n_iter, 1)

    def _outputs(self, X: ArrayLike) -> Floats:
        """Return the outputs of the network at samples, in float64."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return self.network_.predict(np.asarray(rows, dtype=np.float64))

    def to_module(self) -> GatedReLUModule:
        """Return the network as a module in float64 whose gates are fixed.

        Returns
        -------
        GatedReLUModule
            Computes what `predict` (or `decision_function`) does, to rounding.
        """
        check_is_fitted(self)
        return self.network_.to_module()


def _physical_memory() -> float | None:
    """Return the bytes of memory of the machine, where they can be had."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return None


_PARAMETERS = """
    Parameters
    ----------
    penalty : float or None, default=None
        Weight of the sum of norms. None takes a hundredth of the largest useful one, from which
        on the network is zero. Must be positive.
    n_gates : int, default=500
        Gates to sample. Must be at least 1.
    gates : array-like of shape (n_gates, n_inputs), TwoLayerReLU, torch.nn.Module or None, \
default=None
        Gate vectors, or a network whose hidden weights are the gates. None means `n_gates`
        standard normal vectors. With `fit_bias` the last input is a one.
    fit_intercept : bool, default=True
        Whether a constant, never penalized, is added to each output.
    fit_bias : bool, default=True
        Whether gates and weights have biases, penalized like weights.
    solver : {"auto", "newton", "proximal"}, default="auto"
        Semismooth Newton, or FISTA with restarts; "auto" takes Newton up to 16,000 samples.
    max_iter : int, default=20000
        Most Newton or proximal steps.
    tol : float, default=1e-7
        Relative gap at which to stop.
    memory_limit : float or None, default=None
        Bytes above which `fit` raises before anything is allocated. None means the memory of
        the machine.
    random_state : int, RandomState or None, default=None
        Source of the sampled gates.

    Attributes
    ----------
    network_ : GatedReLU
        The gates that are used, with their weights.
    gap_ : float
        Relative gap of the program **with these gates**, checked at all of them in float64. It
        is not a bound over ReLU networks: other gates, and ReLU networks of other widths, may
        do better. `ConvexReLURegressor` and `certify_network` have that bound.
    lower_bound_ : float
        Below it is no network with these gates.
    value_ : float
        The objective.
    certificate_ : Certificate
        What is proven, with its assumptions.
    penalty_ : float
        The penalty that was used.
    largest_penalty_ : float
        Least penalty at which the network is zero, exactly.
    n_gates_ : int
        Different nonempty gates of the program.
    n_active_ : int
        Gates that are used.
    gates_message_ : str
        One sentence on gates that were dropped, empty when none was.
    memory_ : int
        About how many bytes the program needs.
    n_iter_ : int
        Newton or proximal steps done.
    n_features_in_ : int
        Features seen.
"""


class GatedReLURegressor(RegressorMixin, _GatedReLU):  # noqa: D101
    __doc__ = (
        r"""Two-layer gated ReLU regression, solved to a proven gap of its convex program.

    .. math:: \min \frac{1}{2nk} \sum_i \|y_i - f(x_i)\|^2 + \lambda \sum_j \|U_j\|_F, \quad
        f(x) = \sum_j 1(h_j^\top x > 0) U_j^\top x + c

    with k outputs and fixed gates h_j.
"""
        + _PARAMETERS
        + """
    Notes
    -----
    The gated relaxation of Mishkin, Sahiner and Pilanci (arXiv 2202.01331): a group lasso with
    one group for each gate, whose dual is checked at every gate. See `solve_gated` for the cost.
    float32 is converted; everything is computed in float64. Columns should be scaled: sampled
    gates are not invariant under the scale of single features.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import GatedReLURegressor
    >>> X = np.linspace(-1, 1, 30)[:, None]
    >>> model = GatedReLURegressor(penalty=1e-3, random_state=0).fit(X, np.abs(X[:, 0]))
    >>> model.gap_ <= 1e-7, model.score(X, np.abs(X[:, 0])) > 0.99
    (True, True)
    """
    )

    def __sklearn_tags__(self) -> Any:
        """Say that targets may have several columns."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> GatedReLURegressor:
        """Solve the program.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.

        Returns
        -------
        GatedReLURegressor
            The fitted estimator.

        Raises
        ------
        InvalidParameterError
            If a setting is out of range, or more memory is needed than allowed.
        DataError
            If no gate sees a sample, or gates do not fit X.

        Warns
        -----
        ConvergenceWarning
            If the gap did not reach `tol`.
        UserWarning
            If given gates were dropped, or the penalty leaves the zero network.
        """
        self._check_settings()
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], y_numeric=True, multi_output=True
        )
        targets = np.asarray(y, dtype=np.float64)
        check_magnitudes(X=X, y=targets)
        self._flat = targets.ndim == 1
        Y = targets.reshape(len(targets), -1)
        shift = Y.mean(axis=0) if self.fit_intercept else np.zeros(Y.shape[1])
        self._train(np.asarray(X, dtype=np.float64), Y, loss_of("squared"), shift)
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return the outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            The outputs.
        """
        out = self._outputs(X)
        return out[:, 0] if self._flat else out


class GatedReLUClassifier(ClassifierMixin, _GatedReLU):  # noqa: D101
    __doc__ = (
        r"""Two-layer gated ReLU classification, solved to a proven gap of its convex program.

    The mean logistic loss of f with :math:`\lambda \sum_j \|U_j\|_F` and fixed gates; more than
    two classes are one against the rest, with gates in common.
"""
        + _PARAMETERS
        + """
    classes_ : ndarray of shape (n_classes,)
        The classes.

    Notes
    -----
    See `GatedReLURegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import GatedReLUClassifier
    >>> X = np.linspace(-1, 1, 30)[:, None]
    >>> inside = np.abs(X[:, 0]) < 0.5
    >>> model = GatedReLUClassifier(penalty=1e-3, random_state=0).fit(X, inside)
    >>> model.score(X, inside), model.gap_ <= 1e-7
    (1.0, True)
    """
    )

    def fit(self, X: ArrayLike, y: ArrayLike) -> GatedReLUClassifier:
        """Solve the program.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,)
            Classes, two or more.

        Returns
        -------
        GatedReLUClassifier
            The fitted estimator.

        Raises
        ------
        InvalidParameterError
            If a setting is out of range, or more memory is needed than allowed.
        DataError
            If there is one class only, no gate sees a sample, or gates do not fit X.

        Warns
        -----
        ConvergenceWarning
            If the gap did not reach `tol`.
        UserWarning
            If given gates were dropped, or the penalty leaves the zero network.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_magnitudes(X=X)
        self.classes_, codes = read_classes(y)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise DataError(
                "Classification needs at least two classes, y has 1 class.",
                "Add samples of another class.",
            )
        wanted = np.arange(1, 2) if n_classes == 2 else np.arange(n_classes)
        Y = np.where(codes[:, None] == wanted, 1.0, -1.0)
        shift = np.zeros(Y.shape[1])
        self._train(np.asarray(X, dtype=np.float64), Y, loss_of("logistic"), shift)
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return log-odds.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Of the second class, or of each class against the rest.
        """
        out = self._outputs(X)
        return out[:, 0] if len(self.classes_) == 2 else out

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            They add up to one; for more than two classes scaled to do so.
        """
        shares = np.asarray(expit(self.decision_function(X)))
        if shares.ndim == 1:
            return np.column_stack([1.0 - shares, shares])
        return np.asarray(shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most likely class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Classes.
        """
        out = self.decision_function(X)
        best = (out > 0).astype(int) if out.ndim == 1 else out.argmax(axis=1)
        return np.asarray(self.classes_[best])
