"""Train exactly sparse models on a table, and check saved ones again."""

from ellzero.training.experiment import (
    Experiment,
    build_experiment,
    build_network,
    check_device,
)
from ellzero.training.outcomes import Outcome, saved_model
from ellzero.training.recheck import Recheck, recertify
from ellzero.training.run import TrainRun, train
from ellzero.training.settings import ACTIVATIONS, Between, Progress, TrainSettings
from ellzero.training.summary import (
    entry_labels,
    headline,
    shown_run,
    smoothness_estimates,
    summarize,
)

__all__ = [
    "ACTIVATIONS",
    "Between",
    "Experiment",
    "Outcome",
    "Progress",
    "Recheck",
    "TrainRun",
    "TrainSettings",
    "build_experiment",
    "build_network",
    "check_device",
    "entry_labels",
    "headline",
    "recertify",
    "saved_model",
    "shown_run",
    "smoothness_estimates",
    "summarize",
    "train",
]
