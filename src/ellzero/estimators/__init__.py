"""scikit-learn estimators with an exact number of nonzero coefficients."""

from ellzero.estimators.classification import L0Classifier
from ellzero.estimators.path import L0Path
from ellzero.estimators.regression import L0Regressor

__all__ = ["L0Classifier", "L0Path", "L0Regressor"]
