"""Convex two-layer ReLU networks: trained, and certified over every width."""

from ellzero.relu.certificate import certify_network
from ellzero.relu.estimators import ConvexReLUClassifier, ConvexReLURegressor
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.polishing import polish

__all__ = [
    "ConvexReLUClassifier",
    "ConvexReLURegressor",
    "TwoLayerReLU",
    "certify_network",
    "polish",
]
