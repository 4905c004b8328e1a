import json

import numpy as np
import pytest

from ellzero.papers import find_experiment
from ellzero.papers.sparse_smooth import (
    SMOOTHNESS,
    compare_estimators,
    f1_score,
    make_bumps,
    measure_gaps,
)
from ellzero.report import to_html
from ellzero.signal import SparseSmooth

pytest.importorskip("cvxpy")


def test_the_series_has_bumps_and_the_noise_that_was_asked_for():
    signal, y = make_bumps(1000, 0.5, 0)
    again, _ = make_bumps(1000, 1.0, 0)
    assert (signal == again).all()
    runs = np.flatnonzero(np.diff(signal != 0))
    assert 100 <= np.count_nonzero(signal) <= 200
    assert np.diff(runs)[::2].min() >= 20
    assert 0.45 < (y - signal).std() < 0.55
    counts = [np.count_nonzero(make_bumps(1000, 0.5, k)[0]) for k in range(60)]
    # Ten bumps of 20 at random places of 1000 cover 1000 (1 - 0.98^10) = 183 on average.
    assert np.mean(counts) == pytest.approx(183, abs=5)


def test_f1_by_hand():
    assert f1_score(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])) == 0.5
    assert f1_score(np.zeros(3), np.zeros(3)) == 1.0


def test_gaps_fall_from_method_to_method_and_bounds_hold():
    rows = measure_gaps(60, 3.0, 8, rounds=2, before=(50.0, 4.0))
    _, y = make_bumps(60, 0.5, 0)
    exact = SparseSmooth(3.0, n_nonzero=8, nonnegative=True).fit(y)
    assert exact.gap_ == 0.0
    gaps = [row.gap for row in rows]
    assert all(row.exact == pytest.approx(exact.value_, rel=1e-12) for row in rows)
    assert gaps == sorted(gaps, reverse=True)
    assert min(gaps) >= 0.0
    assert gaps[1] > 1.5 * gaps[3]
    assert min(row.above for row in rows) >= -1e-10
    assert [row.before for row in rows] == [50.0, 4.0, None, None, None, None]


def test_exact_estimates_beat_l1_in_error_and_support_at_the_best_error():
    for noise in (0.3, 1.0):
        exact, lasso = compare_estimators(noise, seeds=2, smoothness=(0.3, 3.0), n=400)
        assert exact.errors.mean() < lasso.errors.mean()
        assert exact.scores.mean() > lasso.scores.mean()
        assert exact.counts.mean() < lasso.counts.mean()
        assert np.count_nonzero(lasso.signal) > 0
        assert exact.best_score >= exact.scores.mean()


@pytest.mark.slow
def test_exact_estimates_beat_l1_at_every_level_and_the_grids_are_wide_enough():
    from ellzero.papers.sparse_smooth import L0_PENALTIES, L1_PENALTIES, NOISES

    for noise in NOISES:
        exact, lasso = compare_estimators(noise, seeds=8)
        assert exact.errors.mean() < lasso.errors.mean()
        assert (exact.errors < lasso.errors).sum() >= 6
        assert exact.scores.mean() > lasso.scores.mean() + 0.2
        for row, penalties, unit in (
            (exact, L0_PENALTIES, noise**2),
            (lasso, L1_PENALTIES, noise),
        ):
            inside = penalties[0] < row.penalty / unit * (1 + 1e-9) < penalties[-1]
            assert inside
            assert row.smoothness < SMOOTHNESS[-1]


def test_quick_summary(tmp_path):
    summary = find_experiment("sparse-smooth").run(quick=True)
    rows = summary["reference"]["rows"]
    assert len(rows) == 14
    assert all(row[-1] for row in rows)
    estimates, parameters, claims = summary["tables"]
    assert [row[1] for row in estimates["rows"]] == ["exact l0", "l1"] * 3
    for one, two in zip(estimates["rows"][::2], estimates["rows"][1::2], strict=True):
        assert one[3] < two[3]
        assert one[5] > two[5]
    assert len(parameters["rows"]) == 3
    remembered = [row[1] for row in claims["rows"]]
    assert sum("remembered only" in how for how in remembered) == 2
    assert len(summary["figures"]) == 4
    json.dumps(summary)
    page = to_html(summary)
    assert page.count("<svg") >= 3
