"""Reference figures: measured by independent code, recipe in the module's docstring."""

import itertools

import numpy as np
import pytest
import torch

from ellzero.core.solver import iterate
from ellzero.papers import find_experiment
from ellzero.papers.ht_escape import Watch, build_setting, escape, make_starts
from ellzero.report.schema import to_json
from ellzero.solvers import IHT
from ellzero.tensors import named


@pytest.fixture(scope="module")
def setting():
    return build_setting()


@pytest.fixture(scope="module")
def found(setting):
    return escape(setting, 4000, seed=0)


def test_constants_and_stability_match_enumeration_in_numpy(setting):
    rng = np.random.default_rng(7)
    B = rng.standard_normal((30, 10))
    Q = B.T @ B / 30
    c = Q @ rng.standard_normal(10) + 0.3 * rng.standard_normal(10)
    blocks = [Q[np.ix_(S, S)] for S in itertools.combinations(range(10), 6)]
    L = max(np.linalg.eigvalsh(block)[-1] for block in blocks)
    assert setting.smoothness == pytest.approx(L, rel=1e-12)
    assert round(L, 4) == 1.6990
    assert round(setting.full_smoothness, 4) == 1.7403
    stable = []
    for S in map(list, itertools.combinations(range(10), 3)):
        x = np.zeros(10)
        x[S] = np.linalg.solve(Q[np.ix_(S, S)], c[S])
        g = Q @ x - c
        off = np.delete(np.abs(g), S).max()
        stable.append(off / L <= np.abs(x[S]).min())
    assert named.to_list(setting.stable) == stable
    assert sum(stable) == 15


def test_starts_lie_beside_the_unstable_points(setting):
    starts, which = make_starts(setting, 4000, seed=0)
    points = named.flatten(setting.unstable)[which]
    moved = named.flatten(starts) - points
    length = moved.norm(dim=1)
    assert points.shape == (4000, 10)
    assert torch.bincount(which).tolist() == [39] * 10 + [38] * 95
    # The shortest moves are rounded at the scale of the points.
    assert float(length.min()) > 5e-13
    assert float(length.max()) <= 1e-4
    assert bool(((moved == 0) | (points != 0)).all())


def test_all_leave_none_returns_none_rises(found):
    assert (found.left, found.returned, found.monotone) == (4000, 0, 4000)


def test_limits(found):
    assert len(found.final_values) == 12
    assert sum(found.final_counts) == 4000
    assert round(found.final_values[0], 5) == -2.77834
    assert found.all_stable


def test_descent_inequality_holds_in_every_watched_step(found):
    assert found.watch.d1_checks >= 4000 * 20
    assert float(found.watch.d1_slack.min()) >= 0


def test_descent_inequality_is_refused_for_a_too_small_constant(setting):
    # The same check with a quarter of L must fail somewhere.
    starts, which = make_starts(setting, 420, seed=0)
    small = setting.smoothness / 4
    watch = Watch(named.flatten(setting.unstable)[which], small)
    iterate(
        setting.problem, IHT(step_size=1 / small, tol=0.0), starts, max_iter=20, callback=watch
    )
    assert float(watch.d1_slack.min()) < 0


def test_the_distance_bound_is_below_the_distances(found):
    closest = torch.stack(found.watch.distances[1:]).amin(0)
    assert bool((found.nearest <= closest + 1e-12).all())
    assert float(found.nearest.min()) > 1e-4


def test_quick_summary():
    summary = find_experiment("ht-escape").run(quick=True)
    assert all(row[-1] for row in summary["reference"]["rows"])
    shown = summary["escape"]
    assert shown["starts"] == shown["left"] == shown["monotone"] == 420
    assert len(shown["distance"]) == len(shown["values"]) == 40
    assert all(len(run) == len(shown["iterations"]) for run in shown["distance"])
    assert sum(shown["final_counts"]) == 420
    assert '"escape"' in to_json(summary)
