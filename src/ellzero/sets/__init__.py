"""Sets of allowed points."""

from ellzero.sets.sparsity import L0Ball

__all__ = ["L0Ball"]
