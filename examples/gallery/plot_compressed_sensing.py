"""
A spectrum from few samples
===========================

A sum of eight cosines, sampled at 100 of 1000 times. The dictionary is a linear map that is
never written out; the residual of zero proves that no signal of eight cosines fits better.
"""

import matplotlib.pyplot as plt
import numpy as np

from ellzero import recover
from ellzero.sensing import maps

N, M, K = 1000, 100, 8
rng = np.random.default_rng(0)
coef = np.zeros(N)
coef[rng.choice(N // 4, K, replace=False)] = rng.uniform(1, 3, K) * rng.choice([-1, 1], K)
cosines = maps.cosines(N)
series = cosines.matvec(coef)
times = np.sort(rng.choice(N, M, replace=False))
result = recover(series[times], maps.rows(cosines, times), K, noise=0.0)
found = result.params["coef"].numpy()

# %%
figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5))
top.plot(series, color="0.75", lw=1, label="series")
top.plot(times, series[times], "C1.", label="the samples given")
top.set(title="100 samples of 1000", xlim=(0, N), xlabel="time")
top.legend(loc="lower right", ncols=2, frameon=True, bbox_to_anchor=(1, 1))
bottom.vlines(np.flatnonzero(coef), 0, coef[coef != 0], color="0.75", lw=6, label="true")
bottom.plot(np.flatnonzero(found), found[found != 0], "C0o", label="recovered")
bottom.axhline(0, color="0.4", lw=0.8)
bottom.set(title="Eight frequencies, all found", xlabel="frequency", xlim=(-2, N // 4))
bottom.legend()

# %%
print("recovered to 1e-9:", bool(np.abs(found - coef).max() < 1e-9))
print("found by:", result.measures["stage"])
print(result.certificate)
