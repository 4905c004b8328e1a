"""Bounds on pieces of the ball, against enumeration and against one quadratic."""

import numpy as np
import pytest
import torch

from ellzero.relu import TwoLayerReLU, certify_network
from ellzero.relu.branching import (
    Piece,
    Split,
    _Region,
    blend,
    bound_of_pieces,
    branch,
)
from ellzero.relu.certificate import certify
from ellzero.relu.losses import loss_of
from ellzero.relu.separation import search_neurons
from tests.relu.exact import supremum


def case(seed, n=None, d=3):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n or int(rng.integers(3, 11)), d))
    return A, rng.standard_normal(len(A)), rng


@pytest.mark.parametrize("seed", range(25))
def test_bounds_hold_against_enumeration_and_close(seed):
    A, v, _ = case(seed)
    truth = supremum(A, v)
    one, _, n_one = branch(A, v, goal=1e-3 * truth + 1e-9, max_pieces=1)
    bound, tree, n_pieces = branch(A, v, goal=1.002 * truth + 1e-9, max_pieces=20)
    assert n_one == 1
    assert 1 <= n_pieces <= 20
    assert bound >= truth * (1 - 1e-9)
    assert one >= truth * (1 - 1e-9)
    assert bound <= 1.002 * truth + 2e-9
    assert bound_of_pieces(A, v, tree) == pytest.approx(bound)


def wild(rng, n, depth):
    """Return a tree of any cuts with any multipliers, good or bad."""

    def piece(n_cuts):
        size = 10.0 ** rng.integers(-3, 3)
        return Piece(*(size * rng.standard_normal((4, n))), rng.standard_normal((n_cuts, n_cuts)))

    def grow(n_cuts):
        if n_cuts == depth:
            return piece(n_cuts)
        return Split(rng.standard_normal(3), rng.uniform(-1.5, 1.5), grow(n_cuts + 1),
                     grow(n_cuts + 1))  # fmt: skip

    return grow(0)


@pytest.mark.parametrize("seed", range(30))
def test_any_tree_gives_a_bound(seed):
    A, v, rng = case(seed)
    truth = supremum(A, v)
    for depth in (1, 2, 3):
        tree = wild(rng, len(A), depth)
        assert bound_of_pieces(A, v, tree) >= truth * (1 - 1e-9)
        nothing = Piece(*np.zeros((4, len(A))), np.zeros((0, 0)))
        assert bound_of_pieces(A, v, blend(tree, nothing, 0.5)) >= truth * (1 - 1e-9)


def test_ranges_of_samples_hold_on_the_piece():
    A, v, rng = case(3, n=30, d=4)
    cuts = [(np.array([1.0, 0, 0, 0]), 0.6), (np.array([0, 0.6, 0.8, 0]), -0.1)]
    region = _Region(A, v, cuts)
    u = rng.standard_normal((20000, 4))
    u /= np.linalg.norm(u, axis=1)[:, None]
    inside = u[np.all([u @ g >= b for g, b in cuts], axis=0)]
    products = inside @ A.T
    assert (products <= region.high).all()
    assert (products >= region.low).all()
    # Samples of one sign there are linear there, and some are.
    assert len(region.up) + len(region.down) < 30


def test_pieces_beat_one_quadratic_where_two_neurons_compete():
    # sum of |t_i| over two orthogonal directions: four maximizers, which one quadratic covers.
    rng = np.random.default_rng(0)
    A = rng.standard_normal((25, 6))
    v = np.where(rng.random(25) < 0.5, 1.0, -1.0)
    lower = search_neurons(A, v, rng)[0][0]
    bounds = [branch(A, v, goal=lower, max_pieces=k)[0] for k in (1, 4, 12)]
    assert lower <= bounds[2] < bounds[1] < bounds[0]
    assert bounds[2] / lower - 1 < 0.5 * (bounds[0] / lower - 1)


def test_bound_scales_with_rows_and_point():
    A, v, _ = case(5, n=12)
    plain = branch(A, v, goal=1e-9, max_pieces=2)[0]
    for size in (1e-6, 1e6):
        assert branch(A * size, v, goal=1e-9 * size, max_pieces=2)[0] == pytest.approx(
            plain * size, rel=1e-4
        )
        assert branch(A, v * size, goal=1e-9 * size, max_pieces=2)[0] == pytest.approx(
            plain * size, rel=1e-4
        )


def test_certificate_by_pieces_is_no_worse_and_says_so():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 4))
    y = np.sign(X[:, 0] * X[:, 1])
    network = TwoLayerReLU(rng.standard_normal((5, 4)) * 0.1, None, rng.standard_normal(5), None)
    plain = certify_network(network, X, y, 0.02, method="residual")
    pieces = certify_network(network, X, y, 0.02, method="branch", max_pieces=3)
    assert plain.lower_bound <= pieces.lower_bound <= pieces.checks[0].bound
    module = network.to_module()
    assert isinstance(module, torch.nn.Module)


@pytest.mark.parametrize("intercept", [None, 0.1])
def test_more_inputs_than_samples_change_no_bound(intercept):
    rng = np.random.default_rng(2)
    small = rng.standard_normal((8, 4))
    y = rng.standard_normal(8)
    network = TwoLayerReLU(rng.standard_normal((3, 4)), None, rng.standard_normal(3), intercept)
    # The same data in twenty dimensions: an isometry of the four, and inputs that are seen by
    # weights alone cost the network norm, not the bound.
    basis = np.linalg.qr(rng.standard_normal((20, 4)))[0]
    wide = TwoLayerReLU(network.hidden @ basis.T, None, network.outputs, intercept)
    one, _ = certify(network, small, y, loss_of("squared"), 0.05, method="residual")
    two, _ = certify(wide, small @ basis.T, y, loss_of("squared"), 0.05, method="residual")
    assert two.lower_bound == pytest.approx(one.lower_bound, rel=1e-3)
    assert two.gap == pytest.approx(one.gap, rel=1e-2)
