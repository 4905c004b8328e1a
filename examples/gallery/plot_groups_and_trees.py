"""
Groups of columns, one budget
=============================

Where features come in groups, such as the levels of a category, the budget counts groups: all of
a group is in the model or none of it.
"""

import matplotlib.pyplot as plt
import numpy as np

from ellzero import L0Regressor

GROUPS, SIZE, N = 12, 4, 150
rng = np.random.default_rng(0)
X = rng.standard_normal((N, GROUPS * SIZE))
labels = np.repeat(np.arange(GROUPS), SIZE)
coef = np.zeros(GROUPS * SIZE)
for group in (2, 7, 8):
    coef[labels == group] = rng.standard_normal(SIZE)
y = X @ coef + 1.5 * rng.standard_normal(N)

grouped = L0Regressor(3, groups=labels).fit(X, y)
single = L0Regressor(12).fit(X, y)
print("groups found:", sorted(set(labels[grouped.support_].tolist())))

# %%
figure, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 4.6))
rows = (
    ("planted", coef, "0.35"),
    ("three groups", grouped.coef_, "C0"),
    ("twelve single features", single.coef_, "C1"),
)
for ax, (title, values, color) in zip(axes, rows, strict=True):
    ax.bar(np.arange(GROUPS * SIZE), values, color=color)
    ax.set_title(title, loc="left", fontsize=11)
    for edge in np.arange(0, GROUPS * SIZE + 1, SIZE):
        ax.axvline(edge - 0.5, color="0.85", lw=0.8)
    ax.grid(False)

# %%
# Error against the planted coefficients, and what is certified of the groups.
for name, model in (("groups", grouped), ("single features", single)):
    print(f"{name:>16}: error {np.linalg.norm(model.coef_ - coef):.3f}")
print(grouped.certificate_)
