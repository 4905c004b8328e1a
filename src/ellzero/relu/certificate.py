"""How far a two-layer ReLU network is from the global optimum over every width."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ellzero.core.result import Certificate, Measure
from ellzero.errors import DataError, IncompatibleError
from ellzero.relu.branching import Piece, Split, blend, bound_of_pieces, branch
from ellzero.relu.conclusion import conclude
from ellzero.relu.losses import AbstractLoss, LogisticLoss, loss_of
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.relaxation import Multipliers, bound_of, relax, solve_dual
from ellzero.relu.separation import line_neuron, plane_neuron, search_neurons
from ellzero.validation import check_choice, check_integer, check_real

Floats = NDArray[np.float64]
# Samples up to which the joint semidefinite program is solved.
JOINT_SAMPLES, JOINT_INPUTS = 3000, 80


Side: TypeAlias = Multipliers | Split | Piece


@dataclass(frozen=True, slots=True)
class DualPoint:
    """Evidence of a lower bound.

    Parameters
    ----------
    point : ndarray of shape (n_samples,)
        Dual point v, before it is scaled into the feasible set.
    sides : tuple of Multipliers, Split or Piece, or None
        Evidence for v and for minus v; None where suprema are exact.
    method : str
        How suprema are bounded, in words.
    """

    point: Floats
    sides: tuple[Side, Side] | None
    method: str


def lower_bound(
    A: Floats, y: Floats, loss: AbstractLoss, penalty: float, evidence: DualPoint
) -> tuple[float, float]:
    """Return what a dual point proves, from scratch.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    y : ndarray of shape (n_samples,)
        Targets.
    loss : AbstractLoss
        The loss.
    penalty : float
        Weight of the norm.
    evidence : DualPoint
        Any point with any multipliers.

    Returns
    -------
    bound : float
        Lower bound on the objective of every network of every width.
    supremum : float
        Upper bound on sup |v'(Au)_+| over the unit ball.

    Notes
    -----
    For t with t sup |v'(Au)_+| <= penalty, weak duality gives dual(t v) (Ergen and Pilanci,
    arXiv 2002.11219, section 2 and Theorem 1); the best t is taken.
    """
    tops = []
    for k, sign in enumerate((1.0, -1.0)):
        point = sign * evidence.point
        if evidence.sides is not None:
            side = evidence.sides[k]
            if isinstance(side, Multipliers):
                tops.append(bound_of(A, point, side))
            else:
                tops.append(bound_of_pieces(A, point, side))
        elif A.shape[1] == 1:
            tops.append(line_neuron(A, point)[0])
        else:
            tops.append(plane_neuron(A, point)[0])
    margin = 1e-13 * float(np.abs(evidence.point) @ np.linalg.norm(A, axis=1))
    supremum = max(*tops, 0.0) + margin
    largest = penalty / supremum if supremum > 0 else 1e300
    scale = loss.best_scale(evidence.point, y, min(largest, 1e300))
    return max(loss.dual(scale * evidence.point, y), 0.0), supremum


def search_bound(
    A: Floats,
    y: Floats,
    loss: AbstractLoss,
    penalty: float,
    outputs: Floats,
    *,
    balanced: bool,
    neurons: Floats,
    method: str = "auto",
    max_pieces: int = 8,
) -> tuple[float, DualPoint, float]:
    """Return the best lower bound that can be had, with its evidence and supremum."""
    point = loss.residual(outputs, y)
    if balanced:
        point = loss.balance(point)
    if A.shape[1] <= 2:
        words = "exact supremum in the plane" if A.shape[1] == 2 else "exact supremum"
        evidence = DualPoint(point, None, words)
        return (*_with(lower_bound(A, y, loss, penalty, evidence), evidence),)
    generator = np.random.default_rng(0)

    def quadratic(at: Floats) -> tuple[Multipliers, Multipliers]:
        up, down = (
            relax(A, sign * at, search_neurons(A, sign * at, generator, starts=neurons)[1])[1]
            for sign in (1.0, -1.0)
        )
        return up, down

    candidates = [DualPoint(point, quadratic(point), "quadratic bound of the residual")]
    small = len(y) <= JOINT_SAMPLES and A.shape[1] <= JOINT_INPUTS
    small = small and importlib.util.find_spec("cvxpy") is not None
    joint = None
    if method == "joint" or (method in ("auto", "branch") and small):
        joint = solve_dual(A, y, loss, penalty, point, balanced=balanced)
    if joint is not None:
        found, *sides = joint
        if isinstance(loss, LogisticLoss):
            found = y * np.clip(y * found, 0.0, 1.0 / len(y))
        found = loss.balance(found) if balanced else found
        words = "semidefinite program over point and bound"
        candidates.append(DualPoint(found, (sides[0], sides[1]), words))
        candidates.append(DualPoint(found, quadratic(found), words))
    rated = [_with(lower_bound(A, y, loss, penalty, e), e) for e in candidates]
    best = max(rated, key=lambda item: item[0])
    if method != "branch":
        return best
    for evidence in _branched(A, y, loss, penalty, point, best[1], max_pieces):
        best = max(best, _with(lower_bound(A, y, loss, penalty, evidence), evidence),
                   key=lambda item: item[0])  # fmt: skip
    return best


def _branched(
    A: Floats, y: Floats, loss: AbstractLoss, penalty: float, point: Floats, known: DualPoint,
    max_pieces: int,
) -> list[DualPoint]:  # fmt: skip
    """Return the residual with bounds on pieces, and the best blend of it with a known point."""
    up, down = (
        branch(A, sign * point, goal=penalty * (1 + 1e-7), max_pieces=max_pieces)
        for sign in (1.0, -1.0)
    )
    words = f"quadratic bounds on {up[2]} and {down[2]} pieces of the ball"
    found = [DualPoint(point, (up[1], down[1]), words)]
    if known.sides is None or not all(isinstance(side, Multipliers) for side in known.sides):
        return found
    others = [_as_piece(A, side) for side in known.sides if isinstance(side, Multipliers)]

    def at(share: float) -> DualPoint:
        sides = (blend(up[1], others[0], share), blend(down[1], others[1], share))
        return DualPoint((1 - share) * point + share * known.point, sides, words)

    low, high = 0.0, 1.0
    for _ in range(12):
        # The bound is nearly concave along the line.
        one, two = low + (high - low) / 3, high - (high - low) / 3
        values = [lower_bound(A, y, loss, penalty, at(share))[0] for share in (one, two)]
        low, high = (one, high) if values[1] > values[0] else (low, two)
    return [*found, at(0.5 * (low + high))]


def _as_piece(A: Floats, side: Multipliers) -> Piece:
    """Return the multipliers of the whole ball in the units of those of a piece."""
    sizes = np.maximum(np.linalg.norm(A, axis=1), 1e-300)
    nothing = np.zeros(len(A))
    return Piece(
        side.curvature / 4, nothing, side.share / (2 * sizes), side.slope / 2, np.zeros((0, 0))
    )


def certify_network(
    network: torch.nn.Module | TwoLayerReLU,
    X: ArrayLike,
    y: ArrayLike,
    penalty: float,
    *,
    loss: str = "squared",
    method: str = "auto",
    max_pieces: int = 8,
) -> Certificate:
    r"""Say how far a two-layer ReLU network is from the best one of any width.

    Parameters
    ----------
    network : torch.nn.Module or TwoLayerReLU
        Linear, ReLU, Linear with one output, trained by anybody in any way.
    X : array-like of shape (n_samples, n_features)
        Samples.
    y : array-like of shape (n_samples,)
        Targets; two classes for the logistic loss, the larger one counts as 1.
    penalty : float
        Weight of sum_j \|w_j\| \|(u_j, b_j)\|, which weight decay with (penalty / 2) times all
        squares equals once neurons are balanced. Must be positive.
    loss : {"squared", "logistic"}, default="squared"
        Half the mean square, or the mean logistic loss.
    method : {"auto", "joint", "residual", "branch"}, default="auto"
        "joint" solves a semidefinite program over the dual point and its bound (extra `convex`);
        "residual" bounds the residual alone, without a conic solver; "auto" takes the first up
        to 3000 samples and 80 inputs, where the extra is installed. "branch" cuts the ball into
        pieces besides, for a tighter bound at weak penalties; a piece costs seconds.
    max_pieces : int, default=8
        Most pieces for each sign of the residual, where `method` is "branch". Must be at least 1.

    Returns
    -------
    Certificate
        `lower_bound` holds for networks of every width; `gap` is relative. The claim is OPTIMAL
        below a gap of 1e-6.

    Raises
    ------
    IncompatibleError
        If the network is not of this kind, or does not fit X.
    DataError
        If X or y has NaN, infinite values or wrong shapes.
    InvalidParameterError
        If `penalty` or `max_pieces` is not positive, or a name is not one of those above.

    Notes
    -----
    With v = (y - f) / n, every network costs at least dual(t v) when t v'(Au)_+ <= penalty for
    all unit u and -v likewise (arXiv 2002.11219, Theorem 1). The supremum is NP-hard to find in
    general; it is exact for at most two inputs (a bias counts as one) and bounded from above
    otherwise, see `ellzero.relu.relaxation` and, for pieces of the ball,
    `ellzero.relu.branching`. Rows of more inputs than samples are first written in coordinates of
    their span, which changes no supremum. An intercept in the last layer is free, which asks
    for sum v = 0. The bound is computed in float64 from the evidence alone.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import ConvexReLURegressor, certify_network
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> y = np.abs(X[:, 0])
    >>> model = ConvexReLURegressor(penalty=0.01).fit(X, y)
    >>> certify_network(model.to_module(), X, y, 0.01).gap < 1e-4
    True
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    check_choice("method", method, ("auto", "joint", "residual", "branch"))
    check_integer("max_pieces", max_pieces, low=1)
    chosen = loss_of(loss)
    numbers, rows, targets = read_network(network, X, y, logistic=loss == "logistic")
    found, _ = certify(
        numbers, rows, targets, chosen, penalty, method=method, max_pieces=max_pieces
    )
    return found


