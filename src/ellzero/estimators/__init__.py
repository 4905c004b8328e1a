"""Estimators for scikit-learn with an exact number of nonzero coefficients."""

from ellzero.estimators.classification import L0Classifier
from ellzero.estimators.counts import L0PoissonRegressor
from ellzero.estimators.crossvalidation import (
    L0ClassifierCV,
    L0PoissonRegressorCV,
    L0RegressorCV,
)
from ellzero.estimators.path import L0Path
from ellzero.estimators.regression import L0Regressor
from ellzero.estimators.robust import L0HuberRegressor, L0HuberRegressorCV
from ellzero.estimators.selector import L0Selector

__all__ = [
    "L0Classifier",
    "L0ClassifierCV",
    "L0HuberRegressor",
    "L0HuberRegressorCV",
    "L0Path",
    "L0PoissonRegressor",
    "L0PoissonRegressorCV",
    "L0Regressor",
    "L0RegressorCV",
    "L0Selector",
]
