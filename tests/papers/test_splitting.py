"""Quick runs of both splitting experiments; every reference figure is met."""

import json

import numpy as np
import pytest

from ellzero.papers import find_experiment
from ellzero.papers.rvsm import decaying_teachers, penalty_of, sparse_teachers
from ellzero.report import to_html
from ellzero.report.schema import to_json


@pytest.mark.parametrize(("kind", "beta"), [("l1", 0.01), ("l0", 0.01), ("tl1", 0.3)])
@pytest.mark.parametrize("threshold", [0.01, 0.15, 0.4])
def test_penalties_have_the_threshold_asked_for(kind, beta, threshold):
    found = penalty_of(kind, beta, threshold).threshold(1 / beta)
    assert found == pytest.approx(threshold, rel=1e-12)


def test_teachers():
    teachers = sparse_teachers(30, 40, 7, seed=3)
    assert ((teachers != 0).sum(1) == 7).all()
    np.testing.assert_allclose(teachers.norm(dim=1), 1, rtol=1e-12)
    largest, smallest = teachers.abs().amax(1), teachers.abs().where(teachers != 0, 9.0).amin(1)
    assert (largest / smallest <= 3).all()
    assert (teachers[3] == sparse_teachers(1, 40, 7, seed=6)[0]).all()
    dense = decaying_teachers(5, 20)
    assert (dense != 0).all()
    ratio = dense.abs().amax(1) / dense.abs().amin(1)
    np.testing.assert_allclose(ratio, 20, rtol=1e-12)


def tables(summary):
    return {table["title"].split(" (")[0]: table for table in summary["tables"]}


@pytest.mark.slow
def test_rvsm():
    summary = find_experiment("rvsm").run(quick=True)
    assert all(row[-1] for row in summary["reference"]["rows"])
    assert len(summary["reference"]["rows"]) == 25
    cells = tables(summary)["Recovery and error over coupling and threshold"]["rows"]
    share = {tuple(row[:3]): row[3] for row in cells}
    # Small couplings find every support, large ones lose them.
    assert share["l1", 1e-3, 0.05] == share["l0", 1e-3, 0.05] == 1
    assert share["l1", 0.2, 0.05] < 0.5
    assert all(
        row[-1]
        for row in tables(summary)["Descent of the Lagrangian, 600 steps of length 0.5"]["rows"]
    )
    assert all(row[-1] for row in tables(summary)["Step sizes against 2 /"]["rows"])
    # At about equal counts, the loss of l0 is a tenth of that of l1.
    trade = tables(summary)["Trade-off on teachers without zeros"]["rows"]
    loss = {tuple(row[:2]): row[3] for row in trade}
    assert loss["l0", 0.02] < 0.2 * loss["l1", 0.02]
    assert '"figures"' in to_json(summary)
    assert to_html(summary).count("<svg") >= 10
    json.dumps(summary)


@pytest.mark.slow
def test_rvscgd():
    summary = find_experiment("rvscgd").run(quick=True)
    assert all(row[-1] for row in summary["reference"]["rows"])
    assert len(summary["reference"]["rows"]) == 16
    collapse = tables(summary)["Collapse without normalization"]["rows"]
    kept = {row[0]: row[3] for row in collapse}
    assert kept["l1, not normalized"] == kept["transformed l1, not normalized"] == 0
    assert kept["l1, normalized"] == kept["l0, not normalized"] == 10
    cautions = tables(summary)["What `check_splitting` says at these ends"]["rows"]
    advised = [run for run, caution in cautions if "set `normalize=True`" in caution]
    assert advised == ["l1, not normalized", "transformed l1, not normalized"]
    assert collapse[-1][-1] == 0
    rises = tables(summary)["Rises over 300 steps of length 0.05"]["rows"]
    assert all(row[-1] for row in rises)
    assert "<svg" in to_html(summary)
    json.dumps(summary)
