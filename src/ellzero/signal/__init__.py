"""Sparse and smooth signals: exact on chains and trees, with proven gaps on other graphs."""

from ellzero.signal.estimator import SparseSmooth, denoise

__all__ = ["SparseSmooth", "denoise"]
