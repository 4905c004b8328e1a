"""Certificates: what is proven of a point, from the problem and the point alone."""

from ellzero.certificates.bounds import (
    LowerBound,
    box_bound,
    dual_bound,
    lower_bound,
    perspective_bound,
    point_bound,
)
from ellzero.certificates.epsilon import EpsilonOptimality, epsilon_optimality
from ellzero.certificates.gradients import (
    AdaGradBound,
    L1Stationarity,
    adagrad_bound,
    l1_stationarity,
)
from ellzero.certificates.proof import ProofCheck, check_proof
from ellzero.certificates.stability import HTStability, ht_stability
from ellzero.certificates.swaps import SwapCheck, check_swaps
from ellzero.certificates.verify import verify

__all__ = [
    "AdaGradBound",
    "EpsilonOptimality",
    "HTStability",
    "L1Stationarity",
    "LowerBound",
    "ProofCheck",
    "SwapCheck",
    "adagrad_bound",
    "box_bound",
    "check_proof",
    "check_swaps",
    "dual_bound",
    "epsilon_optimality",
    "ht_stability",
    "l1_stationarity",
    "lower_bound",
    "perspective_bound",
    "point_bound",
    "verify",
]
