import json

import numpy as np
import pytest

from ellzero.papers import find_experiment
from ellzero.papers.convex_geometry import cutting_rows, descend, make_line
from ellzero.relu import fit_spline
from ellzero.report import to_html

pytest.importorskip("cvxpy")


def test_quick_summary():
    summary = find_experiment("convex-geometry").run(quick=True)
    assert all(row[-1] for row in summary["reference"]["rows"])
    line, large, whitened, cuts, plane = (table["rows"] for table in summary["tables"])
    assert all(row[2] <= 1e-9 and row[4] >= -1e-12 and row[-1] == 0 for row in line)
    assert all(row[2] <= 1e-9 for row in large)
    assert all(row[4] <= 1e-10 and abs(row[5]) <= 1e-6 for row in whitened)
    assert cuts[0][2] == 0
    assert all(row[3] <= 1e-8 and row[5] <= row[0] and abs(row[6]) <= 1e-8 for row in plane)
    assert len(summary["figures"]) == 4
    json.dumps(summary)
    assert to_html(summary).count("<svg") >= 4


def test_algorithm_1_is_right_for_whitened_data_only():
    centered, shifted, whitened = cutting_rows(3)
    assert centered[1] > 2 * centered[3]
    assert shifted[1] > 1.05 * shifted[3]
    assert whitened[1] == pytest.approx(whitened[3], rel=1e-6)


def test_descent_lowers_the_value_and_stays_above_the_spline():
    t, y = make_line(1)
    exact = fit_spline(t, y, 1e-2)
    few, more = (descend(t, y, 1e-2, n_runs=3, width=30, n_steps=k, seed=0) for k in (50, 1500))
    values = np.array([[run.value(k, t, y, 1e-2) for k in range(3)] for run in (few, more)])
    assert (values[1] < values[0]).all()
    assert values.min() >= exact.value * (1 - 1e-12)
    assert values[1].min() < 1.5 * exact.value


@pytest.mark.slow
def test_none_of_fifty_long_runs_is_below_the_spline():
    t, y = make_line(0)
    for penalty in (1e-3, 1e-1):
        exact = fit_spline(t, y, penalty)
        runs = descend(t, y, penalty, n_runs=50, width=100, n_steps=10_000, seed=0)
        values = np.array([runs.value(k, t, y, penalty) for k in range(50)])
        assert values.min() >= exact.lower_bound
        assert values.min() < 1.1 * exact.value
