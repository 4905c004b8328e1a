"""Sparse networks: training any torch module under an exact budget."""

from ellzero.nn import callbacks, checkpoints, export, schedules, tickets
from ellzero.nn.binary import BinaryActivation
from ellzero.nn.budgets import make_balls, prunable
from ellzero.nn.certificate import certify
from ellzero.nn.freezing import freeze_support, kept_zeros
from ellzero.nn.layers import LayerSummary, Summary, summary
from ellzero.nn.optimizer import HardThresholding
from ellzero.nn.polishing import polish
from ellzero.nn.processes import check_same_support, support_hash
from ellzero.nn.splitting import RVSM

__all__ = [
    "RVSM",
    "BinaryActivation",
    "HardThresholding",
    "LayerSummary",
    "Summary",
    "callbacks",
    "certify",
    "check_same_support",
    "checkpoints",
    "export",
    "freeze_support",
    "kept_zeros",
    "make_balls",
    "polish",
    "prunable",
    "schedules",
    "summary",
    "support_hash",
    "tickets",
]
