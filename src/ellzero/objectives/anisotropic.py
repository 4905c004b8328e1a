"""Test functions whose curvature differs from coordinate to coordinate."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import (
    AbstractCoordinateSmoothObjective,
    AbstractSmoothObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import InvalidParameterError
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_integer, check_real


class _Separable(AbstractTwiceDifferentiable):
    """Sum of functions of one variable, in given or rotated axes: f(R x)."""

    _rotation: Tensor | None
    _n: int
    _dtype: torch.dtype

    def _pieces(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, slopes and curvatures of every term; same shape as `z`."""
        raise NotImplementedError

    def _turned(self, x: Tensor) -> Tensor:
        return x if self._rotation is None else x @ self._rotation.to(x.dtype).T

    def _back(self, z: Tensor) -> Tensor:
        return z if self._rotation is None else z @ self._rotation.to(z.dtype)

    @override
    def init_params(self) -> Params:
        return {"coef": torch.zeros(self._n, dtype=self._dtype)}

    @override
    def value(self, params: Params) -> Tensor:
        return self._pieces(self._turned(params["coef"]))[0].sum(-1)

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        value, slope, _ = self._pieces(self._turned(params["coef"]))
        return value.sum(-1), named.like(params, {"coef": self._back(slope)})

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        curvature = self._pieces(self._turned(params["coef"]))[2]
        product = self._back(curvature * self._turned(direction["coef"]))
        return named.like(direction, {"coef": product})

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        curvature = self._pieces(self._turned(params["coef"]))[2]
        if self._rotation is None:
            return torch.diag_embed(curvature.gather(1, index)) * _same(index, curvature)
        columns = self._rotation.to(curvature.dtype).T[index]
        return (columns * curvature.unsqueeze(1)) @ columns.mT


def _same(index: Tensor, like: Tensor) -> Tensor:
    return (index.unsqueeze(2) == index.unsqueeze(1)).to(like.dtype)


def _check_rotation(rotation: Tensor | None, n: int) -> Tensor | None:
    if rotation is None:
        return None
    if not isinstance(rotation, Tensor) or tuple(rotation.shape) != (n, n):
        given = tuple(rotation.shape) if isinstance(rotation, Tensor) else type(rotation).__name__
        raise InvalidParameterError(
            f"`rotation` must be a tensor of shape ({n}, {n}), got {given}."
        )
    wide = rotation.double()
    error = named.to_float((wide @ wide.T - torch.eye(n, dtype=wide.dtype)).abs().max())
    if not error <= 1e-6:
        raise InvalidParameterError(
            f"`rotation` must be orthogonal, got a matrix R with R R^T off by {error:.3g}.",
            "Take the first factor of `torch.linalg.qr`.",
        )
    return rotation


