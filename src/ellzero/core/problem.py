r"""The nouns of a problem: objective, set, penalty.

Every method takes a point or a `Batch` (see `ellzero.tensors.named`) and returns scalars as 0-d
tensors for a point and of shape (size,) for a batch. A capability is a class: what an objective
can do beyond value and gradient is said by which abstract class it extends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ellzero.core.curvature import CurvatureBound
from ellzero.errors import IncompatibleError
from ellzero.typing import Masks, Params


class AbstractObjective(ABC):
    """Function to minimize, of named tensors."""

    @abstractmethod
    def init_params(self) -> Params:
        """Return a point of zeros with the right names, shapes, dtype and device."""

    @abstractmethod
    def value(self, params: Params) -> Tensor:
        """Return the value."""

    @abstractmethod
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        """Return the value and the gradient."""

    def take(self, index: Tensor) -> AbstractObjective:
        """Return the objective of some rows of a batch; itself where all rows share one.

        Objectives that differ from row to row, such as losses of several teachers, override this:
        the loop over a batch takes finished rows out of the points and of the objective alike.

        Parameters
        ----------
        index : Tensor of bool, shape (size,), or of int64
            The rows.

        Returns
        -------
        AbstractObjective
            The objective of these rows.
        """
        return self


class AbstractSemiconcaveObjective(AbstractObjective):
    r"""Objective below a quadratic everywhere, convex or not.

    For the constant L of `upper_curvature` the function :math:`f - (L/2) \|\cdot\|^2` is concave,
    so that every gradient gives an upper model: :math:`f(y) \le f(x) + \langle \nabla f(x),
    y - x \rangle + (L/2) \|y - x\|^2`. This is all that the descent of a gradient step needs.
    """

    @abstractmethod
    def upper_curvature(self) -> float:
        """Return the constant L."""


class AbstractCoarseObjective(AbstractObjective):
    """Objective with a coarse gradient: what a straight-through estimator gives in its place.

    The true gradient of a loss of binary activations vanishes on samples, or has a kink at its
    minimum. The coarse gradient does not; on the unit sphere it is the gradient of a surrogate.
    """

    @abstractmethod
    def coarse_value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        """Return the surrogate that the coarse gradient descends, and the coarse gradient."""

    @abstractmethod
    def coarse_curvature(self) -> float:
        """Return the number c of the surrogate c (1 - <w, w*>)."""


class AbstractTwiceDifferentiable(AbstractObjective):
    """Objective with second derivatives."""

    @abstractmethod
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        """Return the Hessian at `params` times `direction`."""

    @abstractmethod
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        """Return the Hessian restricted to flattened entries `index`.

        Parameters
        ----------
        params : Batch
            Points, `size` of them.
        index : Tensor of shape (size, k), int64
            Entries of every point, in the order of `named.flatten`.

        Returns
        -------
        Tensor of shape (size, k, k)
            One symmetric matrix for each point.
        """


class AbstractConvexObjective(AbstractTwiceDifferentiable):
    """Convex objective; its curvature may grow without bound."""

    @abstractmethod
    def strong_convexity(self) -> float:
        """Return m >= 0 such that f - (m/2)||theta||^2 is convex; 0.0 when nothing is known."""


class AbstractSmoothObjective(AbstractConvexObjective):
    """Convex objective whose curvature is bounded everywhere."""

    @abstractmethod
    def smoothness(self) -> float:
        """Return an upper bound on the Lipschitz constant of the gradient."""

    @abstractmethod
    def curvature_bound(self) -> CurvatureBound:
        """Return a matrix that is above the Hessian at every point."""

    def curvature_diagonal(self) -> Tensor:
        """Return the diagonal of the curvature bound, shape (n,)."""
        return self.curvature_bound().diagonal()

    def curvature_rows(self, index: Tensor) -> Tensor:
        """Return rows of the curvature bound: shape (m,) gives (m, n)."""
        return self.curvature_bound().rows(index)


class AbstractQuadraticObjective(AbstractSmoothObjective):
    """Convex quadratic objective."""

    @abstractmethod
    def minimize_on(self, masks: Masks) -> Params:
        """Return the exact minimizer whose support lies inside `masks`."""


class AbstractCoordinateSmoothObjective(AbstractTwiceDifferentiable):
    """Objective, convex or not, whose curvature is bounded coordinate by coordinate."""

    @abstractmethod
    def coordinate_smoothness(self) -> Tensor:
        """Return L >= 0, shape (n,), with -diag(L) <= Hessian <= diag(L) everywhere."""


class AbstractStochasticObjective(AbstractObjective):
    """Objective whose gradient can be sampled without bias."""

    @abstractmethod
    def sampled_grad(self, params: Params, generator: torch.Generator) -> Params:
        """Return an unbiased sample of the gradient, drawn for every row by itself."""

    @abstractmethod
    def noise_vector(self, params: Params) -> Params:
        """Return the root of the mean squared error of every entry of a sampled gradient."""


class AbstractLinearObjective(AbstractConvexObjective):
    r"""Loss of a linear predictor plus ridge: F(X theta) + sum_j (ridge_j / 2) theta_j^2."""

    @abstractmethod
    def dual_point(self, params: Params) -> Tensor:
        """Return the gradient of F at the linear predictor of `params`."""

    @abstractmethod
    def conjugate(self, dual: Tensor) -> Tensor:
        """Return the conjugate F*(dual); infinity outside its domain."""

    @abstractmethod
    def adjoint(self, dual: Tensor) -> Params:
        """Return X^T dual, as named tensors."""

    @abstractmethod
    def ridge_weights(self) -> Params:
        """Return ridge_j of every entry, as named tensors (a point)."""

    @abstractmethod
    def has_minimizer_on(self, masks: Masks) -> bool:
        """Return whether the objective attains its infimum over points supported in `masks`."""


class AbstractSet(ABC):
    """Set of allowed points."""

    names: tuple[str, ...] | None
    """Tensors that the set restricts; None means all. The others are free."""

    @abstractmethod
    def project(self, params: Params, *, incumbents: Masks | None = None) -> Params:
        """Return a nearest point; ties go to `incumbents`, then to the first position."""

    @abstractmethod
    def violation(self, params: Params) -> Tensor:
        """Return how far outside the point is, in the set's own units; exactly 0 inside."""

    @abstractmethod
    def check_params(self, params: Params) -> None:
        """Raise when the set does not fit the names and shapes of a point."""


