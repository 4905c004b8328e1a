"""Sparse networks: training any torch module under an exact budget."""

from ellzero.nn import callbacks, export, schedules
from ellzero.nn.budgets import make_balls, prunable
from ellzero.nn.optimizer import HardThresholding, freeze_support

__all__ = [
    "HardThresholding",
    "callbacks",
    "export",
    "freeze_support",
    "make_balls",
    "prunable",
    "schedules",
]
