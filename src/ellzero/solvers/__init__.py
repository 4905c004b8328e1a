"""Solvers: each says how to step; `ellzero.core.solver.iterate` runs them."""

from ellzero.solvers.adagrad import AdaGrad
from ellzero.solvers.branch_and_bound import BranchAndBound
from ellzero.solvers.exact_subset import ExactSubset
from ellzero.solvers.gradient_descent import GradientDescent
from ellzero.solvers.polish import polish
from ellzero.solvers.pursuit import HTP, OMP, CoSaMP, GraHTP, SubspacePursuit
from ellzero.solvers.refit import Newton, refit
from ellzero.solvers.splitting import RVSCGD, RVSM
from ellzero.solvers.starts import dense_minimizer, make_starts, random_starts
from ellzero.solvers.subset_search import SubsetSearch
from ellzero.solvers.swaps import LocalSearch
from ellzero.solvers.thresholding import (
    DORE,
    IHT,
    NIHT,
    AcceleratedIHT,
    ProximalGradient,
)

__all__ = [
    "DORE",
    "HTP",
    "IHT",
    "NIHT",
    "OMP",
    "RVSCGD",
    "RVSM",
    "AcceleratedIHT",
    "AdaGrad",
    "BranchAndBound",
    "CoSaMP",
    "ExactSubset",
    "GraHTP",
    "GradientDescent",
    "LocalSearch",
    "Newton",
    "ProximalGradient",
    "SubsetSearch",
    "SubspacePursuit",
    "dense_minimizer",
    "make_starts",
    "polish",
    "random_starts",
    "refit",
]
