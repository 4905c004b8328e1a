"""Sparse and smooth signals: exact on chains and trees, with proven gaps on other graphs."""

from ellzero.signal.convexification import Relaxation, relax
from ellzero.signal.estimator import SparseSmooth, denoise

__all__ = ["Relaxation", "SparseSmooth", "denoise", "relax"]
