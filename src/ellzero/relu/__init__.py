"""Convex two-layer ReLU networks: trained, and certified over every width."""

from ellzero.relu.certificate import certify_network
from ellzero.relu.closed_forms import (
    check_l0_l1,
    fit_spike_free,
    fit_whitened,
    is_spike_free,
    spike_free_excess,
    spike_free_violation,
)
from ellzero.relu.cutting_planes import prune, relaxed_cutting_planes
from ellzero.relu.estimators import ConvexReLUClassifier, ConvexReLURegressor
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.polishing import polish
from ellzero.relu.spline_estimator import SplineReLURegressor
from ellzero.relu.splines import ReLUSpline, certify_spline, fit_spline

__all__ = [
    "ConvexReLUClassifier",
    "ConvexReLURegressor",
    "ReLUSpline",
    "SplineReLURegressor",
    "TwoLayerReLU",
    "certify_network",
    "certify_spline",
    "check_l0_l1",
    "fit_spike_free",
    "fit_spline",
    "fit_whitened",
    "is_spike_free",
    "polish",
    "prune",
    "relaxed_cutting_planes",
    "spike_free_excess",
    "spike_free_violation",
]
