"""
A first fit
===========

Ask for at most five features; get the best five, and the proof that no other five are better.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes

from ellzero import L0Regressor

X, y = load_diabetes(return_X_y=True, as_frame=True)
model = L0Regressor(5).fit(X, y)
print("features:", list(X.columns[model.support_]))

# %%
# Every coefficient outside of the support is exactly zero, not small.
figure, axes = plt.subplots()
axes.bar(X.columns, model.coef_, color=["C0" if c else "C5" for c in model.coef_])
axes.axhline(0, color="0.3", lw=0.8)
axes.set(title="Five coefficients of ten, the rest exactly zero", ylabel="coefficient")

# %%
# The certificate is recomputed from the data and the coefficients alone.
print(model.certificate_)
