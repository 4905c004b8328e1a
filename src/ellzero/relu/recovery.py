r"""Recovery of two-layer ReLU networks with few nonzero weights, by hard thresholding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.certificates import verify
from ellzero.core.problem import Problem
from ellzero.core.result import Certificate, Check, Claim
from ellzero.core.solver import iterate
from ellzero.relu.fused import (
    NAME,
    FusedLeastSquares,
    RectifiedLeastSquares,
    check_samples,
)
from ellzero.relu.network import TwoLayerReLU
from ellzero.sets import L0Ball
from ellzero.solvers import NIHT
from ellzero.tensors import named
from ellzero.validation import check_choice, check_integer

# Loss, relative to that of the zero network, that counts as interpolation, and of a refinement
# after which nothing is left but rounding.
EXACT, ROUNDING = 1e-16, 1e-28
# Angle to the kink of a neuron at which a sample counts as on it.
KINK = 1e-9
# Alternations of thresholding and refits after a start, and of patterns and refits.
N_ROUNDS, N_REFITS = 6, 40


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the search and where it led.

    Parameters
    ----------
    width : int
        Neurons that it was allowed.
    value : float
        Objective reached.
    n_iter : int
        Steps of hard thresholding.
    """

    width: int
    value: float
    n_iter: int


@dataclass(frozen=True, slots=True)
class RecoveredNetwork:
    """A network with few nonzeros in its fused weights, with what is proven of it.

    Parameters
    ----------
    coef : Tensor of shape (n_neurons, n_features)
        Fused weights w_j = v_j u_j; rows of unused neurons are zero.
    signs : Tensor of shape (n_neurons,)
        The v_j, 1 or -1.
    gates : Tensor of shape (n_samples, n_neurons), bool
        Patterns of the neurons; of unused ones those of their generators.
    value : float
        Half the mean square of the residual.
    zero_value : float
        The same of the zero network.
    certificate : Certificate
        Of the network: its count, that it is stationary on its support and stable under hard
        thresholding; OPTIMAL when it interpolates.
    pattern_certificate : Certificate
        Of the weights among all with the same patterns, from `verify`: exchanges, a lower bound
        and its gap, which say nothing about other patterns.
    starts : tuple of Start
        What every start reached.
    """

    coef: Tensor
    signs: Tensor
    gates: Tensor
    value: float
    zero_value: float
    certificate: Certificate
    pattern_certificate: Certificate
    starts: tuple[Start, ...]

    @property
    def n_nonzero(self) -> int:
        """Nonzero fused weights, which are the hidden weights of the module."""
        return named.to_int(named.count_nonzero({NAME: self.coef}))

    @property
    def n_neurons(self) -> int:
        """Neurons that are used."""
        return len(self.network.outputs)

    @property
    def relative_loss(self) -> float:
        """Value over that of the zero network; 0.0 when that is zero."""
        return self.value / self.zero_value if self.zero_value > 0 else 0.0

    @property
    def interpolates(self) -> bool:
        """Whether the targets are met to rounding, so that no network has a lower value."""
        return self.relative_loss <= EXACT

    @property
    def network(self) -> TwoLayerReLU:
        """The network of the neurons in use, with output weights 1 and -1 and no biases."""
        used = (self.coef != 0).any(-1)
        hidden = (self.signs.unsqueeze(-1) * self.coef)[used].double().cpu()
        return TwoLayerReLU(hidden.numpy(), None, self.signs[used].double().cpu().numpy(), None)

    def to_module(self) -> torch.nn.Sequential:
        """Return Linear, ReLU, Linear in float64, without biases, output weights 1 and -1.

        Returns
        -------
        torch.nn.Sequential
            With `n_nonzero` nonzero hidden weights, and one output weight for each neuron in use.
        """
        module: torch.nn.Sequential = self.network.to_module()
        return module


