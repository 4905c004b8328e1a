"""
Bumps in noise, exactly
=======================

At most six bumps, none shorter than ten samples: among all signals that keep to these rules, the
one returned is the best, and the certificate recomputes the bound with other code.
"""

import matplotlib.pyplot as plt
import numpy as np

from ellzero import SparseSmooth
from ellzero.datasets import make_sparse_signal

y, signal, planted = make_sparse_signal(600, n_bumps=6, length=25, noise=0.8, seed=3)
free = SparseSmooth(smoothness=2.0, n_nonzero=150).fit(y)
ruled = SparseSmooth(smoothness=2.0, n_nonzero=150, n_bumps=6, min_length=10).fit(y)

# %%
figure, axes = plt.subplots(2, 1, figsize=(8.5, 5), sharex=True)
for ax, name, est, color in zip(
    axes,
    ("150 nonzeros anywhere", "150 nonzeros in at most six bumps"),
    (free, ruled),
    ("C1", "C0"),
    strict=True,
):
    ax.plot(y, ".", color="0.8", ms=3)
    ax.plot(signal, color="0.35", lw=1, label="planted")
    ax.plot(est.signal_, color=color, lw=1.8, label="estimate")
    ax.set_title(name, loc="left")
    ax.legend(loc="upper right")

# %%
for name, est in (("anywhere", free), ("six bumps", ruled)):
    runs = int(np.sum(np.diff(np.concatenate([[0], est.signal_ != 0])) == 1))
    error = np.linalg.norm(est.signal_ - signal) / np.linalg.norm(signal)
    print(f"{name:>10}: {runs} bumps, relative error {error:.3f}, {est.certificate_.claim.name}")
