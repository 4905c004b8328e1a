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
from ellzero.relu.fused import FusedLeastSquares, RectifiedLeastSquares
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
from ellzero.relu.outputs import VectorReLU
from ellzero.relu.polishing import polish
from ellzero.relu.recovery import RecoveredNetwork, recover_network
from ellzero.relu.spline_estimator import SplineReLURegressor
from ellzero.relu.spline_programs import VectorSpline, fit_spline_hinge, fit_spline_outputs
from ellzero.relu.splines import ReLUSpline, certify_spline, fit_spline
from ellzero.relu.whitened import fit_whitened_classes, fit_whitened_hinge

__all__ = [
    "ConvexReLUClassifier",
    "ConvexReLURegressor",
    "FusedLeastSquares",
    "GatedProgram",
    "GatedReLU",
    "GatedReLUClassifier",
    "GatedReLUModule",
    "GatedReLURegressor",
    "GatedSolution",
    "Gates",
    "ReLUSpline",
    "RecoveredNetwork",
    "RectifiedLeastSquares",
    "SplineReLURegressor",
    "TwoLayerReLU",
    "VectorReLU",
    "VectorSpline",
    "certify_gated",
    "certify_network",
    "certify_spline",
    "check_l0_l1",
    "fit_spike_free",
    "fit_spline",
    "fit_spline_hinge",
    "fit_spline_outputs",
    "fit_whitened",
    "fit_whitened_classes",
    "fit_whitened_hinge",
    "gated_path",
    "is_spike_free",
    "memory_needed",
    "polish",
    "prune",
    "read_gates",
    "recover_network",
    "relaxed_cutting_planes",
    "sample_gates",
    "solve_gated",
    "spike_free_excess",
    "spike_free_violation",
]
