"""Back-propagation as a product of Jacobian matrices, written out for people."""

from ellzero.backprop.chain import (
    Agreement,
    Factor,
    Gradients,
    JacobianChain,
    LayerJacobian,
    RestrictedJacobian,
    Spectrum,
    batch_gradients,
    layer_jacobians,
)
from ellzero.backprop.operators import (
    AbstractJacobian,
    BlockJacobian,
    DenseJacobian,
    DiagonalJacobian,
    IdentityJacobian,
    LowRankJacobian,
    ResidualJacobian,
    SelectionJacobian,
    SparseJacobian,
)
from ellzero.backprop.rules import LOSSES, RULES, HalfSquaredError, LayerParts, Residual

__all__ = [
    "LOSSES",
    "RULES",
    "AbstractJacobian",
    "Agreement",
    "BlockJacobian",
    "DenseJacobian",
    "DiagonalJacobian",
    "Factor",
    "Gradients",
    "HalfSquaredError",
    "IdentityJacobian",
    "JacobianChain",
    "LayerJacobian",
    "LayerParts",
    "LowRankJacobian",
    "Residual",
    "ResidualJacobian",
    "RestrictedJacobian",
    "SelectionJacobian",
    "SparseJacobian",
    "Spectrum",
    "batch_gradients",
    "layer_jacobians",
]
