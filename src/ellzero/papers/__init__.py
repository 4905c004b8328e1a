"""Experiments of papers, repeated: their figures or reference figures beside ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ellzero.errors import InvalidParameterError, did_you_mean

Progress = Callable[[str, int, int | None], object]


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment of a paper.

    Parameters
    ----------
    name : str
        What `ellzero reproduce` calls it.
    title : str
        What it shows.
    paper : str
        Title of the paper and its arXiv id.
    module : str
        Where its `run` is; imported when it is needed.
    """

    name: str
    title: str
    paper: str
    module: str

    def run(
        self, *, quick: bool = False, seed: int = 0, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Run the experiment.

        Parameters
        ----------
        quick : bool, default=False
            Whether to run a smaller version, in seconds.
        seed : int, default=0
            Seed of the random starts and pairs.
        progress : callable or None, default=None
            Called as ``progress(what, done, total)``; `total` is None while it is not known.

        Returns
        -------
        dict
            A summary as `ellzero.report` shows it.
        """
        module = importlib.import_module(self.module)
        summary: dict[str, Any] = module.run(quick=quick, seed=seed, progress=progress)
        return summary


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "iht-iris",
        "Sparse one-layer networks on Iris, certified",
        "Learning a Sparse Neural Network using IHT, arXiv:2404.18414",
        "ellzero.papers.iht_iris",
    ),
    Experiment(
        "ht-escape",
        "Hard thresholding leaves unstable points",
        "Gradient Properties of Hard Thresholding Operator, arXiv:2209.08247",
        "ellzero.papers.ht_escape",
    ),
    Experiment(
        "rvsm",
        "Sparse teachers by relaxed variable splitting",
        "Convergence of a Relaxed Variable Splitting Method, arXiv:1812.05719",
        "ellzero.papers.rvsm",
    ),
    Experiment(
        "rvscgd",
        "Sparse networks of binary activations by coarse gradients",
        "Convergence of a Relaxed Variable Splitting Coarse Gradient Descent Method, "
        "arXiv:1901.09731",
        "ellzero.papers.rvscgd",
    ),
    Experiment(
        "sparse-smooth",
        "Sparse and smooth signals: convexifications beside the exact optimum",
        "Sparse and Smooth Signal Estimation, arXiv:1811.02655",
        "ellzero.papers.sparse_smooth",
    ),
    Experiment(
        "adagrad",
        "AdaGrad against gradient descent, with every control",
        "Provable Complexity Improvement of AdaGrad over SGD, arXiv:2406.04592",
        "ellzero.papers.adagrad",
    ),
    Experiment(
        "backprop",
        "Back-propagation as a product of Jacobian matrices",
        "The Backpropagation algorithm for a math student, arXiv:2301.09977",
        "ellzero.papers.backprop",
    ),
    Experiment(
        "convex-geometry",
        "Two-layer ReLU networks at their global optimum",
        "Convex Geometry and Duality of Over-parameterized Neural Networks, arXiv:2002.11219",
        "ellzero.papers.convex_geometry",
    ),
    Experiment(
        "mlp-iht",
        "Planted sparse ReLU networks, recovered by hard thresholding",
        "A Recovery Guarantee for Sparse Neural Networks, arXiv:2509.20323",
        "ellzero.papers.mlp_iht",
    ),
    Experiment(
        "tickets",
        "Sparse subnetworks that train: iterative pruning against hard thresholding",
        "On the Compression of Natural Language Models, arXiv:2112.11480",
        "ellzero.papers.tickets",
    ),
)


def find_experiment(name: str) -> Experiment:
    """Return the experiment of a name.

    Parameters
    ----------
    name : str
        One of the names in `EXPERIMENTS`.

    Returns
    -------
    Experiment
        The experiment.

    Raises
    ------
    InvalidParameterError
        If there is none of this name.

    Examples
    --------
    >>> from ellzero.papers import find_experiment
    >>> find_experiment("ht-escape").title
    'Hard thresholding leaves unstable points'
    """
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    known = [experiment.name for experiment in EXPERIMENTS]
    raise InvalidParameterError(
        f"Unknown experiment {name!r}.{did_you_mean(name, known)}",
        f"Known experiments: {', '.join(known)}.",
    )
