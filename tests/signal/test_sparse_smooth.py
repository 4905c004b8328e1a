"""SparseSmooth and denoise as a user meets them."""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone

import ellzero
from ellzero.core.result import Claim
from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.kernels.chain import leverages
from ellzero.signal import SparseSmooth, denoise
from ellzero.signal.certificate import certify_chain
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized
from tests.signal.enumeration import (
    by_budget,
    chain_values,
    costs_of,
    laplacian,
    masks,
    random_case,
    smooth_values,
)

SHARED = Path(os.environ.get("ELLZERO_SHARED", Path(__file__).parents[2] / "shared"))
ACCELEROMETER = SHARED / "data" / "accelerometer_chest.csv"


def series(n=200, seed=0):
    rng = np.random.default_rng(seed)
    y = 0.3 * rng.standard_normal(n)
    y[n // 4 : n // 4 + n // 10] += 2.0
    y[n // 2 : n // 2 + n // 20] -= 1.5
    return y


@pytest.fixture(scope="module")
def chest():
    if not ACCELEROMETER.exists():
        pytest.skip("The accelerometer series is not here; set ELLZERO_SHARED.")
    return np.genfromtxt(ACCELEROMETER, delimiter=",")[1:, 1]


@pytest.mark.parametrize(
    ("smoothness", "penalty", "value", "n_nonzero", "n_bumps"),
    [
        (0.5, 1e-3, "5.712820544614", 3255, 102),
        (5, 1e-3, "7.089990861174", 3232, 19),
        (5, 1e-2, "19.185984501057", 37, 2),
        (50, 1e-4, "4.795730299149", 6522, 15),
        (500, 1e-3, "9.992119787217", 3356, 6),
    ],
)
def test_penalized_accelerometer(chest, smoothness, penalty, value, n_nonzero, n_bumps):
    est = SparseSmooth(smoothness, penalty=penalty).fit(chest)
    assert f"{est.value_:.12f}" == value
    assert est.support_.size == n_nonzero
    assert np.count_nonzero(np.diff(est.support_) > 1) + 1 == n_bumps
    assert est.certificate_.claim is Claim.OPTIMAL


@pytest.mark.parametrize(
    ("smoothness", "n_nonzero", "value"),
    [
        (0.5, 200, "16.508184987743"),
        (5, 200, "17.520445769847"),
        (5, 1000, "11.915734237088"),
        (5, 3000, "4.120026431537"),
        (50, 1000, "13.229589491157"),
    ],
)
def test_budgeted_accelerometer(chest, smoothness, n_nonzero, value):
    est = SparseSmooth(smoothness, n_nonzero=n_nonzero, certify=False).fit(chest)
    assert f"{est.value_:.12f}" == value
    assert est.support_.size == n_nonzero
    assert est.gap_ == 0.0


def test_the_value_is_the_objective_as_written_and_scales_with_the_data():
    y, w = series(), np.linspace(0.5, 1.5, 200)
    est = SparseSmooth(3.0, penalty=0.4).fit(y, w)
    x = est.signal_
    written = (w * (y - x) ** 2).sum() + 3.0 * (np.diff(x) ** 2).sum()
    assert est.value_ == pytest.approx(written + 0.4 * np.count_nonzero(x), rel=1e-13)
    for scale in (1e-12, 1e-3, 1e12):
        other = SparseSmooth(3.0, penalty=0.4 * scale**2).fit(scale * y, w)
        assert (other.support_ == est.support_).all()
        assert other.value_ == pytest.approx(est.value_ * scale**2, rel=1e-12)
        budget = SparseSmooth(3.0, n_nonzero=25).fit(scale * y, w)
        assert (budget.support_ == SparseSmooth(3.0, n_nonzero=25).fit(y, w).support_).all()


def test_no_smoothness_is_hard_thresholding_and_much_is_all_or_nothing():
    y, w = series(), np.linspace(0.5, 1.5, 200)
    est = SparseSmooth(0.0, penalty=0.3).fit(y, w)
    kept = w * y**2 > 0.3
    assert est.signal_ == pytest.approx(np.where(kept, y, 0.0), rel=1e-14)
    largest = SparseSmooth(0.0, n_nonzero=7).fit(y)
    assert set(largest.support_) == set(np.argsort(-np.abs(y))[:7])
    for offset, on in ((0.0, 0), (3.0, 200)):
        stiff = SparseSmooth(1e9, penalty=0.5).fit(y + offset)
        assert stiff.support_.size == on
    assert stiff.signal_ == pytest.approx(np.full(200, (y + 3.0).mean()), rel=1e-5)


def test_budgets_of_zero_and_all():
    y = series()
    none = SparseSmooth(2.0, n_nonzero=0).fit(y)
    assert not none.signal_.any()
    assert none.value_ == pytest.approx((y**2).sum(), rel=1e-14)
    every = SparseSmooth(2.0, n_nonzero=200).fit(y)
    here = np.arange(199)
    matrix = np.eye(200) + laplacian(200, here, here + 1, np.full(199, 2.0))
    assert every.signal_ == pytest.approx(np.linalg.solve(matrix, y), rel=1e-10)
    assert none.gap_ == every.gap_ == 0.0
    assert none.certificate_.claim is every.certificate_.claim is Claim.OPTIMAL


def test_nonnegative_and_free_agree_on_positive_data_and_differ_on_others():
    y = np.abs(series())
    free, signed = (SparseSmooth(2.0, n_nonzero=30, nonnegative=s).fit(y) for s in (False, True))
    assert free.value_ == pytest.approx(signed.value_, rel=1e-13)
    mixed = SparseSmooth(2.0, n_nonzero=30, nonnegative=True).fit(series())
    assert (mixed.signal_ >= 0).all()
    assert mixed.value_ > SparseSmooth(2.0, n_nonzero=30).fit(series()).value_


def test_missing_samples_have_no_weight_and_are_filled_in():
    y = series()
    holes = np.zeros(200, dtype=bool)
    holes[[0, 55, 60, 61, 199]] = True
    gone = SparseSmooth(2.0, n_nonzero=40).fit(np.where(holes, np.nan, y))
    weighted = SparseSmooth(2.0, n_nonzero=40).fit(
        np.where(holes, 77.0, y), (~holes).astype(float)
    )
    assert (gone.signal_ == weighted.signal_).all()
    assert gone.signal_[[55, 60, 61]].min() > 1.0
    assert np.isfinite(gone.signal_).all()


def test_one_sample_constant_zeros_and_other_types():
    assert SparseSmooth(2.0, penalty=1.0).fit([3.0]).signal_.tolist() == [3.0]
    assert SparseSmooth(2.0, penalty=10.0).fit([3.0]).signal_.tolist() == [0.0]
    zeros = SparseSmooth(2.0, n_nonzero=2).fit(np.zeros(5))
    assert (zeros.value_, zeros.gap_, zeros.support_.size) == (0.0, 0.0, 0)
    whole = SparseSmooth(0.0, penalty=0.5).fit(np.array([0, 7, -3]))
    assert whole.signal_.tolist() == [0.0, 7.0, -3.0]
    y = series().astype(np.float32)
    narrow, wide = (SparseSmooth(2.0, n_nonzero=20).fit(a) for a in (y, y.astype(np.float64)))
    assert narrow.signal_.dtype == np.float64
    assert (narrow.signal_ == wide.signal_).all()


def test_forests_as_lists_of_edges_against_enumeration():
    rng = np.random.default_rng(0)
    for trial in range(40):
        n = int(rng.integers(2, 9))
        order = rng.permutation(n)
        pairs = [(order[v], order[rng.integers(v)]) for v in range(1, n) if rng.random() < 0.85]
        edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        y, weights = rng.standard_normal(n), rng.uniform(0.1, 3.0, len(pairs))
        matrix = laplacian(n, edges[:, 0], edges[:, 1], weights)
        values = smooth_values(y, np.ones(n), matrix, False)
        est = SparseSmooth(weights, penalty=0.3, graph=edges, known_zeros=[0]).fit(y)
        cost = np.full(n, 0.3)
        cost[0] = np.inf
        assert est.value_ == pytest.approx((values + costs_of(cost)).min(), rel=1e-11)
        assert est.certificate_.claim is Claim.OPTIMAL
        assert est.certificate_.lower_bound == pytest.approx(est.value_, rel=1e-11)
        for k, best in enumerate(by_budget(values)):
            budget = SparseSmooth(weights, n_nonzero=k, graph=edges).fit(y)
            assert budget.support_.size <= k
            assert budget.value_ == pytest.approx(best, rel=1e-11), trial
            assert budget.gap_ <= 1e-11
            assert budget.certificate_.lower_bound <= best * (1 + 1e-12)


def test_disconnected_chains_are_solved_part_by_part():
    y = series(100)
    edges = np.array([(i, i + 1) for i in range(99) if i != 49])
    both = SparseSmooth(2.0, penalty=0.3, graph=edges).fit(y)
    parts = [SparseSmooth(2.0, penalty=0.3).fit(p) for p in (y[:50], y[50:])]
    assert both.value_ == pytest.approx(sum(p.value_ for p in parts), rel=1e-12)
    assert both.signal_ == pytest.approx(np.concatenate([p.signal_ for p in parts]), rel=1e-10)


def test_known_zeros_and_ones_against_enumeration():
    rng = np.random.default_rng(1)
    for _ in range(60):
        case = random_case(rng, most=8)
        n = case.y.size
        if not (case.w > 0).any():
            continue
        kinds = rng.choice([-1, 0, 1, 1], n)
        zeros, ones = np.flatnonzero(kinds < 0), np.flatnonzero(kinds == 0)
        given = {
            "smoothness": case.edges,
            "nonnegative": case.nonnegative,
            "known_zeros": zeros,
            "known_ones": ones,
        }
        values, on = chain_values(case), masks(n)
        values[(on & (kinds < 0)).any(axis=1)] = np.inf
        scale = max((case.w * case.y**2).sum(), 1e-3)
        est = SparseSmooth(penalty=0.4, **given).fit(case.y, case.w)
        best = (values + 0.4 * (on & (kinds > 0)).sum(axis=1)).min()
        assert abs(est.value_ - best) <= 1e-11 * scale
        assert est.certificate_.claim is Claim.OPTIMAL
        assert est.certificate_.lower_bound <= best + 1e-11 * scale
        k = int(rng.integers(ones.size, n + 1))
        est = SparseSmooth(n_nonzero=k, **given).fit(case.y, case.w)
        best = values[(on | (kinds == 0)).sum(axis=1) <= k].min()
        assert abs(est.value_ - best) <= 1e-11 * scale
        assert est.support_.size <= k


def test_a_cost_of_bumps_joins_them_and_is_certified():
    rng = np.random.default_rng(2)
    for _ in range(60):
        case = random_case(rng, most=8)
        if not (case.w > 0).any():
            continue
        est = SparseSmooth(
            case.edges, penalty=0.2, bump_penalty=0.7, nonnegative=case.nonnegative
        ).fit(case.y, case.w)
        best = (chain_values(case) + costs_of(np.full(case.y.size, 0.2), 0.7)).min()
        scale = max((case.w * case.y**2).sum(), 1e-3)
        assert abs(est.value_ - best) <= 1e-11 * scale
        assert est.certificate_.claim is Claim.OPTIMAL


def test_certificates_refuse_other_signals():
    y = series()
    for nonnegative in (False, True):
        chain = Chain(y, np.ones(200), np.full(199, 2.0), nonnegative)
        for budget, penalty in ((20, None), (None, 0.5)):
            found = solve_penalized(chain, 0.5) if budget is None else solve_budgeted(chain, 20)
            right = certify_chain(chain, found, budget=budget, penalty=penalty)
            assert right.supports(Claim.GAP)
            assert right.lower_bound <= found.value
            moved = found.signal.copy()
            moved[found.support] *= 1.01
            swapped = found.support.copy()
            swapped[np.flatnonzero(swapped)[0]] = False
            swapped[-1] = True
            more = found.support.copy()
            more[:5] = True
            for signal in (moved, chain.refit(swapped), chain.refit(more)):
                wrong = certify_chain(
                    chain, replace(found, signal=signal), budget=budget, penalty=penalty
                )
                assert not wrong.supports(Claim.OPTIMAL)
                assert wrong.lower_bound == pytest.approx(right.lower_bound, rel=1e-9)
                assert wrong.claim is None or wrong.gap > 1e-9


def test_paths_give_a_fitted_copy_for_every_budget():
    y = series()
    est = SparseSmooth(2.0, n_nonzero=5)
    path = est.path(y, n_nonzero=[0, 10, 30])
    assert [p.n_nonzero for p in path] == [0, 10, 30]
    for p in path:
        alone = SparseSmooth(2.0, n_nonzero=p.n_nonzero).fit(y)
        assert p.value_ == pytest.approx(alone.value_, rel=1e-12)
    assert not hasattr(est, "signal_")


@pytest.mark.parametrize(("criterion", "most"), [("ebic", 75), ("cv", 90)])
def test_selection_finds_about_the_planted_number_of_nonzeros(criterion, most):
    y = series(400, seed=3)
    est = SparseSmooth(1.0, n_nonzero=1)
    chosen = est.select(y, range(20, 121, 5), criterion=criterion)
    assert chosen is est
    # 40 and 20 samples are planted; cross-validation is known to choose more.
    assert 50 <= est.budget_ <= most
    scores = est.criterion_[criterion]
    assert est.budget_ == est.criterion_["n_nonzero"][int(np.argmin(scores))]
    assert est.support_.size <= est.budget_


def test_cross_validation_is_the_error_of_samples_left_out():
    y = series(60)
    est = SparseSmooth(1.0, penalty=1.0).select(y, [5, 12], criterion="cv", n_folds=3)
    for k, score in zip([5, 12], est.criterion_["cv"], strict=True):
        total = 0.0
        for fold in range(3):
            part = y.copy()
            part[fold::3] = np.nan
            out = SparseSmooth(1.0, n_nonzero=k).fit(part).signal_
            total += ((y - out)[fold::3] ** 2).sum()
        assert score == pytest.approx(total, rel=1e-10)
    assert est.select(y).budget_ >= 1


def test_degrees_of_freedom_are_the_trace_of_the_fit():
    rng = np.random.default_rng(4)
    n = 30
    w, edges, on = rng.uniform(0.5, 2, n), rng.uniform(0, 3, n - 1), rng.random(n) < 0.7
    here = np.arange(n - 1)
    matrix = np.diag(w) + laplacian(n, here, here + 1, edges)
    inverse = np.linalg.inv(matrix[np.ix_(on, on)])
    assert leverages(w, edges, on)[on] == pytest.approx(np.diag(inverse) * w[on], rel=1e-12)
    assert (leverages(w, edges, on)[~on] == 0).all()


class Series(list):
    """What a pandas series shows of itself, for environments without pandas."""

    def __init__(self, values, index, name):
        super().__init__(values)
        self.index, self.name = index, name


def test_a_series_comes_back_with_its_index_and_name(monkeypatch):
    if importlib.util.find_spec("pandas") is None:
        monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(Series=Series))
    pandas = importlib.import_module("pandas")
    y = pandas.Series(series(), index=range(7, 207), name="load")
    out = denoise(y, smoothness=2.0, n_nonzero=20)
    assert type(out) is type(y)
    assert out.name == "load"
    assert list(out.index) == list(range(7, 207))
    assert (np.asarray(out) == denoise(series(), smoothness=2.0, n_nonzero=20)).all()


def test_conventions_of_scikit_learn():
    est = SparseSmooth(3.0, n_nonzero=4, nonnegative=True)
    copy = clone(est)
    assert copy.get_params() == est.get_params()
    assert repr(copy) == "SparseSmooth(n_nonzero=4, nonnegative=True, smoothness=3.0)"
    assert est.fit([1.0, 2.0, 0.0, 4.0]) is est
    assert (est.predict() == est.signal_).all()
    with pytest.raises(Exception, match="not fitted") as error:
        copy.predict()
    assert type(error.value).__name__ == "NotFittedError"
    assert ellzero.SparseSmooth is SparseSmooth
    assert ellzero.denoise is denoise


def test_a_row_as_a_grid_is_a_chain():
    y = series(50)
    flat = SparseSmooth(2.0, n_nonzero=9).fit(y)
    for shape in ((1, 50), (50, 1)):
        image = SparseSmooth(2.0, n_nonzero=9, graph="grid").fit(y.reshape(shape))
        assert image.signal_.shape == shape
        assert (image.signal_.ravel() == flat.signal_).all()


GIVEN = {"n_nonzero": 1}
BAD = [
    ([[1.0], [1.0, 2.0]], GIVEN, InvalidParameterError, "`y` must hold numbers, got list."),
    (["1", "2"], GIVEN, InvalidParameterError, "`y` must hold numbers, got list."),
    (
        np.array(["2020-01-01"], dtype="M8[D]"),
        GIVEN,
        InvalidParameterError,
        "`y` must hold numbers, got ndarray.",
    ),
    ([10**400], GIVEN, InvalidParameterError, "`y` must hold numbers, got list."),
    (
        np.array([2**64 - 1], dtype=np.uint64),
        GIVEN,
        InvalidParameterError,
        "`y` must hold numbers that float64 can represent, got integers beyond 2^53.",
    ),
    (
        [1e200, 1.0],
        GIVEN,
        InvalidParameterError,
        "`y` must have its largest magnitude between 1e-150 and 1e+150, got 1e+200.",
    ),
    (
        [1e-310, 0.0],
        GIVEN,
        InvalidParameterError,
        "`y` must have its largest magnitude between 1e-150 and 1e+150, got 1e-310.",
    ),
    (
        [1.0, 2.0],
        {"graph": [[0, 1], [1]], **GIVEN},
        InvalidParameterError,
        "`graph` must hold pairs of positions, got rows of different lengths.",
    ),
    ([1.0, np.inf], GIVEN, NonFiniteError, "`y` must not be infinite, sample 1 is."),
    ([np.nan], GIVEN, NonFiniteError, "`y` must hold at least one number, all samples are NaN."),
    ([], GIVEN, InvalidParameterError, "`y` must hold at least one sample, got shape (0,)."),
    (3.0, GIVEN, InvalidParameterError, "`y` must hold at least one sample, got shape ()."),
    (["a"], GIVEN, InvalidParameterError, "`y` must hold numbers, got list."),
    ([1j], GIVEN, InvalidParameterError, "`y` must be real, got complex numbers."),
    (
        [2**53 + 1],
        GIVEN,
        InvalidParameterError,
        "`y` must hold numbers that float64 can represent, got integers beyond 2^53.",
    ),
    (
        [1.0, 2.0],
        {},
        InvalidParameterError,
        "Exactly one of `n_nonzero` and `penalty` must be given, got neither.",
    ),
    (
        [1.0, 2.0],
        {"n_nonzero": 1, "penalty": 1.0},
        InvalidParameterError,
        "Exactly one of `n_nonzero` and `penalty` must be given, got both.",
    ),
    (
        [1.0, 2.0],
        {"n_nonzero": 3},
        InvalidParameterError,
        "`n_nonzero` must be at most 2, the number of samples, got 3.",
    ),
    (
        [1.0, 2.0],
        {"smoothness": -1.0, **GIVEN},
        InvalidParameterError,
        "`smoothness` must be finite and not negative, got -1.",
    ),
    (
        [1.0, 2.0],
        {"smoothness": [1.0, 2.0], **GIVEN},
        InvalidParameterError,
        "`smoothness` must be a number or one for each of 1 edges, got shape (2,).",
    ),
    (
        [1.0, 2.0],
        {"smoothness": "much", **GIVEN},
        InvalidParameterError,
        "`smoothness` must be a number or one for each edge, got 'much'.",
    ),
    (
        [1.0, 2.0],
        {"graph": "ring", **GIVEN},
        InvalidParameterError,
        "`graph` must be 'chain', 'grid' or a list of edges, got 'ring'.",
    ),
    (
        [1.0, 2.0],
        {"graph": "grid", **GIVEN},
        InvalidParameterError,
        "A grid needs samples with two axes, got shape (2,).",
    ),
    (
        [[1.0, 2.0]],
        GIVEN,
        InvalidParameterError,
        "A chain needs samples in one row, got shape (1, 2).",
    ),
    (
        [1.0, 2.0],
        {"graph": [[0.5, 1.0]], **GIVEN},
        InvalidParameterError,
        "`graph` must hold pairs of positions, got shape (1, 2) of float64.",
    ),
    (
        [1.0, 2.0],
        {"graph": [[0, 2]], **GIVEN},
        InvalidParameterError,
        "`graph` must name samples 0 to 1, got the edge (0, 2).",
    ),
    (
        [1.0, 2.0],
        {"graph": [[1, 1]], **GIVEN},
        InvalidParameterError,
        "`graph` must not join a sample to itself, got 1.",
    ),
    (
        [1.0, 2.0],
        {"known_zeros": [2], **GIVEN},
        InvalidParameterError,
        "`known_zeros` must name samples 0 to 1, got 2.",
    ),
    (
        [1.0, 2.0],
        {"known_ones": [0.5], **GIVEN},
        InvalidParameterError,
        "`known_ones` must be a list of positions, got shape (1,) of float64.",
    ),
    (
        [1.0, 2.0],
        {"known_zeros": [1], "known_ones": [0, 1], **GIVEN},
        InvalidParameterError,
        "`known_zeros` and `known_ones` must not share a position, both hold 1.",
    ),
    (
        [1.0, 2.0],
        {"known_ones": [0, 1], **GIVEN},
        InvalidParameterError,
        "`n_nonzero` must be at least 2, the number of `known_ones`, got 1.",
    ),
    (
        [1.0, 2.0, 3.0],
        {"bump_penalty": 1.0, "penalty": 1.0, "graph": [[0, 2]]},
        IncompatibleError,
        "`bump_penalty` needs a chain, got a forest.",
    ),
    (
        [1.0, 2.0, 3.0],
        {"n_bumps": 1, "penalty": 1.0, "graph": [[0, 2]]},
        IncompatibleError,
        "`n_bumps` needs a chain, got a forest.",
    ),
    (
        [1.0, 2.0, 3.0],
        {"min_length": 2, "penalty": 1.0, "graph": [[0, 2]]},
        IncompatibleError,
        "`min_length` needs a chain, got a forest.",
    ),
    (
        [1.0, 2.0, 3.0],
        {"min_distance": 2, "penalty": 1.0, "graph": [[0, 2]]},
        IncompatibleError,
        "`min_distance` needs a chain, got a forest.",
    ),
]


@pytest.mark.parametrize(("y", "given", "kind", "message"), BAD)
def test_bad_input_is_one_sentence(y, given, kind, message):
    with pytest.raises(kind) as error:
        SparseSmooth(**given).fit(y)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0], "`sample_weight` must have the shape of `y`, (2,), got (1,)."),
        ([1.0, -1.0], "`sample_weight` must be finite and not negative, got -1."),
        ([1.0, np.inf], "`sample_weight` must be finite and not negative, got inf."),
        ([0.0, 0.0], "`sample_weight` must have a positive entry, got zeros."),
        (["a", "b"], "`sample_weight` must hold numbers, got list."),
        ([1j, 1.0], "`sample_weight` must be real, got complex numbers."),
        ([[1.0], [1.0, 2.0]], "`sample_weight` must hold numbers, got list."),
    ],
)
def test_bad_weights_are_one_sentence(weight, message):
    with pytest.raises(InvalidParameterError) as error:
        SparseSmooth(n_nonzero=1).fit([1.0, 2.0], weight)
    assert error.value.message == message


