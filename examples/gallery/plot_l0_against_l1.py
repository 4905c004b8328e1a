"""
Best subset against the lasso
=============================

The lasso shrinks what it keeps and keeps far more than there is. Where the signal is weak it
predicts better for that; where the signal is strong the best subset predicts better, with the
right features. Some ridge on the subset lies between the two.

Each method sees 60 samples of 100 features, 6 of which matter, and chooses its own tuning by
cross-validation.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LassoCV

from ellzero import L0Regressor, L0RegressorCV

RATIOS = (0.3, 1.0, 3.0, 10.0)
N, P, K, TRIALS = 60, 100, 6, 4
methods = {
    "lasso": LassoCV(cv=5, alphas=40),
    "best subset": L0RegressorCV(range(11), ridge=0.0),
    "best subset and ridge": L0RegressorCV(range(11)),
}
risk = {name: np.zeros((len(RATIOS), TRIALS)) for name in methods}
extra = {name: np.zeros((len(RATIOS), TRIALS)) for name in methods}
covariance = 0.5 ** np.abs(np.subtract.outer(np.arange(P), np.arange(P)))
root = np.linalg.cholesky(covariance)
for i, ratio in enumerate(RATIOS):
    for trial in range(TRIALS):
        rng = np.random.default_rng([i, trial])
        X = rng.standard_normal((N, P)) @ root.T
        coef = np.zeros(P)
        coef[rng.choice(P, K, replace=False)] = rng.choice([-1.0, 1.0], K)
        signal = coef @ covariance @ coef
        y = X @ coef + rng.standard_normal(N) * np.sqrt(signal / ratio)
        for name, method in methods.items():
            found = method.fit(X, y).coef_
            risk[name][i, trial] = (found - coef) @ covariance @ (found - coef) / signal
            extra[name][i, trial] = np.sum((found != 0) & (coef == 0))

# %%
# Left: error on new samples, relative to the signal (1 is no better than predicting the mean).
# Right: chosen features that do not matter.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True)
for marker, name in zip("osD", methods, strict=True):
    left.plot(RATIOS, risk[name].mean(1), marker=marker, label=name)
    right.plot(RATIOS, extra[name].mean(1), marker=marker, label=name)
left.set(xscale="log", title="Error on new samples", xlabel="signal to noise")
right.set(xscale="log", title="Wrongly chosen features", xlabel="signal to noise")
left.legend()

# %%
# At the strongest signal, the subset of the true size is certified: no exchange of one feature
# improves it. (A lower bound on all subsets says nothing here: there are more features than
# samples, and no ridge.)
model = L0Regressor(K).fit(X, y)
print("true support:", bool(np.array_equal(model.support_, np.flatnonzero(coef))))
print(model.certificate_.claim.name, "-", model.certificate_.claim.sentence)
