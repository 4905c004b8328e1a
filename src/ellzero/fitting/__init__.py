"""Best-subset models from a table: fitted, selected, saved, applied to new rows."""

from ellzero.fitting.predicting import Predictions, predict_file

__all__ = ["Predictions", "predict_file"]
