"""Convex two-layer ReLU networks: trained, and certified over every width."""

from ellzero.relu.certificate import certify_network
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
    "fit_spline",
    "polish",
]
