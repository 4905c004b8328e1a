"""Objectives: functions to minimize, of named tensors."""

from ellzero.objectives.linear import LeastSquares, Logistic, Softmax
from ellzero.objectives.module import ModuleLoss
from ellzero.objectives.quadratic import Quadratic

__all__ = ["LeastSquares", "Logistic", "ModuleLoss", "Quadratic", "Softmax"]
