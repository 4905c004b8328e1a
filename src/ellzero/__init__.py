"""Fit and train models with exactly as many nonzero parameters as asked for.

Public names are resolved on first use, so that importing the package loads nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ellzero._version import __version__

_HOMES = {
    "AbstractObjective": "ellzero.core.problem",
    "AbstractPenalty": "ellzero.core.problem",
    "AbstractSet": "ellzero.core.problem",
    "AbstractSmoothObjective": "ellzero.core.problem",
    "AbstractSparseSet": "ellzero.core.problem",
    "Problem": "ellzero.core.problem",
    "AbstractSolver": "ellzero.core.solver",
    "SolverState": "ellzero.core.solver",
    "iterate": "ellzero.core.solver",
    "Certificate": "ellzero.core.result",
    "Check": "ellzero.core.result",
    "Claim": "ellzero.core.result",
    "Proof": "ellzero.core.result",
    "Result": "ellzero.core.result",
    "Status": "ellzero.core.result",
    "Batch": "ellzero.tensors.named",
    "BinaryPatchNetworkLoss": "ellzero.objectives",
    "CosineWells": "ellzero.objectives",
    "FiniteSum": "ellzero.objectives",
    "GraphSmoothness": "ellzero.objectives",
    "Huber": "ellzero.objectives",
    "LeastSquares": "ellzero.objectives",
    "Logistic": "ellzero.objectives",
    "ModuleLoss": "ellzero.objectives",
    "PatchNetworkLoss": "ellzero.objectives",
    "NoisyGradient": "ellzero.objectives",
    "Poisson": "ellzero.objectives",
    "Quadratic": "ellzero.objectives",
    "SampledPatchNetworkLoss": "ellzero.objectives",
    "Softmax": "ellzero.objectives",
    "StiffRamps": "ellzero.objectives",
    "BlockL0Ball": "ellzero.sets",
    "Box": "ellzero.sets",
    "GroupL0Ball": "ellzero.sets",
    "L0Ball": "ellzero.sets",
    "NMPattern": "ellzero.sets",
    "Nonnegative": "ellzero.sets",
    "ProductSet": "ellzero.sets",
    "SliceL0Ball": "ellzero.sets",
    "GroupL0": "ellzero.penalties",
    "GroupL1": "ellzero.penalties",
    "GroupTransformedL1": "ellzero.penalties",
    "L0": "ellzero.penalties",
    "L1": "ellzero.penalties",
    "TransformedL1": "ellzero.penalties",
    "restricted_smoothness": "ellzero.smoothness",
    "restricted_strong_convexity": "ellzero.smoothness",
    "recover": "ellzero.sensing",
    "verify": "ellzero.certificates",
    "SparseSmooth": "ellzero.signal",
    "denoise": "ellzero.signal",
    "ConvexReLUClassifier": "ellzero.relu",
    "ConvexReLURegressor": "ellzero.relu",
    "GatedReLUClassifier": "ellzero.relu",
    "GatedReLURegressor": "ellzero.relu",
    "TwoLayerReLU": "ellzero.relu",
    "certify_network": "ellzero.relu",
    "PathResult": "ellzero.solving",
    "choose_solver": "ellzero.solving",
    "solve": "ellzero.solving",
    "solve_dense": "ellzero.solving",
    "solve_path": "ellzero.solving",
    "L0Classifier": "ellzero.estimators",
    "L0ClassifierCV": "ellzero.estimators",
    "L0HuberRegressor": "ellzero.estimators",
    "L0HuberRegressorCV": "ellzero.estimators",
    "L0PoissonRegressor": "ellzero.estimators",
    "L0PoissonRegressorCV": "ellzero.estimators",
    "L0Regressor": "ellzero.estimators",
    "L0RegressorCV": "ellzero.estimators",
    "L0Selector": "ellzero.estimators",
}
_MODULES = (
    "backprop",
    "certificates",
    "datasets",
    "errors",
    "estimators",
    "geometry",
    "objectives",
    "sets",
    "solvers",
    "tensors",
)

__all__ = ["__version__"]
__all__ += list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"ellzero.{name}")
    raise AttributeError(f"module 'ellzero' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *_HOMES])


if TYPE_CHECKING:
    from ellzero.certificates import verify as verify
    from ellzero.core.problem import AbstractObjective as AbstractObjective
    from ellzero.core.problem import AbstractPenalty as AbstractPenalty
    from ellzero.core.problem import AbstractSet as AbstractSet
    from ellzero.core.problem import AbstractSmoothObjective as AbstractSmoothObjective
    from ellzero.core.problem import AbstractSparseSet as AbstractSparseSet
    from ellzero.core.problem import Problem as Problem
    from ellzero.core.result import Certificate as Certificate
    from ellzero.core.result import Check as Check
    from ellzero.core.result import Claim as Claim
    from ellzero.core.result import Proof as Proof
    from ellzero.core.result import Result as Result
    from ellzero.core.result import Status as Status
    from ellzero.core.solver import AbstractSolver as AbstractSolver
    from ellzero.core.solver import SolverState as SolverState
    from ellzero.core.solver import iterate as iterate
    from ellzero.estimators import L0Classifier as L0Classifier
    from ellzero.estimators import L0ClassifierCV as L0ClassifierCV
    from ellzero.estimators import L0HuberRegressor as L0HuberRegressor
    from ellzero.estimators import L0HuberRegressorCV as L0HuberRegressorCV
    from ellzero.estimators import L0PoissonRegressor as L0PoissonRegressor
    from ellzero.estimators import L0PoissonRegressorCV as L0PoissonRegressorCV
    from ellzero.estimators import L0Regressor as L0Regressor
    from ellzero.estimators import L0RegressorCV as L0RegressorCV
    from ellzero.estimators import L0Selector as L0Selector
    from ellzero.objectives import BinaryPatchNetworkLoss as BinaryPatchNetworkLoss
    from ellzero.objectives import CosineWells as CosineWells
    from ellzero.objectives import FiniteSum as FiniteSum
    from ellzero.objectives import GraphSmoothness as GraphSmoothness
    from ellzero.objectives import Huber as Huber
    from ellzero.objectives import LeastSquares as LeastSquares
    from ellzero.objectives import Logistic as Logistic
    from ellzero.objectives import ModuleLoss as ModuleLoss
    from ellzero.objectives import NoisyGradient as NoisyGradient
    from ellzero.objectives import PatchNetworkLoss as PatchNetworkLoss
    from ellzero.objectives import Poisson as Poisson
    from ellzero.objectives import Quadratic as Quadratic
    from ellzero.objectives import SampledPatchNetworkLoss as SampledPatchNetworkLoss
    from ellzero.objectives import Softmax as Softmax
    from ellzero.objectives import StiffRamps as StiffRamps
    from ellzero.penalties import L0 as L0
    from ellzero.penalties import L1 as L1
    from ellzero.penalties import GroupL0 as GroupL0
    from ellzero.penalties import GroupL1 as GroupL1
    from ellzero.penalties import GroupTransformedL1 as GroupTransformedL1
    from ellzero.penalties import TransformedL1 as TransformedL1
    from ellzero.relu import ConvexReLUClassifier as ConvexReLUClassifier
    from ellzero.relu import ConvexReLURegressor as ConvexReLURegressor
    from ellzero.relu import GatedReLUClassifier as GatedReLUClassifier
    from ellzero.relu import GatedReLURegressor as GatedReLURegressor
    from ellzero.relu import TwoLayerReLU as TwoLayerReLU
    from ellzero.relu import certify_network as certify_network
    from ellzero.sensing import recover as recover
    from ellzero.sets import BlockL0Ball as BlockL0Ball
    from ellzero.sets import Box as Box
    from ellzero.sets import GroupL0Ball as GroupL0Ball
    from ellzero.sets import L0Ball as L0Ball
    from ellzero.sets import NMPattern as NMPattern
    from ellzero.sets import Nonnegative as Nonnegative
    from ellzero.sets import ProductSet as ProductSet
    from ellzero.sets import SliceL0Ball as SliceL0Ball
    from ellzero.smoothness import restricted_smoothness as restricted_smoothness
    from ellzero.smoothness import restricted_strong_convexity as restricted_strong_convexity
    from ellzero.solving import PathResult as PathResult
    from ellzero.solving import choose_solver as choose_solver
    from ellzero.solving import solve as solve
    from ellzero.solving import solve_dense as solve_dense
    from ellzero.solving import solve_path as solve_path
    from ellzero.tensors.named import Batch as Batch
