"""The models of all budgets: numbers, table, plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import Certificate, TreeProof
from ellzero.errors import InvalidParameterError
from ellzero.estimators.inputs import Floats, Integers
from ellzero.subset.results import Subset


@dataclass(frozen=True, slots=True)
class L0Path:
    """The best model found for each budget.

    Parameters
    ----------
    budgets : ndarray of shape (m,), int64
        Budgets, ascending.
    subsets : tuple of Subset
        Support, coefficients, intercept and objective for each budget.
    criteria : mapping of str to ndarray of shape (m,)
        Information criteria and, after cross-validation, scores.
    n_features : int
        Number of columns that coefficients belong to.
    names : tuple of str or None
        Their names.
    selected : int
        Position of the selected budget.
    unit : {"features", "groups"}, default="features"
        What a budget counts.
    certificates : tuple of Certificate, default=()
        What is proven of every model; none unless `certify="path"`.
    proofs : tuple of TreeProof or None, default=()
        Evidence of the lower bounds in them, where there is any.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.estimators import L0Regressor
    >>> X = np.random.default_rng(0).standard_normal((40, 6))
    >>> path = L0Regressor([1, 2, 3]).fit(X, X[:, 4] - 0.5 * X[:, 1]).path_
    >>> [support.tolist() for support in path.supports[:2]]
    [[4], [1, 4]]
    """

    budgets: Integers
    subsets: tuple[Subset, ...]
    criteria: Mapping[str, Floats]
    n_features: int
    names: tuple[str, ...] | None
    selected: int
    unit: str = "features"
    certificates: tuple[Certificate, ...] = ()
    proofs: tuple[TreeProof | None, ...] = ()
    _dtype: np.dtype[Any] = field(default=np.dtype(np.float64), repr=False)

    def __len__(self) -> int:
        """Return the number of budgets."""
        return len(self.subsets)

    def __iter__(self) -> Iterator[Subset]:
        """Iterate over the models."""
        return iter(self.subsets)

    @property
    def supports(self) -> list[Integers]:
        """Sorted positions of the nonzero coefficients of every model."""
        return [subset.support for subset in self.subsets]

    @property
    def values(self) -> Floats:
        """Objective of every model."""
        return np.array([subset.value for subset in self.subsets])

    @property
    def n_nonzero(self) -> Integers:
        """Number of nonzero features of every model."""
        return np.array([subset.n_nonzero for subset in self.subsets], dtype=np.int64)

    @property
    def coef(self) -> NDArray[Any]:
        """Coefficients with their zeros, (m, n_features) or (m, n_outputs, n_features)."""
        dense = np.stack([subset.dense(self.n_features) for subset in self.subsets])
        return (dense[:, 0] if dense.shape[1] == 1 else dense).astype(self._dtype)

    @property
    def intercept(self) -> Floats:
        """Intercepts, (m,) or (m, n_outputs)."""
        out = np.stack([subset.intercept for subset in self.subsets])
        return out[:, 0] if out.shape[1] == 1 else out

    def position(self, budget: int) -> int:
        """Return the row of a budget.

        Parameters
        ----------
        budget : int
            One of `budgets`.

        Returns
        -------
        int
            Its position.

        Raises
        ------
        InvalidParameterError
            If the path has no model for this budget.
        """
        where = np.flatnonzero(self.budgets == budget)
        if where.size == 0:
            raise InvalidParameterError(
                f"The path has no model for budget {budget!r}.",
                f"Its budgets: {', '.join(str(b) for b in self.budgets)}.",
            )
        return int(where[0])

    def name_of(self, column: int) -> str:
        """Return the name of a column, ``x3`` where it has none.

        Parameters
        ----------
        column : int
            Position of a coefficient.

        Returns
        -------
        str
            The name.
        """
        return f"x{column}" if self.names is None else self.names[column]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the table as columns of plain Python values."""
        out: dict[str, list[Any]] = {
            "budget": self.budgets.tolist(),
            "n_nonzero": self.n_nonzero.tolist(),
            "value": self.values.tolist(),
        }
        out |= {name: np.asarray(column).tolist() for name, column in self.criteria.items()}
        out["features"] = [[self.name_of(j) for j in s.support.tolist()] for s in self.subsets]
        out["selected"] = [i == self.selected for i in range(len(self))]
        return out

    def to_frame(self) -> Any:
        """Return the table as a pandas data frame with a row for each budget.

        Returns
        -------
        pandas.DataFrame
            Columns ``n_nonzero``, ``value``, one for each criterion, ``features``, ``selected``;
            the budget is the index.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "`to_frame` needs pandas, which is not installed.\n"
                "hint: Install it with `pip install pandas`, or use `to_dict()`."
            ) from error
        return pandas.DataFrame(self.to_dict()).set_index("budget")

    def plot(self, ax: Any = None) -> Any:
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
        from ellzero.estimators.plots import plot_path

        return plot_path(self, ax)
