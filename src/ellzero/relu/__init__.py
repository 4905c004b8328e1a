"""Convex two-layer ReLU networks: trained, and certified over every width."""

from ellzero.relu.certificate import certify_network
from ellzero.relu.estimators import ConvexReLUClassifier, ConvexReLURegressor
from ellzero.relu.gated import (
    GatedSolution,
    certify_gated,
    gated_path,
    memory_needed,
    solve_gated,
)
from ellzero.relu.gated_estimators import GatedReLUClassifier, GatedReLURegressor
from ellzero.relu.gated_network import GatedReLU, GatedReLUModule
from ellzero.relu.gated_program import GatedProgram
from ellzero.relu.gates import Gates, read_gates, sample_gates
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.polishing import polish

__all__ = [
    "ConvexReLUClassifier",
    "ConvexReLURegressor",
    "GatedProgram",
    "GatedReLU",
    "GatedReLUClassifier",
    "GatedReLUModule",
    "GatedReLURegressor",
    "GatedSolution",
    "Gates",
    "TwoLayerReLU",
    "certify_gated",
    "certify_network",
    "gated_path",
    "memory_needed",
    "polish",
    "read_gates",
    "sample_gates",
    "solve_gated",
]