@final
class StiffRamps(_Separable, AbstractSmoothObjective, AbstractCoordinateSmoothObjective):
    r"""Few stiff coordinates and many gentle ramps: where a common step size is slow.

    .. math:: f(x) = \sum_{i \le m} \tfrac{L}{2} z_i^2 + \sum_{i > m} h(z_i), \quad z = R x, \quad
        h(z) = \begin{cases} s z^2 / (2 r) & |z| \le r \\ s (|z| - r / 2) & |z| > r \end{cases}

    with m stiff coordinates, :math:`s = 2 \epsilon / (n - m)` and :math:`r = \rho D`. From
    `start`, :math:`z = (q / \sqrt m, \ldots, q / \sqrt m, D, \ldots, D)` with
    :math:`D = \Delta / (2 \epsilon)`, all ramps together have nearly the height :math:`\Delta`
    and the slope :math:`2 \epsilon`, and all stiff coordinates the height :math:`L q^2 / 2`,
    whatever n and m are.

    Parameters
    ----------
    n_entries : int
        Number n of entries. Must be larger than `n_stiff`.
    accuracy : float, default=0.1
        The gradient l1-norm :math:`\epsilon` that is asked for; half the slope of the ramps.
    decrease : float, default=1.0
        The height :math:`\Delta`.
    stiffness : float, default=1.0
        The curvature L of the stiff coordinates.
    roundness : float, default=0.1
        The number :math:`\rho` in (0, 1].
    offset : float, default=0.5
        The number q: the length of the stiff coordinates at the start.
    n_stiff : int, default=1
        The number m.
    rotation : Tensor of shape (n, n) or None, default=None
        Orthogonal matrix R; None means the axes themselves.
    dtype : torch.dtype, default=torch.float64
        Type of the parameters.

    Raises
    ------
    InvalidParameterError
        If a number is out of range or `rotation` is not orthogonal.

    Notes
    -----
    Convex, smooth, with minimum 0 at 0. In the axes themselves the refined smoothness vector has
    the sum :math:`m L + 4 \epsilon^2 / (\rho \Delta)`, independent of n, while gradient descent
    with a constant step needs at least
    :math:`(1 - \rho / 2) (n - m) \Delta L / (8 \epsilon^2)` steps. The construction shows the
    noiseless part of the lower bound of [1]_; it is not printed there in this form.

    References
    ----------
    .. [1] R. Jiang, D. Maladkar, A. Mokhtari, "Provable complexity improvement of AdaGrad over
       SGD", arXiv:2406.04592.

    Examples
    --------
    >>> from ellzero.objectives import StiffRamps
    >>> f = StiffRamps(8)
    >>> round(f.value(f.start()).item(), 3), round(f.coordinate_smoothness().sum().item(), 3)
    (1.075, 1.4)
    >>> round(f.descent_steps(), 1)
    83.1
    """

    def __init__(
        self,
        n_entries: int,
        *,
        accuracy: float = 0.1,
        decrease: float = 1.0,
        stiffness: float = 1.0,
        roundness: float = 0.1,
        offset: float = 0.5,
        n_stiff: int = 1,
        rotation: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._n = check_integer("n_entries", n_entries, 2)
        self._m = check_integer("n_stiff", n_stiff, 0, n_entries - 1)
        self._eps = check_real("accuracy", accuracy, 0.0, open_low=True)
        self._delta = check_real("decrease", decrease, 0.0, open_low=True)
        self._stiff = check_real("stiffness", stiffness, 0.0, open_low=True)
        self._rho = check_real("roundness", roundness, 0.0, open_low=True)
        if self._rho > 1:
            raise InvalidParameterError(f"`roundness` must be at most 1, got {self._rho:g}.")
        self._offset = check_real("offset", offset)
        self._rotation = _check_rotation(rotation, n_entries)
        self._dtype = dtype
        self._slope = 2 * self._eps / (self._n - self._m)
        self._far = self._delta / (2 * self._eps)
        self._r = self._rho * self._far

    def start(self) -> Params:
        """Return the point from which the ramps have their whole height."""
        z = torch.full((self._n,), self._far, dtype=self._dtype)
        z[: self._m] = self._offset / max(self._m, 1) ** 0.5
        return {"coef": self._back(z)}

    def descent_steps(self) -> float:
        """Return a proven lower bound on the steps of descent with any constant step < 2 / L."""
        return (1 - self._rho / 2) * self._far * self._stiff / (2 * self._slope)

    @override
    def _pieces(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stiff, ramp = z[..., : self._m], z[..., self._m :]
        inside = ramp.abs() <= self._r
        value = torch.where(
            inside,
            self._slope / (2 * self._r) * ramp.square(),
            self._slope * (ramp.abs() - self._r / 2),
        )
        slope = self._slope * (ramp / self._r).clamp(-1, 1)
        curvature = torch.where(inside, self._slope / self._r, torch.zeros_like(ramp))
        return (
            torch.cat([self._stiff / 2 * stiff.square(), value], -1),
            torch.cat([self._stiff * stiff, slope], -1),
            torch.cat([torch.full_like(stiff, self._stiff), curvature], -1),
        )

    def _curvatures(self) -> Tensor:
        out = torch.full((self._n,), self._slope / self._r, dtype=torch.float64)
        out[: self._m] = self._stiff
        return out

    @override
    def coordinate_smoothness(self) -> Tensor:
        if self._rotation is None:
            return self._curvatures()
        # A matrix is below the diagonal of the row sums of its magnitudes.
        R = self._rotation.double()
        return (R.T @ (self._curvatures().unsqueeze(1) * R)).abs().sum(1) * (1 + 1e-12)

    @override
    def smoothness(self) -> float:
        return named.to_float(self._curvatures().max()) * (1 + 1e-12)

    @override
    def strong_convexity(self) -> float:
        return 0.0

    @override
    def curvature_bound(self) -> CurvatureBound:
        curvatures, right = self._curvatures(), torch.zeros(self._n, self._n, dtype=torch.float64)
        if self._rotation is not None:
            R = self._rotation.double()
            right, curvatures = R.T @ (curvatures.unsqueeze(1) * R), torch.zeros_like(curvatures)
        return CurvatureBound(
            left=torch.ones(1, 1, dtype=torch.float64),
            right=right,
            positions=torch.arange(self._n),
            ridge=curvatures,
            attained=True,
        )


@final
class CosineWells(_Separable, AbstractCoordinateSmoothObjective):
    r"""Periodic wells with a curvature for every coordinate: separable and not convex.

    .. math:: f(x) = \sum_i \frac{L_i}{w^2} \bigl(1 - \cos(w z_i)\bigr), \quad z = R x

    Parameters
    ----------
    curvatures : Tensor of shape (n,)
        The L_i > 0: the refined smoothness vector, exactly, in the axes themselves.
    frequency : float, default=1.0
        The number w.
    rotation : Tensor of shape (n, n) or None, default=None
        Orthogonal matrix R; None means the axes themselves.

    Raises
    ------
    InvalidParameterError
        If a number is out of range or `rotation` is not orthogonal.

    Notes
    -----
    Values lie between 0 and :math:`2 \sum_i L_i / w^2`. A gradient costs n operations, n^2 in
    rotated axes.

    Examples
    --------
    >>> import torch
    >>> from ellzero.objectives import CosineWells
    >>> f = CosineWells(torch.tensor([4.0, 1.0]))
    >>> value, grad = f.value_and_grad({"coef": torch.tensor([torch.pi, torch.pi / 2])})
    >>> round(value.item(), 4), grad["coef"].round(decimals=4).tolist()
    (9.0, [-0.0, 1.0])
    """

    def __init__(
        self, curvatures: Tensor, frequency: float = 1.0, *, rotation: Tensor | None = None
    ) -> None:
        if not isinstance(curvatures, Tensor) or curvatures.ndim != 1 or not len(curvatures):
            given = (
                tuple(curvatures.shape)
                if isinstance(curvatures, Tensor)
                else type(curvatures).__name__
            )
            raise InvalidParameterError(
                f"`curvatures` must be a tensor with 1 axis and at least one entry, got {given}."
            )
        if not named.all_true((curvatures > 0) & torch.isfinite(curvatures)):
            raise InvalidParameterError(
                "`curvatures` must be positive and finite, got one that is not."
            )
        self._curvatures = curvatures
        self._n = len(curvatures)
        self._dtype = curvatures.dtype
        self._frequency = check_real("frequency", frequency, 0.0, open_low=True)
        self._rotation = _check_rotation(rotation, self._n)

    @override
    def _pieces(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, L = self._frequency, self._curvatures.to(z.dtype)
        # 1 - cos by half angles keeps its digits near the wells.
        value = 2 * L / w**2 * torch.sin(w * z / 2).square()
        return value, L / w * torch.sin(w * z), L * torch.cos(w * z)

    @override
    def coordinate_smoothness(self) -> Tensor:
        if self._rotation is None:
            return self._curvatures.double()
        # |H| <= sum_k L_k |R_ki| |R_kj|, and the row sums of that.
        R = self._rotation.double().abs()
        return R.T @ (self._curvatures.double() * R.sum(1)) * (1 + 1e-12)


def random_rotation(n_entries: int, generator: torch.Generator) -> Tensor:
    """Return a uniformly random orthogonal matrix.

    Parameters
    ----------
    n_entries : int
        Size n.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Tensor of shape (n, n)
        The matrix, float64.

    Examples
    --------
    >>> import torch
    >>> from ellzero.objectives import random_rotation
    >>> R = random_rotation(3, torch.Generator().manual_seed(0))
    >>> torch.allclose(R @ R.T, torch.eye(3).double())
    True
    """
    n = check_integer("n_entries", n_entries, 1)
    Q, R = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    # The signs make the distribution uniform.
    out: Tensor = Q * torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q)
    return out
