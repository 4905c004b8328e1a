"""One-hidden-layer networks on disjoint patches of Gaussian input, against a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractObjective,
    AbstractSemiconcaveObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import InvalidParameterError
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_integer, check_real

NAME = "filter"


def check_teacher(teacher: Any) -> Tensor:
    """Return teacher filters, (d,) or (n_teachers, d), or raise.

    Raises
    ------
    InvalidParameterError
        If it is not a tensor of floating-point numbers with one or two axes, or a filter is zero
        or not finite.
    """
    if not isinstance(teacher, Tensor) or teacher.ndim not in (1, 2) or teacher.numel() == 0:
        given = f"shape {tuple(teacher.shape)}" if isinstance(teacher, Tensor) else repr(teacher)
        raise InvalidParameterError(
            f"`teacher` must be a tensor of shape (d,) or (n_teachers, d), got {given}."
        )
    if not teacher.is_floating_point():
        raise InvalidParameterError(
            f"`teacher` must hold floating-point numbers, got {teacher.dtype}.",
            "Pass `teacher.double()`.",
        )
    if not named.all_true(torch.isfinite(teacher)):
        raise InvalidParameterError("`teacher` must be finite, got NaN or infinity.")
    zero = (teacher == 0).all(-1)
    if named.any_true(zero):
        row = f" in row {named.to_int(zero.to(torch.int64).argmax())}" if zero.ndim else ""
        raise InvalidParameterError(
            f"`teacher` must not be a zero filter, got one{row}.",
            "A network with a zero filter is constant: there is nothing to learn.",
        )
    return teacher


def match_teacher(teacher: Tensor, filters: Tensor, is_batch: bool) -> Tensor:
    """Return the teacher in the finer of both types, or raise when rows do not match.

    Raises
    ------
    InvalidParameterError
        If there are several teachers and not as many points.
    """
    if teacher.ndim == 2 and (not is_batch or filters.shape[0] != teacher.shape[0]):
        given = f"a batch of {filters.shape[0]}" if is_batch else "a single point"
        raise InvalidParameterError(
            f"`params` must be a batch of {teacher.shape[0]} points, one for each teacher, got "
            f"{given}.",
            "Start from `objective.random_params(generator)`.",
        )
    return teacher.to(torch.promote_types(teacher.dtype, filters.dtype))


def random_filters(teacher: Tensor, generator: torch.Generator | None, size: int | None) -> Params:
    """Return filters drawn uniformly from the unit sphere; one for each teacher when several."""
    if size is not None:
        check_integer("size", size, 1)
    if teacher.ndim == 2:
        size = teacher.shape[0]
    shape = (teacher.shape[-1],) if size is None else (size, teacher.shape[-1])
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    drawn = (drawn / drawn.norm(dim=-1, keepdim=True)).to(teacher)
    return {NAME: drawn} if size is None else Batch({NAME: drawn})


@dataclass(frozen=True, slots=True)
class Angle:
    """The plane of a filter and its teacher, for every row.

    Parameters
    ----------
    length, teacher_length : Tensor of shape (..., 1)
        Their norms.
    unit, teacher_unit : Tensor of shape (..., d)
        Their directions; NaN for a zero filter.
    across : Tensor of shape (..., d)
        Component of the direction of the teacher orthogonal to the filter; its norm is the sine.
    sine, cosine, theta : Tensor of shape (..., 1)
        The angle, exact near 0 as well.
    """

    length: Tensor
    teacher_length: Tensor
    unit: Tensor
    teacher_unit: Tensor
    across: Tensor
    sine: Tensor
    cosine: Tensor
    theta: Tensor


def measure_angle(filters: Tensor, teacher: Tensor) -> Angle:
    """Return the plane of filters (..., d) and their teachers (d,) or (..., d)."""
    filters = filters.to(teacher.dtype)
    length = filters.norm(dim=-1, keepdim=True)
    teacher_length = teacher.norm(dim=-1, keepdim=True)
    unit, teacher_unit = filters / length, teacher / teacher_length
    cosine = (unit * teacher_unit).sum(-1, keepdim=True)
    # From the difference of directions: exact at small angles, where 1 - cosine is rounding.
    chord = teacher_unit - unit
    across = chord - (unit * chord).sum(-1, keepdim=True) * unit
    sine = across.norm(dim=-1, keepdim=True)
    return Angle(
        length, teacher_length, unit, teacher_unit, across, sine, cosine,
        torch.atan2(sine, cosine),
    )  # fmt: skip


class AbstractPatchNetwork(AbstractObjective):
    """What the closed forms share: teachers, starts, and the angle to the teacher."""

    teacher: Tensor
    n_patches: int

    @override
    def init_params(self) -> Params:
        """Return a zero filter, where no angle is defined: start from `random_params` instead."""
        return {NAME: torch.zeros_like(self.teacher.reshape(-1, self.teacher.shape[-1])[0])}

    def current_params(self) -> Params:
        """Return the default start: a random filter with a fixed seed."""
        return self.random_params()

    def random_params(
        self, generator: torch.Generator | None = None, size: int | None = None
    ) -> Params:
        """Return filters drawn uniformly from the unit sphere.

        Parameters
        ----------
        generator : torch.Generator or None, default=None
            Randomness; None means a fixed seed.
        size : int or None, default=None
            How many. None means one, or one for each teacher when there are several.

        Returns
        -------
        mapping of str to Tensor
            A point, or a `Batch`.
        """
        return random_filters(self.teacher, generator, size)

    def _angle(self, params: Params) -> Angle:
        filters = params[NAME]
        return measure_angle(filters, match_teacher(self.teacher, filters, named.is_batch(params)))


@final
class PatchNetworkLoss(
    AbstractPatchNetwork, AbstractTwiceDifferentiable, AbstractSemiconcaveObjective
):
    r"""Population loss of a convolutional ReLU network on disjoint patches, in closed form.

    The network :math:`y(x, w) = \frac1k \sum_i \max(\langle w, x_i \rangle, 0)` applies one filter
    to k disjoint patches of d independent standard normal numbers each. Against a teacher
    :math:`w_*`, with the angle :math:`\theta` between the two,

    .. math:: f(w) = E\,(y(x, w) - y(x, w_*))^2 = \frac{1}{k^2} \Bigl[
        \frac{k^2 - k}{2 \pi} (|w| - |w_*|)^2 + \frac k2 |w - w_*|^2
        - \frac k\pi |w| |w_*| (\sin\theta - \theta \cos\theta) \Bigr]

    Parameters
    ----------
    teacher : Tensor of shape (d,) or (n_teachers, d)
        The filter w*, or one for each row of a batch: many teachers are one tensor program.
    n_patches : int
        The number k.

    Raises
    ------
    InvalidParameterError
        If a teacher is zero, not finite or of another shape, or `n_patches` is below 1; and, when
        evaluated, if there are several teachers and not as many points.

    See Also
    --------
    SampledPatchNetworkLoss : The same on a sample.
    ellzero.solvers.RVSM : Learns a sparse teacher.

    Notes
    -----
    The parameter tensor is ``filter`` of shape (d,). A value or gradient costs O(d) for each row,
    whatever k. f is not differentiable at a zero filter, where the gradient is NaN. Its Hessian
    has three different eigenvalues, see `hessian_eigenvalues`; all are at most
    ``(1 + (k - 1) / pi) / k``, so that f less that curvature is concave everywhere, a zero filter
    included, and on :math:`|w| \ge |w_*|` this is a Lipschitz constant of the gradient too. The
    form above has no cancellation near the teacher. With several teachers, `value` of a batch has
    one number for each row, and `ellzero.iterate` takes rows out of points and teachers alike.

    References
    ----------
    .. [1] A. Brutzkus and A. Globerson, "Globally optimal gradient descent for a ConvNet with
       Gaussian inputs", arXiv:1702.07966 (the model).
    .. [2] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting method for learning
       sparse neural networks via l1, l0, and transformed-l1 penalties", arXiv:1812.05719.

    Examples
    --------
    >>> import torch, ellzero
    >>> teacher = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    >>> f = ellzero.PatchNetworkLoss(teacher, n_patches=4)
    >>> f.value({"filter": teacher}).item()
    0.0
    >>> round(f.value({"filter": -teacher}).item(), 3)
    0.25
    """

    def __init__(self, teacher: Tensor, n_patches: int) -> None:
        self.teacher = check_teacher(teacher)
        self.n_patches = check_integer("n_patches", n_patches, 1)

    @override
    def take(self, index: Tensor) -> AbstractObjective:
        if self.teacher.ndim == 1:
            return self
        return PatchNetworkLoss(self.teacher[index], self.n_patches)

    @override
    def value(self, params: Params) -> Tensor:
        return self._value(self._angle(params), params[NAME])

    def _value(self, at: Angle, filters: Tensor) -> Tensor:
        k = self.n_patches
        apart = (filters - at.teacher_length * at.teacher_unit).square().sum(-1, keepdim=True)
        lengths = at.length * at.teacher_length
        # A zero filter has no angle, and what depends on the angle has the factor zero.
        bend = torch.where(at.length == 0, 0.0, lengths * (at.sine - at.theta * at.cosine))
        total = (
            (k * k - k) / (2 * math.pi) * (at.length - at.teacher_length).square()
            + k / 2 * apart
            - k / math.pi * bend
        )
        return total.squeeze(-1) / k**2

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        at, filters = self._angle(params), params[NAME]
        k = self.n_patches
        teacher = at.teacher_length * at.teacher_unit
        ratio = at.teacher_length / at.length
        grad = (
            k * (filters - teacher)
            + (k * k - k) / math.pi * (1 - ratio) * filters
            - k / math.pi * (ratio * at.sine * filters - at.theta * teacher)
        ) / k**2
        return self._value(at, filters), named.like(params, {NAME: grad})

    def _hessian_parts(self, at: Angle) -> tuple[Tensor, Tensor]:
        """Return the weights of I - w w^T / |w|^2 and of its part along the teacher, times k^2."""
        k = self.n_patches
        ratio = at.teacher_length / at.length
        around = -ratio * ((k * k - k) + k * at.sine) / math.pi
        return around, -ratio * k * at.sine / math.pi

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        at, k = self._angle(params), self.n_patches
        around, toward = self._hessian_parts(at)
        v = direction[NAME].to(at.unit.dtype)
        tangent = at.across / torch.where(at.sine == 0, 1.0, at.sine)
        radial = (at.unit * v).sum(-1, keepdim=True) * at.unit
        along = (tangent * v).sum(-1, keepdim=True) * tangent
        out = (self.upper_curvature() * k**2 * v + around * (v - radial) + toward * along) / k**2
        return named.like(direction, {NAME: out})

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        at, k = self._angle(params), self.n_patches
        around, toward = self._hessian_parts(at)
        tangent = at.across / torch.where(at.sine == 0, 1.0, at.sine)
        unit, tangent = (t.gather(-1, index) for t in (at.unit, tangent))
        eye = torch.eye(index.shape[1], dtype=unit.dtype, device=unit.device)
        around, toward = around.unsqueeze(-1), toward.unsqueeze(-1)
        outer = unit.unsqueeze(-1) * unit.unsqueeze(-2)
        along = tangent.unsqueeze(-1) * tangent.unsqueeze(-2)
        # Equal indices name the same entry: the identity restricted to them has a one there.
        same = index.unsqueeze(-1) == index.unsqueeze(-2)
        eye = torch.where(same, torch.ones_like(eye), torch.zeros_like(eye))
        full = self.upper_curvature() * k**2 * eye + around * (eye - outer) + toward * along
        return full / k**2

    def hessian_eigenvalues(self, params: Params) -> Tensor:
        """Return the eigenvalues: along the filter, across it in the plane of both, elsewhere.

        Parameters
        ----------
        params : mapping of str to Tensor
            A point, or a `Batch`.

        Returns
        -------
        Tensor of shape (3,) or (size, 3)
            The first two have multiplicity one, the third d - 2.
        """
        at = self._angle(params)
        around, toward = self._hessian_parts(at)
        top = torch.full_like(around, self.upper_curvature())
        k2 = self.n_patches**2
        return torch.cat([top, top + (around + toward) / k2, top + around / k2], -1)

    @override
    def upper_curvature(self) -> float:
        k = self.n_patches
        return (1 + (k - 1) / math.pi) / k

    def smoothness(self) -> float:
        """Return the Lipschitz constant of the gradient on filters as long as the teacher."""
        return self.upper_curvature()

    def sample(
        self,
        n_samples: int,
        generator: torch.Generator | None = None,
        *,
        noise: float = 0.0,
    ) -> SampledPatchNetworkLoss:
        """Return the loss on a sample of inputs, labeled by the teacher.

        Parameters
        ----------
        n_samples : int
            Inputs to draw.
        generator : torch.Generator or None, default=None
            Randomness; None means a fixed seed.
        noise : float, default=0.0
            Standard deviation of normal noise on the labels.

        Returns
        -------
        SampledPatchNetworkLoss
            Its expectation is this loss plus ``noise ** 2``.

        Raises
        ------
        InvalidParameterError
            If there are several teachers, or a number is out of range.
        """
        check_integer("n_samples", n_samples, 1)
        check_real("noise", noise, 0.0)
        if self.teacher.ndim == 2:
            raise InvalidParameterError(
                f"`sample` needs a single teacher, got {self.teacher.shape[0]}.",
                "Build a `PatchNetworkLoss` for one of them.",
            )
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        shape = (n_samples, self.n_patches, self.teacher.shape[0])
        patches = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.teacher)
        y = (patches @ self.teacher).clamp_min(0).mean(1)
        drawn = torch.randn(n_samples, generator=generator, dtype=torch.float64)
        return SampledPatchNetworkLoss(patches, y + noise * drawn.to(y))


@final
class SampledPatchNetworkLoss(AbstractTwiceDifferentiable):
    r"""Mean squared error of a convolutional ReLU network on disjoint patches of given inputs.

    .. math:: f(w) = \frac1n \sum_j \Bigl( \frac1k \sum_i \max(\langle w, x_{ji} \rangle, 0)
        - y_j \Bigr)^2

    Parameters
    ----------
    patches : Tensor of shape (n_samples, k, d)
        The inputs, cut into k disjoint patches.
    y : Tensor of shape (n_samples,)
        The labels.

    Raises
    ------
    InvalidParameterError
        If shapes differ or numbers are not finite floating-point numbers.

    See Also
    --------
    PatchNetworkLoss : Its expectation over Gaussian inputs, in closed form.

    Notes
    -----
    The parameter tensor is ``filter`` of shape (d,). A value or gradient costs O(n k d) for each
    row. Second derivatives are those away from kinks, where they exist; no curvature bound is
    known in advance, so `RVSM` needs its `step_size`.

    Examples
    --------
    >>> import torch, ellzero
    >>> teacher = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    >>> population = ellzero.PatchNetworkLoss(teacher, n_patches=4)
    >>> data = population.sample(1000).patches
    >>> f = ellzero.SampledPatchNetworkLoss(data, (data @ teacher).clamp_min(0).mean(1))
    >>> f.value({"filter": teacher}).item()
    0.0
    """

    def __init__(self, patches: Tensor, y: Tensor) -> None:
        if not isinstance(patches, Tensor) or patches.ndim != 3 or patches.numel() == 0:
            given = (
                f"shape {tuple(patches.shape)}" if isinstance(patches, Tensor) else repr(patches)
            )
            raise InvalidParameterError(
                f"`patches` must be a tensor of shape (n_samples, k, d), got {given}."
            )
        if not isinstance(y, Tensor) or tuple(y.shape) != (patches.shape[0],):
            given = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else repr(y)
            raise InvalidParameterError(
                f"`y` must be a tensor of shape ({patches.shape[0]},), got {given}."
            )
        for name, tensor in (("patches", patches), ("y", y)):
            if not tensor.is_floating_point() or not named.all_true(torch.isfinite(tensor)):
                raise InvalidParameterError(
                    f"`{name}` must hold finite floating-point numbers, got others."
                )
        self.patches, self.y = patches, y.to(patches)

    @override
    def init_params(self) -> Params:
        return {NAME: torch.zeros_like(self.patches[0, 0])}

    def current_params(self) -> Params:
        """Return the default start: a random filter of length 1 with a fixed seed."""
        return random_filters(self.patches[0, 0], None, None)

    def _forward(self, params: Params) -> tuple[Tensor, Tensor]:
        """Return the errors (size, n) and the derivatives of the outputs (size, n, d)."""
        filters = named.to_batch(params)[NAME]
        dtype = torch.promote_types(filters.dtype, self.patches.dtype)
        patches, filters = self.patches.to(dtype), filters.to(dtype)
        before = torch.einsum("nkd,bd->bnk", patches, filters)
        error = before.clamp_min(0).mean(-1) - self.y.to(dtype)
        slope = torch.einsum("bnk,nkd->bnd", (before > 0).to(dtype), patches) / patches.shape[1]
        return error, slope

    @override
    def value(self, params: Params) -> Tensor:
        filters = named.to_batch(params)[NAME]
        dtype = torch.promote_types(filters.dtype, self.patches.dtype)
        before = torch.einsum("nkd,bd->bnk", self.patches.to(dtype), filters.to(dtype))
        value = (before.clamp_min(0).mean(-1) - self.y.to(dtype)).square().mean(-1)
        return value if named.is_batch(params) else value[0]

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        error, slope = self._forward(params)
        value = error.square().mean(-1)
        grad = 2 / error.shape[1] * torch.einsum("bn,bnd->bd", error, slope)
        if not named.is_batch(params):
            return value[0], {NAME: grad[0]}
        return value, Batch({NAME: grad})

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        error, slope = self._forward(params)
        v = named.to_batch(direction)[NAME].to(slope.dtype)
        moved = torch.einsum("bnd,bd->bn", slope, v)
        out = 2 / error.shape[1] * torch.einsum("bn,bnd->bd", moved, slope)
        return Batch({NAME: out}) if named.is_batch(params) else {NAME: out[0]}

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        error, slope = self._forward(params)
        wide = index.unsqueeze(1).expand(-1, slope.shape[1], -1)
        chosen = slope.gather(2, wide)
        return 2 / error.shape[1] * torch.einsum("bni,bnj->bij", chosen, chosen)
