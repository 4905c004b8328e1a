"""Train exactly sparse models on a table, and check saved ones again."""

from ellzero.training.claims import Claims, is_exported, read_claims, save_large
from ellzero.training.experiment import (
    Experiment,
    build_experiment,
    build_network,
    check_device,
)
from ellzero.training.large import LargeExperiment
from ellzero.training.modules import file_digest
from ellzero.training.outcomes import Outcome
from ellzero.training.recheck import recertify
from ellzero.training.run import TrainRun, train
from ellzero.training.scoring import saved_model
from ellzero.training.settings import (
    ACTIVATIONS,
    Between,
    Moment,
    Progress,
    TrainSettings,
    Watch,
)
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
    "Claims",
    "Experiment",
    "LargeExperiment",
    "Moment",
    "Outcome",
    "Progress",
    "TrainRun",
    "TrainSettings",
    "Watch",
    "build_experiment",
    "build_network",
    "check_device",
    "entry_labels",
    "file_digest",
    "headline",
    "is_exported",
    "read_claims",
    "recertify",
    "save_large",
    "saved_model",
    "shown_run",
    "smoothness_estimates",
    "summarize",
    "train",
]
