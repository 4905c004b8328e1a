"""Text that the docstrings of all estimators share, written once."""

from __future__ import annotations

from typing import TypeVar

C = TypeVar("C", bound=type)

_BUDGET = """
    n_nonzero_coefs : int, float, sequence of these, or "auto", default="auto"
        Most features with a nonzero coefficient (groups, where there are any); a fraction in
        (0, 1) is of all of them. With several the size is selected, by "auto" from sizes up to
        N / (log p log log N), at most 50. Intercepts never count.
"""

_EPSILON = """
    epsilon : float, default=1.35
        Residuals beyond `epsilon` times `scale_` count linearly. Must be positive.
"""

_CLASS_WEIGHT = """
    class_weight : mapping of labels to float, "balanced" or None, default=None
        Weights of classes, multiplied with those of samples; "balanced" makes the totals equal.
"""

_CRITERION = """
    criterion : {{"ebic", "bic", "aic", "sic"}}, default="ebic"
        What selects among several sizes. With deviance D (N log(RSS / N) for least squares, else
        minus twice the log-likelihood), q free coefficients, k of p features chosen and N samples
        (or the sum of their weights): AIC = D + 2 q, BIC = D + q log N,
        EBIC = BIC + 2 gamma log(p choose k) (Chen and Chen, Biometrika 2008),
        SIC = D + q log(p) log(log N) (Zhu et al., PNAS 2020).
    ebic_gamma : float, default=1.0
        The gamma of EBIC. Must not be negative; 0 gives BIC.
    ridge : float, default={ridge}
        Lambda. Must not be negative. Where the signal is weak, a budget alone predicts worse than
        the lasso does; some ridge mends that, and the estimators whose names end in CV find how
        much.
"""

_CV = """
    ridge : float, sequence of float or "auto", default="auto"
        Lambdas to choose from, together with the size. Where the signal is weak, a budget alone
        predicts worse than the lasso does; some ridge mends that. "auto" tries {ridge}.
    cv : int, splitter or iterable, default=5
        Number of folds, stratified for classes; an object with `split`; or pairs of train and
        test rows.
    scoring : str, callable or None, default=None
        Any scorer of scikit-learn. None takes minus the mean of {score} on the
        samples left out.
    rule : {{"best", "one_se"}}, default="best"
        The best mean score, or the smallest model within one standard error of it.
    n_jobs : int or None, default=None
        Processes or threads for the folds, as joblib counts them.
"""

_REST = """
    standardize : bool, default=True
        Whether the ridge acts on coefficients of features with unit standard deviation, so that
        the units of the features do not matter. Features are never changed, coefficients are in
        their units, and without ridge nothing depends on this.
    fit_intercept : bool, default=True
        Whether there is an intercept; it is neither counted nor shrunk.
    always, forbidden : sequence of str or int, or None, default=None
        Features (names or positions) that are in every model and in none. The former count.
    groups : sequence of labels, mapping of names to features, or None, default=None
        Features with equal labels are chosen together. Categorical columns of a data frame are
        expanded into one column a level (but the first, where there is an intercept) and are
        groups by themselves.
    nonnegative : bool, default=False
        Whether no coefficient may be negative, from the search on.
    lower, upper : float, sequence of float, mapping of features to float, or None, default=None
        Bounds on coefficients, with 0 inside; None means none.
    solver : {"auto", "search", "exact"}, default="auto"
        "search" exchanges features until no exchange helps, and starts again from perturbations.
        "exact" goes on with branch and bound until the selected model is proven best or a limit
        is met (least squares: also with groups, several targets, or bounds on the coefficients of
        one). "auto" does so where it takes about as long as the search: up to 64 features, 100
        boxes (40 of groups, of several targets or within bounds).
    effort : {"fast", "normal", "thorough"}, default="normal"
        How many perturbations the search may try.
    max_iter : int, default=1000000
        Most boxes of `solver="exact"`. Must be at least 1.
    tol : float, default=1e-6
        Relative accuracy of certificates and of proofs. Must be positive.
    time_limit : float or None, default=None
        Seconds after which the best so far is kept, with a warning; None means no limit.
    certify : bool, "full" or "path", default=True
        True checks what costs about as much as the fit, and for losses other than least squares
        all exchanges where that takes at most some seconds. "full" runs `ellzero.verify`, which
        may take longer than the fit. "path" checks the models of all budgets, see
        `path_.certificates`. False leaves it out.
"""

