"""
Spikes behind a blur
====================

A blur is a dictionary of shifted copies of one kernel, and neighbors are nearly equal: the hard
case for pursuits. `recover` goes from method to method until the residual is explained by the
noise.
"""

import matplotlib.pyplot as plt
import numpy as np

from ellzero import recover
from ellzero.sensing import maps

N, K, NOISE = 400, 9, 0.02
rng = np.random.default_rng(4)
kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2.5) ** 2)
spikes = np.zeros(N)
places = np.sort(rng.choice(np.arange(10, N - 20, 7), K, replace=False))
spikes[places] = rng.uniform(0.7, 2.0, K)
blur = maps.convolution(kernel, N)
clean = blur.matvec(spikes)
y = clean + NOISE * rng.standard_normal(clean.shape[0])
results = {
    "recover": recover(y, blur, K, noise=NOISE),
    "OMP": recover(y, blur, K, solver="omp", noise=NOISE),
}

# %%
figure, axes = plt.subplots(3, 1, figsize=(8, 5.4), sharex=True)
axes[0].plot(y, color="0.5", lw=1)
axes[0].set_title("what is seen", loc="left")
for ax, color, (name, result) in zip(axes[1:], ("C0", "C1"), results.items(), strict=True):
    found = result.params["coef"].numpy()
    ax.vlines(places, 0, spikes[places], color="0.8", lw=6)
    ax.plot(np.flatnonzero(found), found[found != 0], "o", color=color)
    hits = len(set(places) & set(np.flatnonzero(found)))
    ax.set_title(f"{name}: {hits} of {K} places exact", loc="left")

# %%
result = results["recover"]
print("answered by:", result.measures["stage"])
print("residual explained by the noise:", result.measures["explained"])
print(result.certificate)
