"""Sets of allowed points."""

from ellzero.sets.bounds import Box, Nonnegative
from ellzero.sets.groups import BlockL0Ball, GroupL0Ball
from ellzero.sets.patterns import NMPattern
from ellzero.sets.product import ProductSet
from ellzero.sets.slices import SliceL0Ball
from ellzero.sets.sparsity import L0Ball

__all__ = [
    "BlockL0Ball",
    "Box",
    "GroupL0Ball",
    "L0Ball",
    "NMPattern",
    "Nonnegative",
    "ProductSet",
    "SliceL0Ball",
]
