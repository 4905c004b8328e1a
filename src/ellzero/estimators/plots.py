"""Plots with matplotlib, imported only when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.estimators.path import L0Path

# Features whose lines get a name; the legend of more cannot be read.
NAMED = 12


def new_axes(ax: Any, name: str) -> Any:
    """Return the axes to draw on, those of a new figure when there are none."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"`{name}` needs matplotlib, which is not installed.\n"
            "hint: Install it with `pip install 'ellzero[plot]'`."
        ) from error
    return plt.subplots()[1]


def plot_path(path: L0Path, ax: Any = None) -> Any:
    """Draw every coefficient that some model has against the budget.

    Parameters
    ----------
    path : L0Path
        The models.
    ax : matplotlib.axes.Axes or None, default=None
        Where to draw; None makes a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.
    """
    ax = new_axes(ax, "plot_path")
    used = sorted({int(j) for support in path.supports for j in support})
    coef = path.coef
    rows = coef if coef.ndim == 3 else coef[:, None, :]
    # One line a feature; with several outputs the length of its row of coefficients.
    lines = rows[:, 0, :] if rows.shape[1] == 1 else np.sqrt((rows**2).sum(axis=1))
    last = np.abs(lines[path.selected])
    named = sorted(used, key=lambda j: (-last[j], -np.abs(lines[:, j]).max(), j))[:NAMED]
    for j in used:
        label = path.name_of(j) if j in named else None
        ax.plot(path.budgets, lines[:, j], marker="o", markersize=3, label=label)
    ax.axvline(path.budgets[path.selected], color="black", linestyle=":", linewidth=1)
    ax.axhline(0.0, color="black", linewidth=0.5)
    ax.set_xlabel(f"budget ({path.unit})")
    ax.set_ylabel("coefficient" if rows.shape[1] == 1 else "length of the coefficients")
    if named:
        ax.legend(fontsize="small")
    return ax


def plot_cv(results: dict[str, Any], best: tuple[int, float], unit: str, ax: Any = None) -> Any:
    """Draw mean score and standard error of every lambda against the budget.

    Parameters
    ----------
    results : mapping of str to ndarray
        Table `cv_results_`.
    best : tuple of (int, float)
        Selected budget and lambda.
    unit : str
        What a budget counts.
    ax : matplotlib.axes.Axes or None, default=None
        Where to draw; None makes a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.
    """
    ax = new_axes(ax, "plot_cv")
    n_splits = sum(name.startswith("split") for name in results)
    for ridge in np.unique(results["param_ridge"]):
        rows = results["param_ridge"] == ridge
        error = results["std_test_score"][rows] / np.sqrt(n_splits)
        ax.errorbar(
            results["param_n_nonzero_coefs"][rows],
            results["mean_test_score"][rows],
            yerr=error,
            marker="o",
            markersize=3,
            capsize=2,
            label=f"ridge {ridge:g}",
        )
    ax.axvline(best[0], color="black", linestyle=":", linewidth=1)
    ax.set_xlabel(f"budget ({unit})")
    ax.set_ylabel("mean score on the samples left out")
    ax.legend(fontsize="small")
    return ax
