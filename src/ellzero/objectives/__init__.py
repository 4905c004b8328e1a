"""Objectives: functions to minimize, of named tensors."""

from ellzero.objectives.huber import Huber
from ellzero.objectives.least_squares import LeastSquares
from ellzero.objectives.logistic import Logistic
from ellzero.objectives.module import ModuleLoss
from ellzero.objectives.poisson import Poisson
from ellzero.objectives.quadratic import Quadratic
from ellzero.objectives.softmax import Softmax

__all__ = ["Huber", "LeastSquares", "Logistic", "ModuleLoss", "Poisson", "Quadratic", "Softmax"]
