"""What users of other libraries complained about: each must not happen here."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ellzero import (
    L0Classifier,
    L0ClassifierCV,
    L0HuberRegressor,
    L0PoissonRegressor,
    L0Regressor,
    L0RegressorCV,
    L0Selector,
)
from ellzero.errors import DataError, InvalidParameterError, SeparableError

Floats = NDArray[np.float64]


def problem(n: int = 60, p: int = 12, seed: int = 0, noise: float = 1.0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) + 0.7 * rng.standard_normal((n, 1))
    return X, 2 * X[:, 2] - 1.5 * X[:, 5] + X[:, 7] + noise * rng.standard_normal(n)


def residual(X: Floats, y: Floats, support: list[int], intercept: bool = True) -> float:
    A = X[:, support]
    A = np.column_stack([A, np.ones(len(y))]) if intercept else A
    return float(((y - A @ np.linalg.lstsq(A, y, rcond=None)[0]) ** 2).sum())


def best(X: Floats, y: Floats, k: int, intercept: bool = True) -> list[int]:
    every = combinations(range(X.shape[1]), k)
    return list(min(every, key=lambda s: residual(X, y, list(s), intercept)))


def test_interleaved_group_labels_give_the_right_columns() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((80, 6))
    y = X[:, 1] + X[:, 3] + X[:, 5] + 0.1 * rng.standard_normal(80)
    model = L0Regressor(1, groups=[0, 1, 0, 1, 0, 1]).fit(X, y)
    assert model.support_.tolist() == [1, 3, 5]
    by_name = L0Regressor(1, groups=["a", "b", "a", "b", "a", "b"]).fit(X, y)
    assert by_name.support_.tolist() == [1, 3, 5]


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_units_of_y_do_not_change_the_chosen_set(scale: float) -> None:
    X, y = problem(noise=3.0)
    model, scaled = L0Regressor(4).fit(X, y), L0Regressor(4).fit(X, scale * y)
    assert scaled.support_.tolist() == model.support_.tolist() == best(X, y, 4)
    np.testing.assert_allclose(scaled.coef_, scale * model.coef_, rtol=1e-9)
    auto, auto_scaled = L0Regressor().fit(X, y), L0Regressor().fit(X, scale * y)
    assert auto_scaled.support_.tolist() == auto.support_.tolist()


def test_units_of_the_columns_do_not_change_the_chosen_set() -> None:
    X, y = problem(noise=3.0)
    units = 10.0 ** np.linspace(-12, 12, X.shape[1])
    for ridge in (0.0, 0.3):
        model, scaled = L0Regressor(4, ridge=ridge).fit(X, y), L0Regressor(4, ridge=ridge)
        scaled.fit(X * units, y)
        assert scaled.support_.tolist() == model.support_.tolist()
        np.testing.assert_allclose(scaled.coef_ * units, model.coef_, rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_noiseless_recovery_at_any_scale(scale: float) -> None:
    rng = np.random.default_rng(2)
    X = rng.standard_normal((100, 300))
    truth = np.sort(rng.choice(300, 10, replace=False))
    y = scale * X[:, truth] @ rng.uniform(1, 2, 10)
    assert L0Regressor(10).fit(X, y).support_.tolist() == truth.tolist()


def test_three_classes_are_never_taken_as_two() -> None:
    rng = np.random.default_rng(3)
    centers = np.array([[2.0, 0, 0], [-2.0, 0, 0], [0.0, 2.0, 0]])
    y = np.arange(150) % 3
    X = centers[y] + rng.standard_normal((150, 3))
    model = L0Classifier(2).fit(X, y)
    assert sorted(set(model.predict(X).tolist())) == [0, 1, 2]
    assert model.predict_proba(X).shape == (150, 3)
    assert model.coef_.shape == (3, 3)
    assert model.score(X, y) > 0.8


def test_probabilities_of_large_scores_are_numbers() -> None:
    rng = np.random.default_rng(4)
    X = rng.standard_normal((100, 4))
    for y in ((X[:, 0] + 0.5 * rng.standard_normal(100) > 0) * 1, np.digitize(X[:, 0], [-1, 1])):
        model = L0Classifier(1).fit(X, y)
        far = 1e300 * np.eye(4)[:1]
        for sample in (far, -far):
            proba = model.predict_proba(sample)
            assert np.isfinite(proba).all()
            np.testing.assert_allclose(proba.sum(1), 1.0)
            assert np.isfinite(model.predict_log_proba(sample)).all()


def test_poisson_with_counts_in_the_thousands() -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((200, 10))
    y = rng.poisson(np.exp(6 + 1.5 * X[:, 3]))
    assert y.max() > 5000
    model = L0PoissonRegressor(1).fit(X, y)
    assert model.support_.tolist() == [3]
    assert abs(model.coef_[3] - 1.5) < 0.01
    assert abs(model.intercept_ - 6) < 0.05


def test_a_splitter_object_is_honoured() -> None:
    X, y = problem()
    labels = np.arange(60) // 20
    splitter = ShuffleSplit(3, test_size=0.5, random_state=7)
    by_object = L0RegressorCV([1, 2, 3], ridge=0.0, cv=splitter).fit(X, y)
    by_pairs = L0RegressorCV([1, 2, 3], ridge=0.0, cv=list(splitter.split(X))).fit(X, y)
    by_number = L0RegressorCV([1, 2, 3], ridge=0.0, cv=3).fit(X, y)
    pick = "split0_test_score"
    assert by_object.cv_results_[pick].tolist() == by_pairs.cv_results_[pick].tolist()
    assert by_object.cv_results_[pick].tolist() != by_number.cv_results_[pick].tolist()
    # The number by hand: train on one half, test on the other.
    train, test = next(splitter.split(X))
    A = best(X[train], y[train], 2)
    fitted = LinearRegression().fit(X[train][:, A], y[train])
    expected = -np.mean((y[test] - fitted.predict(X[test][:, A])) ** 2)
    assert by_object.cv_results_[pick][1] == pytest.approx(expected, rel=1e-9)
    grouped = L0RegressorCV([1, 2], ridge=0.0, cv=GroupKFold(3)).fit(X, y, groups=labels)
    same = L0RegressorCV([1, 2], ridge=0.0, cv=list(GroupKFold(3).split(X, y, labels))).fit(X, y)
    assert grouped.cv_results_[pick].tolist() == same.cv_results_[pick].tolist()


def test_columns_in_another_order_or_missing_are_refused_by_name() -> None:
    X, y = problem(p=8)
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    model = L0Regressor(3).fit(frame, y)
    with pytest.raises(DataError, match="must be in the same order as they were in fit"):
        model.predict(frame[list("bacdefgh")])
    with pytest.raises(DataError, match="seen at fit time, yet now missing: c"):
        model.predict(frame.drop(columns="c"))
    with pytest.raises(DataError, match=r"unseen at fit time: z\. Feature"):
        model.predict(frame.rename(columns={"c": "z"}))
    np.testing.assert_allclose(
        model.predict(frame[list("bacdefgh")][model.feature_names_in_]), model.predict(frame)
    )


def test_duplicated_and_constant_columns_are_not_counted() -> None:
    rng = np.random.default_rng(6)
    X = rng.standard_normal((50, 3))
    X = np.column_stack([X, X[:, :2], np.full(50, 3.0), 1e-14 + np.zeros(50)])
    y = X[:, 0] + X[:, 1] + X[:, 2] + 0.1 * rng.standard_normal(50)
    model = L0Regressor(5).fit(X, y)
    chosen = np.abs(model.coef_[model.coef_ != 0])
    assert model.support_.size == 3
    assert chosen.min() > 0.5
    assert set(model.support_.tolist()) & {5, 6} == set()


def test_more_features_than_samples_and_the_same_bits_on_every_run() -> None:
    rng = np.random.default_rng(8)
    X = rng.standard_normal((30, 200))
    y = X[:, 5] - X[:, 100] + 0.3 * rng.standard_normal(30)
    runs = [L0Regressor(4).fit(X.copy(), y) for _ in range(6)]
    assert {run.coef_.tobytes() for run in runs} == {runs[0].coef_.tobytes()}
    assert {5, 100} <= set(runs[0].support_.tolist())
    labels = (y > 0).astype(int)
    models = [L0Classifier(3).fit(X, labels) for _ in range(3)]
    assert len({tuple(model.support_.tolist()) for model in models}) == 1
    for model in models:
        np.testing.assert_allclose(model.coef_, models[0].coef_, rtol=1e-9)


def test_as_many_features_as_samples() -> None:
    rng = np.random.default_rng(9)
    X, y = rng.standard_normal((8, 20)), rng.standard_normal(8)
    model = L0Regressor(15).fit(X, y)
    assert model.support_.size <= 8
    assert np.isfinite(model.coef_).all()
    np.testing.assert_allclose(model.predict(X), y, atol=1e-6)


def test_works_inside_scikit_learn() -> None:
    X, y = problem()
    grid = GridSearchCV(L0Regressor(), {"n_nonzero_coefs": [1, 2, 3], "ridge": [0.0, 0.1]}, cv=3)
    grid.fit(X, y)
    assert grid.best_estimator_.support_.size == grid.best_params_["n_nonzero_coefs"]
    pipeline = make_pipeline(StandardScaler(), L0Selector(n_nonzero_coefs=3), LinearRegression())
    assert pipeline.fit(X, y)[1].get_support(indices=True).tolist() == best(X, y, 3)
    picked = SelectFromModel(L0Regressor(3), threshold=1e-12).fit(X, y)
    assert picked.get_support(indices=True).tolist() == best(X, y, 3)
    assert clone(L0Regressor(3, ridge=0.5)).get_params()["ridge"] == 0.5


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_same_answer_alone_or_in_a_path(k: int) -> None:
    X, y = problem(noise=3.0)
    alone = L0Regressor(k).fit(X, y)
    path = L0Regressor(range(8)).fit(X, y).path_
    assert path.supports[k].tolist() == alone.support_.tolist() == best(X, y, k)


def test_the_same_answer_for_any_order_of_columns_and_rows() -> None:
    X, y = problem(n=40, p=30, noise=3.0)
    rng = np.random.default_rng(10)
    model = L0Regressor(6).fit(X, y)
    for _ in range(3):
        columns, rows = rng.permutation(30), rng.permutation(40)
        other = L0Regressor(6).fit(X[rows][:, columns], y[rows])
        assert sorted(columns[other.support_].tolist()) == model.support_.tolist()


@pytest.mark.parametrize("intercept", [True, False])
def test_fit_intercept_in_both_settings(intercept: bool) -> None:
    X, y = problem()
    X, y = X + 5, y + 100
    model = L0Regressor(2, fit_intercept=intercept).fit(X, y)
    expected = best(X, y, 2, intercept)
    assert model.support_.tolist() == expected
    reference = LinearRegression(fit_intercept=intercept).fit(X[:, expected], y)
    np.testing.assert_allclose(model.coef_[expected], reference.coef_, rtol=1e-8)
    assert model.intercept_ == pytest.approx(reference.intercept_, rel=1e-8, abs=1e-12)


def test_sample_weights_everywhere() -> None:
    X, y = problem()
    weight = np.arange(60) % 4
    repeated = np.repeat(np.arange(60), weight)
    for container in (np.asarray, sparse.csr_array, sparse.csc_matrix):
        weighted = L0Regressor().fit(container(X), y, sample_weight=weight)
        plain = L0Regressor().fit(container(X[repeated]), y[repeated])
        np.testing.assert_allclose(weighted.coef_, plain.coef_, rtol=1e-8)
        np.testing.assert_allclose(
            weighted.path_.criteria["ebic"], plain.path_.criteria["ebic"], rtol=1e-8
        )
    # In scores of cross-validation too: by hand on one split.
    split = [(np.arange(30), np.arange(30, 60))]
    model = L0RegressorCV([2], ridge=0.0, cv=split).fit(X, y, sample_weight=weight)
    root = np.sqrt(weight[:30])[:, None]
    A = np.column_stack([X[:30], np.ones(30)])
    pairs = combinations(range(12), 2)
    scores = {}
    for pair in pairs:
        B = A[:, [*pair, 12]]
        coef = np.linalg.lstsq(B * root, y[:30] * root[:, 0], rcond=None)[0]
        loss = float((weight[:30] * (y[:30] - B @ coef) ** 2).sum())
        new = np.column_stack([X[30:][:, pair], np.ones(30)]) @ coef
        scores[loss] = np.average((y[30:] - new) ** 2, weights=weight[30:])
    assert model.best_score_ == pytest.approx(-scores[min(scores)], rel=1e-9)


def test_bounds_are_part_of_the_search_and_not_of_its_result() -> None:
    rng = np.random.default_rng(11)
    X = rng.standard_normal((60, 6))
    X[:, 1] = -X[:, 0] + 0.3 * rng.standard_normal(60)
    y = -2 * X[:, 0] + 0.5 * X[:, 2] + 0.3 * rng.standard_normal(60)
    model = L0Regressor(2, nonnegative=True).fit(X, y)
    from scipy.optimize import nnls

    Z, t = X - X.mean(0), y - y.mean()
    expected = min(combinations(range(6), 2), key=lambda s: nnls(Z[:, s], t)[1])
    assert model.support_.tolist() == list(expected)
    np.testing.assert_allclose(model.coef_[list(expected)], nnls(Z[:, expected], t)[0], rtol=1e-6)
    assert 0 not in model.support_
    bounded = L0Regressor(2, lower=-0.5, upper={2: 0.1}).fit(X, y)
    assert bounded.coef_.min() >= -0.5
    assert bounded.coef_[2] <= 0.1


def test_dummies_of_a_categorical_column_stay_together() -> None:
    rng = np.random.default_rng(12)
    city = rng.choice(["Bonn", "Oslo", "Rome", "York"], 200)
    effect = {"Bonn": 0.0, "Oslo": 3.0, "Rome": -2.0, "York": 1.0}
    frame = pd.DataFrame(
        {"noise": rng.standard_normal(200), "city": pd.Categorical(city), "age": rng.random(200)}
    )
    y = np.array([effect[c] for c in city]) + 0.1 * rng.standard_normal(200)
    model = L0Regressor(1).fit(frame, y)
    assert model.path_.names == ("noise", "city=Oslo", "city=Rome", "city=York", "age")
    assert model.support_.tolist() == [1, 2, 3]
    assert model.selected_features_.tolist() == [1]
    np.testing.assert_allclose(model.coef_[1:4], [3.0, -2.0, 1.0], atol=0.1)
    with pytest.raises(DataError, match="levels that were not there in `fit`: 'Wien'"):
        model.predict(frame.assign(city=pd.Categorical(["Wien"] * 200)))
    kept = L0Selector(L0Regressor(1)).set_output(transform="pandas").fit(frame, y)
    assert list(kept.transform(frame).columns) == ["city"]


def test_features_that_are_always_or_never_in() -> None:
    X, y = problem(p=8)
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    model = L0Regressor(3, always=["a"], forbidden=["f"]).fit(frame, y)
    allowed = [s for s in combinations(range(8), 3) if 0 in s and 5 not in s]
    assert model.support_.tolist() == list(min(allowed, key=lambda s: residual(X, y, list(s))))
    assert model.certificate_.supports(model.certificate_.claim.COORDINATEWISE)
    with pytest.raises(InvalidParameterError, match="Did you mean 'weight'"):
        L0Regressor(3, always=["wieght"]).fit(frame.rename(columns={"a": "weight"}), y)


def test_exactly_the_number_asked_for() -> None:
    X, y = problem()
    for k in range(13):
        assert L0Regressor(k).fit(X, y).support_.size == k
    assert L0Regressor(0.25).fit(X, y).support_.size == 3


def test_all_sizes_with_all_criteria_in_one_table() -> None:
    X, y = problem()
    table = L0Regressor(range(1, 6), criterion="bic").fit(X, y).path_.to_frame()
    assert list(table.index) == [1, 2, 3, 4, 5]
    assert {"value", "aic", "bic", "ebic", "sic", "features", "selected"} <= set(table.columns)
    for k, row in table.iterrows():
        rss = residual(X, y, best(X, y, k))
        assert row["value"] == pytest.approx(rss / 120, rel=1e-9)
        assert row["bic"] == pytest.approx(60 * np.log(rss / 60) + k * np.log(60), rel=1e-9)
    assert table["selected"].idxmax() == table["bic"].idxmin()


def test_separable_classes_are_said_with_a_remedy() -> None:
    rng = np.random.default_rng(13)
    X = rng.standard_normal((60, 5))
    y = (X[:, 2] > 0).astype(int)
    with pytest.raises(SeparableError, match="ridge"):
        L0Classifier(1, ridge=0.0).fit(X, y)
    model = L0Classifier(1).fit(X, y)
    assert model.support_.tolist() == [2]
    assert np.isfinite(model.coef_).all()


def test_sparse_features_are_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    X = sparse.random_array((400, 3000), density=0.01, rng=rng, format="csr")
    y = 5 * X[:, [7]].toarray()[:, 0] - 5 * X[:, [1234]].toarray()[:, 0]
    y += 0.01 * rng.standard_normal(400)
    biggest = []
    original = sparse.csr_array.toarray

    def watched(self: sparse.csr_array, *args: object, **kwargs: object) -> Floats:
        out: Floats = original(self, *args, **kwargs)
        biggest.append(out.size)
        return out

    monkeypatch.setattr(sparse.csr_array, "toarray", watched)
    monkeypatch.setattr(sparse.csr_array, "todense", watched)
    model = L0Regressor(2, effort="fast").fit(X, y)
    assert model.support_.tolist() == [7, 1234]
    assert model.predict(X[:5]).shape == (5,)
    assert max(biggest, default=0) <= 400 * 3000 / 8


def test_outliers_do_not_decide() -> None:
    X, y = problem(n=100, noise=0.1)
    y[:15] += 100 * X[:15, 0]
    assert L0HuberRegressor(3).fit(X, y).support_.tolist() == [2, 5, 7]
    assert 0 in L0Regressor(3).fit(X, y).support_


def test_breast_cancer_is_solved_as_far_as_enumeration_goes() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    model = L0Classifier(4, ridge=0.0).fit(X, y)
    total = model.path_.values[0] * len(y)
    assert total == pytest.approx(41.15, abs=0.01)


def test_class_weights_and_balanced_ones() -> None:
    rng = np.random.default_rng(15)
    X = rng.standard_normal((300, 4))
    y = np.where(X[:, 1] + rng.logistic(size=300) > 3, "rare", "usual")
    counts = {label: int((y == label).sum()) for label in ("rare", "usual")}
    balanced = L0Classifier(1, class_weight="balanced").fit(X, y)
    by_hand = L0Classifier(1).fit(X, y, sample_weight=[300 / (2 * counts[label]) for label in y])
    np.testing.assert_allclose(balanced.coef_, by_hand.coef_, rtol=1e-8)
    assert (balanced.predict(X) == "rare").sum() > (
        L0Classifier(1).fit(X, y).predict(X) == "rare"
    ).sum()


def test_other_scores_and_the_one_standard_error_rule() -> None:
    rng = np.random.default_rng(16)
    X = rng.standard_normal((120, 6))
    y = (X[:, 0] + rng.logistic(size=120) > 0).astype(int)
    cv = KFold(3)
    by_auc = L0ClassifierCV([1, 2], ridge=1e-3, cv=cv, scoring="roc_auc").fit(X, y)
    assert 0.5 < by_auc.best_score_ < 1
    one = L0ClassifierCV(range(1, 6), ridge=1e-3, cv=cv, rule="one_se").fit(X, y)
    table = one.cv_results_
    top = int(np.argmax(table["mean_test_score"]))
    folds = np.array([table[f"split{i}_test_score"][top] for i in range(3)])
    reach = folds.mean() - folds.std(ddof=1) / np.sqrt(3)
    good = table["param_n_nonzero_coefs"][table["mean_test_score"] >= reach]
    assert one.n_nonzero_ == good.min()


def test_importing_the_estimators_compiles_nothing() -> None:
    code = "import sys, ellzero.estimators; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
