"""Measure gradient, noise and curvature of a model, and say whom they favor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.core.problem import (
    AbstractCoordinateSmoothObjective,
    AbstractObjective,
    AbstractSmoothObjective,
    AbstractStochasticObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.geometry.diagonals import (
    DENSE_ENTRIES,
    density,
    lanczos,
    smallest_diagonal,
    smallest_diagonal_of,
    smoothness_vector,
)
from ellzero.objectives import FiniteSum
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_integer, check_real

# A factor below this is not worth a change of method.
CLEAR = 2.0
# Steps of the Lanczos process that gives shape and length of the curvature, and of each that only
# lifts a shape; fewer where the basis would hold more numbers than these, but never below 16.
LANCZOS_STEPS, LIFT_STEPS, BASIS_ENTRIES = 128, 40, 30_000_000
ESTIMATE = "estimate at the points"
# Diagonal entries below this share of the mean are lifted to it: a zero would divide.
FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Gradient, noise and curvature at some points, coordinate by coordinate.

    Parameters
    ----------
    grad : Tensor of shape (n_points, n)
        Gradients.
    noise : Tensor of shape (n_points, n) or None
        Root mean squared errors of sampled gradients; None when the objective is not sampled.
    smoothness : Tensor of shape (n,)
        The refined smoothness vector L.
    spectral : float
        The largest magnitude of an eigenvalue of the curvature: the usual smoothness constant.
    kind : str
        How `smoothness` stands to the curvature: "upper bound" everywhere, "at the points", or
        "estimate at the points".
    decrease : float
        Value at the first point minus the lower bound given.
    """

    grad: Tensor
    noise: Tensor | None
    smoothness: Tensor
    spectral: float
    kind: str
    decrease: float

    @property
    def n_entries(self) -> int:
        """Number of coordinates n."""
        return int(self.smoothness.shape[0])

    @property
    def density_grad(self) -> float:
        """Density of the gradient, the mean over the points; see `density`."""
        return named.to_float(density(self.grad).nanmean())

    @property
    def density_noise(self) -> float | None:
        """Density of the noise, or None without noise."""
        if self.noise is None or not named.any_true(self.noise > 0):
            return None
        return named.to_float(density(self.noise).nanmean())

    @property
    def density_smoothness(self) -> float:
        """Density of the refined smoothness vector."""
        return named.to_float(density(self.smoothness))

    @property
    def curvature_ratio(self) -> float:
        """Noiseless factor between the bounds of SGD and AdaGrad: n |H| / |L|_1, in [0, n]."""
        total = named.to_float(self.smoothness.sum())
        return self.n_entries * self.spectral / total if total > 0 else 1.0

    @property
    def noise_ratio(self) -> float | None:
        """Factor between the noise terms: n^2 sum L_i sigma_i^2 / (|L|_1 |sigma|_1^2)."""
        if self.density_noise is None or self.noise is None:
            return None
        sigma = self.noise.amax(0)
        weighted = self.n_entries**2 * (self.smoothness * sigma.square()).sum()
        below = self.smoothness.sum() * sigma.sum().square()
        return named.to_float(weighted / below) if named.to_float(below) > 0 else 1.0

    @property
    def step_ratio(self) -> float:
        """Guaranteed fall of one sign step over that of one gradient step, the median over points.

        A step along the signs lowers the value by |g|_1^2 / (2 |L|_1), one along the gradient by
        |g|_2^2 / (2 |H|): their ratio is the density of the gradient times `curvature_ratio`.
        """
        each = density(self.grad)
        each = each[~each.isnan()]
        return named.to_float(each.median()) * self.curvature_ratio if len(each) else 1.0

    def iterations(self, accuracy: float) -> tuple[float, float]:
        """Return the bounds on the iterations of SGD and AdaGrad, constants and logs left out.

        Parameters
        ----------
        accuracy : float
            The l1-norm of the gradient that is asked for.

        Returns
        -------
        tuple of float
            For SGD and for AdaGrad. Their quotient is a comparison of upper bounds, no promise.
        """
        eps = check_real("accuracy", accuracy, 0.0, open_low=True)
        n, total = self.n_entries, named.to_float(self.smoothness.sum())
        sgd = n * self.decrease * self.spectral / eps**2
        adagrad = self.decrease * total / eps**2
        if self.noise is not None:
            sigma = self.noise.amax(0)
            weighted = named.to_float((self.smoothness * sigma.square()).sum())
            sum_squared = named.to_float(sigma.sum()) ** 2
            sgd += n**2 * self.decrease * weighted / eps**4
            adagrad += self.decrease * total * sum_squared / eps**4 + sum_squared / eps**2
        return sgd, adagrad

    @property
    def favors(self) -> str:
        """Whom the geometry favors: "coordinates", "one step size", or "neither".

        Coordinates: a curvature ratio of at least 2 and a step ratio of at least 1. One step
        size: a step ratio of at most 1 / 2.
        """
        if self.curvature_ratio >= CLEAR and self.step_ratio >= 1:
            return "coordinates"
        return "one step size" if self.step_ratio <= 1 / CLEAR else "neither"

    @property
    def verdict(self) -> str:
        """What follows, in words with the numbers."""
        n, ratio, step = self.n_entries, self.curvature_ratio, self.step_ratio
        spread = f"the curvature ratio is {ratio:.3g} of at most {n}"
        where = (
            f"a sign step is guaranteed {step:.3g} times the fall of the value of a gradient step "
            f"(density of the gradient {self.density_grad:.2g})"
        )
        words = {
            "coordinates": "Coordinate-wise methods should win: curvature sits in few "
            f"coordinates, {spread}. So many times lower is the bound of AdaGrad on the "
            f"iterations to a small l1-norm of the gradient; {where}.",
            "one step size": f"One step size for all should do better: {where}, and {spread}.",
            "neither": f"No clear winner: {spread}, and {where}.",
        }[self.favors]
        if self.kind == ESTIMATE:
            words += (
                " The curvature is an estimate from products with random vectors, good to some "
                "hundredths where few eigenvalues are large; it can be off to both sides."
            )
        noise = self.noise_ratio
        if noise is not None:
            side = "speaks for" if noise >= CLEAR else "is neutral to"
            side = "speaks against" if noise <= 1 / CLEAR else side
            words += (
                f" The noise (density {self.density_noise:.2g}) {side} coordinate-wise methods: "
                f"its term in the bounds differs by a factor of {noise:.3g}."
            )
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, ready for JSON."""
        return {
            "n_entries": self.n_entries,
            "n_points": int(self.grad.shape[0]),
            "density_grad": self.density_grad,
            "density_noise": self.density_noise,
            "density_smoothness": self.density_smoothness,
            "smoothness_sum": named.to_float(self.smoothness.sum()),
            "smoothness_max": named.to_float(self.smoothness.max()),
            "spectral": self.spectral,
            "smoothness_kind": self.kind,
            "curvature_ratio": self.curvature_ratio,
            "noise_ratio": self.noise_ratio,
            "step_ratio": self.step_ratio,
            "favors": self.favors,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        """Return the verdict and the numbers behind it, one in a line."""
        noise = self.density_noise
        total = named.to_float(self.smoothness.sum())
        lines = [
            self.verdict,
            f"coordinates n                 {self.n_entries}",
            f"density of the gradient       {self.density_grad:.4g}",
            f"density of the noise          {'no noise' if noise is None else f'{noise:.4g}'}",
            f"density of the curvature      {self.density_smoothness:.4g}",
            f"|L|_1                         {total:.4g} ({self.kind})",
            f"largest curvature             {self.spectral:.4g}",
            f"curvature ratio n |H|/|L|_1   {self.curvature_ratio:.4g}",
        ]
        if self.noise_ratio is not None:
            lines.append(f"noise ratio                   {self.noise_ratio:.4g}")
        lines.append(f"step ratio                    {self.step_ratio:.4g}")
        return "\n".join(lines)


def measure_geometry(
    objective: AbstractObjective,
    params: Params | None = None,
    *,
    lower_bound: float = 0.0,
    n_probes: int = 32,
    generator: torch.Generator | None = None,
) -> Geometry:
    r"""Measure how gradient, noise and curvature spread over the coordinates.

    Parameters
    ----------
    objective : AbstractObjective
        Any objective with second derivatives or a curvature bound; noise is measured where it is
        an `AbstractStochasticObjective`, such as `FiniteSum`.
    params : mapping of str to Tensor, Batch or None, default=None
        A point, or a batch of them, such as iterates of a run. None means the present parameters
        of a module, else zero.
    lower_bound : float, default=0.0
        A number below all values; 0 suits losses.
    n_probes : int, default=32
        Random vectors that estimate norms of rows of the Hessian, for more than 512 entries.
    generator : torch.Generator or None, default=None
        Source of the probes; None means one seeded with 0.

    Returns
    -------
    Geometry
        The vectors, their densities, the ratios of the bounds, and a verdict in words.

    Raises
    ------
    IncompatibleError
        If the objective has neither second derivatives nor a curvature bound.
    InvalidParameterError
        If a number is out of range, a point is not finite, or the value lies below `lower_bound`.

    Notes
    -----
    L is a bound everywhere where the objective has one. Else it holds at the points: up to 512
    entries from the whole Hessian, with nearly the smallest possible sum. Beyond that it is an
    estimate, and the verdict says so: a diagonal S from up to 128 Ritz pairs of the Hessian by the
    Lanczos process and from the norms of the rows of what they leave (`n_probes` Hessian-vector
    products), multiplied by the largest eigenvalue of :math:`S^{-1/2} H S^{-1/2}`, 80 more
    products. On networks of 600 parameters its sum is within some hundredths of the smallest. It
    can err to both sides, the more so the more eigenvalues are large. Between the points curvature
    can be larger.

    The verdict compares guarantees [1]_ [2]_: the l1-norm of the gradient after T steps, and the
    fall of the value in one step. A preconditioner for all coordinates, momentum or a schedule are
    outside of it.

    References
    ----------
    .. [1] R. Jiang, D. Maladkar, A. Mokhtari, "Provable complexity improvement of AdaGrad over
       SGD", arXiv:2406.04592.
    .. [2] J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed
       optimisation for non-convex problems", arXiv:1802.04434.

    Examples
    --------
    >>> from ellzero.geometry import measure_geometry
    >>> from ellzero.objectives import StiffRamps
    >>> f = StiffRamps(64)
    >>> found = measure_geometry(f, f.start())
    >>> found.favors, round(found.curvature_ratio, 2)
    ('coordinates', 45.71)
    """
    check_integer("n_probes", n_probes, 1)
    check_real("lower_bound", lower_bound)
    if params is None:
        start: Callable[[], Params] = getattr(objective, "current_params", objective.init_params)
        params = start()
    points = named.to_batch(params)
    value, grad = objective.value_and_grad(points)
    flat = named.flatten(Batch(grad)).detach().double()
    if not named.all_true(torch.isfinite(flat)) or not named.all_true(torch.isfinite(value)):
        raise InvalidParameterError(
            "`params` must have a finite value and gradient, got NaN or infinity."
        )
    decrease = named.to_float(value[0]) - lower_bound
    if decrease < 0:
        raise InvalidParameterError(
            f"`lower_bound` must be below the value, got {lower_bound:g} and a value of "
            f"{named.to_float(value[0]):g}.",
            "Give a number below all values.",
        )
    noise = None
    if isinstance(objective, AbstractStochasticObjective):
        noise = named.flatten(Batch(objective.noise_vector(points))).detach().double()
    if isinstance(objective, AbstractCoordinateSmoothObjective | AbstractSmoothObjective):
        smoothness, kind = smoothness_vector(objective), "upper bound"
        spectral = named.to_float(smoothness.max())
        if isinstance(objective, AbstractSmoothObjective):
            spectral = min(spectral, objective.smoothness())
    elif isinstance(objective, AbstractTwiceDifferentiable):
        if flat.shape[1] <= DENSE_ENTRIES:
            smoothness, spectral = _whole(objective, points)
            kind = "at the points"
        else:
            source = generator or torch.Generator().manual_seed(0)
            smoothness, spectral = _probed(objective, points, n_probes, source)
            kind = ESTIMATE
    else:
        raise IncompatibleError(
            f"`{type(objective).__name__}` has neither second derivatives nor a curvature bound.",
            "Wrap a module as `ellzero.ModuleLoss`, or measure a smooth objective.",
        )
    return Geometry(flat, noise, smoothness, spectral, kind, decrease)


def _whole(objective: AbstractTwiceDifferentiable, points: Batch) -> tuple[Tensor, float]:
    """Return L over all points and the largest curvature, from whole Hessians."""
    n = named.size(points)
    vectors, norms = [], []
    for i in range(points.size):
        one = named.take(points, slice(i, i + 1))
        device = next(iter(points.values())).device
        H = objective.hessian_on(one, torch.arange(n, device=device).unsqueeze(0))[0].double()
        H = (H + H.T) / 2
        vectors.append(smallest_diagonal(H))
        norms.append(torch.linalg.eigvalsh(H).abs().max())
    return torch.stack(vectors).amax(0), named.to_float(torch.stack(norms).max())


def _probed(
    objective: AbstractTwiceDifferentiable,
    points: Batch,
    n_probes: int,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Return L over all points and the largest curvature, from Hessian-vector products."""
    template = named.row(points, 0)
    n = named.size(points)
    vectors, norms = [], []
    for i in range(points.size):
        point = named.row(points, i)

        def product(vector: Tensor, point: Params = point) -> Tensor:
            like = next(iter(point.values()))
            along = named.unflatten(vector.to(like), template)
            return named.flatten(objective.hessian_vector(point, along)).double()

        most = max(BASIS_ENTRIES // n, 16)
        values, ritz, miss = lanczos(product, n, min(LANCZOS_STEPS, most), generator)
        norm = named.to_float(values.abs().max())
        squares, rest = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for _ in range(n_probes):
            signs = 2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1.0
            image = product(signs)
            squares += image.square()
            rest += (image - ritz @ (values * (ritz.T @ signs))).square()
        found = smallest_diagonal_of(values.abs(), ritz, generator)
        candidates = [torch.full((n,), norm + miss, dtype=torch.float64)]
        # Any positive shape becomes valid when it is lifted: that of the large eigenvalues and
        # norms of rows of the remainder, and norms of whole rows.
        for shape in (found + (rest / n_probes).sqrt(), (squares / n_probes).sqrt()):
            S = shape.clamp_min(max(FLOOR * named.to_float(shape.mean()), 1e-300))
            root = S.sqrt()

            def scaled(vector: Tensor, root: Tensor = root, point: Params = point) -> Tensor:
                return product(vector / root, point) / root

            lifted, _, off = lanczos(scaled, n, min(LIFT_STEPS, most), generator)
            candidates.append((named.to_float(lifted.abs().max()) + off) * S)
        vectors.append(min(candidates, key=lambda L: named.to_float(L.sum())))
        norms.append(norm)
    return torch.stack(vectors).amax(0), max(norms)


def measure_module(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    *,
    lower_bound: float = 0.0,
    n_probes: int = 32,
    generator: torch.Generator | None = None,
) -> Geometry:
    """Measure the geometry of a network on the batches of a loader, at its present weights.

    Parameters
    ----------
    model : torch.nn.Module
        The network; it is never changed.
    loss_fn : callable
        Called as ``loss_fn(model(X), y)``; the mean loss of one batch, a 0-d tensor.
    batches : iterable of tuple
        Pairs of inputs and targets, as a loader gives them. The noise is that of drawing one of
        them.
    lower_bound : float, default=0.0
        As for `measure_geometry`.
    n_probes : int, default=32
        As for `measure_geometry`.
    generator : torch.Generator or None, default=None
        As for `measure_geometry`.

    Returns
    -------
    Geometry
        As `measure_geometry` of the mean loss over the batches.

    Raises
    ------
    InvalidParameterError
        If there is no batch, one is not a pair, or the network changes from call to call, as batch
        normalization and dropout in training mode do.

    Notes
    -----
    Up to 512 parameters the cost is as many Hessian-vector products over all batches; beyond, up
    to ``n_probes + 208``, which keep up to 128 vectors of that length (16 beyond 2 million).

    Examples
    --------
    >>> import torch
    >>> from ellzero.geometry import measure_module
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> X = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    >>> found = measure_module(model, torch.nn.functional.mse_loss, [(X, X.sum(1, True))])
    >>> found.smoothness.round(decimals=6).tolist(), round(found.curvature_ratio, 6)
    ([9.0, 1.0], 1.8)
    """
    objective = FiniteSum.from_batches(model, loss_fn, batches)
    return measure_geometry(
        objective, lower_bound=lower_bound, n_probes=n_probes, generator=generator
    )