def certify(
    network: TwoLayerReLU,
    X: Floats,
    y: Floats,
    loss: AbstractLoss,
    penalty: float,
    *,
    method: str = "auto",
    max_pieces: int = 8,
) -> tuple[Certificate, DualPoint]:
    """Return the certificate of a network, and the evidence of its bound in the row space."""
    outputs = network.predict(X)
    value = loss.value(outputs, y) + penalty * network.norm
    A, neurons = _in_row_space(network.design(X), network.directions)
    bound, evidence, supremum = search_bound(
        A,
        y,
        loss,
        penalty,
        outputs,
        balanced=network.intercept is not None,
        neurons=neurons,
        method=method,
        max_pieces=max_pieces,
    )
    measures: dict[str, Measure] = {
        "n_neurons": network.n_neurons,
        "norm": network.norm,
        "loss": loss.value(outputs, y),
        "bound_method": evidence.method,
        "supremum_over_penalty": supremum / penalty,
    }
    assumptions: tuple[str, ...] = ()
    if evidence.sides is not None:
        assumptions = (
            "The bound is a relaxation: a gap may be its looseness, not the network's fault.",
        )
    scale = loss.value(np.zeros_like(y), y)
    return conclude(value, bound, measures, scale=scale, assumptions=assumptions), evidence


