"""scikit-learn's own checks, without exceptions."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from ellzero import estimators

ESTIMATORS = [getattr(estimators, name)() for name in estimators.__all__ if name != "L0Path"]


@pytest.mark.filterwarnings("default")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