def recover_network(
    X: Tensor,
    y: Tensor,
    n_nonzero: int,
    n_neurons: int,
    *,
    signs: str = "both",
    search_widths: bool = True,
    n_starts: int = 20,
    max_iter: int = 200,
    swaps: str = "none",
    generator: torch.Generator | None = None,
) -> RecoveredNetwork:
    r"""Search for a two-layer ReLU network with few nonzero weights.

    .. math:: \min_w \frac{1}{2n} \Big\| \sum_j \sigma_j (\sigma_j X w_j)_+ - y \Big\|^2
        \quad \text{subject to} \quad \|w\|_0 \le s

    over fused weights :math:`w_j = v_j u_j` and signs :math:`\sigma_j`; s is `n_nonzero`.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Samples; arrays are taken as well, float32 is converted. A column of ones gives the
        neurons biases.
    y : Tensor of shape (n_samples,)
        Targets.
    n_nonzero : int
        Most nonzero fused weights, over all neurons together. Must be at least 1.
    n_neurons : int
        Most neurons. Must be at least 1.
    signs : {"both", "positive"}, default="both"
        Signs of the output weights. "positive" is the rule of the public code of the paper, in
        which patterns become those of w_j itself: such networks are convex functions only.
    search_widths : bool, default=True
        Whether starts may use fewer neurons than `n_neurons`, which more than anything else
        decides about success: too many neurons share what belongs to one.
    n_starts : int, default=20
        Most random starts; the search ends at the first one that interpolates.
    max_iter : int, default=200
        Most steps of hard thresholding in a row.
    swaps : {"none", "auto", "all"}, default="none"
        Exchanges of one support entry that `pattern_certificate` looks at, as in `verify`.
    generator : torch.Generator or None, default=None
        Source of the first patterns and of signs; None means seed 0.

    Returns
    -------
    RecoveredNetwork
        The best network found, refitted on its support, with its certificate.

    Raises
    ------
    InvalidParameterError
        If a setting is out of range, a shape does not fit, or a number is not finite.

    See Also
    --------
    FusedLeastSquares : The convex problem with given patterns, for any solver of an `L0Ball`.
    ConvexReLURegressor : Networks with few neurons instead of few weights, over every width.

    Notes
    -----
    Each start draws Gaussian generators h_j, takes the patterns 1(X h_j > 0) for the first step
    of normalized iterative hard thresholding and those of the weights themselves after each step
    (the sequential variant of [1]_). Steps halve until the quadratic model of the ReLU network
    holds, so that its loss never increases. Patterns and least squares on the support then
    alternate until both stay. A step costs about 3 n p d operations, memory is n p numbers.

    What is guaranteed is what the certificate says: the count, and stability under hard
    thresholding among all weights with the same patterns. The recovery theorem of [1]_ is for
    patterns that are given, Gaussian X, enough samples and an inflated budget; it does not cover
    the search for patterns. If no sample is on a kink, the network is a local minimum on its
    support of the problem without given patterns as well.

    References
    ----------
    .. [1] S. Fridovich-Keil and M. Pilanci, "A Recovery Guarantee for Sparse Neural Networks",
       arXiv:2509.20323. Signs, widths and refits are ours.

    Examples
    --------
    >>> import torch
    >>> from ellzero.relu import recover_network
    >>> X = torch.randn(200, 10, generator=torch.Generator().manual_seed(1)).double()
    >>> y = torch.relu(X[:, 0] - 2 * X[:, 3]) - torch.relu(X[:, 5])
    >>> found = recover_network(X, y, n_nonzero=3, n_neurons=4)
    >>> found.n_nonzero, found.n_neurons, found.interpolates
    (3, 2, True)
    """
    X, y = check_samples(X, y)
    # Recovery to rounding, and its proof, are those of float64.
    X, y = X.double(), y.double()
    check_integer("n_nonzero", n_nonzero, low=1)
    check_integer("n_neurons", n_neurons, low=1)
    check_integer("n_starts", n_starts, low=1)
    check_integer("max_iter", max_iter, low=1)
    check_choice("signs", signs, ("both", "positive"))
    check_choice("swaps", swaps, ("none", "auto", "all"))
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    zero_value = named.to_float(y.square().mean()) / 2
    widest = min(n_neurons, n_nonzero) if search_widths else n_neurons
    tried: list[Start] = []
    best: tuple[float, Any] | None = None
    for number in range(n_starts):
        width = next_width(widest, tried) if search_widths else n_neurons
        objective = _draw(X, y, n_neurons, width, number, signs, generator)
        value, coef, n_iter = descend(objective, n_nonzero, max_iter, zero_value)
        tried.append(Start(width, value, n_iter))
        if best is None or value < best[0]:
            best = value, (coef, objective)
        if value <= EXACT * zero_value:
            break
    assert best is not None
    value, (coef, objective) = best
    gates = objective.gates({NAME: coef})
    proven = _certify(X, y, gates, coef, n_nonzero, swaps, zero_value)
    return RecoveredNetwork(coef, objective.signs, gates, value, zero_value, *proven, tuple(tried))


