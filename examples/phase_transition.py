"""Where sparse signals are recovered: nonzeros per sample against samples per atom.

    OMP_NUM_THREADS=1 python examples/phase_transition.py --out phase_transition.png

Every square is the share of random signals, with k normal nonzeros among n atoms, that `recover`
finds from m independent measurements to a relative error of 1e-4. The top, as many nonzeros as
samples, is the limit of all methods; the curve is where basis pursuit stops (Donoho and Tanner; in
the limit of large n, computed here).
"""

import argparse
import math
import time

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from ellzero.sensing import recover


def share_recovered(n, m, k, trials, seed):
    """Return how many of several signals are found, as a share."""
    rng = np.random.default_rng([seed, n, m, k])
    dictionary = rng.standard_normal((m, n)) / math.sqrt(m)
    coef = np.zeros((n, trials))
    for column in coef.T:
        column[rng.choice(n, k, replace=False)] = rng.standard_normal(k)
    found = (
        recover(dictionary @ coef, dictionary, k, noise=0.0, certify=False)
        .params["coef"]
        .numpy()
        .T
    )
    error = np.linalg.norm(found - coef, axis=0) / np.linalg.norm(coef, axis=0)
    return float((error < 1e-4).mean())


def basis_pursuit_limit(delta):
    """Return the nonzeros per sample at which basis pursuit stops, for m / n = delta.

    With a share e of nonzeros, basis pursuit needs at least
    min over t of e (1 + t^2) + (1 - e) * 2 ((1 + t^2) Q(t) - t q(t)) samples per atom.
    """

    def needed(share):
        def mean(t):
            tail = (1 + t * t) * norm.sf(t) - t * norm.pdf(t)
            return share * (1 + t * t) + (1 - share) * 2 * tail

        return minimize_scalar(mean, bounds=(0, 10), method="bounded").fun

    return brentq(lambda share: needed(share) - delta, 1e-9, delta) / delta


def compute(n, steps, trials, seed):
    """Return samples per atom, nonzeros per sample, and shares of shape (steps, steps)."""
    deltas = (np.arange(steps) + 0.5) / steps
    rhos = (np.arange(steps) + 0.5) / steps
    shares = np.zeros((steps, steps))
    for j, delta in enumerate(deltas):
        m = round(delta * n)
        for i, rho in enumerate(rhos):
            shares[i, j] = share_recovered(n, m, max(round(rho * m), 1), trials, seed)
            # More nonzeros are not easier: two empty squares in a column end it.
            if i and shares[i - 1 : i + 1, j].max() == 0:
                break
    return deltas, rhos, shares


def draw(deltas, rhos, shares, n, path):
    """Draw the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    mesh = axes.pcolormesh(deltas, rhos, shares, vmin=0, vmax=1, cmap="cividis", shading="nearest")
    fine = np.linspace(0.02, 0.98, 60)
    axes.plot(fine, [basis_pursuit_limit(d) for d in fine], "w--", label="basis pursuit, theory")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="samples per atom, m / n",
        ylabel="nonzeros per sample, k / m",
        title=f"Share of signals recovered, n = {n}, normal nonzeros",
    )
    axes.legend(loc="lower right", facecolor="0.4", labelcolor="w")
    figure.colorbar(mesh, label="recovered")
    figure.savefig(path, dpi=150)


def main():
    """Compute and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="atoms")
    parser.add_argument("--steps", type=int, default=12, help="squares along each axis")
    parser.add_argument("--trials", type=int, default=4, help="signals for each square")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="phase_transition.png")
    given = parser.parse_args()
    began = time.process_time()
    deltas, rhos, shares = compute(given.n, given.steps, given.trials, given.seed)
    for delta, column in zip(deltas, shares.T, strict=True):
        half = rhos[column >= 0.5].max(initial=0.0)
        limit = basis_pursuit_limit(delta)
        print(f"m/n {delta:.2f}: half recovered up to k/m {half:.2f}; basis pursuit {limit:.2f}")
    draw(deltas, rhos, shares, given.n, given.out)
    print(f"{given.out} in {time.process_time() - began:.0f} processor seconds")


if __name__ == "__main__":
    main()
