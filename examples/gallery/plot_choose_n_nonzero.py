"""
How many features
=================

One fit gives the best model of every size. An information criterion or cross-validation then
chooses one: five on the diabetes data by EBIC, six by cross-validation.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

from ellzero import L0Regressor, L0RegressorCV

X, y = load_diabetes(return_X_y=True, as_frame=True)
model = L0Regressor(range(11), certify="path").fit(X, y)
path = model.path_
crossed = L0RegressorCV(range(11), ridge=0.0).fit(X, y)
print(path.to_frame().round(4).to_string(index=False))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
chosen = np.zeros((X.shape[1], len(path.budgets)))
for column, support in zip(chosen.T, path.supports, strict=True):
    column[support] = 1
left.imshow(chosen, cmap="Blues", vmax=1.4, aspect="auto", origin="lower")
left.set_yticks(range(X.shape[1]), X.columns)
left.set(title="Features of the best model of each size", xlabel="budget")
left.grid(False)
for name, style in (("ebic", "o-"), ("bic", "s-"), ("aic", "D-")):
    values = np.asarray(path.criteria[name])
    right.plot(path.budgets, values - values.min(), style, label=name.upper())
right.axvline(crossed.n_nonzero_, color="0.5", ls=":", label="cross-validation")
right.set(title="Criterion above its minimum", xlabel="budget", ylim=(-2, 60))
right.legend()

# %%
# Every model of the path is certified on its own.
for size, certificate in zip(path.budgets, path.certificates, strict=True):
    print(size, certificate.claim.name)
print("chosen:", model.support_.size, "by EBIC,", crossed.n_nonzero_, "by cross-validation")
