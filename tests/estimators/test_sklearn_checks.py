"""scikit-learn's own checks, without exceptions."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from ellzero.estimators import L0Classifier, L0Regressor


@pytest.mark.filterwarnings("default")
@parametrize_with_checks([L0Regressor(), L0Classifier()])
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
