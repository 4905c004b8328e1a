"""The geometry that decides between one step size for all and one for each coordinate."""

from ellzero.geometry.diagonals import density, smallest_diagonal, smoothness_vector
from ellzero.geometry.measure import Geometry, measure_geometry, measure_module

__all__ = [
    "Geometry",
    "density",
    "measure_geometry",
    "measure_module",
    "smallest_diagonal",
    "smoothness_vector",
]
