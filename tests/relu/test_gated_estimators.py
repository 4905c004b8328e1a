"""Networks with fixed gates behind scikit-learn's conventions."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ellzero.core.result import Claim
from ellzero.errors import DataError, IncompatibleError, InvalidParameterError
from ellzero.relu import GatedReLUClassifier, GatedReLURegressor, TwoLayerReLU


@parametrize_with_checks(
    [GatedReLURegressor(n_gates=20, tol=1e-4), GatedReLUClassifier(n_gates=20, tol=1e-4)]
)
def test_conventions(estimator, check):
    check(estimator)


def planted(n=60, d=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.maximum(X @ rng.standard_normal((d, 3)), 0).sum(axis=1) - X[:, 0]


def test_module_equals_predictions_and_objective():
    X, y = planted()
    for targets in (y, np.column_stack([y, np.abs(X[:, 0])])):
        model = GatedReLURegressor(n_gates=80, random_state=0).fit(X, targets)
        module = model.to_module()
        fresh = np.random.default_rng(1).standard_normal((50, 4))
        for rows in (X, fresh):
            outputs = module(torch.as_tensor(rows)).detach().numpy()
            want = model.predict(rows).reshape(len(rows), -1)
            np.testing.assert_allclose(outputs, want, rtol=0, atol=1e-10)
        outputs = module(torch.as_tensor(X)).detach().numpy()
        fit = 0.5 * np.mean((outputs - targets.reshape(len(X), -1)) ** 2)
        norm = float(module.weights.detach().flatten(1).norm(dim=1).sum())
        assert fit + model.penalty_ * norm == pytest.approx(model.value_, rel=1e-10)
        assert not module.vectors.requires_grad


def test_gap_is_that_of_the_gated_program():
    X, y = planted()
    model = GatedReLURegressor(n_gates=80, random_state=0).fit(X, y)
    assert model.gap_ <= 1e-7
    assert model.certificate_.claim is Claim.OPTIMAL
    assert "says nothing about ReLU networks" in model.certificate_.assumptions[0]
    more = GatedReLURegressor(n_gates=2000, penalty=model.penalty_, random_state=0).fit(X, y)
    # More gates do better than the "optimum" with fewer: the gap was of those gates only.
    assert more.value_ < 0.999 * model.lower_bound_


def test_penalty_above_the_largest_gives_zero_and_says_so():
    X, y = planted()
    largest = GatedReLURegressor(random_state=0).fit(X, y).largest_penalty_
    with pytest.warns(UserWarning, match="is not below the largest useful one") as caught:
        model = GatedReLURegressor(penalty=2 * largest, random_state=0).fit(X, y)
    assert str(caught[0].message) == (
        f"`penalty`, {2 * largest:.6g}, is not below the largest useful one, {largest:.6g}: the "
        "network is zero.\nhint: Pass a fraction of `largest_penalty_`."
    )
    assert model.n_active_ == 0
    assert model.gap_ < 1e-12
    np.testing.assert_allclose(model.predict(X), y.mean())
    module = model.to_module()
    np.testing.assert_allclose(module(torch.as_tensor(X)).detach().numpy(), y.mean())
    below = GatedReLURegressor(penalty=0.99 * largest, random_state=0).fit(X, y)
    assert below.n_active_ > 0


def test_gates_of_a_network():
    X, y = planted()
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1))
    model = GatedReLURegressor(gates=module).fit(X, y)
    hidden = TwoLayerReLU.from_module(module).directions
    assert model.n_gates_ == 20
    assert all(any(np.array_equal(v, h) for h in hidden) for v in model.network_.vectors)
    same = GatedReLURegressor(gates=hidden).fit(X, y)
    np.testing.assert_array_equal(same.predict(X), model.predict(X))
    # Without biases the gates of a network stay what they are: zeros are appended.
    plain = TwoLayerReLU(hidden[:, :4], None, np.ones(20), None)
    padded = GatedReLURegressor(gates=plain).fit(X, y)
    assert (padded.network_.vectors[:, -1] == 0).all()
    with pytest.raises(IncompatibleError) as raised:
        GatedReLURegressor(gates=module, fit_bias=False).fit(X, y)
    assert raised.value.message == (
        "The network has biases, and `fit_bias=False` leaves no room for them in gates."
    )


def test_given_gates_that_are_all_active_or_duplicate():
    X, y = planted()
    always = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    tilted = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    gates = np.stack([always, 2 * always, -always, tilted, 3 * tilted])
    text = (
        "Kept 2 of 5 gates: dropped 2 duplicate and 1 empty; "
        "1 sees every sample (a linear neuron)."
    )
    with pytest.warns(UserWarning, match="Kept 2 of 5 gates") as caught:
        model = GatedReLURegressor(gates=gates).fit(X, y)
    assert str(caught[0].message) == text == model.gates_message_
    assert model.n_gates_ == 2
    # All gates active everywhere: the model is linear, and says so.
    with pytest.warns(UserWarning, match="sees every sample"):
        linear = GatedReLURegressor(gates=np.stack([always] * 3), penalty=1e-9).fit(X, y)
    design = np.column_stack([X, np.ones(len(X))])
    want = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(linear.predict(X), want, atol=1e-5)


def test_float32_is_computed_in_float64():
    X, y = planted()
    rows, targets = X.astype(np.float32), y.astype(np.float32)
    model = GatedReLURegressor(n_gates=50, random_state=0).fit(rows, targets)
    same = GatedReLURegressor(n_gates=50, random_state=0).fit(
        rows.astype(np.float64), targets.astype(np.float64)
    )
    assert model.gap_ == same.gap_ <= 1e-7
    assert model.network_.weights.dtype == np.float64


def test_zero_rows_and_few_samples():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 40))
    X[[2, 5]] = 0
    y = rng.standard_normal(12)
    for bias in (False, True):
        model = GatedReLURegressor(fit_bias=bias, random_state=0).fit(X, y)
        assert model.gap_ <= 1e-7
    plain = GatedReLURegressor(fit_bias=False, fit_intercept=False, random_state=0).fit(X, y)
    assert (plain.predict(X)[[2, 5]] == 0).all()


def test_scale_of_targets_and_rows_changes_nothing_else():
    X, y = planted()
    first = GatedReLURegressor(n_gates=40, random_state=0).fit(X, y)
    second = GatedReLURegressor(n_gates=40, random_state=0).fit(X, 1e8 + 1e6 * y)
    np.testing.assert_allclose((second.predict(X) - 1e8) / 1e6, first.predict(X), atol=1e-6)
    third = GatedReLURegressor(n_gates=40, random_state=0, fit_bias=False).fit(1e-5 * X, y)
    fourth = GatedReLURegressor(n_gates=40, random_state=0, fit_bias=False).fit(X, y)
    np.testing.assert_allclose(third.predict(1e-5 * X), fourth.predict(X), atol=1e-3)


def test_three_classes_share_gates():
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = GatedReLUClassifier(n_gates=100, random_state=0).fit(X, y)
    assert model.gap_ <= 1e-7
    assert model.score(X, y) > 0.96
    assert model.network_.weights.shape == (model.n_active_, 5, 3)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"penalty": -1.0}, "`penalty` must be positive, got -1."),
        ({"n_gates": 0}, "`n_gates` must be an integer of at least 1, got 0."),
        ({"max_iter": 0}, "`max_iter` must be an integer of at least 1, got 0."),
        ({"tol": 0.0}, "`tol` must be positive, got 0."),
        ({"memory_limit": -1}, "`memory_limit` must be positive, got -1."),
        (
            {"solver": "newtn"},
            "`solver` must be one of 'auto', 'newton', 'proximal', got 'newtn'. "
            "Did you mean 'newton'?",
        ),
        (
            {"gates": np.ones((3, 2))},
            "Gates must have 5 columns, the last one for the bias; `gates` has the shape (3, 2).\n"
            "hint: Pass one gate vector in a row.",
        ),
        (
            {"gates": np.full((3, 5), np.nan)},
            "`gates` contains NaN or infinite values.\nhint: Drop these gates.",
        ),
        (
            {"gates": np.zeros((3, 5))},
            "None of the 3 gates sees a sample; the program has no variables.\n"
            "hint: Pass other `gates`, or more of them.",
        ),
        (
            {"memory_limit": 2**20, "n_gates": 10**6},
            "The gated program needs about 0.59 GiB, above `memory_limit`, 0.00 GiB.\n"
            'hint: Use fewer gates or samples, `solver="proximal"`, or raise `memory_limit` '
            "(bytes).",
        ),
    ],
)
def test_bad_settings_are_said(settings, text):
    X, y = planted()
    with pytest.raises((InvalidParameterError, DataError)) as raised:
        GatedReLURegressor(**settings).fit(X, y)
    assert str(raised.value).startswith(text)


def test_one_class_is_refused():
    with pytest.raises(DataError) as raised:
        GatedReLUClassifier().fit(np.eye(3), [1, 1, 1])
    assert raised.value.message == "Classification needs at least two classes, y has 1 class."


def test_unfinished_runs_are_said():
    X, y = planted()
    with pytest.warns(ConvergenceWarning, match="hint: Raise `max_iter`"):
        model = GatedReLURegressor(max_iter=2, random_state=0).fit(X, y)
    assert model.gap_ > 1e-7
    assert model.value_ * (1 - model.gap_) == pytest.approx(model.lower_bound_)
