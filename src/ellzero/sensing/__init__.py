"""Compressed sensing: sparse signals from few linear measurements."""

from ellzero.sensing.recovery import recover

__all__ = ["recover"]
