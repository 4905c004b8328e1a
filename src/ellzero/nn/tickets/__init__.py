"""Tickets: whether a trainable sparse subnetwork exists, and what finding it costs.

`run` trains the arms of the experiment with equal starts, batches and numbers of steps; what it
returns compares them with intervals and answers by a margin that was fixed before.
"""

from ellzero.nn.tickets.arms import ARMS, DEFAULT_ARMS
from ellzero.nn.tickets.intervals import Interval, holm, paired_interval
from ellzero.nn.tickets.masks import levels, shuffle_layers
from ellzero.nn.tickets.protocol import run
from ellzero.nn.tickets.results import Answer, Comparison, Overlap, Run, TicketResult
from ellzero.nn.tickets.summary import summarize
from ellzero.nn.tickets.task import Accuracy, MeanLoss, Settings, Shuffled, Task

__all__ = [
    "ARMS",
    "DEFAULT_ARMS",
    "Accuracy",
    "Answer",
    "Comparison",
    "Interval",
    "MeanLoss",
    "Overlap",
    "Run",
    "Settings",
    "Shuffled",
    "Task",
    "TicketResult",
    "holm",
    "levels",
    "paired_interval",
    "run",
    "shuffle_layers",
    "summarize",
]