def _in_row_space(A: Floats, neurons: Floats) -> tuple[Floats, Floats]:
    """Return rows and neurons in coordinates of the row space, where it is smaller than theirs.

    Au depends on the part of u in the row space alone, and |v'(Au)_+| grows with its length: the
    supremum over unit vectors is the same.
    """
    n_samples, n_inputs = A.shape
    if n_inputs <= n_samples:
        return A, neurons
    basis, _ = np.linalg.qr(A.T)
    return A @ basis, neurons @ basis


def read_network(
    network: torch.nn.Module | TwoLayerReLU, X: Any, y: Any, *, logistic: bool
) -> tuple[TwoLayerReLU, Floats, Floats]:
    """Return a network and its data as float64 numbers, or raise with what does not fit."""
    numbers = network if isinstance(network, TwoLayerReLU) else TwoLayerReLU.from_module(network)
    rows, targets = read_samples(X, y, logistic=logistic)
    if rows.shape[1] != numbers.hidden.shape[1]:
        raise IncompatibleError(
            f"The network has {numbers.hidden.shape[1]} inputs and X has {rows.shape[1]} columns.",
            "Pass the X that the network was trained on.",
        )
    return numbers, rows, targets


def read_samples(X: Any, y: Any, *, logistic: bool) -> tuple[Floats, Floats]:
    """Return float64 samples and targets, or raise with what is wrong."""
    rows = np.asarray(_plain(X), dtype=np.float64)
    targets = np.asarray(_plain(y))
    if rows.ndim != 2:
        raise DataError(f"X must have two dimensions, got {rows.ndim}.", "Use X.reshape(-1, 1).")
    if targets.shape != (len(rows),):
        raise DataError(f"y must have the shape ({len(rows)},), got {targets.shape}.")
    if not np.isfinite(rows).all():
        raise DataError("X contains NaN or infinite values.", "Impute or drop these rows.")
    if logistic:
        classes = np.unique(targets)
        if len(classes) != 2:
            raise DataError(f"The logistic loss needs two classes, got {len(classes)}.")
        targets = np.where(targets == classes[1], 1.0, -1.0)
    targets = targets.astype(np.float64)
    if not np.isfinite(targets).all():
        raise DataError("y contains NaN or infinite values.", "Impute or drop these rows.")
    return rows, targets


def _plain(values: Any) -> Any:
    """Return tensors as arrays."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _with(bound: tuple[float, float], evidence: DualPoint) -> tuple[float, DualPoint, float]:
    """Return bound, evidence and supremum in the order of `search_bound`."""
    return bound[0], evidence, bound[1]