def next_width(widest: int, tried: list[Start]) -> int:
    """Return the width of the next start: a ladder first, then beside the best so far.

    Parameters
    ----------
    widest : int
        Most neurons.
    tried : list of Start
        Starts done.

    Returns
    -------
    int
        A width in [1, widest].
    """
    ladder = sorted({min(widest, round(2 ** (k / 2))) for k in range(2 * widest.bit_length() + 1)})
    if len(tried) < len(ladder):
        # Wide ones first: with enough budget they interpolate more often.
        return ladder[::-1][len(tried)]
    best = min(tried, key=lambda start: start.value).width
    counts = {w: sum(s.width == w for s in tried) for w in range(1, widest + 1)}
    near = [w for w in counts if abs(w - best) <= max(1, best // 3)]
    return min(near, key=lambda w: (counts[w], abs(w - best)))


def _draw(
    X: Tensor,
    y: Tensor,
    n_neurons: int,
    width: int,
    number: int,
    signs: str,
    generator: torch.Generator,
) -> RectifiedLeastSquares:
    """Return the objective of one start; neurons above its width have no pattern."""
    gaussian = torch.randn(n_neurons, X.shape[1], generator=generator, dtype=torch.float64)
    gaussian[width:] = 0.0
    coins = torch.rand(n_neurons, generator=generator) < 0.5
    even = torch.arange(n_neurons) % 2 == 0
    plus = torch.ones_like(even) if signs == "positive" else (even if number % 2 == 0 else coins)
    ones = torch.where(plus, 1.0, -1.0)
    return RectifiedLeastSquares(X, y, ones.to(X), gaussian.to(X))


def descend(
    objective: RectifiedLeastSquares, n_nonzero: int, max_iter: int, zero_value: float
) -> tuple[float, Tensor, int]:
    """Alternate hard thresholding and refits from zero until neither helps.

    Parameters
    ----------
    objective : RectifiedLeastSquares
        Loss of the network, with the generators of the start.
    n_nonzero : int
        Budget.
    max_iter : int
        Most steps of hard thresholding in a row.
    zero_value : float
        Loss of the zero network.

    Returns
    -------
    tuple of (float, Tensor, int)
        Value, fused weights and steps of hard thresholding.
    """
    problem = Problem(objective, L0Ball(n_nonzero))
    coef = objective.init_params()[NAME]
    value, n_iter = zero_value, 0
    for _ in range(N_ROUNDS):
        run = iterate(problem, NIHT(tol=1e-7), {NAME: coef}, max_iter=max_iter)
        n_iter += named.to_int(run.n_iter[0])
        reached, moved = refit_patterns(objective, named.row(run.params, 0)[NAME], zero_value)
        if not math.isfinite(reached) or reached > value:
            break
        done = reached >= value * (1 - 1e-9) or reached <= EXACT * zero_value
        value, coef = reached, moved
        if done:
            break
    return value, coef, n_iter


def refit_patterns(
    objective: RectifiedLeastSquares, coef: Tensor, zero_value: float
) -> tuple[float, Tensor]:
    """Alternate patterns and least squares on the support while the loss falls.

    Parameters
    ----------
    objective : RectifiedLeastSquares
        Loss of the network.
    coef : Tensor of shape (n_neurons, n_features)
        Fused weights.
    zero_value : float
        Loss of the zero network.

    Returns
    -------
    tuple of (float, Tensor)
        Value and fused weights, on the same support.
    """
    value = named.to_float(objective.value({NAME: coef}))
    masks = {NAME: coef != 0}
    for _ in range(N_REFITS):
        target = objective.fused({NAME: coef}).minimize_on(masks)[NAME]
        length = 1.0
        while True:
            trial = coef + length * (target - coef) if length < 1 else target
            reached = named.to_float(objective.value({NAME: trial}))
            if reached < value or length < 1e-3:
                break
            length /= 2
        if reached >= value:
            break
        fell = value - reached
        value, coef = reached, trial
        if fell <= 1e-13 * value or value <= ROUNDING * zero_value:
            break
    return value, coef


def _certify(
    X: Tensor,
    y: Tensor,
    gates: Tensor,
    coef: Tensor,
    n_nonzero: int,
    swaps: str,
    zero_value: float,
) -> tuple[Certificate, Certificate]:
    """Return what is proven of the network, and of its weights among all with its patterns."""
    problem = Problem(FusedLeastSquares(X, gates, y), L0Ball(n_nonzero))
    found = verify(problem, {NAME: coef}, swaps=swaps)
    touched, margin = _kinks(X, coef)
    value = found.measures.get("value")
    relative = 0.0
    if zero_value > 0:
        relative = value / zero_value if isinstance(value, float) else math.inf
    checks = [check for check in found.checks if check.claim <= Claim.STATIONARY]
    if found.claim is not None and found.claim >= Claim.FEASIBLE:
        kinks = Check("samples on the kink of a neuron", touched, 0.0, Claim.STATIONARY)
        checks.append(kinks)
    claim = found.claim
    if claim is not None:
        passed = all(check.passed for check in checks)
        claim = min(claim, Claim.STATIONARY) if passed else Claim.FEASIBLE
    bound = gap = None
    if claim is Claim.STATIONARY and relative <= EXACT:
        # No network has a negative loss.
        check = Check("loss over that of the zero network", relative, EXACT, Claim.OPTIMAL)
        checks.append(check)
        claim, bound, gap = Claim.OPTIMAL, 0.0, 0.0
    said = (
        "Stability is that among all weights with the patterns of the network; unused neurons "
        "have those of their generators. Everything is computed in float64, up to rounding.",
    )
    kept = ("value", "tol", "n_nonzero", "n_entries", "budget", "step_size", "smoothness",
            "largest_stable_step", "smallest_magnitude")  # fmt: skip
    measures = {name: found.measures[name] for name in kept if name in found.measures}
    measures |= {"kink_margin": margin, "loss_over_zero_network": relative}
    return Certificate(claim, tuple(checks), said, bound, gap, measures), found


def _kinks(X: Tensor, coef: Tensor) -> tuple[int, float]:
    """Return how many samples lie on a kink, to rounding, and the least angle to one."""
    used = coef[(coef != 0).any(-1)]
    if not used.numel():
        return 0, math.inf
    lengths = X.norm(dim=1, keepdim=True) * used.norm(dim=1)
    # A row of zeros has no side and no influence.
    angles = (X @ used.T).abs() / torch.where(lengths > 0, lengths, torch.inf)
    angles = torch.where(lengths > 0, angles, torch.inf)
    close = (angles <= KINK).any(1)
    return named.to_int(close.sum()), named.to_float(angles.min())
