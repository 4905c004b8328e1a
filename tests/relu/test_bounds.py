"""Suprema and their bounds against enumeration."""

import numpy as np
import pytest

from ellzero.relu.losses import loss_of
from ellzero.relu.relaxation import Multipliers, bound_of, relax, solve_dual
from ellzero.relu.separation import line_neuron, plane_neuron, search_neurons
from tests.relu.exact import supremum


@pytest.mark.parametrize("seed", range(40))
def test_plane_neuron_is_the_supremum(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((rng.integers(1, 15), 2)) * (rng.random((1, 2)) + 0.1)
    v = rng.standard_normal(len(A))
    value, neuron = plane_neuron(A, v)
    # The ball has the zero vector too.
    assert max(value, 0.0) == pytest.approx(supremum(A, v), rel=1e-9, abs=1e-9)
    assert np.linalg.norm(neuron) == pytest.approx(1)
    assert v @ np.maximum(A @ neuron, 0) == pytest.approx(value)


def test_plane_neuron_with_zero_and_equal_rows():
    A = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    v = np.array([5.0, 1.0, 1.0, -3.0])
    angles = np.linspace(-np.pi, np.pi, 100_001)
    brute = (v @ np.maximum(A @ np.array([np.cos(angles), np.sin(angles)]), 0)).max()
    assert plane_neuron(A, v)[0] == pytest.approx(brute)
    assert plane_neuron(A[:1], v[:1])[0] == 0.0


def test_line_neuron_takes_the_better_sign():
    A = np.array([[1.0], [-2.0]])
    assert line_neuron(A, np.array([1.0, 3.0])) == (6.0, np.array([-1.0]))


@pytest.mark.parametrize("seed", range(100))
def test_bounds_hold_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((rng.integers(3, 11), 3))
    v = rng.standard_normal(len(A))
    truth = supremum(A, v)
    values, found = search_neurons(A, v, rng, n_starts=50, n_iter=60)
    assert values[0] <= truth * (1 + 1e-9) + 1e-12
    bound, multipliers = relax(A, v, found, n_iter=200)
    assert bound >= truth * (1 - 1e-9)
    assert bound_of(A, v, multipliers) == pytest.approx(bound, rel=1e-9)
    wild = Multipliers(*(rng.standard_normal((3, len(A))) * 10.0 ** rng.integers(-3, 3)))
    assert bound_of(A, v, wild) >= truth * (1 - 1e-9)


def test_bounds_are_tight_on_average():
    ratios = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((9, 3))
        v = rng.standard_normal(9) + 0.7
        _, found = search_neurons(A, v, rng, n_starts=50, n_iter=60)
        ratios.append(relax(A, v, found)[0] / supremum(A, v))
    assert np.median(ratios) < 1.02
    assert min(ratios) >= 1 - 1e-9


@pytest.mark.parametrize("name", ["squared", "logistic"])
@pytest.mark.parametrize("balanced", [False, True])
def test_joint_program_beats_the_residual(name, balanced):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((30, 4))
    y = np.sign(A[:, 0] * A[:, 1] + 0.1)
    loss = loss_of(name)
    point = loss.residual(np.zeros(30), y)
    point = loss.balance(point) if balanced else point
    penalty = 0.3 * search_neurons(A, point, rng)[0][0]
    found, up, down = solve_dual(A, y, loss, penalty, point, balanced=balanced)
    for sign, side in ((1.0, up), (-1.0, down)):
        bound = bound_of(A, sign * found, side)
        assert bound <= penalty * 1.01
        assert search_neurons(A, sign * found, rng)[0][0] <= bound
    plain = relax(A, point, search_neurons(A, point, rng)[1])[0]
    scale = loss.best_scale(point, y, penalty / plain)
    assert loss.dual(found / 1.01, y) > loss.dual(scale * point, y)
