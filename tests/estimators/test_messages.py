"""What wrong input is told: one sentence that names the columns, and a hint."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression

from ellzero import (
    L0Classifier,
    L0ClassifierCV,
    L0HuberRegressor,
    L0PoissonRegressor,
    L0Regressor,
    L0RegressorCV,
    L0Selector,
)
from ellzero.errors import DataError, EllzeroError, IncompatibleError, InvalidParameterError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
y = X[:, 0] + RNG.standard_normal(20)
LABELS = (y > 0).astype(int)
FRAME = pd.DataFrame(X, columns=["age", "height", "income"])


def broken(column: int, value: float) -> Any:
    out = X.copy()
    out[2, column] = value
    return out


def text(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(city=["Paris"] * len(frame))


PARAMETERS = [
    ({"n_nonzero_coefs": 4}, "`n_nonzero_coefs` must be an integer between 0 and 3, the number of "
     "features, got 4.\nhint: Pass `n_nonzero_coefs=3` to keep all features."),
    ({"n_nonzero_coefs": -1}, "`n_nonzero_coefs` must be an integer between 0 and 3, the number "
     "of features, got -1.\nhint: Pass `n_nonzero_coefs=3` to keep all features."),
    ({"n_nonzero_coefs": 1.5}, "`n_nonzero_coefs` must be an integer, or a fraction between 0 and "
     "1, got 1.5."),
    ({"n_nonzero_coefs": "all"}, "`n_nonzero_coefs` must be an integer, a fraction, a sequence or "
     "'auto', got 'all'."),
    ({"n_nonzero_coefs": []}, "`n_nonzero_coefs` must hold at least one budget, got none."),
    ({"n_nonzero_coefs": 1, "always": [0, 1]}, "`n_nonzero_coefs` must be at least 2, the number "
     "of features in `always`, got 1."),
    ({"always": "age"}, "`always` must be a sequence of feature names or positions, got 'age'."
     "\nhint: Pass `always=['age']`."),
    ({"always": [3]}, "`always` must hold positions between 0 and 2, got 3."),
    ({"always": [True]}, "`always` must have one boolean for each of 3 features, got 1."),
    ({"always": [0.5]}, "`always` must hold feature names or positions, got 0.5."),
    ({"always": ["age"]}, "`always` names the feature 'age', but `X` has no feature names."
     "\nhint: Pass positions, or a data frame."),
    ({"always": [0], "forbidden": [0]}, "`always` and `forbidden` must not share features, got 0 "
     "in both."),
    ({"groups": [0, 1]}, "`groups` must have one label for each of 3 features, got 2."),
    ({"groups": 5}, "`groups` must be a sequence of labels or a mapping of names to features, "
     "got 5."),
    ({"groups": {"a": [0, 1], "b": [1]}}, "`groups` must not overlap, got feature 1 in 'a' and "
     "'b'.\nhint: Put each feature into one group."),
    ({"lower": 1.0}, "`lower` must be at most 0, because a coefficient left out is 0, got 1."),
    ({"upper": [-1, 0, 0]}, "`upper` must be at least 0, because a coefficient left out is 0, "
     "got -1."),
    ({"upper": [1, 2]}, "`upper` must be a number, 3 numbers or a mapping of features to numbers, "
     "got [1, 2]."),
    ({"upper": {0: "big"}}, "`upper` must be a number, got 'big'."),
    ({"ridge": -1}, "`ridge` must be a number of at least 0, got -1."),
    ({"ridge": [0.1, 1]}, "`ridge` must be one number, got [0.1, 1].\nhint: The estimators whose "
     "names end in CV choose among several."),
    ({"criterion": "cv"}, "`criterion` must be one of 'aic', 'bic', 'ebic', 'sic', got 'cv'."),
    ({"solver": "exakt"}, "`solver` must be one of 'auto', 'search', 'exact', got 'exakt'. Did "
     "you mean 'exact'?"),
    ({"effort": "slow"}, "`effort` must be one of 'fast', 'normal', 'thorough', got 'slow'."),
    ({"ebic_gamma": -1}, "`ebic_gamma` must be a number of at least 0, got -1."),
    ({"tol": 0}, "`tol` must be positive, got 0."),
    ({"max_iter": 0}, "`max_iter` must be an integer of at least 1, got 0."),
    ({"time_limit": -1}, "`time_limit` must be a number of at least 0, got -1."),
    ({"certify": "most"}, "`certify` must be one of 'full', 'path', got 'most'."),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "message"), PARAMETERS)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError) as raised:
        L0Regressor(**parameters).fit(X, y)
    assert str(raised.value) == message


FINITE = "Drop or fill these values first, for example with sklearn.impute.SimpleImputer."
TEXT = (
    "Make the column categorical to have its levels expanded and kept together "
    "(`astype('category')` in pandas, `cast(pl.Categorical)` in polars), or turn it into numbers."
)
DATA = [
    (broken(1, np.nan), y, f"`X` must be finite, got NaN or infinity (inf) in column 1 (1).\n"
     f"hint: {FINITE}"),
    (sparse.csr_array(broken(1, np.inf)), y, "`X` must be finite, got NaN or infinity (inf) in "
     f"column 1 (1).\nhint: {FINITE}"),
    (torch.as_tensor(broken(1, np.inf)), y, "`X` must be finite, got NaN or infinity (inf) in "
     f"column 1 (1).\nhint: {FINITE}"),
    (pd.DataFrame(broken(1, np.nan), columns=FRAME.columns), y, "`X` must be finite, got NaN or "
     f"infinity (inf) in column 'height' (1).\nhint: {FINITE}"),
    (text(FRAME), y, f"`X` must hold numbers, got text such as 'Paris' in column 'city'.\n"
     f"hint: {TEXT}"),
    (pl.from_pandas(FRAME).with_columns(city=pl.lit("Paris")), y, "`X` must hold numbers, got "
     f"text such as 'Paris' in column 'city'.\nhint: {TEXT}"),
    (FRAME.assign(day=pd.Timestamp("2020-01-01")), y, "`X` must hold numbers, got column 'day' of "
     f"type {FRAME.assign(day=pd.Timestamp('2020-01-01'))['day'].dtype}.\nhint: Turn the column "
     "into numbers, or drop it."),
    (FRAME.set_axis(["a", "a", "b"], axis=1), y, "The columns of `X` must have different names, "
     "got 'a' twice.\nhint: Rename or drop one of them."),
    (FRAME.assign(c=pd.Categorical([None] + ["u"] * 19)), y, "`X` must have no missing values, "
     "got 1 in the categorical column 'c'.\nhint: Fill them, for example with a level of their "
     "own."),
    ([["a", 1.0]] * 20, y, "`X` must hold numbers, got text such as 'a' in column 0.\nhint: "
     "Encode the column as numbers, or pass a data frame in which it is categorical."),
    (torch.zeros(20), y, "`X` must have 2 axes, got shape (20,).\nhint: Reshape your data: "
     "`X.reshape(-1, 1)` for one feature, `X.reshape(1, -1)` for one sample."),
    (y, y, "`X` must have 2 axes, got shape (20,).\nhint: Reshape your data: "
     "`X.reshape(-1, 1)` for one feature, `X.reshape(1, -1)` for one sample."),
    (y.tolist(), y, "`X` must have 2 axes, got shape (20,).\nhint: Reshape your data: "
     "`X.reshape(-1, 1)` for one feature, `X.reshape(1, -1)` for one sample."),
    (pd.Series(y), y, "`X` must have 2 axes, got shape (20,).\nhint: Reshape your data: "
     "`X.reshape(-1, 1)` for one feature, `X.reshape(1, -1)` for one sample."),
    (torch.zeros(20, 3).to_sparse(), y, "`X` must be a dense tensor, got layout "
     "torch.sparse_coo.\nhint: Pass a scipy.sparse matrix for sparse data."),
    (torch.zeros(20, 3, dtype=torch.complex64), y, "Complex data not supported: `X` must hold "
     "real numbers."),
    (torch.zeros(20, 0), y, "Found 0 feature(s) (shape=(20, 0)) while a minimum of 1 is required "
     "by L0Regressor."),
    (torch.zeros(1, 3), y[:1], "Found array with 1 sample(s) (shape=(1, 3)) while a minimum of 2 "
     "is required by L0Regressor."),
    (X, y[:-1], "`X` and `y` must have the same number of samples, got 20 and 19."),
    (X, None, "This L0Regressor estimator requires y to be passed, but the target y is None."),
    (X, ["a"] * 20, "`y` must hold numbers, got labels or text.\nhint: Use `L0Classifier` for "
     "labels."),
    (X, np.where(LABELS, np.nan, y), f"`y` must be finite, got NaN or infinity (inf) in "
     f"{LABELS.sum()} entries.\nhint: Drop these samples first."),
    (X, y + 1j, "Complex data not supported: `y` must hold real numbers."),
    (X, y.reshape(5, 2, 2), "`y` must have 1 or 2 axes, got shape (5, 2, 2)."),
    (X, sparse.csr_array(y[:, None]), "`y` must be dense, got a sparse matrix.\nhint: Pass "
     "`y.toarray()`."),
]  # fmt: skip


@pytest.mark.parametrize(("features", "target", "message"), DATA)
def test_wrong_data(features: Any, target: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        L0Regressor(1).fit(features, target)
    assert str(raised.value) == message


WEIGHTS = [
    (np.ones(19), "`sample_weight` must have one entry for each of 20 samples, got shape (19,)."),
    (-np.ones(20), "`sample_weight` must not be negative, got -1."),
    (np.zeros(20), "`sample_weight` must have a positive entry, got only zeros."),
    (np.full(20, np.nan), "`sample_weight` must be finite, got NaN or infinity."),
    (["a"] * 20, "`sample_weight` must hold numbers."),
]


@pytest.mark.parametrize(("weight", "message"), WEIGHTS)
def test_wrong_weights(weight: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        L0Regressor(1).fit(X, y, sample_weight=weight)
    assert str(raised.value) == message


OTHERS = [
    (L0Classifier(), y, "Unknown label type: continuous. `y` must hold class labels, got 20 "
     "different numbers that are not integers.\nhint: Use `L0Regressor` for numbers, or cut `y` "
     "into classes first."),
    (L0Classifier(), np.round(y * 2) / 2, None),
    (L0Classifier(), ["a"] * 20, "`y` must have at least two classes, got one class: 'a'.\nhint: "
     "Check the labels; a constant target needs no model."),
    (L0Classifier(), np.where(LABELS, np.nan, 1.0), f"`y` must hold labels, got NaN or infinity "
     f"(inf) in {LABELS.sum()} entries.\nhint: Drop these samples first."),
    (L0Classifier(), np.array(["a", None] * 10, dtype=object), "`y` must hold labels, got 10 "
     "missing ones.\nhint: Drop these samples first."),
    (L0Classifier(), LABELS + 1j, "Complex data not supported: `y` must hold labels."),
    (L0Classifier(class_weight="even"), LABELS, "`class_weight` must be a mapping of classes to "
     "weights, 'balanced' or None, got 'even'."),
    (L0Classifier(class_weight=3), LABELS, "`class_weight` must be a mapping of classes to "
     "weights, 'balanced' or None, got 3."),
    (L0Classifier(class_weight={2: 1.0}), LABELS, "`class_weight` has a weight for 2, which is "
     "not a class.\nhint: Classes: 0, 1."),
    (L0Classifier(class_weight={1: 0.0}), LABELS, "`class_weight` must be positive, got 0."),
    (L0PoissonRegressor(), y, f"`y` must hold counts, which are not negative, got {y.min():g}."
     "\nhint: Use `L0Regressor` for numbers of either sign."),
    (L0PoissonRegressor(), np.zeros(20), "`y` must hold a positive count, got zeros only."),
    (L0PoissonRegressor(), np.ones((20, 2)), "y should be a 1d array, got an array of shape "
     "(20, 2) instead.\nhint: Fit one model for each target; `L0Regressor` takes several."),
    (L0HuberRegressor(epsilon=0), y, "`epsilon` must be positive, got 0."),
    (L0RegressorCV(ridge="best"), y, "`ridge` must be a number, a sequence of numbers or 'auto', "
     "got 'best'."),
    (L0RegressorCV(ridge=[]), y, "`ridge` must hold at least one number, got none."),
    (L0RegressorCV(rule="two_se"), y, "`rule` must be one of 'best', 'one_se', got 'two_se'. Did "
     "you mean 'one_se'?"),
    (L0RegressorCV(cv=[]), y, "`cv` must give at least one split, got none."),
    (L0RegressorCV(cv=[(np.arange(20), np.arange(0))]), y, "`cv` must leave samples with positive "
     "weight in every part, got none in the test rows of fold 0."),
    (L0RegressorCV(ridge=0.0, scoring=lambda *_: np.nan, cv=2), y, "`scoring` must give finite "
     "numbers, got NaN for every model."),
    (L0ClassifierCV(cv=[(np.flatnonzero(LABELS), np.arange(20))]), LABELS, "`cv` must leave every "
     "class in the train rows, got none of class np.int64(0) in fold 0.\nhint: Use fewer folds, "
     "or StratifiedKFold with shuffle=True."),
    (L0Classifier(1, solver="exact"), LABELS, "`solver='exact'` cannot treat this problem: it "
     "proves least squares only.\nhint: Pass `solver='auto'`."),
    (L0Selector(LinearRegression()), y, "`estimator` must be an estimator of ellzero, got "
     "LinearRegression.\nhint: Use sklearn.feature_selection.SelectFromModel for others."),
    (L0Selector(), None, "This L0Selector estimator requires y to be passed, but the target y is "
     "None."),
    (L0Selector(prefit=True), None, "`prefit=True` needs a fitted `estimator`, got None."),
]  # fmt: skip


@pytest.mark.parametrize(("model", "target", "message"), OTHERS)
def test_wrong_input_of_other_estimators(model: Any, target: Any, message: str | None) -> None:
    with pytest.raises(EllzeroError) as raised:
        model.fit(X, target)
    if message is not None:
        assert str(raised.value) == message


def test_a_selector_must_be_given_a_fitted_model() -> None:
    with pytest.raises(NotFittedError) as raised:
        L0Selector(L0Regressor(), prefit=True).fit(X)
    assert str(raised.value) == (
        "`prefit=True` needs a fitted `estimator`, got L0Regressor that is not fitted."
    )


def test_wrong_input_of_predict() -> None:
    frame = FRAME.assign(city=pd.Categorical(["u", "v"] * 10))
    model = L0Regressor(1).fit(frame, y)
    with pytest.raises(DataError) as raised:
        model.predict(FRAME)
    assert str(raised.value) == (
        "The feature names should match those that were passed during fit. Feature names seen at "
        "fit time, yet now missing: city\nhint: Pass the columns of `feature_names_in_` in "
        "their order: `X[model.feature_names_in_]`."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError) as raised:
            model.predict(np.zeros((3, 4)))
    assert str(raised.value) == (
        "`X` must be a data frame, because columns were categorical in `fit`, got ndarray."
    )
    numbers = L0Regressor(1).fit(frame.assign(city=1.0), y)
    mixed = L0Regressor(1).fit(frame.assign(town=pd.Categorical(["a", "b"] * 10)), y)
    del numbers
    with pytest.raises(DataError) as raised:
        mixed.predict(frame.assign(age=frame["city"], town=frame["city"]))
    assert str(raised.value) == (
        "Column 'age' is categorical but held numbers in `fit`.\nhint: Pass the column as numbers."
    )
    with pytest.raises(DataError) as raised:
        L0Regressor(1).fit(X, y).predict(X[:, :2])
    assert (
        str(raised.value) == "X has 2 features, but L0Regressor is expecting 3 features as input."
    )


def test_paths_and_plots_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = L0Regressor([1, 2]).fit(X, y).path_
    with pytest.raises(InvalidParameterError) as raised:
        path.position(3)
    assert str(raised.value) == "The path has no model for budget 3.\nhint: Its budgets: 1, 2."
    for module in ("matplotlib.pyplot", "pandas"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError) as missing:
        path.plot()
    assert str(missing.value) == (
        "`plot_path` needs matplotlib, which is not installed.\n"
        "hint: Install it with `pip install 'ellzero[plot]'`."
    )
    with pytest.raises(ImportError) as missing:
        path.to_frame()
    assert str(missing.value) == (
        "`to_frame` needs pandas, which is not installed.\n"
        "hint: Install it with `pip install pandas`, or use `to_dict()`."
    )


def test_a_proof_that_is_stopped_warns_with_its_gap() -> None:
    rng = np.random.default_rng(3)
    Z = rng.standard_normal((60, 100)) + rng.standard_normal((60, 1))
    t = Z[:, :8].sum(1) + 3 * rng.standard_normal(60)
    with pytest.warns(ConvergenceWarning) as caught:
        model = L0Regressor(8, ridge=0.01, solver="exact", max_iter=3).fit(Z, t)
    assert str(caught[0].message) == (
        f"Branch and bound stopped at `max_iter=3` boxes; the model is the best so far, within a "
        f"proven gap of {model.gap_:.2g}.\nhint: Raise `max_iter`, or add `ridge`, which shortens "
        "proofs."
    )
    assert 0 < model.gap_ <= 1


def test_a_search_out_of_time_warns() -> None:
    with pytest.warns(ConvergenceWarning) as caught:
        L0Regressor(2, time_limit=0.0, solver="search").fit(X, y)
    assert str(caught[0].message) == (
        "The search stopped at `time_limit=0.0` seconds; the model is the best so far.\nhint: "
        "Raise `time_limit`, or choose a smaller `effort`."
    )


def test_incompatible_is_a_type_error() -> None:
    assert issubclass(IncompatibleError, TypeError)
