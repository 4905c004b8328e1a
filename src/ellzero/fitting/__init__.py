"""Best-subset models from a table: fitted, selected, saved, applied to new rows."""

from ellzero.fitting.predicting import Predictions, predict_file
from ellzero.fitting.recheck import is_fit, recertify_fit
from ellzero.fitting.run import Fit, FitData, FitRun, fit_table, read_fit_data, saved_model
from ellzero.fitting.settings import FitSettings
from ellzero.fitting.summary import summarize_fit

__all__ = [
    "Fit",
    "FitData",
    "FitRun",
    "FitSettings",
    "Predictions",
    "fit_table",
    "is_fit",
    "predict_file",
    "read_fit_data",
    "recertify_fit",
    "saved_model",
    "summarize_fit",
]
