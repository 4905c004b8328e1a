"""scikit-learn estimators with an exact number of nonzero coefficients."""
