"""Two-layer networks behind scikit-learn's conventions."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ellzero.errors import DataError, InvalidParameterError
from ellzero.relu import ConvexReLUClassifier, ConvexReLURegressor


@parametrize_with_checks(
    [
        ConvexReLURegressor(certify=False, max_iter=2, max_neurons=4),
        ConvexReLUClassifier(certify=False, max_iter=2, max_neurons=4),
    ]
)
def test_conventions(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    parts = train_test_split(X, y, random_state=0, stratify=y)
    scaler = StandardScaler().fit(parts[0])
    return scaler.transform(parts[0]), scaler.transform(parts[1]), parts[2], parts[3]


def test_breast_cancer_is_certified(cancer):
    train_rows, test_rows, train_classes, test_classes = cancer
    largest = ConvexReLUClassifier(penalty=10.0, certify=False)
    largest.fit(train_rows, train_classes)
    assert largest.network_.n_neurons == 0
    model = ConvexReLUClassifier(penalty=0.1 * largest.largest_penalty_, random_state=0)
    model.fit(train_rows, train_classes)
    assert model.gap_ < 0.02
    assert model.lower_bound_ <= model.value_
    assert model.score(test_rows, test_classes) > 0.93
    outputs = model.to_module()(torch.as_tensor(test_rows))[:, 0].detach().numpy()
    np.testing.assert_allclose(outputs, model.decision_function(test_rows), atol=1e-10)


def test_scale_of_targets_changes_nothing_else():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 2))
    y = np.abs(X[:, 0]) + X[:, 1]
    first = ConvexReLURegressor(random_state=0, certify=False).fit(X, y)
    second = ConvexReLURegressor(random_state=0, certify=False).fit(X, 1e6 * y)
    np.testing.assert_allclose(second.predict(X) / 1e6, first.predict(X), rtol=1e-6, atol=1e-6)
    assert second.penalty_ == pytest.approx(1e6 * first.penalty_)


def test_default_penalty_is_a_hundredth_of_the_largest():
    X = np.linspace(-1, 1, 20)[:, None]
    model = ConvexReLURegressor().fit(X, np.abs(X[:, 0]))
    assert model.penalty_ == pytest.approx(0.01 * model.largest_penalty_)
    above = ConvexReLURegressor(penalty=1.01 * model.largest_penalty_).fit(X, np.abs(X[:, 0]))
    below = ConvexReLURegressor(penalty=0.99 * model.largest_penalty_).fit(X, np.abs(X[:, 0]))
    assert above.network_.n_neurons == 0
    assert above.gap_ < 1e-8
    assert below.network_.n_neurons > 0


def test_most_neurons_are_respected():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 3))
    model = ConvexReLURegressor(penalty=1e-4, max_neurons=3, certify=False)
    assert 1 <= model.fit(X, np.sin(3 * X[:, 0])).network_.n_neurons <= 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"penalty": -1.0}, "`penalty` must be positive, got -1."),
        ({"max_neurons": 0}, "`max_neurons`"),
        ({"max_iter": 0}, "`max_iter`"),
        ({"tol": -1.0}, "`tol`"),
        ({"time_limit": 0.0}, "`time_limit`"),
    ],
)
def test_bad_settings_are_said(settings, text):
    with pytest.raises(InvalidParameterError) as raised:
        ConvexReLURegressor(**settings).fit(np.zeros((4, 1)), np.zeros(4))
    assert text in str(raised.value)


def test_more_classes_are_refused():
    with pytest.raises(DataError, match="OneVsRestClassifier"):
        ConvexReLUClassifier().fit(np.eye(3), [0, 1, 2])
