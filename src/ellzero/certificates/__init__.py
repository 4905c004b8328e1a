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
from ellzero.certificates.splitting import (
    LagrangianDescent,
    LimitRelation,
    SplittingCheck,
    check_splitting,
    lagrangian_descent,
    limit_relation,
)
from ellzero.certificates.stability import HTStability, ht_stability
from ellzero.certificates.swaps import SwapCheck, check_swaps
from ellzero.certificates.tree import SquaresProblem, TreeCheck, check_tree
from ellzero.certificates.verify import verify

__all__ = [
    "AdaGradBound",
    "EpsilonOptimality",
    "HTStability",
    "L1Stationarity",
    "LagrangianDescent",
    "LimitRelation",
    "LowerBound",
    "ProofCheck",
    "SplittingCheck",
    "SquaresProblem",
    "SwapCheck",
    "TreeCheck",
    "adagrad_bound",
    "box_bound",
    "check_proof",
    "check_splitting",
    "check_swaps",
    "check_tree",
    "dual_bound",
    "epsilon_optimality",
    "ht_stability",
    "l1_stationarity",
    "lagrangian_descent",
    "limit_relation",
    "lower_bound",
    "perspective_bound",
    "point_bound",
    "verify",
]