def test_bad_selections_are_one_sentence():
    est = SparseSmooth(n_nonzero=1)
    with pytest.raises(InvalidParameterError) as error:
        est.select([1.0, 2.0], [])
    assert error.value.message == "`n_nonzero` must hold at least one budget, got none."
    for call in (est.select, est.path):
        with pytest.raises(InvalidParameterError) as error:
            call([1.0, 2.0], 3)
        assert error.value.message == "`n_nonzero` must hold one budget or more, got 3."
        assert error.value.hint == "Pass a list: `[50, 100, 200]`."
    with pytest.raises(IncompatibleError) as error:
        est.set_params(graph=[[0, 1], [1, 2], [0, 2]]).select([1.0, 2.0, 3.0])
    assert error.value.message.startswith(
        "The criterion 'ebic' needs a chain or a tree, got a graph with cycles: "
    )


def test_masked_samples_are_missing_and_a_graph_without_edges_is_one():
    masked = np.ma.array([1.0, 9.0, 2.0], mask=[False, True, False])
    missing = SparseSmooth(1.0, n_nonzero=2).fit([1.0, np.nan, 2.0])
    assert (SparseSmooth(1.0, n_nonzero=2).fit(masked).signal_ == missing.signal_).all()
    alone = SparseSmooth(1.0, n_nonzero=2, graph=[]).fit([1.0, 3.0, 2.0])
    assert alone.signal_.tolist() == [0.0, 3.0, 2.0]