_ATTRIBUTES = """
    Attributes
    ----------
    coef_ : ndarray of shape {coef}
        Coefficients, exactly 0 for features that are not chosen; float32 where X is.
    intercept_ : {intercept}
        Intercept.
    support_ : ndarray of shape (k,), int64
        Sorted positions of the nonzero coefficients.
    selected_features_ : ndarray of int64
        Sorted positions of the chosen features in X; differs from `support_` only where
        categorical columns were expanded.
    path_ : L0Path
        The models of all sizes: coefficients, objective, criteria, table, plot.
    certificate_ : Certificate or None
        What is proven of the model; None without `certify`.
    lower_bound_, gap_ : float or None
        Proven lower bound on the objective of all models of this size, and the relative distance
        to it; None where nothing is proven.
    result_ : Result
        Status, objective, time and work.
    n_iter_ : int
        Work of the search, in exchanges or scans; at least 1.
    n_features_in_ : int
        Number of features in `fit`.
    feature_names_in_ : ndarray of str
        Their names, where X has names.
"""

_CV_ATTRIBUTES = """
    cv_results_ : dict of str to ndarray
        Scores of every size and lambda on every fold: `param_n_nonzero_coefs`, `param_ridge`,
        `mean_test_score`, `std_test_score`, `rank_test_score`, `split0_test_score` and so on.
    best_score_ : float
        Mean score of the selected model.
    n_nonzero_ : int
        Selected size.
    ridge_ : float
        Selected lambda.
"""

_CLASSES = """
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
"""


def document(cls: C) -> C:
    """Put the shared text into the docstring of an estimator.

    Parameters
    ----------
    cls : type
        Estimator whose docstring holds ``[parameters]`` and ``[attributes]``.

    Returns
    -------
    type
        The same class.
    """
    name = cls.__name__
    text = cls.__doc__
    if text is None:  # python -OO
        return cls
    classifier, cv = "Classifier" in name, name.endswith("CV")
    ridge = "0.001" if classifier else "0.0"
    extra = _CLASS_WEIGHT if classifier else _EPSILON if "Huber" in name else ""
    score, grid = "squared errors", "0, 0.02, 0.1 and 0.5"
    if classifier:
        score, grid = "log losses", "0.0001, 0.001, 0.01 and 0.1"
    elif "Poisson" in name:
        score = "Poisson deviances"
    elif "Huber" in name:
        score = "Huber losses"
    middle = _CV.format(ridge=grid, score=score) if cv else _CRITERION.format(ridge=ridge)
    parameters = "\n    Parameters\n    ----------" + _BUDGET + extra[1:] + middle[1:] + _REST[1:]
    coef, intercept = "(n_features,)", "float"
    if classifier:
        coef, intercept = "(1, n_features) or (n_classes, n_features)", "ndarray"
    elif "Regressor" in name and "Poisson" not in name and "Huber" not in name:
        coef, intercept = "(n_features,) or (n_outputs, n_features)", "float or ndarray"
    attributes = _ATTRIBUTES.format(coef=coef, intercept=intercept)
    attributes += (_CLASSES[1:] if classifier else "") + (_CV_ATTRIBUTES[1:] if cv else "")
    text = text.replace("    [parameters]\n", parameters.lstrip("\n"))
    cls.__doc__ = text.replace("    [attributes]\n", attributes.lstrip("\n"))
    return cls
