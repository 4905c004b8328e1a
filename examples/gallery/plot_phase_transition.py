"""
When recovery happens
=====================

With m measurements of n unknowns, of which k differ from zero, there is a line in the plane of
m / n and k / m up to which `recover` finds the signal. It lies well above the line where basis
pursuit stops (Donoho and Tanner), which is drawn beside it.

``examples/phase_transition.py`` computes the same with any resolution.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from ellzero import recover

N, STEPS, TRIALS = 120, 8, 3


def share_recovered(m, k):
    """Return how many of several random signals are found."""
    rng = np.random.default_rng([m, k])
    dictionary = rng.standard_normal((m, N)) / np.sqrt(m)
    coef = np.zeros((N, TRIALS))
    for column in coef.T:
        column[rng.choice(N, k, replace=False)] = rng.standard_normal(k)
    result = recover(dictionary @ coef, dictionary, k, noise=0.0, certify=False)
    error = np.linalg.norm(result.params["coef"].numpy().T - coef, axis=0)
    return np.mean(error < 1e-4 * np.linalg.norm(coef, axis=0))


deltas = rhos = (np.arange(STEPS) + 0.5) / STEPS
shares = np.zeros((STEPS, STEPS))
for j, delta in enumerate(deltas):
    for i, rho in enumerate(rhos):
        m = round(delta * N)
        shares[i, j] = share_recovered(m, max(round(rho * m), 1))
        if i and shares[i - 1 : i + 1, j].max() == 0:
            break  # more nonzeros are not easier


def basis_pursuit_limit(delta):
    """Return k / m at which basis pursuit stops, in the limit of large n."""

    def needed(share):
        def mean(t):
            tail = (1 + t * t) * norm.sf(t) - t * norm.pdf(t)
            return share * (1 + t * t) + (1 - share) * 2 * tail

        return minimize_scalar(mean, bounds=(0, 10), method="bounded").fun

    return brentq(lambda share: needed(share) - delta, 1e-9, delta) / delta


figure, axes = plt.subplots(figsize=(6.4, 4.6))
mesh = axes.pcolormesh(deltas, rhos, shares, cmap="Blues", vmin=0, vmax=1, shading="nearest")
fine = np.linspace(0.04, 0.96, 40)
axes.plot(fine, [basis_pursuit_limit(d) for d in fine], "C1--", lw=2.5)
axes.annotate("basis pursuit stops", (0.55, 0.27), color="C1", fontsize=12)
axes.set(title="Share of signals recovered", xlim=(0, 1), ylim=(0, 1))
axes.set(xlabel="measurements per unknown, m / n", ylabel="nonzeros per measurement, k / m")
figure.colorbar(mesh)

# %%
# One signal of the blue region, with its certificate: a residual of zero is a proof.
rng = np.random.default_rng(0)
dictionary = rng.standard_normal((60, N)) / np.sqrt(60)
coef = np.zeros(N)
coef[rng.choice(N, 20, replace=False)] = rng.standard_normal(20)
result = recover(dictionary @ coef, dictionary, 20, noise=0.0)
print(result.n_nonzero, "nonzeros,", result.certificate.claim.sentence)