class AbstractSparseSet(AbstractSet):
    """Union of coordinate subspaces, perhaps cut by separable convex side constraints."""

    @abstractmethod
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        """Return the allowed support with the largest sum of nonnegative `scores`.

        Parameters
        ----------
        scores : mapping of str to Tensor
            Nonnegative number of every entry; what counts is their sum over the support.
        factor : int, default=1
            Multiple of the budget, for methods that look at larger supports.
        incumbents : mapping of str to Tensor of bool or None, default=None
            Entries that win ties.

        Returns
        -------
        mapping of str to Tensor of bool
            The support; free tensors are True everywhere.
        """

    @abstractmethod
    def gains(self, params: Params) -> Params:
        """Return the scores by which `project` selects: what keeping each entry saves."""

    @abstractmethod
    def max_nonzero(self, params: Params) -> int:
        """Return the most nonzeros that a member shaped like `params` (a point) can have."""

    @abstractmethod
    def clip(self, params: Params) -> Params:
        """Return the nearest point under the separable side constraints alone."""


class AbstractPenalty(ABC):
    """Function added to the objective, known through its proximal operator."""

    @abstractmethod
    def value(self, params: Params) -> Tensor:
        """Return the value."""

    @abstractmethod
    def prox(self, params: Params, step_size: float) -> Params:
        r"""Return argmin_u value(u) + ||u - params||^2 / (2 step_size)."""

    @abstractmethod
    def residual(self, params: Params, grad: Params) -> Tensor:
        """Return the distance of -grad to the (limiting) subdifferential at `params`."""


@dataclass(frozen=True, slots=True)
class Problem:
    r"""Minimize objective + penalty over constraint.

    Parameters
    ----------
    objective : AbstractObjective
        The function f.
    constraint : AbstractSet or None, default=None
        The set C; None means every point is allowed.
    penalty : AbstractPenalty or None, default=None
        The function r.

    Raises
    ------
    IncompatibleError
        If an argument is not of its class.
    InvalidParameterError
        If the constraint does not fit the tensors of the objective.

    Examples
    --------
    >>> import torch, ellzero
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem).params["coef"].tolist()
    [3.0, 0.0, 2.0]
    """

    objective: AbstractObjective
    constraint: AbstractSet | None = None
    penalty: AbstractPenalty | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("objective", AbstractObjective),
            ("constraint", AbstractSet),
            ("penalty", AbstractPenalty),
        ):
            given = getattr(self, name)
            if not isinstance(given, kind) and not (given is None and name != "objective"):
                raise IncompatibleError(
                    f"`{name}` must be an {kind.__name__}, got {type(given).__name__}.",
                    "See `ellzero.ModuleLoss`, `ellzero.L0Ball` and `ellzero.L1` for examples.",
                )
        if self.constraint is not None:
            self.constraint.check_params(self.objective.init_params())

    def value(self, params: Params) -> Tensor:
        """Return objective plus penalty."""
        value = self.objective.value(params)
        return value if self.penalty is None else value + self.penalty.value(params)

    def take(self, index: Tensor) -> Problem:
        """Return the problem of some rows of a batch; itself where all rows share one."""
        objective = self.objective.take(index)
        return self if objective is self.objective else replace(self, objective=objective)


def upper_curvature(objective: AbstractObjective) -> float | None:
    """Return L such that f - (L/2)||theta||^2 is concave; None when nothing is known."""
    if isinstance(objective, AbstractSmoothObjective):
        return objective.smoothness()
    if isinstance(objective, AbstractSemiconcaveObjective):
        return objective.upper_curvature()
    return None
