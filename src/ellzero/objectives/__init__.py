"""Objectives: functions to minimize, of named tensors."""

from ellzero.objectives.anisotropic import CosineWells, StiffRamps, random_rotation
from ellzero.objectives.binary_patch_network import BinaryPatchNetworkLoss
from ellzero.objectives.graph_smoothness import GraphSmoothness
from ellzero.objectives.huber import Huber
from ellzero.objectives.least_squares import LeastSquares
from ellzero.objectives.logistic import Logistic
from ellzero.objectives.module import ModuleLoss
from ellzero.objectives.patch_network import PatchNetworkLoss, SampledPatchNetworkLoss
from ellzero.objectives.poisson import Poisson
from ellzero.objectives.quadratic import Quadratic
from ellzero.objectives.softmax import Softmax
from ellzero.objectives.stochastic import FiniteSum, NoisyGradient

__all__ = [
    "BinaryPatchNetworkLoss",
    "CosineWells",
    "FiniteSum",
    "GraphSmoothness",
    "Huber",
    "LeastSquares",
    "Logistic",
    "ModuleLoss",
    "NoisyGradient",
    "PatchNetworkLoss",
    "Poisson",
    "Quadratic",
    "SampledPatchNetworkLoss",
    "Softmax",
    "StiffRamps",
    "random_rotation",
]
