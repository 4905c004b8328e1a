"""What is claimed of a value and a bound, and of a network that was tampered with."""

import dataclasses

import numpy as np

from ellzero.core.result import Claim
from ellzero.relu import ConvexReLURegressor, certify_network
from ellzero.relu.conclusion import conclude


def test_a_bound_above_the_value_claims_nothing():
    assert conclude(1.0, 1.1, {}).claim is None
    assert not conclude(1.0, 1.1, {}).holds


def test_rounding_of_a_bound_is_taken_off():
    certificate = conclude(1.0, 1.0 + 1e-12, {})
    assert (certificate.claim, certificate.gap) == (Claim.OPTIMAL, 0.0)
    assert certificate.lower_bound == 1.0


def test_a_gap_is_claimed_as_it_is():
    certificate = conclude(2.0, 1.0, {}, assumptions=("a relaxation",))
    assert (certificate.claim, certificate.gap) == (Claim.GAP, 0.5)
    assert certificate.assumptions == ("a relaxation",)


def test_a_changed_coefficient_is_refused():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    y = np.maximum(X[:, 0], 0) - np.maximum(X[:, 0] + X[:, 1], 0)
    model = ConvexReLURegressor(0.01, fit_bias=False, random_state=0).fit(X, y)
    assert model.certificate_.claim is Claim.OPTIMAL
    outputs = model.network_.outputs.copy()
    outputs[0] *= 1.05
    wrong = dataclasses.replace(model.network_, outputs=outputs)
    assert certify_network(wrong, X, y, 0.01).claim is Claim.GAP
