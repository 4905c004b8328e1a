"""Objectives: functions to minimize, of named tensors."""

from ellzero.objectives.anisotropic import CosineWells, StiffRamps, random_rotation
from ellzero.objectives.huber import Huber
from ellzero.objectives.least_squares import LeastSquares
from ellzero.objectives.logistic import Logistic
from ellzero.objectives.module import ModuleLoss
from ellzero.objectives.poisson import Poisson
from ellzero.objectives.quadratic import Quadratic
from ellzero.objectives.softmax import Softmax
from ellzero.objectives.stochastic import FiniteSum, NoisyGradient

__all__ = [
    "CosineWells",
    "FiniteSum",
    "Huber",
    "LeastSquares",
    "Logistic",
    "ModuleLoss",
    "NoisyGradient",
    "Poisson",
    "Quadratic",
    "Softmax",
    "StiffRamps",
    "random_rotation",
]
