"""scikit-learn's own checks, without exceptions."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from ellzero import estimators
from ellzero.estimators import (
    L0ClassifierCV,
    L0HuberRegressorCV,
    L0PoissonRegressorCV,
    L0RegressorCV,
)

PLAIN = [
    getattr(estimators, name)()
    for name in estimators.__all__
    if name != "L0Path" and not name.endswith("CV")
]
# Hundreds of fits: few folds and one lambda; the defaults have a test of their own.
QUICK = [
    L0RegressorCV(ridge=0.0, cv=3),
    L0ClassifierCV(ridge=1e-3, cv=3, effort="fast"),
    L0PoissonRegressorCV(ridge=0.0, cv=3, effort="fast"),
    L0HuberRegressorCV(ridge=0.0, cv=3, effort="fast"),
]


@pytest.mark.filterwarnings("default")
@parametrize_with_checks([*PLAIN, *QUICK])
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@parametrize_with_checks(
    [L0RegressorCV(), L0ClassifierCV(), L0PoissonRegressorCV(), L0HuberRegressorCV()]
)
def test_scikit_learn_with_default_cross_validation(estimator: Any, check: Any) -> None:
    check(estimator)
